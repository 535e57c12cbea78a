"""The training loop: it learns, it ends with its budget, and an interruption changes nothing."""

from __future__ import annotations

import copy
import csv
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from apex import loop as loop_module
from apex import train
from apex.budget import Counted
from apex.conditioning import Condition
from apex.config import fingerprint, load
from apex.data import captions
from apex.data.latents import load_cache
from apex.errors import UserError, run_command
from apex.loop import PROBE_TIMES, Loop, learning_rate, log_text
from apex.methods.apex import ApexParams
from apex.methods.base import Networks
from apex.networks import Base
from apex.pipeline import CaptionTable
from apex.seeds import torch_generator


def trained(loop) -> dict[str, Tensor]:
    return {k: p.detach().clone() for k, p in loop.trained().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def points(loop) -> tuple[Tensor, Tensor, Condition]:
    """Two noisy latents with their times and captions, where the networks are."""
    device = loop.accelerator.device
    return torch.randn(2, *loop.latents.shape[1:], device=device), torch.rand(2, device=device), loop.captions[torch.tensor([0, 1])]


def without_time(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "wall_seconds"} for row in rows]


def command(profile: Path, cache: Path, out: Path, *more: str) -> list[str]:
    return ["--config", str(profile), "--row", "row", "--cache", str(cache), "--out", str(out), *more]


def run_main(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["apex.train", *arguments])
    return run_command(train.main)


# -------------------------------------------------------------------------------------------------------- it learns


def test_the_progress_line_shows_the_loss_of_the_last_step_that_updated_the_student(make_loop, monkeypatch, capsys):
    """dmd2 updates its fake score alone in between: these steps have no loss of the student's."""
    clock = itertools.count(step=11)  # every step is one line
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(time=lambda: float(next(clock))))
    loop = make_loop("dmd2", params={"fake_updates": 2}, train={"batch_size": 4, "log_every": 1})
    loop.fit(8)
    said = re.findall(r"row seed 0: step (\d+), [\d.]+% of the budget, loss ([\d.]+|–), \d+ s left", capsys.readouterr().out)
    assert [int(step) for step, _ in said] == list(range(1, loop.step + 1))
    losses = {row["step"]: row.get("loss") for row in loop.rows}
    assert None in losses.values() and any(losses.values())
    last = "–"
    for step, shown in said:
        last = f"{losses[int(step)]:.4f}" if losses[int(step)] is not None else last
        assert shown == last


def test_flow_matching_falls_on_a_tiny_problem(make_loop):
    loop = make_loop("fm", train={"batch_size": 16, "learning_rate": 5e-3}, budget={"forward_equivalents": 1e9})
    loop.fit(120)
    losses = [row["loss"] for row in loop.rows]
    assert len(losses) == 120
    assert sum(losses[-20:]) < 0.75 * sum(losses[:20])


def test_apex_learns_the_flow_map_of_a_taught_network(make_loop, tiny_pipeline, tmp_path):
    """From a teacher that was trained a little, as in real use: every part's residual falls, and so does the force."""
    settings = {"budget": {"forward_equivalents": 1e9}, "pipeline": str(tmp_path / "taught")}
    shutil.copytree(tiny_pipeline, tmp_path / "taught")
    teacher = make_loop("fm", resume="fm", train={"batch_size": 16, "learning_rate": 5e-3}, **settings)
    teacher.fit(150)
    teacher.student.transformer.save_pretrained(tmp_path / "taught" / "transformer")
    loop = make_loop("apex", params={"rho": 0.0}, train={"batch_size": 16, "learning_rate": 1e-3}, **settings)
    loop.fit(150)
    for name in ("loss", "force", "residual/one_step", "residual/any", "residual/fake"):
        values = [row[name] for row in loop.rows]
        assert sum(values[-40:]) < 0.97 * sum(values[:40]), name


# ---------------------------------------------------------------------------------------------------- interruptions

