"""The full-scale profiles, each through its own file: the same commands train and sample a few steps of the same classes, built small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, SanaPipeline
from PIL import Image
from safetensors.torch import load_file

from apex import sample, train
from apex.backbones.qwen_image import pack
from apex.config import load
from apex.data import captions, latents, synthesise
from apex.data.shards import open_samples
from apex.errors import UserError, run_command
from apex.generator import Generator

CONFIGS = Path(__file__).resolve().parents[2] / "workflows" / "config"
FAMILIES = {
    "sana_0_6b": "sana",
    "sana_1_6b": "sana",
    "qwen_image_lora_r32": "qwen_image",
    "qwen_image_lora_r64": "qwen_image",
    "qwen_image_full": "qwen_image",
}
ROWS = [(name, row) for name in FAMILIES for row in load(CONFIGS / f"{name}.yaml").all_methods]
# Two of a kind differ in sizes alone, which are small here.
ROWS = [(name, row) for name, row in ROWS if name not in ("sana_1_6b", "qwen_image_lora_r32") or row.startswith("apex")]


@pytest.fixture(autouse=True)
def _own_precision():
    """accelerate keeps its precision for the whole process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def small(tiny_stock, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list, list[str]]]:
    """small(profile): the arguments that name its training data, and what is changed of it: sizes and places alone."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [{"tag": "single_object", "include": [{"class": "cup", "count": n}], "prompt": f"a photo of {n} cup"} for n in (1, 2)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made: dict[str, list] = {}

    def make(name: str) -> tuple[list, list[str]]:
        family = FAMILIES[name]
        pipeline = tiny_stock(family)
        if family not in made:
            folder = tmp_path_factory.mktemp(f"data of {family}")
            latents.build(pipeline, tiny_shards, folder / "cache", resolution=32)
            captions.build(pipeline, latents.load_cache(folder / "cache").captions, folder / "embeddings", dtype="bf16")
            made[family] = ["--cache", folder / "cache", "--embeddings", folder / "embeddings"]
        # batch of the published class's least: its four parts, in two micro-batches
        sizes = {
            "pipeline": pipeline, "hub": "''", "data.source": tiny_shards, "data.resolution": 32, "prompts.test": prompts,
            "prompts.images_per_prompt": 2, "budget.forward_equivalents": 150, "train.batch_size": 4, "train.gradient_accumulation": 2,
            "train.log_every": 1,
        }  # fmt: skip
        return made[family], [f"{key}={value}" for key, value in sizes.items()]

    return make


def arguments(name: str, changes: list[str]) -> list[str]:
    return ["--config", str(CONFIGS / f"{name}.yaml"), *(part for change in changes for part in ("--set", change))]


def call(main: Callable[[], None], *line: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["command", *map(str, line)])
        return run_command(main)


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_few_steps_through_the_profiles_own_file(small, tmp_path: Path, name: str, row: str) -> None:
    data, changes = small(name)
    run = tmp_path / "run"
    line = arguments(name, changes)
    assert call(train.main, *line, "--row", row, *data, "--out", run) == 0
    made = json.loads((run / "made.json").read_text())
    assert made["backbone"] == FAMILIES[name] and made["training"]["steps"] >= 1 and not made["training"]["stopped"]
    assert (made["run"]["train"]["precision"], made["run"]["train"]["frozen"]) == ("bf16", "bf16")
    weights = next((run / ("lora" if made["tuning"] == "lora" else "transformer")).glob("*.safetensors"))
    state = load_file(weights)
    assert all(torch.isfinite(v).all() for v in state.values())
    assert {v.dtype for v in state.values()} == {torch.float32}, "what is trained is kept in fp32"
    if made["tuning"] == "lora":
        assert any(v.abs().max() > 0 for k, v in state.items() if "lora_B" in k)
        assert made["trainable_parameters"] < made["parameters"]
    out = tmp_path / "images" / "{split}"
    assert call(sample.main, *line, "--row", row, "--run", run, "--nfe", 1, "--split", "test", "--out", out) == 0
    assert len(list((tmp_path / "images/test").glob("*/samples/*.png"))) == 4


@pytest.mark.slow
def test_the_largest_splits_its_weights_over_processes(small, tmp_path: Path) -> None:
    """As its profile starts it, with two processes on the CPU; what it leaves is whole and moved from the teacher."""
    assert load(CONFIGS / "qwen_image_full.yaml").launched().split
    data, changes = small("qwen_image_full")
    two = {"distributed_type": "FSDP", "num_machines": 1, "num_processes": 2, "use_cpu": True, "fsdp_config": {"fsdp_version": 2}}
    (tmp_path / "two.yaml").write_text(json.dumps(two))
    line = arguments("qwen_image_full", [*changes, f"launch={tmp_path / 'two.yaml'}"])
    command = [Path(sys.executable).with_name("accelerate"), "launch", "--config_file", tmp_path / "two.yaml", "-m", "apex.train", *line]
    done = subprocess.run(
        [*map(str, command), "--row", "apex", *map(str, data), "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=CONFIGS.parents[1],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads((tmp_path / "run/made.json").read_text())
    assert made["processes"] == 2 and made["split"] and made["training"]["steps"] >= 1 and made["run"]["train"]["gradient_checkpointing"]
    weights, teacher = (
        {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}
        for folder in (tmp_path / "run/transformer", Path(made["run"]["pipeline"]) / "transformer")
    )
    assert weights.keys() == teacher.keys() and all(weights[k].shape == teacher[k].shape for k in teacher)
    assert any(not torch.equal(weights[k], teacher[k].float()) for k in teacher)


STOCK = {
    "sana_0_6b": ("apex", SanaPipeline),
    "qwen_image_full": ("apex", QwenImagePipeline),
    "qwen_image_lora_r64": ("apex-lora", QwenImagePipeline),
}


@pytest.mark.parametrize("name", STOCK)
def test_the_readmes_lines_of_stock_diffusers_draw_the_same(small, tiny_stock, tmp_path: Path, name: str, monkeypatch) -> None:
    """And `python -m apex.sample --pipeline RUN --prompt ...` draws it too."""
    (row, kind), (data, changes) = STOCK[name], small(name)
    run, prompt = tmp_path / "run", "a red circle left of a blue square"
    assert call(train.main, *arguments(name, changes), "--row", row, *data, "--out", run) == 0
    assert call(sample.main, "--pipeline", run, "--prompt", prompt, "--nfe", 1, "--images", 2, "--out", tmp_path / "out") == 0
    ours = np.asarray(Image.open(tmp_path / "out" / "000-001.png"))
    noise, _ = Generator.load(run, nfe=1).noise(0, [(0, 1)])

    pipe = kind.from_pretrained(tiny_stock(FAMILIES[name]))
    if row.endswith("-lora"):
        pipe.load_lora_weights(run / "lora")
    else:
        pipe.transformer = type(pipe.transformer).from_pretrained(run / "one_step" / "transformer")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipe.set_progress_bar_config(disable=True)
    told = {"guidance_scale": 1.0, "use_resolution_binning": False}
    given = {"latents": noise} | told if kind is SanaPipeline else {"latents": pack(noise)}
    theirs = pipe(prompt, sigmas=[0.999], height=32, width=32, **given).images[0]
    assert int(np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max()) <= 1

    # The lines of the run's card, from the folder that it lies in.
    lines = re.findall(r"```python\n(.*?)```", (run / "README.md").read_text(), re.DOTALL)[0]
    assert "height=32, width=32" in lines and prompt in lines
    monkeypatch.chdir(run)
    given.pop("guidance_scale", None)  # the card says it
    exec(lines.replace(f'"{prompt}"', f'"{prompt}", **given'), drawn := {"given": given})
    assert np.array_equal(np.asarray(drawn["image"]), np.asarray(theirs))


def test_a_prompt_needs_a_pipeline_and_no_profile(tmp_path: Path, capsys) -> None:
    for line in (["--prompt", "x"], ["--pipeline", "x"], ["--pipeline", "x", "--prompt", "x", "--row", "apex"], ["--row", "apex"]):
        assert call(sample.main, *line, "--out", tmp_path / "out") == 2
        assert "--pipeline and --prompt" in capsys.readouterr().err
    assert call(sample.main, "--pipeline", tmp_path / "no", "--prompt", "x", "--out", tmp_path / "out") == 2
    assert call(sample.main, "--pipeline", tmp_path, "--prompt", "x", "--nfe", 0, "--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["sana_0_6b", "qwen_image_full"])
def test_the_teacher_is_sampled_by_the_profile(small, tmp_path: Path, name: str) -> None:
    _, changes = small(name)
    line = arguments(name, changes)
    assert call(sample.main, *line, "--row", "teacher", "--nfe", 2, "--split", "test", "--out", tmp_path / "{split}") == 0
    assert len(list((tmp_path / "test").glob("*/samples/*.png"))) == 4


@pytest.mark.parametrize("name", FAMILIES)
def test_the_teacher_is_drawn_as_its_users_call_it_too(small, tmp_path: Path, name: str) -> None:
    """With its pipeline's own schedule, so by another path than the row `teacher`, from the same weights."""
    _, changes = small(name)
    line, drawn = arguments(name, changes), {}
    for row in ("teacher", "teacher-stock"):
        assert call(sample.main, *line, "--row", row, "--nfe", 2, "--split", "test", "--out", tmp_path / row) == 0
        drawn[row] = [np.asarray(Image.open(file)) for file in sorted((tmp_path / row).glob("*/samples/*.png"))]
        assert [image.shape for image in drawn[row]] == [(32, 32, 3)] * 4
    assert not np.array_equal(*drawn.values())


