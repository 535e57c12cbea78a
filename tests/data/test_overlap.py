"""Prompts that stand among training captions are found, whatever their case, spaces and full stop, and each sample is counted once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from apex.data import overlap
from apex.data.prompts import COMMITTED, load_prompts
from apex.data.shards import Sample
from apex.data.world import PromptSampler

PROMPTS = ["a photo of a bench", "a photo of two clocks", "a photo of a red dog", "one cow left of a cup"]


def test_by_hand() -> None:
    captions = ["A photo of  a bench.", "a photo of a bench", "a photo of a cat", "one cow left of a cup", "a red dog"]
    assert overlap.overlap(PROMPTS, captions) == {
        "prompts": 4,
        "prompts_seen": 2,
        "samples": 5,
        "samples_seen": 3,
        "opening": "a photo of",
        "samples_alike": 3,
    }
    counted = overlap.overlap(PROMPTS, captions, [10, 1, 5, 2, 7])
    assert (counted["samples"], counted["samples_seen"], counted["samples_alike"]) == (25, 13, 16)
    assert "2 of 4 prompts" in overlap.words("test", counted) and "16 begin as its prompts do, “a photo of”" in overlap.words(
        "test", counted
    )


def test_prompts_without_a_common_opening_have_none() -> None:
    found = overlap.overlap(["one two three", "four five six", "seven eight nine"], ["one two three four"])
    assert (found["opening"], found["samples_alike"], found["prompts_seen"]) == ("", 0, 0)
    assert "begin as" not in overlap.words("test", found)
    with pytest.raises(ValueError, match="zip"):
        overlap.overlap(PROMPTS, ["a"], [1, 2])


def test_the_worlds_unseen_prompts_are_no_captions_and_most_of_the_test_prompts_are(sampler: PromptSampler) -> None:
    """What the splits are for: `unseen` holds combinations that no training scene shows."""
    captions = [sampler(np.random.default_rng([0, index]))["prompt"] for index in range(20_000)]
    seen = {
        name: overlap.overlap([row["prompt"] for row in load_prompts(COMMITTED / f"{name}.jsonl")], captions) for name in ("test", "unseen")
    }
    assert seen["unseen"]["prompts_seen"] == 0
    assert seen["test"]["prompts_seen"] > seen["test"]["prompts"] / 2


@pytest.mark.parametrize("name", ["listed", "parquet"])
def test_the_command_reads_any_data_set(
    name: str, written: Callable[[str], Path], scenes: list[Sample], tmp_path: Path, monkeypatch, capsys
):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"tag": "t", "prompt": text}) + "\n" for text in (scenes[0].caption, "nothing of the kind")))
    monkeypatch.setattr(sys, "argv", ["overlap", "--data", str(written(name)), "--prompts", str(prompts)])
    overlap.main()
    assert "1 of 2 prompts are training captions word for word, of 1 of 10 samples" in capsys.readouterr().out