RUNS = {
    "fm": {"method": "fm"},
    "apex": {"method": "apex"},
    "apex, learned shift": {"method": "apex", "params": {"learn_shift": True, "a": -0.5, "b": 0.1}},
    "apex, lora": {"method": "apex", "tuning": "lora"},
    "apex-eq25, no mean": {"method": "apex-eq25", "train": {"ema": 0.0, "decay": "cosine"}},
    "apex, bf16, accumulated": {"method": "apex", "train": {"precision": "bf16", "gradient_accumulation": 2, "batch_size": 2}},
    "apex, moments of 8 bits": {"method": "apex", "train": {"optimizer": "adamw8bit", "weight_decay": 0.1}},
    "lora, moments of 8 bits": {
        "method": "apex",
        "tuning": "lora",
        "lora": {"rank": 64},
        "train": {"optimizer": "adamw8bit"},
        "budget": {"forward_equivalents": 400},
    },
    "apex, checkpointing": {"method": "apex", "train": {"gradient_checkpointing": True, "ema": 1.0}},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(make_loop, plain_tensors, name: str):
    whole = make_loop(resume="whole", **RUNS[name])
    before = trained(whole)
    assert whole.fit(7) in (True, False)
    first = make_loop(resume="parts", **RUNS[name])
    assert same(trained(first), before)
    first.fit(2)
    second = make_loop(resume="parts", **RUNS[name])
    second.fit(3)
    third = make_loop(resume="parts", **RUNS[name])
    third.fit(2)
    assert third.step == whole.step == 7
    assert same(trained(third), trained(whole))
    assert not same(trained(third), before)
    assert all(torch.equal(a, b) for a, b in zip(third.ema.shadow, whole.ema.shadow, strict=True))
    assert third.ema.decay == whole.ema.decay
    for role, optimizer in whole.optimizers.items():
        for a, b in zip(optimizer.state.values(), third.optimizers[role].state.values(), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(plain_tensors(a), plain_tensors(b), strict=True))
        bits = {t.dtype for state in optimizer.state.values() for t in plain_tensors(state)}
        assert bits == {torch.float32} | ({torch.uint8} if "8 bits" in name else set())
    assert without_time(third.rows) == without_time(whole.rows)
    assert third.spent() == whole.spent()
    assert third.visibility == whole.visibility
    assert [r["wall_seconds"] for r in third.rows] == sorted(r["wall_seconds"] for r in third.rows)


def test_two_seeds_differ_and_one_repeats(make_loop):
    runs = []
    for k, seed in enumerate((0, 0, 1)):
        loop = make_loop("apex", seed=seed, resume=f"r{k}")
        loop.fit(2)
        runs.append(trained(loop))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from apex import train
from apex.loop import Loop

step = Loop.one_step

def dying(loop):
    logged = step(loop)
    if loop.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return logged

Loop.one_step = dying
train.main()
"""


@pytest.mark.slow
def test_kill_9_in_the_middle_loses_nothing(tiny_profile, tiny_cache, tmp_path, monkeypatch):
    """Killed after a step that no state has yet; the same command then ends with the uninterrupted run's files."""
    profile = tiny_profile(rows={"row": {"method": "apex"}}, methods=["row"], train={"checkpoint_every": 1e-9})
    out = tmp_path / "killed" / "seed0"
    script = KILLED.format(path=sys.path)
    done = subprocess.run([sys.executable, "-c", script, *command(profile, tiny_cache, out)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    state = out.parent / f".resume-seed0-{load(profile).run_hash('row')}" / "state.pt"
    assert torch.load(state, weights_only=True)["step"] == 4

    for folder in ("killed", "whole"):
        assert run_main(monkeypatch, *command(profile, tiny_cache, tmp_path / folder / "seed0")) == 0
    made = [json.loads((tmp_path / f / "seed0" / "made.json").read_text()) for f in ("killed", "whole")]
    assert made[0]["training"]["steps"] == made[1]["training"]["steps"] > 5
    assert made[0]["training"]["passes"] == made[1]["training"]["passes"]
    for name in ("transformer", "one_step/transformer"):
        files = [tmp_path / f / "seed0" / name / "diffusion_pytorch_model.safetensors" for f in ("killed", "whole")]
        assert same(load_file(files[0]), load_file(files[1]))
    logs = [list(csv.DictReader((tmp_path / f / "seed0" / "log.csv").open())) for f in ("killed", "whole")]
    assert without_time(logs[0]) == without_time(logs[1])


def test_a_finished_run_that_is_asked_for_again_trains_no_more(make_loop):
    loop = make_loop("fm")
    assert loop.fit() is True
    again = make_loop("fm")
    assert again.fit() is True
    assert again.step == loop.step and same(trained(again), trained(loop))


# ------------------------------------------------------------------------------------------------ captions on disk


@pytest.fixture
def on_disk(tiny_pipeline, tiny_cache, tmp_path, monkeypatch):
    """on_disk("fp32"): the captions' embeddings as files. No text encoder is loaded after that."""

    def make(dtype: str) -> Path:
        captions.build(tiny_pipeline, load_cache(tiny_cache).captions, tmp_path / dtype, dtype=dtype)
        monkeypatch.setattr("apex.pipeline.TextPath", lambda *_: pytest.fail("the text encoder is loaded"))
        return tmp_path / dtype

    return make


DISK = {
    "apex": {"method": "apex"},
    "apex, lora, bf16": {"method": "apex", "tuning": "lora", "train": {"precision": "bf16", "frozen": "bf16"}},
    "regression, pairs": {"method": "regression"},
    "dmd2, codec": {"method": "dmd2"},
}


@pytest.mark.parametrize("name", DISK)
def test_captions_on_disk_train_the_same_weights_without_a_text_encoder(make_loop, on_disk, tiny_cache, monkeypatch, name: str):
    """As a table of captions that were encoded one by one, bit for bit."""
    captions = load_cache(tiny_cache).captions
    with monkeypatch.context() as patch:
        patch.setattr(loop_module, "CaptionTable", partial(CaptionTable, batch=1))
        memory = make_loop(resume="memory", **DISK[name])
    memory.fit(3)
    settings = DISK[name] | {"data": {"scenes": 48, "embeddings": "disk"}}
    folder = on_disk(settings.get("train", {}).get("frozen", "fp32"))
    disk = make_loop(resume="disk", embeddings=folder, **settings)
    disk.fit(3)
    assert len(disk.captions.lengths) == len(captions) + 1 and disk.hash != memory.hash
    assert same(trained(disk), trained(memory)) and without_time(disk.rows) == without_time(memory.rows)
    assert disk.visibility == memory.visibility and disk.spent() == memory.spent() and disk.unit == memory.unit


def test_a_run_with_captions_on_disk_needs_them_and_no_other_does(tiny_profile, tiny_cache, tmp_path, monkeypatch, capsys):
    for kind, more, found in (
        ("disk", [], "none with data.embeddings disk, expected a folder that python -m apex.data.embeddings made"),
        ("memory", ["--embeddings", "x"], "x with data.embeddings memory, expected none, or data.embeddings disk"),
        ("disk", ["--embeddings", str(tmp_path)], "made.json: not found"),
    ):
        profile = tiny_profile(rows={"row": {"method": "fm"}}, methods=["row"], data={"embeddings": kind})
        assert run_main(monkeypatch, *command(profile, tiny_cache, tmp_path / "out", *more)) == 2
        error = capsys.readouterr().err
        assert found in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- what goes wrong


def finite_state(path: Path) -> dict:
    state = torch.load(path, weights_only=True)
    assert all(torch.isfinite(v).all() for v in state["trained"].values())
    assert all(torch.isfinite(v).all() for v in state["ema"]["shadow"])
    return state


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_last_good_state(make_loop, tmp_path, monkeypatch, bad: float):
    loop = make_loop("fm", train={"checkpoint_every": 1e-9})
    losses = loop.method.losses

    def broken(batch, nets, step):
        out = losses(batch, nets, step)
        if step == 4:
            out.losses["student"] = out.losses["student"] * bad
        return out

    monkeypatch.setattr(loop.method, "losses", broken)
    with pytest.raises(UserError, match=f"row row, seed 0: the loss of student is {bad} at step 4") as error:
        loop.fit(10)
    assert "\n" not in str(error.value)
    assert str(tmp_path / "resume") in str(error.value)
    assert finite_state(tmp_path / "resume" / "state.pt")["step"] == 4

    mended = make_loop("fm", train={"checkpoint_every": 1e-9})
    mended.fit(3)
    whole = make_loop("fm", resume="whole")
    whole.fit(7)
    assert same(trained(mended), trained(whole))


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(make_loop, tmp_path):
    loop = make_loop("fm", train={"checkpoint_every": 1e-9})
    loop.fit(2)
    before = trained(loop)
    parameter = loop.student.transformer.proj_out.weight
    handle = parameter.register_hook(lambda g: g * math.inf)
    with pytest.raises(UserError, match=r"the gradient norm of student is (inf|nan) at step 2"):
        loop.fit(5)
    handle.remove()
    assert same(trained(loop), before)
    assert finite_state(tmp_path / "resume" / "state.pt")["step"] == 2


def test_a_loss_that_explodes_stops(make_loop):
    loop = make_loop("fm")
    for _ in range(100):
        loop.check(2.0, "student")
    loop.check(1999.0, "student")
    with pytest.raises(UserError, match=r"the loss exploded to 2\.1e\+03"):
        loop.check(2100.0, "student")


def test_the_message_names_no_state_that_is_not_there(make_loop, tmp_path, monkeypatch):
    loop = make_loop("fm")
    monkeypatch.setattr(loop.method, "losses", lambda *_: (_ for _ in ()).throw(AssertionError))
    with pytest.raises(UserError) as error:
        loop.check(math.nan, "student")
    assert (tmp_path / "resume" / "state.pt").exists() or "last good state is kept" not in str(error.value)


def test_a_checkpoint_of_another_configuration_is_refused(make_loop, tmp_path):
    make_loop("fm", resume="a").fit(1)
    for other in ({"method": "fm", "train": {"learning_rate": 1e-4}}, {"method": "apex"}, {"method": "fm", "params": {"time_mean": 1.0}}):
        loop = make_loop(resume="a", **other)
        before = trained(loop)
        with pytest.raises(UserError, match=r"checkpoint of another configuration .*remove the folder to start again") as error:
            loop.fit(1)
        assert "\n" not in str(error.value)
        assert same(trained(loop), before) and loop.step == 0


def test_sigterm_saves_the_state_and_the_next_call_ends_as_if_nothing_had_been(make_loop, monkeypatch, tmp_path):
    whole = make_loop("fm", resume="whole")
    whole.fit(5)
    loop = make_loop("fm", resume="a")
    step = loop.one_step

    def third_is_interrupted() -> dict[str, float]:
        if loop.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step()

    monkeypatch.setattr(loop, "one_step", third_is_interrupted)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UserError, match=r"^row row, seed 0: stopped by SIGTERM at step 3; the state is saved in .*a: run the same command"):
        loop.fit()
    assert signal.getsignal(signal.SIGTERM) == before
    again = make_loop("fm", resume="a")
    again.fit(2)
    assert again.step == 5 and same(trained(again), trained(whole)) and without_time(again.rows) == without_time(whole.rows)


def test_a_run_is_not_continued_by_another_number_of_processes(make_loop, tmp_path):
    make_loop("fm", resume="a").fit(1)
    file = tmp_path / "a" / "state.pt"
    state = torch.load(file, weights_only=True)
    assert state["processes"] == 1
    torch.save(state | {"processes": 2}, file)
    loop = make_loop("fm", resume="a")
    with pytest.raises(UserError, match=r"state\.pt: found the state of a run of 2 processes, expected 1: start it with as many"):
        loop.fit(1)
    del state["processes"]  # an earlier version's
    torch.save(state, file)
    assert not make_loop("fm", resume="a").fit(1)


def test_a_checkpoint_of_another_seed_is_refused_and_says_so(make_loop):
    make_loop("fm", resume="a").fit(1)
    with pytest.raises(UserError, match="seed"):
        make_loop("fm", resume="a", seed=1).fit(1)


def test_keys_that_change_no_weight_do_not_refuse_a_checkpoint(make_loop):
    make_loop("fm").fit(1)
    loop = make_loop("fm", train={"checkpoint_every": 5.0, "log_every": 3}, nfe=[1])
    loop.fit(1)
    assert loop.step == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "another dictionary"])
