"""Published models as rows, on small pipelines of the same classes: they draw what the stock call draws, LoRA and scheduler count."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from apex import sample
from apex.config import Config, load
from apex.errors import UserError, run_command
from apex.seeds import derive
from apex.stock import StockGenerator
from evaluators import speed
from evaluators.result import read_record
from evaluators.systems.build import build
from evaluators.systems.known import systems

KINDS = ["sana-sprint-0.6b", "flux-schnell", "sdxl-dmd2", "sd3.5-turbo", "pixart", "qwen-image"]
PROMPTS = ["a photo of a red bench and a green vase", "a photo of a blue clock and a red cup"]


@pytest.fixture(scope="module", params=KINDS)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(system, folder) of a small published pipeline as diffusers saves it."""
    folder = tmp_path_factory.mktemp("published") / request.param
    build(request.param, small=True, device="cpu", dtype=torch.float32).save_pretrained(folder)
    return request.param, folder


def profile(folder: Path, name: str, **more) -> list[str]:
    one = {"row": "theirs", "pipeline": str(folder), "nfe": [1, 2], "call": systems()[name].call} | more
    return [f"checkpoints={json.dumps([one])}", "data.resolution=64", "data.source=somewhere", "prompts.images_per_prompt=2"]


def config(folder: Path, name: str, **more) -> Config:
    return load("workflows/config/smoke.yaml", profile(folder, name, **more))


def test_it_draws_what_the_stock_call_draws(published) -> None:
    name, folder = published
    ours = StockGenerator.load(config(folder, name), "theirs", nfe=2)
    found = ours.pictures(PROMPTS, 7, [(0, 0), (1, 3)])
    pipe = getattr(diffusers, systems()[name].pipeline).from_pretrained(folder)
    random = [torch.Generator().manual_seed(derive(7, "image", prompt, image)) for prompt, image in ((0, 0), (1, 3))]
    theirs = pipe(PROMPTS, generator=random, num_inference_steps=2, height=64, width=64, **systems()[name].call).images
    assert found.shape == (2, 64, 64, 3) and found.dtype == np.uint8
    assert np.array_equal(found, np.stack([np.asarray(image) for image in theirs]))
    assert not np.array_equal(found[0], found[1])
    alone = ours.pictures(PROMPTS[1:], 7, [(1, 3)])
    assert int(np.abs(alone[0].astype(int) - found[1].astype(int)).max()) <= 1, "an image does not depend on its batch"
    assert not np.array_equal(alone[0], ours.pictures(PROMPTS[1:], 8, [(1, 3)])[0])
    assert ours.parameters == sum(p.numel() for p in getattr(pipe, systems()[name].denoiser).parameters())


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    build("qwen-image", small=True, device="cpu", dtype=torch.float32).save_pretrained(folder / "pipeline")
    pipe = build("qwen-image", small=True, device="cpu", dtype=torch.float32)
    torch.manual_seed(1)
    pipe.transformer.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = get_peft_model_state_dict(pipe.transformer)
    diffusers.QwenImagePipeline.save_lora_weights(folder / "lora", layers, weight_name="few_steps.safetensors")
    return folder


def test_a_lora_and_a_scheduler_of_the_profile_are_used(qwen: Path) -> None:
    plain = StockGenerator.load(config(qwen / "pipeline", "qwen-image"), "theirs", nfe=2)
    lora = {"lora": str(qwen / "lora"), "lora_file": "few_steps.safetensors"}
    adapted = StockGenerator.load(config(qwen / "pipeline", "qwen-image", **lora), "theirs", nfe=2)
    shifted = {"scheduler": {"class": "FlowMatchEulerDiscreteScheduler", "shift": 5.0}}
    other = StockGenerator.load(config(qwen / "pipeline", "qwen-image", **shifted), "theirs", nfe=2)
    base = plain.pictures(PROMPTS[:1], 0, [(0, 0)])
    for changed in (adapted, other):
        assert not np.array_equal(base, changed.pictures(PROMPTS[:1], 0, [(0, 0)]))
    assert other.pipe.scheduler.config.shift == 5.0 and plain.pipe.scheduler.config.shift == 1.0
    assert "few_steps.safetensors of" in adapted.made["source"]


