"""kill -9 in the middle of training, sampling and evaluating: the next `snakemake all` goes on, and nothing is lost."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from apex.config import load
from apex.data.cache import load_cache
from apex.train import Loop

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@dataclass
class Story:
    """What was seen while one workflow was killed three times and then left to end."""

    flow: Any
    step_at_kill: int = 0
    trained_at_kill: bool = True
    orphans_left: bool = True
    first_image: tuple[int, int] = (0, 0)  # inode and time of change
    sampled_at_kill: bool = True
    prompts_at_kill: int = 0
    records_at_kill: tuple[str, ...] = ()
    code: int = -1
    output: str = ""


@pytest.fixture(scope="module")
def story(make_workflow, wait_until, tmp_path_factory) -> Story:
    flow = make_workflow(tmp_path_factory.mktemp("killed"))
    seen = Story(flow)
    run, images = flow.results / "runs/fm/seed0", flow.results / "images/fm/nfe1/seed0"

    # While training, Snakemake alone is killed: its job is left behind, and must end by itself.
    process = flow.start("all")
    state = wait_until(lambda: next(run.parent.glob(".resume-seed0-*/state.pt"), None), process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not flow.processes())
    seen.trained_at_kill = run.exists()
    seen.step_at_kill = torch.load(state, weights_only=True)["step"]

    # While sampling, Snakemake and its job are killed.
    process = flow.start("all")
    first = wait_until(lambda: next(images.glob(".test-*/00000/metadata.jsonl"), None), process)
    flow.kill_group(process)
    found = (first.parent / "samples/0000.png").stat()
    seen.first_image = (found.st_ino, found.st_mtime_ns)
    seen.sampled_at_kill = (images / "test").exists()
    seen.prompts_at_kill = len(list(first.parent.parent.glob("*/metadata.jsonl")))

    # While evaluating, after the first of two records.
    records = flow.results / "records/fm/nfe1/seed0"
    process = flow.start("all")
    wait_until((records / "test/geneval.json").exists, process)
    flow.kill_group(process)
    seen.records_at_kill = tuple(str(f.relative_to(records)) for f in records.rglob("*.json"))

    seen.code, seen.output = flow.run("all")
    return seen


def test_the_workflow_goes_on_to_its_end(story):
    assert story.code == 0, story.output
    rows = list(csv.DictReader((story.flow.results / "metrics.csv").open()))
    assert {(row["row"], row["split"]) for row in rows if row["metric"] == "geneval/overall"} == {("fm", "test"), ("fm", "unseen")}
    assert (story.flow.results / "figures/index.html").is_file()


def test_training_was_killed_in_the_middle_and_went_on(story):
    made = json.loads((story.flow.results / "runs/fm/seed0/made.json").read_text())
    assert not story.trained_at_kill
    assert 0 < story.step_at_kill < made["training"]["steps"]
    assert "continuing fm seed 0 from step" in (story.flow.results / "logs/train/fm-seed0.log").read_text()


def test_a_killed_and_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(story, tmp_path):
    config = load(story.flow.profile)
    cache = load_cache(story.flow.results / "data/cache")
    loop = Loop(config.run_config("fm"), config.run_hash("fm"), 0, cache, tmp_path / "resume", config)
    assert loop.fit()
    loop.export(tmp_path / "whole")
    killed, whole = (load_file(folder / WEIGHTS) for folder in (story.flow.results / "runs/fm/seed0", tmp_path / "whole"))
    assert killed.keys() == whole.keys()
    assert all(torch.equal(killed[name], whole[name]) for name in whole)
    teacher = load_file(Path(config.pipeline) / WEIGHTS)
    assert not all(torch.equal(killed[name], teacher[name]) for name in whole)


def test_images_made_before_the_kill_are_kept(story):
    folder = story.flow.results / "images/fm/nfe1/seed0"
    found = (folder / "test/00000/samples/0000.png").stat()
    assert not story.sampled_at_kill
    assert (found.st_ino, found.st_mtime_ns) == story.first_image
    assert story.prompts_at_kill < len(list((folder / "test").glob("*/samples/0000.png"))) == 180
    assert [f.name for f in folder.iterdir() if f.name.startswith(".test")] == []


def test_evaluation_was_killed_between_two_records(story):
    assert story.records_at_kill == ("test/geneval.json",)