def test_a_damaged_checkpoint_is_one_clear_line(make_loop, tmp_path, damage: str):
    make_loop("fm").fit(1)
    path = tmp_path / "resume" / "state.pt"
    whole = path.read_bytes()
    if damage == "another dictionary":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(
        UserError, match=r"state\.pt: the checkpoint cannot be read .*it is damaged: remove it to start this run again"
    ) as error:
        make_loop("fm").fit(1)
    assert "\n" not in str(error.value)


def test_a_checkpoint_holds_no_code(make_loop, tmp_path):
    """torch.load with weights_only: tensors and plain values."""
    make_loop("apex").fit(1)
    state = torch.load(tmp_path / "resume" / "state.pt", weights_only=True)
    assert state["format"] == 1 and state["seed"] == 0


def test_a_full_disk_keeps_the_last_state(make_loop, tmp_path, monkeypatch, capsys):
    loop = make_loop("fm")
    loop.fit(2)
    whole = (tmp_path / "resume" / "state.pt").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        assert run_command(lambda: loop.fit(1)) == 2
    assert "found a full disk" in capsys.readouterr().err
    assert (tmp_path / "resume" / "state.pt").read_bytes() == whole
    assert not [p for p in (tmp_path / "resume").iterdir() if p.name.startswith(".")]


