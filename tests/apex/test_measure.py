"""A row's steps with random weights: the work and the memory of real ones, and the plan that shows them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from apex import estimate, measure, planning, step_timing
from apex.config import load
from apex.errors import UserError, run_command


@pytest.fixture(autouse=True)
def _a_process_of_its_own():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize(("method", "tuning"), [("apex", "full"), ("apex", "lora"), ("dmd2", "full")])
def test_a_step_does_the_work_of_the_runs_own(make_loop, tiny_profile, method: str, tuning: str) -> None:
    """As many passes, but for times that are drawn, also where not every step trains the student; its memory, but for longer captions."""
    budget = {"forward_equivalents": 1e6}
    loop = make_loop(method, tuning=tuning, budget=budget)
    cycle = loop.method.cycle()
    loop.fit(max_steps=8 * cycle)
    AcceleratorState._reset_state(True)
    config = load(tiny_profile(rows={"row": {"method": method, "tuning": tuning, "lora": {"rank": 2}}}, methods=["row"], budget=budget))
    found = step_timing.measure(config, "row", steps=8)
    assert found["trainable"] == loop.parameters["trainable"] and found["parameters"] == loop.parameters["student"]
    longer = planning.shape_of(config).tokens / loop.captions.longest().embeds.shape[1]
    assert 1 - 0.15 < found["flops_a_step"] / (loop.flops / (8 * cycle)) < 1.15 * longer
    assert 0.95 < found["memory_gb"] * 1024 / loop.memory["total"] < 1.1 * longer
    assert found["memory_gb"] <= 1.02 * found["planned_memory_gb"]
    assert len(found["seconds"]) == 8 and found["share"] == pytest.approx(found["tflops"] / found["matrix_tflops"])
    assert found["hours"] * 3600 == pytest.approx(found["steps"] * found["seconds_median"], rel=0.2)


@pytest.mark.parametrize("name", ["sana_0_6b", "qwen_image_lora_r64"])
def test_the_shipped_configuration_is_enough(name: str, monkeypatch) -> None:
    """No file of the teacher is opened. The profile's own settings, on one block of its network at a small size."""
    config = load(
        Path(__file__).resolve().parents[2] / f"workflows/config/{name}.yaml",
        ["train.batch_size=4", "train.gradient_accumulation=1", "data.embeddings=memory"],
    )
    shape = planning.shape_of(config)
    small = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    small |= (
        {"cross_attention_dim": 32, "num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "caption_channels": 24}
        if "sana" in name
        else {"joint_attention_dim": 24, "axes_dims_rope": (4, 6, 6)}
    )
    small = planning.Shape(shape.transformer | small, (shape.latent[0], 4, 4), 5, 24, 0.0, 0.0, "here")
    monkeypatch.setattr(planning, "shape_of", lambda _: small)
    found = step_timing.measure(config, config.methods[0], steps=1)
    assert found["samples_a_step"] == 4 and math.isfinite(found["share"])


def test_what_no_single_step_shows_is_one_line(tiny_profile) -> None:
    config = load(tiny_profile(methods=["regression"]))
    with pytest.raises(UserError, match="row regression: method regression learns from pairs that the teacher draws first"):
        step_timing.measure(config, "regression", 1)
    split = load(tiny_profile(launch="workflows/accelerate/fsdp2.yaml"))
    with pytest.raises(UserError, match=r"launch: found \d+ processes, expected one"):
        step_timing.measure(split, "fm", 1)


def test_the_plan_shows_what_was_measured_of_these_settings_and_no_others(tiny_profile, tmp_path: Path, monkeypatch) -> None:
    plan, profile = tmp_path / "plan", tiny_profile()

    def call(main, *words: object) -> int:
        monkeypatch.setattr("sys.argv", ["x", "--config", str(profile), *map(str, words)])
        return run_command(main)

    def planned(*words: str) -> dict:
        assert call(estimate.main, "--tflops", 0.1, "--out", plan, *words) == 0
        return json.loads((plan / "plan.json").read_text())["rows"][0]

    assert planned()["measured_hours"] is None
    assert call(measure.main, "--row", "fm", "--steps", 2, "--out", plan / "measured/fm.json") == 0
    record = json.loads((plan / "measured/fm.json").read_text())
    assert record["weights"] == "random" and record["hardware"] and record["versions"]["torch"]
    row = planned()
    assert (row["measured_memory"], row["measured_hours"]) == (record["memory_gb"], record["hours"])
    assert planned("--set", "train.batch_size=8")["measured_hours"] is None
    committed = tmp_path / "results/reference" / load(profile).profile / "plan/measured"
    committed.parent.mkdir(parents=True)
    (plan / "measured").rename(committed)
    assert planned()["measured_hours"] is None
    monkeypatch.chdir(tmp_path)
    assert planned()["measured_hours"] == record["hours"], "of a card on which someone else has measured these settings"
    assert call(measure.main, "--row", "fm", "--steps", 0, "--out", plan / "no.json") == 2
