"""The systems of Table 1: every published size counted, every system through its stock pipeline built small, the record, bad calls."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from apex.errors import UserError
from evaluators.result import read_record
from evaluators.systems import __main__ as command
from evaluators.systems import calls
from evaluators.systems.build import build, network
from evaluators.systems.known import PROMPTS, chosen, parts, systems
from paper_tables import published


@pytest.mark.parametrize("name", parts())
def test_every_part_has_its_published_size(name: str) -> None:
    part = parts()[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in network(part).parameters()) == part.parameters
    assert sum(p.numel() for p in network(part, small=True).parameters()) < 1e6
    assert set(part.small) <= set(part.config) | {"bos_token_id", "eos_token_id", "norm_num_groups"}, "sizes alone are changed"


def test_every_row_of_table_1_is_timed_once() -> None:
    printed = {row["method"] for row in published.load()["table1"]}
    named = [name for key, what in systems().items() if not what.compiled for name in what.published]
    assert sorted(named) == sorted(printed)


# The audit speaks of the SDXL rows, whose 0.9B are a third of the U-Net.
@pytest.mark.parametrize("name", [name for name, what in systems().items() if "unet" not in what.parts and what.published])
def test_the_denoisers_are_as_large_as_table_1_says(name: str) -> None:
    what = systems()[name]
    billions = {float(row["params_b"]) for row in published.load()["table1"] if row["method"] in what.published}
    assert all(abs(parts()[what.parts["transformer"]].parameters / 1e9 / said - 1) < 0.03 for said in billions)


@pytest.mark.parametrize("name", [name for name, what in systems().items() if not what.compiled])
def test_a_small_system_draws_through_its_stock_pipeline(name: str) -> None:
    what = systems()[name]
    pipe = build(name, small=True, device="cpu", dtype=torch.float32)
    assert type(pipe).__name__ == what.pipeline
    seen = []
    getattr(pipe, what.denoiser).register_forward_hook(lambda *_: seen.append(1))
    steps = 2
    marks = calls.Marks(pipe, "cpu")
    seconds = calls.time_calls(
        pipe, marks, PROMPTS, 2, repeats=1, warmup=1, call={"num_inference_steps": steps, "height": 64, "width": 64, **what.call}
    )
    assert seconds.shape == (1, 3) and (seconds > 0).all()
    assert len(seen) == 2 * steps * (1 + what.guided), "a guided step is two evaluations, the others one"
    told = what.call | ({"negative_prompt": [" "]} if what.guided else {})
    image = pipe(PROMPTS[:1], num_inference_steps=1, height=64, width=64, **told).images[0]
    assert image.size == (64, 64)


@pytest.mark.parametrize("rank", [32, 64])
def test_the_adapter_has_the_rank_and_stays_unmerged(rank: int) -> None:
    pipe = build(f"qwen-image-lora-r{rank}", small=True, device="cpu", dtype=torch.float32)
    found = {name: p.shape for name, p in pipe.transformer.named_parameters() if "lora_A" in name}
    plain = build("qwen-image", small=True, device="cpu", dtype=torch.float32)
    assert found and {shape[0] for shape in found.values()} == {rank}
    added = sum(p.numel() for p in pipe.transformer.parameters()) - sum(p.numel() for p in plain.transformer.parameters())
    assert added == sum(p.numel() for name, p in pipe.transformer.named_parameters() if "lora_" in name) > 0


def test_prompts_differ_within_a_batch() -> None:
    assert len(set(PROMPTS)) == len(PROMPTS) == 130


class Clockwork:
    """A pipeline whose parts turn a clock by known times."""

    def __init__(self) -> None:
        self.now, self.seen = 0.0, []
        self.vae = SimpleNamespace(decode=lambda latents: self.turn(3.0))

    def turn(self, seconds: float) -> None:
        self.now += seconds

    def encode_prompt(self, texts) -> None:
        self.turn(1.0)

    def __call__(self, texts, *, negative_prompt=None, **_) -> None:
        self.seen.append((texts, negative_prompt))
        for words in filter(None, (texts, negative_prompt)):
            self.encode_prompt(words)
        self.turn(10.0)
        self.vae.decode(None)
        self.turn(0.5)


def test_stages_are_parted_where_captions_end_and_the_codec_begins() -> None:
    pipe = Clockwork()
    marks = calls.Marks(pipe, "cpu", clock=lambda: pipe.now)
    assert calls.time_calls(pipe, marks, PROMPTS, 2, repeats=2, warmup=1, call={}).tolist() == [[1.0, 10.0, 3.5]] * 2
    assert [texts for texts, _ in pipe.seen] == [PROMPTS[0:2], PROMPTS[2:4], PROMPTS[4:6]]
    assert calls.time_calls(pipe, marks, PROMPTS, 1, repeats=1, warmup=0, call={"negative_prompt": " "}).tolist() == [[2.0, 10.0, 3.5]]
    assert pipe.seen[-1][1] == [" "]


@pytest.mark.parametrize(("limit", "counted"), [(1.0, 3), (43.5, 3), (43.6, 4), (60.0, 5), (None, 8)])
def test_a_limit_of_time_leaves_three_calls_at_least(limit: float | None, counted: int) -> None:
    pipe = Clockwork()
    marks = calls.Marks(pipe, "cpu", clock=lambda: pipe.now)
    assert len(calls.time_calls(pipe, marks, PROMPTS, 1, repeats=8, warmup=2, call={}, limit=limit)) == counted
    assert len(pipe.seen) == 2 + counted, "a call takes 14.5 seconds, the two of the warm-up are not counted"


@pytest.fixture
def call(tmp_path: Path, monkeypatch):
    def run(*arguments: object) -> Path:
        line = ["systems", "--device", "cpu", "--repeats", "2", "--warmup", "1", *map(str, arguments)]
        monkeypatch.setattr("sys.argv", line)
        command.main()
        return tmp_path

    return run


def test_a_record_a_resolution_and_number_of_steps(call, tmp_path: Path) -> None:
    call("--system", "sana-0.6b", "--nfe", 1, 2, "--out", tmp_path / "{resolution}px/nfe{nfe}.json")
    for side in (512, 1024):
        for nfe in (1, 2):
            record = read_record(tmp_path / f"{side}px/nfe{nfe}.json")
            about = record.details
            assert (record.row, record.nfe, about["resolution"], about["pixels"]) == ("sana-0.6b", nfe, side, side // 8)
            assert (about["scale"], about["network_evaluations"], about["failed"]) == ("small", nfe, "")
            assert record.value("speed/throughput_b10_sps") > 0 and record.parameters == about["parameters"]["transformer"]
            parts_of = [record.value(f"speed/stage/{stage}_b1_s") for stage in ("text", "denoise", "decode")]
            assert np.isclose(sum(parts_of), record.value("speed/latency_b1_s"), rtol=0.5)


@pytest.mark.parametrize("where", ["build", "time_calls"])
def test_what_does_not_fit_is_a_record_that_says_so(call, tmp_path: Path, monkeypatch, where: str) -> None:
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(calls, where, full)
    call("--system", "flux-schnell", "--nfe", 1, 2, "--out", tmp_path / "{resolution}-{nfe}.json")
    record = read_record(tmp_path / "1024-2.json")
    assert not record.metrics and "not fit the memory of" in record.details["failed"]


def test_a_batch_that_does_not_fit_leaves_the_others_numbers(call, tmp_path: Path, monkeypatch) -> None:
    tried = []

    def full_at_ten(pipe, marks, prompts, batch, **_):
        tried.append(batch)
        if batch == 10:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return np.full((3, 3), 0.5)

    monkeypatch.setattr(calls, "time_calls", full_at_ten)
    call("--system", "sana-0.6b", "--nfe", 1, 2, "--resolution", 512, "--out", tmp_path / "{nfe}.json")
    for nfe in (1, 2):
        record = read_record(tmp_path / f"{nfe}.json")
        names = {metric.metric for metric in record.metrics}
        assert "speed/latency_b1_s" in names and not any("_b10_" in name for name in names)
        assert record.details["failed"].startswith("64 px at batch 10 do not fit the memory of")
    assert tried == [1, 10, 1], "more steps of what did not fit are not tried"


def test_one_batch_alone_can_be_asked(call, tmp_path: Path) -> None:
    call("--system", "sana-0.6b", "--nfe", 1, "--resolution", 512, "--batch", 1, "--out", tmp_path / "one.json")
    record = read_record(tmp_path / "one.json")
    assert record.metrics and not record.details["failed"] and not any("_b10_" in metric.metric for metric in record.metrics)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--system and --out: expected both"),
        (["--system", "flux-schnel", "--out", "x.json"], "unknown system 'flux-schnel'; did you mean 'flux-schnell'"),
        (["--system", "pcm", "--out", "x.json"], r"expected \{resolution\} and \{nfe\} in it, for 6 records"),
        (["--system", "pcm", "--nfe", "0", "--out", "{resolution}{nfe}"], "--nfe: found 0"),
        (["--system", "pcm", "--limit", "0", "--out", "{resolution}{nfe}"], "--limit: found 0, expected a number above 0"),
        (["--system", "pcm", "--resolution", "500", "--out", "{resolution}{nfe}"], "--resolution 500: expected 512 or more"),
    ],
)
def test_a_bad_call_is_one_clear_line(call, arguments: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        call(*arguments)


def test_systems_are_chosen_by_name() -> None:
    assert chosen("") == list(systems()) and chosen("pcm, sana-0.6b") == ["pcm", "sana-0.6b"]
    with pytest.raises(UserError, match="unknown system 'x'"):
        chosen("pcm,x")