def test_an_output_that_cannot_be_written_is_one_line(tiny_profile, tiny_cache, tmp_path, monkeypatch, capsys):
    profile = tiny_profile(rows={"row": {"method": "fm"}}, methods=["row"], budget={"forward_equivalents": 10})
    (tmp_path / "file").write_text("in the way")
    assert run_main(monkeypatch, *command(profile, tiny_cache, tmp_path / "file" / "seed0")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_an_unknown_row_and_an_unsupported_tuning_are_named(make_loop, tiny_profile, tiny_cache, tmp_path, monkeypatch, capsys):
    profile = tiny_profile()
    assert run_main(monkeypatch, "--config", str(profile), "--row", "apx", "--cache", str(tiny_cache), "--out", str(tmp_path / "o")) == 2
    assert "unknown row 'apx'; did you mean 'apex'?" in capsys.readouterr().err
    monkeypatch.setattr("apex.methods.fm.FlowMatching.tunings", ("full",))
    with pytest.raises(UserError, match="row row: method fm does not support tuning 'lora'; expected one of full"):
        make_loop("fm", tuning="lora")


@pytest.mark.parametrize("method", ["scm", "sana-sprint"])
def test_the_student_alone_gets_another_time_scale(make_loop, method: str):
    loop = make_loop(method, params={"time_scale": 0.01})
    assert loop.student.transformer.config.timestep_scale == pytest.approx(0.01)
    assert loop.teacher.transformer.config.timestep_scale == 1.0
    with pytest.raises(UserError, match=r"row row: time_scale: found 0.01 with tuning 'lora', expected 1: the teacher is the student"):
        make_loop(method, params={"time_scale": 0.01}, tuning="lora")


# ------------------------------------------------------------------------------------------------------- the budget


def test_training_ends_at_the_first_step_that_reaches_the_budget(make_loop):
    loop = make_loop("fm", budget={"forward_equivalents": 100})
    assert loop.fit() is True
    spent = [row["forward_equivalents"] for row in loop.rows]
    per_step = loop.spent() / loop.step
    assert loop.spent() >= 100 > loop.spent() - per_step
    assert spent[-1] == round(loop.spent())
    cost = loop.ledger.costs
    assert math.isclose(loop.spent(), 4 * loop.step * cost["student"].training / cost["teacher"].forward, rel_tol=1e-12)
    assert 2.0 < cost["student"].training / cost["teacher"].forward < 3.5


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("method", ["apex", "apex-eq25", "fm"])
def test_every_pass_of_every_network_is_in_the_ledger(make_loop, method: str, tuning: str):
    """Samples counted by hooks on the transformers themselves, with the gradient's state."""
    loop = make_loop(method, tuning=tuning, train={"batch_size": 8})
    seen = {"training": 0, "forward": 0}

    def count(_module, inputs, _output) -> None:
        seen["training" if torch.is_grad_enabled() else "forward"] += len(inputs[0])

    teacher = loop.nets.teacher.network
    # Costs are measured when first asked for: now, before the hooks.
    for name in ("student", "teacher", "ema"):
        assert loop.ledger.costs[name]["forward"] > 0
    assert loop.ledger.costs["student"]["training"] > 0
    for transformer in {loop.student.transformer, getattr(teacher, "transformer", loop.student.transformer)}:
        transformer.register_forward_hook(count)
    loop.restore()
    for _ in range(3):
        loop.one_step()
    passes = {kind: {k: n for k, n in book.items() if k != "shift"} for kind, book in loop.ledger.passes.items()}
    assert {k: sum(v.values()) for k, v in passes.items()} == {k: n for k, n in seen.items() if k in passes}
    assert passes["training"] == {"student": 24 * (2 if method == "apex-eq25" else 1)}
    if method == "apex":
        assert passes["forward"]["student"] == 3 * (2 + 4)
        assert passes["forward"]["teacher"] == 3 * 8
        assert 3 * 2 <= passes["forward"]["ema"] <= 3 * 6
    else:
        assert passes.get("forward", {}) == ({"student": 24} if method == "apex-eq25" else {})


def test_guidance_and_recursion_cost_what_is_used(make_loop):
    loop = make_loop("apex", params={"rho": 0.0, "order": 2, "recursion_network": "online"}, train={"batch_size": 8})
    loop.one_step()
    forward = loop.ledger.passes["forward"]
    assert "teacher" not in forward and "ema" not in forward
    assert (forward["student"] - 6) % 2 == 0


# ---------------------------------------------------------------------------------------------------- learning rate


def test_warm_up_and_decay(make_loop):
    def rate(decay: str, step: int, progress: float, warmup: int = 10) -> float:
        loop_config = run.model_copy(update={"train": run.train.model_copy(update={"decay": decay, "warmup_steps": warmup})})
        return learning_rate(loop_config, step, progress) / run.train.learning_rate

    run = make_loop("fm").run
    assert rate("none", 0, 0.0) == pytest.approx(0.1)
    assert rate("none", 9, 0.5) == rate("none", 500, 1.0) == 1.0
    assert rate("none", 0, 0.0, warmup=0) == 1.0
    assert rate("linear", 99, 0.25) == pytest.approx(0.75)
    assert rate("sqrt", 99, 0.75) == pytest.approx(0.5)
    assert rate("cosine", 99, 0.5) == pytest.approx(0.5)
    for decay in ("linear", "sqrt", "cosine"):
        assert rate(decay, 99, 0.0) == pytest.approx(1.0)
        assert rate(decay, 99, 1.0) == pytest.approx(0.0, abs=1e-12)
        assert rate(decay, 99, 1.2) == pytest.approx(0.0, abs=1e-12)  # the last step overshoots


def test_gradients_are_clipped_to_their_norm(make_loop, monkeypatch):
    norms = {}
    for limit in (0.0, 0.5):
        loop = make_loop("fm", resume=f"r{limit}", train={"max_grad_norm": limit})
        seen = []
        optimizer = loop.optimizers["student"]
        optimizer.register_step_pre_hook(
            lambda o, *_, seen=seen: seen.append(float(torch.cat([p.grad.flatten() for p in o.param_groups[0]["params"]]).norm()))
        )
        norms[limit] = (loop.one_step()["grad_norm"], seen[0])
    assert norms[0.0][0] == pytest.approx(norms[0.5][0], rel=1e-5)  # the log has the norm before the clip
    assert norms[0.0][1] == pytest.approx(norms[0.0][0], rel=1e-4) and norms[0.0][1] > 0.6
    assert norms[0.5][1] == pytest.approx(0.5, rel=1e-3)


def test_accumulated_micro_batches_are_averaged(make_loop):
    """fm draws per micro-batch: the gradient of two of four is the mean of theirs."""
    loop = make_loop("fm", train={"gradient_accumulation": 2, "max_grad_norm": 0.0})
    grads = []
    loop.optimizers["student"].register_step_pre_hook(lambda o, *_: grads.extend(p.grad.clone() for p in o.param_groups[0]["params"]))
    expected = None
    for micro in (0, 1):
        loss = loop.method.losses(loop.batch(micro), loop.nets, 0).losses["student"]
        part = torch.autograd.grad(loss, loop.optimizers["student"].param_groups[0]["params"])
        expected = part if expected is None else [(a + b) / 2 for a, b in zip(expected, part, strict=True)]
    assert not torch.equal(loop.batch(0).x0, loop.batch(1).x0)
    loop.one_step()
    for g, e in zip(grads, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- the networks


def test_the_teacher_and_the_text_encoder_stay_as_they_were(make_loop, tiny_pipeline):
    loop = make_loop("apex", train={"learning_rate": 1e-2})
    teacher = loop.nets.teacher.network
    before = copy.deepcopy(teacher.state_dict())
    captions = loop.captions.embeds.clone()
    assert not loop.captions.embeds.requires_grad
    loop.fit(3)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert torch.equal(loop.captions.embeds, captions)
    assert {k.split(".")[0] for k in loop.trained()} == {"student", "shift"}
    assert float(loop.extra["shift"].a) == -1.0 and not loop.extra["shift"].a.requires_grad


def test_a_lora_run_trains_adapters_and_its_teacher_is_the_base(make_loop):
    loop = make_loop("apex", tuning="lora", train={"learning_rate": 1e-2})
    x, t, cond = points(loop)
    with torch.no_grad():
        base = loop.student(x, t, cond)
        frozen = {k: v.clone() for k, v in loop.student.state_dict().items() if "lora_" not in k}
    loop.fit(3)
    with torch.no_grad():
        torch.testing.assert_close(loop.nets.teacher(x, t, cond), base, rtol=1e-6, atol=1e-7)
        assert float((loop.student(x, t, cond) - base).abs().max()) > 1e-4
    assert all("lora_" in k for k in loop.trained() if k.startswith("student."))
    assert all(torch.equal(v, frozen[k]) for k, v in loop.student.state_dict().items() if k in frozen)
    assert loop.parameters["trainable"] < 0.5 * loop.parameters["student"]


def test_the_adapter_is_on_again_after_a_failing_teacher(make_loop):
    loop = make_loop("fm", tuning="lora", train={"learning_rate": 1e-2})
    loop.fit(2)
    x, t, cond = points(loop)
    with torch.no_grad():
        before = loop.student(x, t, cond)
        with pytest.raises(AttributeError):
            Base(loop.student)(x, t, None)
        assert torch.equal(loop.student(x, t, cond), before)
    assert all(p.requires_grad for k, p in loop.student.named_parameters() if "lora_" in k)


def test_the_recursion_queries_the_running_mean(make_loop):
    loop = make_loop("apex", train={"ema": 0.9})
    loop.fit(3)
    x, t, cond = points(loop)
    with torch.no_grad():
        mean = loop.nets.ema(x, t, cond, 0 * t)
        online = loop.nets.student(x, t, cond, 0 * t)
        for p, s in zip([p for p in loop.student.parameters() if p.requires_grad], loop.ema.shadow, strict=True):
            p.copy_(s)
        assert torch.equal(loop.student(x, t, cond, 0 * t), mean)
    assert not torch.equal(mean, online)


def test_with_decay_one_the_recursion_is_online(make_loop):
    loop = make_loop("apex", train={"ema": 1.0, "learning_rate": 1e-2})
    loop.fit(3)
    x, t, cond = points(loop)
    with torch.no_grad():
        recursion = loop.nets.named(loop.method.params.recursion_network)
        assert torch.equal(recursion(x, t, cond, 0 * t), loop.student(x, t, cond, 0 * t))


def test_a_learned_shift_moves_and_is_recorded(make_loop, tmp_path):
    loop = make_loop("apex", params={"learn_shift": True, "a": -0.5, "b": 0.25}, train={"learning_rate": 1e-2})
    assert {"shift.a", "shift.b"} <= set(loop.trained())
    loop.fit(3)
    loop.export(tmp_path / "out")
    shift = json.loads((tmp_path / "out" / "made.json").read_text())["shift"]
    assert shift == {"a": float(loop.extra["shift"].a.detach()), "b": float(loop.extra["shift"].b.detach())}
    assert shift["a"] != -0.5 and shift["b"] != 0.25


def test_the_record_says_which_prompts_are_training_captions(make_loop, tiny_cache, tmp_path):
    """Samples are counted, not captions: several have the same."""
    cache = load_cache(tiny_cache)
    common = int(cache.caption_index.mode().values)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in (cache.captions[common].upper() + ".", "no caption at all")))
    sets = {"own": {"file": str(prompts)}, "gone": {"file": str(tmp_path / "gone.jsonl")}}
    loop = make_loop("fm", prompts={"sets": sets}, splits={"own": ["geneval"], "gone": ["geneval"]}, evaluators=["geneval"])
    loop.fit(1)
    loop.export(tmp_path / "out")
    found = json.loads((tmp_path / "out" / "made.json").read_text())["prompts_seen"]
    assert found.keys() == {"own"}
    assert (found["own"]["prompts"], found["own"]["prompts_seen"], found["own"]["samples"]) == (2, 1, len(cache.latents))
    assert found["own"]["samples_seen"] == int((cache.caption_index == common).sum()) > 1
    prompts.write_text("no JSON\n")
    with pytest.raises(UserError, match=r"prompts\.jsonl, line 1"):  # before a step is trained
        make_loop("fm", prompts={"sets": sets}, splits={"own": ["geneval"]}, evaluators=["geneval"])


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_qwen_family_trains_through_the_same_loop(make_loop, qwen_pipeline, tuning: str, tmp_path):
    loop = make_loop("apex", tuning=tuning, pipeline=str(qwen_pipeline), train={"learning_rate": 1e-2})
    assert loop.student.family == "qwen_image"
    before = trained(loop)
    loop.fit(2)
    moved = [k for k, v in trained(loop).items() if not torch.equal(v, before[k])]
    assert any("lora_B" in k if tuning == "lora" else "target_embedder" in k for k in moved)
    loop.export(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "made.json").read_text())["backbone"] == "qwen_image"


