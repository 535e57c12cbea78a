"""The world's scenes hold what they promise: each fulfils its prompt by exact truth, and nothing held out is ever shown."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest

from apex.data.shards import Sample, open_samples, scene_from, world_sample, write_world
from apex.data.world import (
    BACKGROUNDS,
    COLORS,
    HELD_OUT_COLORS,
    SHAPES,
    TASK_WEIGHTS,
    TASKS,
    Item,
    PromptSampler,
    Scene,
    is_held_out_relation,
    mask,
    prompt_sets,
    relations_between,
    render,
    scene_for,
)

N = 4000


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict, Scene, np.ndarray]]:
    """(prompt, scene, image) of training scenes as they come out of shards."""
    path = tmp_path_factory.mktemp("world") / "shards"
    write_world(path, scenes=N, resolution=16, seed=11)
    return [(s.meta["prompt"], scene_from(s.meta), s.image) for s in open_samples(path)]


def faults(prompt: dict, scene: Scene) -> list[str]:
    """What of `prompt` the scene does not fulfil, by GenEval's rules on the drawn objects; empty when it is right."""
    found = []
    chosen: list[list[Item]] = []
    for entry in prompt["include"]:
        items = [i for i in scene.items if i.shape == entry["class"] and entry.get("color") in (None, i.color)]
        chosen.append(items)
        if len(items) < entry["count"]:
            found.append(f"{len(items)} of {entry}")
        if "position" in entry:
            relation, place = entry["position"]
            pairs = itertools.product(items, chosen[place])
            found += [f"not {entry}" for a, b in pairs if relations_between(a.box, b.box) != {relation}]
    for entry in prompt.get("exclude", []):
        if sum(i.shape == entry["class"] for i in scene.items) >= entry["count"]:
            found.append(f"excluded {entry}")
    if len(scene.items) != sum(e["count"] for e in prompt["include"]):
        found.append(f"{len(scene.items)} objects")
    if prompt["background"] not in (None, scene.background):
        found.append(f"background {scene.background}")
    return found


def held_out(scene: Scene) -> list[str]:
    """Held-out colour-shape pairs and relations that the scene shows, asked for or by accident."""
    found = [f"{i.color} {i.shape}" for i in scene.items if (i.color, i.shape) in HELD_OUT_COLORS]
    for a, b in itertools.permutations(scene.items, 2):
        found += [f"{a.shape} {r} {b.shape}" for r in relations_between(a.box, b.box) if is_held_out_relation(a.shape, r, b.shape)]
    return found


def test_every_training_scene_fulfils_its_prompt(training: list) -> None:
    wrong = [(p["prompt"], faults(p, s)) for p, s, _ in training if faults(p, s)]
    assert not wrong


def test_nothing_held_out_is_shown_or_named_in_training(training: list) -> None:
    shown = [(p["prompt"], held_out(s)) for p, s, _ in training if held_out(s)]
    assert not shown
    assert all(p["seen"] for p, _, _ in training)
    unseen = {row["prompt"] for row in prompt_sets()["unseen"]}
    assert not unseen & {p["prompt"] for p, _, _ in training}


def test_everything_else_is_shown(training: list) -> None:
    pairs = {(i.color, i.shape) for _, s, _ in training for i in s.items}
    assert pairs == set(itertools.product(COLORS, SHAPES)) - HELD_OUT_COLORS
    tasks = collections.Counter(p["tag"] for p, _, _ in training)
    for task in TASKS:  # within four standard deviations of its share
        share = TASK_WEIGHTS[task]
        assert abs(tasks[task] / N - share) < 4 * (share * (1 - share) / N) ** 0.5
    assert {s.background for _, s, _ in training} == set(BACKGROUNDS)


