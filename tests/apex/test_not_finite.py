"""An image that is not finite is never a black picture: sampling stops and names it, or notes it where a workflow goes on."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from apex import sample
from apex.config import load
from apex.data.prompts import load_prompts
from apex.errors import NotFinite, run_command
from apex.generator import load_generator
from apex.pipeline import Pipeline
from evaluators import __main__ as scoring
from evaluators import speed
from evaluators.result import read_record


@pytest.fixture
def overflowing(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """The tiny pipeline with a codec whose weights are finite and whose images are not."""
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "overflowing"))
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["decoder.conv_out.weight"] = torch.full_like(weights["decoder.conv_out.weight"], 3e38)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture
def call(tiny_profile, overflowing: Path, tmp_path: Path, monkeypatch) -> Callable[..., int]:
    """call("--keep-failed", ...): `apex.sample` of the overflowing teacher into tmp_path/images/{split}; its exit code."""

    def run(*more: str, main: Callable = sample.main) -> int:
        profile = tiny_profile(pipeline=str(overflowing))
        line = ["--config", profile, "--row", "teacher", "--nfe", 2, "--run", overflowing]
        monkeypatch.setattr(sys, "argv", ["command", *map(str, [*line, *more])])
        return run_command(main)

    return run


def test_one_bad_image_of_a_batch_is_found_and_the_others_would_have_been_written(tiny_pipeline: Path) -> None:
    pipeline = Pipeline(tiny_pipeline, text=False)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert pipeline.decode(latents).shape == (3, 32, 32, 3)
    latents[1, 0, 0, 0] = torch.nan
    with pytest.raises(NotFinite, match="image 1 of a batch of 3: found values that are not finite") as caught:
        pipeline.decode(latents)
    assert caught.value.place == 1


def test_sampling_stops_with_row_nfe_seed_and_prompt_and_leaves_what_was_there(call, tmp_path: Path, capsys) -> None:
    out = tmp_path / "images" / "test"
    out.mkdir(parents=True)
    (out / "made.json").write_text('{"prompts_sha256": "kept"}')
    assert call("--seed", "7", "--out", str(tmp_path / "images" / "{split}")) == 2
    prompt = load_prompts(Path(sample.__file__).parent / "data/prompts/world/test.jsonl")[0]["prompt"]
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: row teacher, NFE 2, test: seed 7, prompt 0 ({prompt!r}), image 0: found values that are not finite, ")
    assert "\n" not in said and f"no image is written to {out}: " in said
    assert [path.name for path in out.iterdir()] == ["made.json"] and not list(tmp_path.rglob("*.png"))
    assert "kept" in (out / "made.json").read_text()


def test_a_caption_by_hand_is_one_line_and_no_picture(overflowing: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    line = ["--pipeline", overflowing, "--prompt", "a red circle", "--nfe", 1, "--out", tmp_path / "pictures"]
    monkeypatch.setattr(sys, "argv", ["command", *map(str, line)])
    assert run_command(sample.main) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: {overflowing}, NFE 1: seed 0, prompt 0 ('a red circle'), image 0: found values that are not finite")
    assert not list(tmp_path.rglob("*.png"))


def test_in_a_workflow_the_folder_and_its_records_say_so(call, tmp_path: Path, monkeypatch, capsys) -> None:
    images, out = tmp_path / "images" / "{split}", tmp_path / "records" / "{split}" / "{evaluator}.json"
    assert call("--keep-failed", "--split", "test", "unseen", "--out", str(images)) == 0
    assert "warning: row teacher, NFE 2, unseen: seed 0, prompt 0" in capsys.readouterr().out
    folder = tmp_path / "images" / "test"
    assert [path.name for path in folder.iterdir()] == ["made.json"]
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]  # nothing half-made stays
    made = json.loads((folder / "made.json").read_text())
    assert made["row"] == "teacher" and made["failed"].startswith("seed 0, prompt 0 (") and made["failed"].endswith("expected numbers")

    line = ["--images", images, "--out", out, "--score", "test=geneval,fid,clip_score,coverage", "unseen=geneval"]
    monkeypatch.setattr(sys, "argv", ["evaluators", *map(str, line)])
    assert run_command(scoring.main) == 0
    for evaluator in ("geneval", "fid", "clip_score", "coverage"):
        record = read_record(tmp_path / "records" / "test" / f"{evaluator}.json")
        assert (record.row, record.nfe, record.seed, record.evaluator) == ("teacher", 2, 0, evaluator)
        assert record.metrics == [] and record.failed == made["failed"] and record.details["made"]["mode"] == "multi"
    assert read_record(tmp_path / "records" / "unseen" / "geneval.json").failed

    # By hand there is nothing to score.
    from evaluators.geneval.__main__ import main

    assert run_command(lambda: main(["--images", str(folder), "--out", str(tmp_path / "one.json")])) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == f"error: {folder / 'made.json'}: teacher at NFE 2 has no images to score: {made['failed']}; train the row again"
    assert not (tmp_path / "one.json").exists()


def test_a_row_that_can_be_drawn_again_replaces_what_failed(call, tiny_pipeline: Path, overflowing: Path, tmp_path: Path) -> None:
    images = str(tmp_path / "images" / "{split}")
    assert call("--keep-failed", "--out", images) == 0
    shutil.rmtree(overflowing)
    shutil.copytree(tiny_pipeline, overflowing)
    assert call("--keep-failed", "--out", images) == 0
    made = json.loads((tmp_path / "images" / "test" / "made.json").read_text())
    assert "failed" not in made and list((tmp_path / "images" / "test").rglob("*.png"))


def test_a_network_whose_images_are_not_finite_is_not_timed(call, tmp_path: Path, capsys) -> None:
    assert call("--out", str(tmp_path / "speed.json"), "--repeats", "3", main=speed.main) == 0
    record = read_record(tmp_path / "speed.json")
    assert record.metrics == [] and "not finite" in record.failed
    assert "warning: teacher, NFE 2: image 0 of a batch of 1: found values that are not finite" in capsys.readouterr().err


def test_a_stock_pipeline_stops_too(tiny_stock, tiny_profile, tmp_path: Path) -> None:
    folder = tiny_stock("sana")
    config = load(
        tiny_profile(
            pipeline=str(folder),
            checkpoints=[{"row": "stock", "pipeline": "teacher", "nfe": [1], "call": {"use_resolution_binning": False}}],
        )
    )
    generator = load_generator(config, "stock", folder, 1, "cpu")
    assert generator.pictures(["a red circle"], 0, [(0, 0)]).dtype == np.uint8
    with torch.no_grad():
        next(generator.pipe.vae.decoder.parameters()).fill_(torch.nan)
    with pytest.raises(NotFinite, match=r"^seed 3, prompt 5 \('a red circle'\), image 2: found values that are not finite, expected"):
        generator.pictures(["a red circle"], 3, [(5, 2)])