# ------------------------------------------------------------------------------------------------- log and probe


def test_the_log_has_one_row_a_step_with_named_columns(make_loop, tmp_path):
    loop = make_loop("apex", train={"log_every": 2, "batch_size": 8})
    loop.fit(4)
    rows = list(csv.DictReader((tmp_path / "resume" / "log.csv").open()))
    assert [int(r["step"]) for r in rows] == [2, 4]
    parts = {f"residual/{p}" for p in ("one_step", "near", "any", "fake")}
    assert set(rows[0]) == {
        "step", "wall_seconds", "forward_equivalents", "learning_rate", "loss", "base", "rectification", "force", "grad_norm",
    } | parts  # fmt: skip
    assert all(math.isfinite(float(v)) for row in rows for v in row.values())
    assert float(rows[1]["wall_seconds"]) >= float(rows[0]["wall_seconds"]) > 0


def test_a_column_that_a_step_did_not_report_is_empty():
    rows = list(csv.DictReader(log_text([{"step": 1, "loss": 0.5}, {"step": 2, "force": 1.0}]).splitlines()))
    assert rows == [{"step": "1", "loss": "0.5", "force": ""}, {"step": "2", "loss": "", "force": "1.0"}]
    assert log_text([]) == "step\n"


@pytest.mark.parametrize(
    ("params", "verdict"),
    [({"a": 1.0, "b": 0.0}, "too weak"), ({"a": 0.5, "b": 0.0}, "too weak"), ({"a": -1.0}, "shift visibility"), ({"b": 50.0}, "strong")],
    ids=str,
)
def test_the_shift_is_probed_before_training(make_loop, capsys, params: dict, verdict: str):
    loop = make_loop("apex", params=params)
    loop.fit(1)
    assert verdict in capsys.readouterr().out
    assert list(loop.visibility) == list(PROBE_TIMES)
    assert all(math.isfinite(v) for v in loop.visibility.values())
    again = make_loop("apex", params=params)
    again.fit(1)
    assert "shift visibility" not in capsys.readouterr().out  # once, before the first step
    assert again.visibility == loop.visibility