def call(main, *line: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["command", *map(str, line)])
        return run_command(main)


def test_images_and_times_by_the_commands(qwen: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"tag": "colors", "include": [{"class": "bench", "count": 1}], "prompt": text}) + "\n" for text in PROMPTS)
    )
    changes = [*profile(qwen / "pipeline", "qwen-image", source="a paper"), f"prompts.test={prompts}"]
    line = ["--config", "workflows/config/smoke.yaml", *(part for change in changes for part in ("--set", change)), "--row", "theirs"]
    assert call(sample.main, *line, "--nfe", 2, "--split", "test", "--out", tmp_path / "images/{split}") == 0
    made = json.loads((tmp_path / "images/test/made.json").read_text())
    assert (made["row"], made["nfe"], made["source"], made["family"], made["training"]) == ("theirs", 2, "a paper", None, None)
    assert len(list((tmp_path / "images/test").glob("*/samples/*.png"))) == 4
    assert call(speed.main, *line, "--nfe", 1, 2, "--repeats", 2, "--out", tmp_path / "nfe{nfe}.json") == 0
    record = read_record(tmp_path / "nfe2.json")
    assert record.parameters == made["parameters"] and record.value("speed/stage/denoise_b1_s") > 0
    assert record.value("speed/latency_b1_s") > 0 and record.trainable_parameters == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hub": "owner/name"}, "hub and pipeline: expected one of the two"),
        ({"lora_file": "x.safetensors"}, "lora_hub, lora and lora_file: expected a place"),
        ({"lora": "somewhere"}, "lora_hub, lora and lora_file: expected a place"),
        ({"lora": "somewhere", "lora_file": "x.bin"}, "lora_file"),
        ({"scheduler": {"shift": 1.0}}, "scheduler: found no class"),
        ({"call": {"height": 64}}, "call: found height, which the suite sets"),
        ({"row": "apex"}, "apex"),
        ({"nfe": []}, "nfe"),
    ],
)
def test_a_wrong_entry_is_one_line(qwen: Path, changes: dict, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        config(qwen / "pipeline", "qwen-image", **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scheduler": {"class": "NoSuchScheduler"}}, "scheduler.class: found 'NoSuchScheduler', expected one of diffusers'"),
        ({"call": {"no_such_argument": 1}}, "call: QwenImagePipeline refuses it"),
        ({"pipeline": "nowhere"}, "found no .*model_index.json"),
        ({"lora": "{qwen}", "lora_file": "none.safetensors"}, "fetch it again"),
    ],
)
def test_what_cannot_be_used_is_one_line(qwen: Path, changes: dict, named: str) -> None:
    changes = {key: str(qwen) if value == "{qwen}" else value for key, value in changes.items()}
    with pytest.raises(UserError, match=named) as caught:
        StockGenerator.load(config(qwen / "pipeline", "qwen-image", **changes), "theirs", nfe=1).pictures(PROMPTS[:1], 0, [(0, 0)])
    assert "\n" not in str(caught.value)


def test_the_documents_entries_are_valid_and_name_what_diffusers_has() -> None:
    import inspect
    import re

    import yaml

    text = Path("docs/full_scale.md").read_text()
    entries = yaml.safe_load(re.search(r"```yaml\n(checkpoints:.*?)```", text, re.S)[1])["checkpoints"]
    found = load("workflows/config/sana_0_6b.yaml", [f"checkpoints={json.dumps(entries)}"]).checkpoints
    kinds = ["SanaSprintPipeline", "SanaSprintPipeline", "FluxPipeline", "QwenImagePipeline"]
    for one, kind in zip(found, kinds, strict=True):
        assert set(one.call) <= set(inspect.signature(getattr(diffusers, kind).__call__).parameters)
        if one.scheduler:
            known = inspect.signature(getattr(diffusers, one.scheduler["class"]).__init__).parameters
            assert set(one.scheduler) - {"class"} <= set(known)
