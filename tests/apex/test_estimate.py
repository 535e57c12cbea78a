"""The plan: shipped configurations against published counts, estimates against what the training loop measures of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from apex import estimate, planning
from apex.config import load
from apex.errors import UserError, run_command
from apex.launch import Launch
from apex.networks import build_student
from apex.pipeline import DTYPES
from paper_tables import plan as plan_table

CONFIGS = Path(__file__).resolve().parents[2] / "workflows" / "config"
PUBLISHED = {"sana_0_6b": 0.592e9, "sana_1_6b": 1.604e9, "qwen_image_lora_r64": 20.43e9}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shipped_configuration_has_the_published_parameters(name: str) -> None:
    config = load(CONFIGS / f"{name}.yaml")
    shape = planning.shape_of(config)
    count = shape.make().parameter_count()
    assert count == pytest.approx(PUBLISHED[name], rel=1e-3)
    one = planning.shipped()[config.hub]
    assert count == pytest.approx(one["published_parameters"], rel=1e-3) and "arXiv" in one["source"]
    assert shape.latent == ((32, 16, 16) if "sana" in name else (16, 64, 64))  # 512 px


@pytest.mark.parametrize(("name", "trained"), [("qwen_image_lora_r32", 0.2126e9), ("qwen_image_lora_r64", 0.4253e9)])
def test_lora_trains_the_papers_parameters(name: str, trained: float) -> None:
    """The paper says 0.2 and 0.4B of 20B: exact from the published targets."""
    from apex import methods

    config = load(CONFIGS / f"{name}.yaml")
    run = config.run_config("apex-lora")
    with planning.META:
        student, teacher = build_student(run, methods.get("apex")(run.params), planning.shape_of(config).make, planning.META)
    assert teacher is None
    assert sum(p.numel() for p in student.parameters() if p.requires_grad) == pytest.approx(trained, rel=2e-4)
    assert {p.dtype for p in student.parameters() if not p.requires_grad} == {DTYPES["bf16"]}


@pytest.mark.parametrize("method", ["fm", "apex", "apex-eq25", "scm", "dmd2"])
def test_estimates_agree_with_what_the_loop_measures(make_loop, tiny_profile, method: str) -> None:
    """Passes a sample to a few per cent, for they depend on drawn times. Memory from above: gradients come as activations go."""
    budget = {"forward_equivalents": 2000}
    loop = make_loop(method, budget=budget)
    loop.fit()
    run = loop.run
    shape = replace(planning.shape_of(load(tiny_profile(budget=budget))), tokens=loop.captions.longest().embeds.shape[1])
    found = planning.estimate(run, shape, rate=1.0)
    assert found.parameters == loop.parameters["student"] and found.trainable == loop.parameters["trainable"]
    assert found.uncounted == (["heads"] if method == "dmd2" else [])  # much of so small a network
    assert found.steps == pytest.approx(loop.step, rel=0.35 if found.uncounted else 0.08, abs=2)
    parts = {name: value * 1024 for name, value in found.memory.items()}
    for name in ("student", "teacher", "ema", "optimizer"):
        assert parts[name] == pytest.approx(loop.memory[name], rel=0.02, abs=0.02), name
    bound = parts["step"] + parts["gradients"]  # the loop's step has both in it
    assert 0.98 * loop.memory["step"] < bound < 1.35 * loop.memory["step"]
    assert found.flops == pytest.approx(2000 * loop.unit, rel=1e-6) and found.hours == pytest.approx(found.flops / 1e12 / 0.35 / 3600)


def test_attention_keeps_nothing_of_the_size_of_tokens_squared() -> None:
    """As a fused kernel: twice the latents is twice the memory. Plainly it would be nearly four times."""
    kept = []
    for side in (32, 64):
        shape = planning.Shape(
            {"_class_name": "QwenImageTransformer2DModel", "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 1,
             "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (4, 6, 6)},
            (4, side, 32), 4, 16, 0.0, 0.0, "here",
        )  # fmt: skip
        kept.append(planning.activations(shape.make(), shape, torch.float32).kept)
    assert 1.9 < kept[1] / kept[0] < 2.1


def test_checkpointing_trades_memory() -> None:
    config = load(CONFIGS / "sana_0_6b.yaml")
    shape = planning.shape_of(config)
    found = {}
    for on in (True, False):
        network = shape.make(torch.bfloat16)
        if on:
            network.transformer.enable_gradient_checkpointing()
            network.train()
        found[on] = planning.activations(network, shape, torch.bfloat16)
    assert found[True].kept < 0.05 * found[False].kept and found[True].peak < 0.2 * found[False].peak
    assert 0 < found[True].inference < found[False].kept


def test_what_does_not_fit_gets_the_mildest_change_that_does(tiny_profile) -> None:
    config = load(tiny_profile(train={"batch_size": 16, "gradient_checkpointing": False}))
    run, shape = config.run_config("fm"), planning.shape_of(config)
    whole = planning.planned(run, shape, None, 0.35, None)
    assert whole.fits is None and whole.hours is None and whole.mend == ""
    assert planning.planned(run, shape, 1.0, 0.35, whole.total * 1.01).fits
    tried = [(text, planning.estimate(other, shape, 1.0).total) for text, other in planning.smaller(run)]
    assert tried[0][0] == "train.precision=bf16" and tried[-2][0].endswith("train.batch_size=1 train.gradient_accumulation=16")
    assert tried[-1][0].count("batch_size") == 1
    limit = tried[2][1]  # what the third change comes to
    found = planning.planned(run, shape, 1.0, 0.35, limit)
    assert found.fits is False
    first = next(text for text, total in tried if total <= limit)
    assert found.mend.startswith(f"{first}: ")
    assert "no setting of the loop" in planning.planned(run, shape, 1.0, 0.35, 1e-6).mend


@pytest.mark.parametrize(
    ("name", "frozen", "size"), [("sana_0_6b", "bf16", 300 * 2304 * 2), ("qwen_image_lora_r64", "fp32", 256 * 3584 * 4)]
)
def test_captions_on_disk_take_no_text_encoder_and_so_much_disk(name: str, frozen: str, size: int) -> None:
    config = load(CONFIGS / f"{name}.yaml", [f"train.frozen={frozen}", "train.gradient_checkpointing=false"])
    shape = planning.shape_of(config)
    shape = replace(shape, transformer=shape.transformer | {"num_layers": 1})
    run = config.run_config(config.methods[0])
    found = {}
    for kind in ("batch", "disk"):
        found[kind] = run.model_copy(update={"data": run.data.model_copy(update={"embeddings": kind})})
    memory = {kind: planning.estimate(one, shape, None).memory for kind, one in found.items()}
    freed = memory["batch"].pop("frozen parts") - memory["disk"].pop("frozen parts")
    assert freed * 2**30 == pytest.approx(shape.text_parameters * {"bf16": 2, "fp32": 4}[frozen])
    assert memory["batch"] == memory["disk"]
    assert planning.caption_gigabytes(found["batch"], shape) is None
    assert planning.caption_gigabytes(found["disk"], shape) == pytest.approx(1000 * size / 1e9)


def test_a_pipeline_of_which_nothing_is_known_is_one_line(tiny_profile) -> None:
    config = load(CONFIGS / "sana_0_6b.yaml", ["hub=owner/unknown"])
    with pytest.raises(UserError, match=r"no configuration is shipped for hub owner/unknown; expected a pipeline's folder, or one of Qwen"):
        planning.shape_of(config)


def test_the_command_writes_a_table_and_a_figure(tiny_profile, tmp_path: Path, monkeypatch, capsys) -> None:
    profile = tiny_profile(methods=["fm", "apex"])
    line = ["x", "--config", str(profile), "--tflops", "0.1", "--memory", "0.0001", "--out", str(tmp_path / "plan")]
    monkeypatch.setattr("sys.argv", line)
    assert run_command(estimate.main) == 0
    plan = json.loads((tmp_path / "plan/plan.json").read_text())
    assert [row["row"] for row in plan["rows"]] == ["fm", "apex"] and plan["rate_source"] == "as given"
    assert all(row["total"] == pytest.approx(sum(row["memory"].values())) and row["fits"] is False for row in plan["rows"])
    monkeypatch.setattr("sys.argv", ["x", "--plan", str(tmp_path / "plan")])
    assert run_command(plan_table.main) == 0
    text = (tmp_path / "plan/plan.md").read_text()
    assert "memory, MB: total" in text and "no setting of the loop" in text and (tmp_path / "plan/plan.png").stat().st_size > 5000
    (tmp_path / "plan/plan.json").write_text('{"rows": []}')
    assert run_command(plan_table.main) == 2 and "rows: found none" in capsys.readouterr().err


def test_split_weights_are_shared_out_and_a_block_is_whole(tiny_profile) -> None:
    """Extra networks are on every device; the plan names how many devices are enough, and an estimate for so many agrees."""
    config = load(tiny_profile(train={"batch_size": 1, "gradient_checkpointing": True, "precision": "bf16", "frozen": "bf16"}))
    shape = planning.shape_of(config)
    for row in ("apex", "dmd2"):
        run = config.run_config(row)
        whole = planning.estimate(run, shape, 1.0)
        four = planning.estimate(run, shape, 1.0, launch=Launch("f", 4, split=True))
        assert four.memory["student"] == pytest.approx(whole.memory["student"] / 4)
        assert four.memory["extra"] == whole.memory["extra"] and four.memory["step"] == whole.memory["step"]
        own = whole.memory["extra"] if row == "dmd2" else 0.0
        assert (four.memory["optimizer"] > whole.memory["optimizer"] / 4 + own) == (row == "dmd2") and whole.memory.get("gathered") is None
        assert four.hours == pytest.approx(whole.hours / 4) and abs(4 * four.steps - whole.steps) <= 4
    run = config.run_config("apex")
    smallest = list(planning.smaller(run))[-1][1]
    found = planning.planned(run, shape, 1.0, 0.35, planning.estimate(smallest, shape, 1.0).total * 0.97)
    assert f"launch={planning.FSDP} with " in found.mend
    count, total = int(found.mend.split(" with ")[1].split()[0]), float(found.mend.split(": ")[1].split()[0])
    again = planning.estimate(run, shape, 1.0, launch=Launch(planning.FSDP, count, split=True))
    assert again.total == pytest.approx(total, rel=0.01)