def test_a_method_without_a_shift_has_no_probe(make_loop, capsys):
    loop = make_loop("fm")
    loop.fit(1)
    assert loop.visibility == {} and "visibility" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ several processes


PROCESS = """
import sys
sys.path[:0] = {path!r}
import torch
from apex.config import load
from apex.data.latents import load_cache
from apex.loop import Loop
from pathlib import Path

torch.set_num_threads(1)
profile, cache, out = sys.argv[1:4]
config = load(profile)
for row in config.rows:
    folder = Path(out) / row
    loop = Loop(config.run_config(row), config.run_hash(row), 0, load_cache(Path(cache)), folder, config)
    rank = loop.accelerator.process_index
    loop.fit(3)
    state = {{"trained": {{k: p.detach() for k, p in loop.trained().items()}}, "step": loop.step, "spent": loop.spent()}}
    torch.save(state, Path(out) / f"{{row}}-{{rank}}.pt")
"""


@pytest.fixture(scope="module")
def two_processes(tiny_pipeline, tiny_cache, processes, tmp_path_factory):
    """The states of two processes after three steps: of `fm`, and of `apex` with a learned shift."""
    import yaml

    out = tmp_path_factory.mktemp("two")
    profile = {
        "profile": "two",
        "pipeline": str(tiny_pipeline),
        "methods": ["fm", "shift"],
        "budget": {"forward_equivalents": 1e6},
        "train": {"batch_size": 4, "warmup_steps": 2, "log_every": 1, "learning_rate": 2e-3, "max_grad_norm": 0.0},
        "rows": {"fm": {"method": "fm"}, "shift": {"method": "apex", "params": {"learn_shift": True}}},
    }
    (out / "p.yaml").write_text(yaml.safe_dump(profile))
    done = processes(PROCESS.format(path=sys.path), [str(out / "p.yaml"), str(tiny_cache), str(out)])
    assert [d.returncode for d in done] == [0, 0], "\n".join(d.stdout for d in done)
    return out


