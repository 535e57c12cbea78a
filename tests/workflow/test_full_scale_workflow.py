"""A full-scale profile from the hub and its data set to the last page, as its user runs it, on the same classes built small."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from apex.data.shards import open_samples
from tests.apex.hub_server import COMMIT, serving
from tests.data.conftest import as_listed
from tests.workflow.conftest import Workflow

CONFIGS = Path(__file__).parents[2] / "workflows/config"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family", "row", "weights"),
    [
        ("sana_0_6b", "sana", "apex", "one_step/transformer/diffusion_pytorch_model.safetensors"),
        ("qwen_image_lora_r64", "qwen_image", "apex-lora", "lora/pytorch_lora_weights.safetensors"),
    ],
)
def test_from_hub_and_data_to_the_last_page(
    tiny_stock: Callable[[str], Path], tiny_shards: Path, tmp_path: Path, name: str, family: str, row: str, weights: str
) -> None:
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    data = tmp_path / settings["data"]["source"]
    if name.startswith("qwen"):
        data.parent.mkdir()
        as_listed(list(open_samples(tiny_shards)), data)
    else:
        shutil.copytree(tiny_shards, data)
    captions = [sample.caption for sample in open_samples(data)]
    prompts = tmp_path / "prompts.jsonl"
    cup = {"tag": "counting", "include": [{"class": "cup", "count": 2}]}
    prompts.write_text("".join(json.dumps(cup | {"prompt": text}) + "\n" for text in (captions[0], "a photo of two cups")))
    # Sizes, and what is left of the matrix: one row at one step beside its teacher.
    settings["hub"] = "owner/name"
    settings["data"]["resolution"] = 32
    settings["prompts"] = {"test": str(prompts), "images_per_prompt": 2}
    settings |= {"methods": [row], "nfe": [1], "teacher_nfe": [1], "evaluators": ["speed"], "splits": {"test": ["speed"]}}
    settings["budget"]["forward_equivalents"] = 150
    settings["train"] |= {"batch_size": 4, "gradient_accumulation": 2}
    settings["checkpoints"][0]["nfe"] = [2]

    with serving(tiny_stock(family)) as hub:
        flow = Workflow(tmp_path, settings, {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"})
        code, output = flow.run("all")
        assert code == 0, output
    made = json.loads((flow.results / f"runs/{row}/seed0/made.json").read_text())
    assert (made["hub"], made["training"]["stopped"]) == ("owner/name", "") and (flow.results / f"runs/{row}/seed0" / weights).is_file()
    assert json.loads((tmp_path / "results/pretrained" / name / "pipeline/fetched.json").read_text())["commit"] == COMMIT
    seen = made["prompts_seen"]["test"]
    assert (seen["prompts_seen"], seen["samples"], seen["samples_seen"]) == (1, len(captions), captions.count(captions[0]))
    table = (flow.results / "tables/comparison.md").read_text()
    assert (
        f"| {row} | 1 |" in table
        and "| teacher-stock | 2 |" in table
        and "test: 1 of 2 prompts are training captions word for word" in table
    )
    assert f"| {row} | not run |" in (flow.results / "claims/claims.md").read_text(), "its own row is asked, whatever its name"
    assert "seconds an image, batch 1 | 1 |" in (flow.results / f"cards/{row}.md").read_text()
    assert (flow.results / "figures/index.html").is_file()
    code, output = flow.run("all")
    assert code == 0 and "Nothing to be done" in output, output
