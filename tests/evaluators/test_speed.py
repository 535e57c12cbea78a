"""Speed: what is timed and what is not, with a clock that the test turns; the record; bad calls."""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import apex.generator
from apex import busy
from apex.errors import UserError
from evaluators import speed
from evaluators.result import read_record
from evaluators.timing import identity, metrics, time_stages

COSTS = {"text": 0.25, "denoise": 2.0, "decode": 0.5}  # seconds a call takes on the fake clock


class Clockwork:
    """A generator whose stages turn the clock by `COSTS`, ten times as much during the first `slow` calls of each."""

    latent_shape, parameters, trainable_parameters = (4, 2, 2), 1234, 56

    def __init__(self, slow: int = 0) -> None:
        self.now, self.slow = 0.0, slow
        self.calls: dict[str, list] = {name: [] for name in COSTS}

    def clock(self) -> float:
        return self.now

    def _work(self, name: str, given) -> None:
        self.now += COSTS[name] * (10 if len(self.calls[name]) < self.slow else 1)
        self.calls[name].append(given)

    def encode(self, prompts):
        self._work("text", prompts)
        return len(prompts)

    def denoise(self, cond, noise, generator):
        assert cond == len(noise)
        self._work("denoise", noise)
        return noise

    def decode(self, latents):
        self._work("decode", latents)
        return latents


def test_each_stage_is_timed_without_the_warmup():
    machine = Clockwork(slow=3)
    seconds = time_stages(machine, ["a"], 2, repeats=4, warmup=3, device="cpu", clock=machine.clock)
    assert seconds.tolist() == [list(COSTS.values())] * 4
    assert {len(calls) for calls in machine.calls.values()} == {7}
    assert time_stages(Clockwork(slow=1), ["a"], 1, repeats=2, warmup=0, device="cpu", clock=iter(range(100)).__next__).shape == (2, 3)


def test_every_repeat_has_other_prompts_and_noise():
    machine = Clockwork()
    time_stages(machine, list("abcde"), 2, repeats=3, warmup=1, device="cpu", clock=machine.clock)
    assert machine.calls["text"] == [["a", "b"], ["c", "d"], ["e", "a"], ["b", "c"]]
    noises = machine.calls["denoise"]
    assert all(noise.shape == (2, 4, 2, 2) for noise in noises)
    assert not any(torch.equal(noises[0], other) for other in noises[1:])
    again = Clockwork()
    time_stages(again, list("abcde"), 2, repeats=3, warmup=1, device="cpu", clock=again.clock)
    assert all(map(torch.equal, noises, again.calls["denoise"])), "two systems get the same inputs"


def test_medians_and_quartiles_by_hand():
    single = np.array([[1.0, 2.0, 1.0], [1.0, 4.0, 1.0], [2.0, 5.0, 1.0], [1.0, 0.0, 1.0], [1.0, 8.0, 1.0]])  # sums 4, 6, 8, 2, 10
    many = np.full((4, 3), 5 / 3)  # 10 images in 5 seconds
    found = {m.metric: m for m in metrics(single, many, 10, 99.0)}
    latency, throughput = found["speed/latency_b1_s"], found["speed/throughput_b10_sps"]
    assert (latency.value, latency.ci_low, latency.ci_high, latency.n, latency.higher_is_better) == (6.0, 4.0, 8.0, 5, False)
    assert (throughput.value, throughput.higher_is_better) == (pytest.approx(2.0), True)
    assert found["speed/stage/denoise_b1_s"].value == 4.0
    assert found["speed/peak_memory_mb"].value == 99.0
    assert {m.interval for m in found.values()} == {"interquartile range", None}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """call(*arguments) runs the command on the smoke profile with a generator that does next to nothing."""
    (tmp_path / "run").mkdir()
    loaded = SimpleNamespace(calls=[])

    def load(run, **how):
        loaded.calls.append(how)
        return Clockwork()

    monkeypatch.setattr(apex.generator.Generator, "load", load)

    def call(*arguments: str, row: str = "apex"):
        base = ["--config", "workflows/config/smoke.yaml", "--row", row, "--run", str(tmp_path / "run"), "--nfe", "2"]
        monkeypatch.setattr(sys, "argv", ["speed", *base, "--out", str(tmp_path / "speed.json"), "--device", "cpu", *arguments])
        speed.main()
        return read_record(tmp_path / "speed.json")

    call.loaded, call.run = loaded, tmp_path / "run"
    return call


