"""Fixtures of the evaluator tests: one thread, a small prompt set, and folders of images in GenEval's layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from apex.data.prompts import COMMITTED, load_prompts, write_layout
from evaluators import cost
from evaluators.clip_model import Clip
from evaluators.command import fresh_renders
from evaluators.geneval.color import ClipColors
from evaluators.geneval.world_detector import WorldDetector

# No deadline: a busy machine is not a defect.
hypothesis.settings.register_profile("evaluators", deadline=None, max_examples=50)
hypothesis.settings.load_profile("evaluators")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def test_rows() -> list[dict]:
    return load_prompts(COMMITTED / "test.jsonl")


@pytest.fixture(scope="session")
def few_rows() -> list[dict]:
    """Four prompts of every task."""
    return load_prompts(COMMITTED / "test.jsonl", limit=24)


@pytest.fixture(scope="session")
def detector() -> WorldDetector:
    return WorldDetector.load()


@pytest.fixture(scope="session")
def clip() -> Clip:
    return Clip()


@pytest.fixture(scope="session")
def colors(clip: Clip, detector: WorldDetector) -> ClipColors:
    return ClipColors(clip, detector.colors)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """make_folder(rows, images=None, per_prompt=4, made=True, name="images") writes a folder; images default to renders."""

    def make(rows: list[dict], images: np.ndarray | None = None, per_prompt: int = 4, made: bool = True, name: str = "images") -> Path:
        if images is None:
            images = fresh_renders(rows, [per_prompt] * len(rows), 32, seed=5)
        folder = tmp_path / name
        for index, row in enumerate(rows):
            write_layout(folder, index, row, list(images[index * per_prompt : (index + 1) * per_prompt]))
        if made:
            about = {"row": "real", "method": "real", "nfe": 0, "seed": 0, "profile": "test", "hardware": "a machine"}
            (folder / "made.json").write_text(json.dumps(about))
        return folder

    return make


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `evaluators.throughput` builds with random weights, of the same classes and small."""
    small = cost.MASK2FORMER | {
        "backbone_config": cost.MASK2FORMER["backbone_config"] | {"embed_dim": 24, "depths": [1, 1, 1, 1]},
        "encoder_layers": 1,
        "decoder_layers": 2,
        "dim_feedforward": 64,
        "encoder_feedforward_dim": 64,
        "num_queries": 20,
    }
    monkeypatch.setattr(cost, "MASK2FORMER", small)
    monkeypatch.setattr(cost.Clip, "random", partial(Clip.random, architecture="ViT-S-32-alt"))
