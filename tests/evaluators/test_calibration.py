"""GenEval's score falls as renders are spoiled; the faults themselves are what they say."""

from __future__ import annotations

import itertools
import json
import sys

import numpy as np
import pytest

from apex.data import world
from evaluators.geneval import calibrate
from evaluators.geneval.calibrate import LEVELS, accuracies, curves, spoil
from evaluators.geneval.logic import TASKS


@pytest.fixture(scope="module")
def found(test_rows, detector, colors):
    rows = [row for task in TASKS for row in [r for r in test_rows if r["tag"] == task][:12]]
    return curves(rows, 32, 0, lambda images, lines: accuracies(images, lines, detector, colors))


@pytest.mark.parametrize("fault", LEVELS)
def test_the_score_falls_from_one_to_nothing(fault, found):
    points = [p["overall"] for p in found[fault]]
    assert [p["level"] for p in found[fault]] == list(LEVELS[fault][1])
    assert points[0] >= 0.98 and points[-1] <= 0.05
    assert all(later <= earlier + 0.015 for earlier, later in itertools.pairwise(points)), points


def test_a_lost_object_costs_every_task(found):
    last = found["lost objects"][-1]
    assert {task: last[task] for task in TASKS} == dict.fromkeys(TASKS, 0.0)


@pytest.mark.parametrize("fault", LEVELS)
def test_the_first_level_is_the_render(fault):
    scene = world.scene_for({"tag": "single_object", "include": [{"class": "cross", "count": 1}]}, np.random.default_rng(0))
    assert np.array_equal(spoil(scene, fault, 0.0, 32, [0]), world.render(scene, 32))
    worse = [np.abs(spoil(scene, fault, level, 32, [1]).astype(float) - world.render(scene, 32)).mean() for level in LEVELS[fault][1]]
    assert worse == sorted(worse), "the draws are nested"


def test_the_command_writes_its_numbers_and_its_figure(tmp_path, few_rows, monkeypatch, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in few_rows[:6]))
    monkeypatch.setattr(calibrate, "LEVELS", {"blur": ("sides", (0.0, 4.0)), "lost objects": ("share", (0.0, 1.0))})
    monkeypatch.setattr(sys, "argv", ["calibrate", "--out", str(tmp_path / "out"), "--prompts", str(prompts), "--device", "cpu"])
    calibrate.main()
    written = json.loads((tmp_path / "out/calibration.json").read_text())
    assert written["n"] == 6 and [p["level"] for p in written["curves"]["blur"]] == [0.0, 4.0]
    assert written["curves"]["lost objects"][1]["overall"] == 0.0
    assert (tmp_path / "out/calibration.png").read_bytes().startswith(b"\x89PNG")
    assert "lost objects" in capsys.readouterr().out
