"""A row whose images are not finite: the workflow ends well, its records and tables say so, and the other rows have their numbers."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.mark.slow
def test_the_other_rows_go_on(make_workflow: Callable, tiny_pipeline: Path, tmp_path: Path) -> None:
    pipeline = Path(shutil.copytree(tiny_pipeline, tmp_path / "overflowing"))
    file = pipeline / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["decoder.conv_out.weight"] = torch.full_like(weights["decoder.conv_out.weight"], 3e38)  # finite; what it decodes is not
    save_file(weights, file, metadata={"format": "pt"})
    (tmp_path / "flow").mkdir()
    flow = make_workflow(
        tmp_path / "flow",
        pipeline=str(pipeline),
        references=["real"],
        evaluators=["geneval", "speed"],
        splits={"test": ["geneval", "speed"]},
        prompts={"per_task": 1, "images_per_prompt": 1},
        budget={"forward_equivalents": 100},
    )
    code, output = flow.run("all")
    assert code == 0, output
    for evaluator in ("geneval", "speed"):
        record = json.loads((flow.results / f"records/fm/nfe1/seed0/test/{evaluator}.json").read_text())
        assert record["metrics"] == [] and "not finite" in record["details"]["failed"]
    folder = flow.results / "images/fm/nfe1/seed0/test"
    assert (folder / "made.json").is_file() and not list(folder.rglob("*.png"))
    with (flow.results / "metrics.csv").open() as lines:
        assert {line["row"] for line in csv.DictReader(lines)} == {"real"}
    shown = (flow.results / "tables/comparison.md").read_text()
    assert "failed: not finite" in shown and "images not finite at NFE 1" in shown and "seed 0, prompt 0 (" in shown

    code, output = flow.run("all", "--dry-run")  # nothing is made again
    assert code == 0 and "Nothing to be done" in output, output
