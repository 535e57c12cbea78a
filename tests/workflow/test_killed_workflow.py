"""kill -9 in the middle of training, sampling and evaluating: the next `snakemake all` goes on, and nothing is lost."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from apex.config import load
from apex.data.latents import load_cache
from apex.loop import Loop
from tests.workflow.conftest import PATIENCE, wait

pytestmark = pytest.mark.slow

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def test_the_workflow_goes_on_to_its_end(story):
    assert story.code == 0, story.output
    assert {(row["row"], row["split"]) for row in story.metrics if row["metric"] == "geneval/overall"} == {("fm", "test"), ("fm", "unseen")}
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


def test_sigterm_to_snakemake_alone_lets_a_training_save_and_stop(make_workflow, tmp_path):
    flow = make_workflow(tmp_path, budget={"forward_equivalents": 1e7})  # it would train for hours
    run = flow.results / "runs/fm/seed0"
    process = flow.start("all")
    state = wait(lambda: next(run.parent.glob(".resume-seed0-*/state.pt"), None), process)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0 and not flow.processes() and not run.exists(), output
    said = re.search(
        r"error: row fm, seed 0: stopped by SIGTERM at step (\d+); the state is saved in",
        (flow.results / "logs/train/fm-seed0.log").read_text(),
    )
    assert said and torch.load(state, weights_only=True)["step"] == int(said[1]) > 0