def test_the_record_names_what_was_timed(call):
    (call.run / "made.json").write_text(
        json.dumps({"row": "apex", "method": "apex", "tuning": "lora", "seed": 3, "nfe": 1, "loss": [1, 2]})
    )
    record = call("--repeats", "5")
    assert (record.row, record.tuning, record.seed, record.nfe) == ("apex", "lora", 3, 2)
    assert (record.parameters, record.trainable_parameters) == (1234, 56)
    assert record.value("speed/peak_memory_mb") == record.peak_memory_mb > 0
    named = {m.metric for m in record.metrics}
    stages = {f"speed/stage/{stage}_b1_s" for stage in COSTS}
    assert named == {"speed/latency_b1_s", "speed/throughput_b10_sps", "speed/peak_memory_mb"} | stages
    assert {m.n for m in record.metrics} == {5, 1}


def test_a_timing_on_a_busy_machine_is_repeated_and_then_says_so(call, monkeypatch, capsys):
    """Readings of a machine on which others use 1.5 cores of 2, then none."""
    every = iter([0.0, 1e6, 1e6, 1e6])
    monkeypatch.setattr(busy, "read", lambda: busy.Reading(time.monotonic(), next(every), 0.0))
    record = call("--repeats", "3")
    assert record.details["busy"] is False and record.details["load"]["attempts"] == 2
    assert record.details["load"]["others"] == 0 and "other processes" not in capsys.readouterr().err
    rising = iter(range(0, 10**8, 10**6))
    monkeypatch.setattr(busy, "read", lambda: busy.Reading(time.monotonic(), next(rising), 0.0))
    record = call("--repeats", "3")
    assert record.details["busy"] is True and record.details["load"]["attempts"] == 3
    assert "warning: speed: other processes used" in capsys.readouterr().err


def test_several_nfes_give_a_record_each(call, tmp_path):
    assert call().nfe == 2
    call("--nfe", "4", "1", "--out", str(tmp_path / "at {nfe}.json"))
    assert [read_record(tmp_path / f"at {nfe}.json").nfe for nfe in (1, 4)] == [1, 4]
    assert [how["nfe"] for how in call.loaded.calls] == [2, 1, 4], "the fewest steps first: a process's peak memory only grows"


def test_only_the_teacher_is_guided(call):
    assert call().guidance == 1.0
    record = call(row="teacher")
    assert record.guidance > 1.0 and record.method == "teacher"
    assert [how["guidance"] for how in call.loaded.calls] == [1.0, record.guidance]


@pytest.mark.parametrize(
    ("arguments", "row", "named"),
    [
        ([], "real", "a reference row has no network"),
        (["--nfe", "0"], "apex", "--nfe: found 0"),
        (["--nfe", "1", "4"], "apex", r"--nfe 1 4: 2 records need `\{nfe\}` in --out"),
        (["--nfe", "4", "4", "--out", "{nfe}.json"], "apex", "--nfe 4 4: 2 records need .* each NFE once"),
        (["--repeats", "0"], "apex", "--repeats: found 0"),
        (["--warmup", "-1"], "apex", "--warmup: found -1"),
        (["--threads", "0"], "apex", "--threads: found 0, expected a whole number of at least 1"),
        (["--device", "gpu"], "apex", "--device gpu: not usable here"),
        (["--run", "nowhere"], "apex", "nowhere: no such run"),
        (["--out", "."], "apex", "is a folder"),
    ],
)
def test_a_bad_call_is_one_clear_line(call, arguments, row, named):
    with pytest.raises(UserError, match=named):
        call(*arguments, row=row)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not JSON .* expected a JSON file in UTF-8; export the run again"),
        ("[1]", "found a JSON list, expected an object; export the run again"),
        ('{"row": "other"}', "holds row 'other'"),
        ('{"parameters": "many"}', "parameters: found 'many'"),
    ],
)
def test_a_broken_run_is_named(tmp_path, content, named):
    (tmp_path / "made.json").write_text(content)
    config = SimpleNamespace(profile="test", hash=lambda: "0")
    with pytest.raises(UserError, match=named) as caught:
        identity(tmp_path, "apex", 1, config)
    assert str(tmp_path / "made.json") in str(caught.value)