def state_of(two_processes, row: str, rank: int) -> dict:
    return torch.load(two_processes / f"{row}-{rank}.pt", weights_only=True)


@pytest.mark.slow
def test_two_processes_hold_the_same_weights_after_averaging_their_gradients(two_processes, make_loop):
    """Each takes its slice of one global batch and its own noise; the step is along the mean of the two gradients."""
    a, b = (state_of(two_processes, "fm", rank) for rank in (0, 1))
    assert same(a["trained"], b["trained"]) and a["step"] == b["step"] == 3

    alone = make_loop("fm", train={"gradient_accumulation": 2, "max_grad_norm": 0.0})

    def batch_of(rank: int):
        """What the process of this rank draws (`Loop.batch`)."""
        accelerator, run = alone.accelerator, alone.run
        alone.accelerator = type("Two", (), {"process_index": rank, "num_processes": 2, "device": accelerator.device})()
        alone.run = run.model_copy(update={"train": run.train.model_copy(update={"gradient_accumulation": 1})})
        try:
            return Loop.batch(alone, 0)
        finally:
            alone.accelerator, alone.run = accelerator, run

    alone.batch = batch_of
    alone.fit(3)
    for k, v in trained(alone).items():
        torch.testing.assert_close(a["trained"][k], v, rtol=1e-3, atol=2e-5, msg=k)


BROKEN = PROCESS.replace(
    "    loop.fit(3)",
    """
    def refuse(gradient):
        raise RuntimeError("it has no deterministic kernel")
    middle = [p for p in loop.student.parameters() if p.requires_grad][5].register_hook(refuse)
    try:
        loop.trial()
        raise SystemExit("the trial should have failed")
    except RuntimeError as error:
        assert "deterministic" in str(error), error
    middle.remove()
    loop.fit(3)""",
)


@pytest.mark.slow
def test_a_trial_that_fails_leaves_no_trace_in_two_processes(two_processes, tiny_cache, processes, tmp_path):
    """In the middle of a backward pass: the next one's gradients are averaged as if it had not been."""
    import yaml

    profile = yaml.safe_load((two_processes / "p.yaml").read_text())
    del profile["rows"]["shift"]
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(profile | {"methods": ["fm"]}))
    done = processes(BROKEN.format(path=sys.path), [str(tmp_path / "p.yaml"), str(tiny_cache), str(tmp_path)])
    assert [d.returncode for d in done] == [0, 0], "\n".join(d.stdout for d in done)
    for rank in (0, 1):
        assert same(state_of(tmp_path, "fm", rank)["trained"], state_of(two_processes, "fm", rank)["trained"])


@pytest.mark.slow
def test_two_processes_agree_on_what_is_spent(two_processes):
    a, b = (state_of(two_processes, "shift", rank) for rank in (0, 1))
    assert a["spent"] == b["spent"]


@pytest.mark.slow
def test_two_processes_hold_one_learned_shift(two_processes):
    a, b = (state_of(two_processes, "shift", rank)["trained"] for rank in (0, 1))
    assert same({k: v for k, v in a.items() if "student" in k}, {k: v for k, v in b.items() if "student" in k})
    assert a["shift.a"] == b["shift.a"]


# ----------------------------------------------------------------------------------------------------------- export