@pytest.mark.parametrize("name", ["sana_0_6b", "qwen_image_full"])
def test_the_teacher_draws_a_training_set_by_the_profile(small, tmp_path: Path, name: str) -> None:
    """The images of its row, as data that the profile trains on."""
    _, changes = small(name)
    line = arguments(name, [*changes, "prompts.images_per_prompt=1"])
    prompts = load(CONFIGS / f"{name}.yaml", changes).prompts.test
    assert call(synthesise.main, *line, "--prompts", prompts, "--steps", 2, "--out", tmp_path / "set") == 0
    assert call(sample.main, *line, "--row", "teacher", "--nfe", 2, "--split", "test", "--out", tmp_path / "row") == 0
    found = list(open_samples(tmp_path / "set"))
    assert [one.caption for one in found] == ["a photo of 1 cup", "a photo of 2 cup"]
    for one, row in zip(found, sorted((tmp_path / "row").glob("*/samples/*.png")), strict=True):
        assert one.image.shape == (32, 32, 3) and np.array_equal(one.image, np.asarray(Image.open(row)))
    made, pipeline = json.loads((tmp_path / "set/made.json").read_text()), load(CONFIGS / f"{name}.yaml", changes).pipeline_path
    assert made["precision"] == "bf16" and made["forward_equivalents"] == 2 * 2 * 2
    latents.build(pipeline, tmp_path / "set", tmp_path / "cache", resolution=32)
    captions.build(pipeline, latents.load_cache(tmp_path / "cache").captions, tmp_path / "embeddings", dtype="bf16")
    data = ["--cache", tmp_path / "cache", "--embeddings", tmp_path / "embeddings"]
    drawn = ["data.source=teacher", f"data.teacher={{prompts: {prompts}, steps: 2}}"]
    row = load(CONFIGS / f"{name}.yaml").methods[0]
    assert call(train.main, *arguments(name, [*changes, *drawn]), "--row", row, *data, "--out", tmp_path / "run") == 0
    run = json.loads((tmp_path / "run/made.json").read_text())["run"]
    assert run["data"]["teacher"] == {"prompts": prompts, "count": None, "steps": 2, "guidance": made["guidance"]}


def test_a_profile_with_a_hub_has_its_pipeline_in_the_results() -> None:
    for name in FAMILIES:
        config = load(CONFIGS / f"{name}.yaml")
        assert config.profile == name and config.hub and config.pipeline == f"results/pretrained/{name}/pipeline"
    with pytest.raises(UserError, match="expected results/pretrained/sana_0_6b/pipeline, where it is fetched to"):
        load(CONFIGS / "sana_0_6b.yaml", ["pipeline=elsewhere"])
    with pytest.raises(UserError, match="hub"):
        load(CONFIGS / "sana_0_6b.yaml", ["hub=https://somewhere/else"])


def test_frozen_weights_in_bf16_need_bf16_arithmetic(small) -> None:
    with pytest.raises(UserError, match=r"train\.frozen: found bf16 with precision fp32, expected precision bf16 too \(row apex\)"):
        load(CONFIGS / "sana_0_6b.yaml", ["train.precision=fp32"]).run_config("apex")