@pytest.mark.parametrize("name", ["val", "test", "unseen"])
def test_fresh_scenes_fulfil_the_prompt_sets(name: str) -> None:
    rng = np.random.default_rng(1)
    for prompt in prompt_sets()[name]:
        for _ in range(4):
            scene = scene_for(prompt, rng, allow_held_out=name == "unseen")
            assert not faults(prompt, scene), prompt["prompt"]
            assert bool(held_out(scene)) >= (name == "unseen"), prompt["prompt"]
            assert name == "unseen" or not held_out(scene), prompt["prompt"]


def test_faults_finds_what_is_wrong(sampler: PromptSampler) -> None:
    # The checks above prove nothing if they cannot fail: a scene of another prompt is faulty unless it happens to fit.
    rng = np.random.default_rng(2)
    rows = [row for row in prompt_sets()["test"] if row["tag"] != "single_object"]
    assert all(faults(row, Scene((), "dark", (0.1, 0.1), 0.0, 1.0)) for row in rows)
    shuffled = [faults(row, scene_for(rows[i], rng)) for row, i in zip(rows, rng.permutation(len(rows)), strict=True)]
    assert sum(map(bool, shuffled)) > 0.8 * len(rows)
    unseen = [held_out(scene_for(row, rng, allow_held_out=True)) for row in prompt_sets()["unseen"]]
    assert all(unseen)


def test_the_same_scene_at_any_resolution(sampler: PromptSampler) -> None:
    for i in range(60):
        small, large = (world_sample(i, seed=4, resolution=r, sampler=sampler) for r in (32, 128))
        assert small.meta == large.meta
        assert small.caption == large.caption
        pooled = large.image.reshape(32, 4, 32, 4, 3).mean((1, 3))
        error = np.abs(pooled - small.image).mean()
        assert error < 6, (i, error)  # edges alone may differ: their width is in pixels
        other = world_sample(i + 1, seed=4, resolution=32, sampler=sampler)
        assert np.abs(pooled - other.image).mean() > 6


def test_what_is_drawn_is_what_the_metadata_say(sampler: PromptSampler) -> None:
    for i in range(200):
        sample: Sample = world_sample(i, seed=6, resolution=64, sampler=sampler)
        scene = scene_from(sample.meta)
        low, high = (255 * v for v in BACKGROUNDS[scene.background])
        covered = np.zeros((64, 64), int)
        for item in scene.items:
            x0, y0, x1, y1 = item.box
            assert min(x0, y0) > 0
            assert max(x1, y1) < 1
            inside = mask(item, 64)
            ys, xs = (v / 64 for v in np.nonzero(inside))
            assert x0 - 1 / 64 <= xs.min() and xs.max() <= x1 and y0 - 1 / 64 <= ys.min() and ys.max() <= y1
            covered += inside
            centre = sample.image[int(item.y * 64), int(item.x * 64)] / 255
            nearest = min(COLORS, key=lambda c: np.abs(np.array(COLORS[c]) - centre).sum())
            assert nearest == item.color
        assert covered.max() == 1  # nothing overlaps
        corner = sample.image[0, 0].astype(int)
        assert corner.max() == corner.min()  # grey
        assert low - 1 <= corner[0] <= high + 1


def test_position_rule_on_hand_made_boxes() -> None:
    def box(x: float, y: float, r: float = 0.1) -> tuple[float, float, float, float]:
        return (x - r, y - r, x + r, y + r)

    centre = box(0.5, 0.5)
    assert relations_between(box(0.2, 0.5), centre) == {"left of"}
    assert relations_between(box(0.8, 0.5), centre) == {"right of"}
    assert relations_between(box(0.5, 0.2), centre) == {"above"}
    assert relations_between(box(0.5, 0.8), centre) == {"below"}
    assert relations_between(box(0.2, 0.2), centre) == {"left of", "above"}
    assert relations_between(centre, centre) == set()
    assert relations_between(box(0.53, 0.5), centre) == set()  # within the dead zone: |dx| < 0.1 (w_a + w_b) = 0.04
    assert render(Scene((), "dark", (0.1, 0.1), 0.0, 1.0), 16).shape == (16, 16, 3)