def test_the_command_exports_a_run_and_says_what_it_took(tiny_profile, tiny_cache, tmp_path, monkeypatch, capsys):
    profile = tiny_profile(rows={"row": {"method": "apex"}}, methods=["row"])
    out = tmp_path / "runs" / "seed0"
    assert run_main(monkeypatch, *command(profile, tiny_cache, out, "--max-steps", "2")) == 0
    assert not out.exists()  # stopped early: the state is saved, nothing is exported
    assert run_main(monkeypatch, *command(profile, tiny_cache, out)) == 0
    said = capsys.readouterr().out
    assert "continuing row seed 0 from step 2" in said and '"steps"' in said

    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    weights = "diffusion_pytorch_model.safetensors"
    assert files == {
        "transformer/config.json",
        f"transformer/{weights}",
        "one_step/transformer/config.json",
        f"one_step/transformer/{weights}",
        "sampling.json",
        "made.json",
        "log.csv",
        "README.md",
    }
    made, config = json.loads((out / "made.json").read_text()), load(profile)
    assert (made["method"], made["row"], made["seed"], made["backbone"], made["tuning"]) == ("apex", "row", 0, "sana", "full")
    assert made["run_hash"] == config.run_hash("row") and made["config_hash"] == config.hash()
    assert made["teacher"] == fingerprint(config.pipeline_path) and made["training"]["load"]["cores"] >= 1
    assert (
        made["training"]["forward_equivalents"] >= 200 and made["training"]["steps"] == len((out / "log.csv").read_text().splitlines()) - 1
    )
    assert made["parameters"] == made["trainable_parameters"] > 1000
    assert made["training"]["passes"]["training"]["student"] == 4 * made["training"]["steps"]
    assert made["params"] == ApexParams().model_dump() and made["versions"]["torch"] and made["hardware"] and made["git_commit"]
    assert len(made["shift_visibility"]) == len(PROBE_TIMES)
    recipe = json.loads((out / "sampling.json").read_text())
    assert recipe["mode"] == "few" and recipe["sigmas"]["2"] == [1.0, 0.6] and recipe["target_time"] == "embedding"


@pytest.mark.parametrize(("decay", "averaged"), [(0.9, True), (0.0, False), (1.0, False)])
def test_the_running_mean_is_exported_where_one_is_kept(make_loop, tmp_path, decay: float, averaged: bool):
    loop = make_loop("fm", train={"ema": decay, "learning_rate": 1e-2})
    loop.fit(4)
    online = trained(loop)
    loop.export(tmp_path / "out")
    assert same(trained(loop), online)
    saved = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    names = [k.removeprefix("student.transformer.") for k in online]
    expected = loop.ema.shadow if averaged else list(online.values())
    assert all(torch.equal(saved[k], v.cpu()) for k, v in zip(names, expected, strict=True))
    assert not averaged or not all(torch.equal(saved[k], v.cpu()) for k, v in zip(names, online.values(), strict=True))


def test_each_process_takes_its_slice_of_one_global_batch(make_loop):
    loop = make_loop("fm")
    real = loop.accelerator

    def at(rank: int, world: int):
        loop.accelerator = type("Some", (), {"process_index": rank, "num_processes": world, "device": real.device})()
        return loop.batch(0)

    halves = [at(rank, 2) for rank in (0, 1)]
    assert not torch.equal(halves[0].x0, halves[1].x0)
    draws = [h.normal_like(h.x0) for h in halves]
    assert not torch.equal(*draws)
    chosen = torch.randint(len(loop.latents), (8,), generator=torch_generator(0, "data", 0, 0))
    assert torch.equal(torch.cat([h.x0 for h in halves]), loop.latents[chosen].float())
    captions = [loop.captions[loop.index[chosen[:4]]], loop.captions[loop.index[chosen[4:]]]]
    assert all(torch.equal(h.cond.embeds, c.embeds) for h, c in zip(halves, captions, strict=True))
    loop.accelerator = real


def test_every_step_and_micro_batch_draws_anew(make_loop):
    loop = make_loop("fm", train={"gradient_accumulation": 2})
    found = []
    for step in (0, 1):
        loop.step = step
        for micro in (0, 1):
            batch = loop.batch(micro)
            assert batch.micro_step == 2 * step + micro
            found.append((batch.x0, batch.normal_like(batch.x0)))
            again = loop.batch(micro)
            assert torch.equal(again.x0, batch.x0) and torch.equal(again.normal_like(again.x0), found[-1][1])
    for k, (x0, noise) in enumerate(found):
        assert not any(torch.equal(x0, other) or torch.equal(noise, drawn) for other, drawn in found[:k])


def test_the_networks_of_a_method_count_into_one_ledger(make_loop):
    nets: Networks = make_loop("apex").nets
    assert all(isinstance(n, Counted) for n in (nets.student, nets.ema, nets.teacher))
    assert nets.student.ledger is nets.ema.ledger is nets.teacher.ledger
    assert nets.teacher.no_grad and nets.ema.no_grad and not nets.student.no_grad


def test_a_batch_is_cut_to_its_longest_caption_and_the_empty_caption_is_kept(make_loop, tiny_cache):
    loop, cache = make_loop("fm"), load_cache(tiny_cache)
    table = loop.captions
    assert len(table.embeds) == len(cache.captions) + 1 and table.empty == len(cache.captions)
    order = table.lengths[: table.empty].argsort()
    short = table[order[:2]]
    assert short.embeds.shape[1] == int(table.lengths[order[:2]].max()) < int(table.lengths.max())
    null = table.null(3)
    assert len(null) == 3 and null.embeds.shape[1] == int(table.lengths[table.empty])
    assert torch.equal(null.mask, torch.ones_like(null.mask))
