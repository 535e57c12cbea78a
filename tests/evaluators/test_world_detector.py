"""The world's detector and colour check: right on real renders, silent on nothing, weaker on faults."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apex.data import world
from apex.data.prompts import COMMITTED, load_prompts
from apex.errors import UserError
from evaluators.command import fresh_renders, is_unseen
from evaluators.geneval.calibrate import accuracies
from evaluators.geneval.color import GREY, masked_crop
from evaluators.geneval.logic import Detection
from evaluators.geneval.world_detector import WorldDetector


def scene_of(*items: world.Item, grey: float = 0.15) -> world.Scene:
    return world.Scene(items, "dark", (grey, grey), 0.0, 1.0)


def item(shape: str, x: float = 0.5, y: float = 0.5, size: float = 0.2, color: str = "red") -> world.Item:
    return world.Item(shape, color, x, y, size, world.COLORS[color])


def scores(detector: WorldDetector, images: list[np.ndarray], shape: str) -> list[float]:
    """The best score of the shape in every image, 0 where there is none."""
    return [max((d.score for d in found.get(shape, [])), default=0.0) for found in detector(np.stack(images))]


@pytest.mark.parametrize("split", ["test", "unseen"])
def test_every_task_is_right_on_real_renders(split, detector, colors):
    rows = load_prompts(COMMITTED / f"{split}.jsonl")
    assert any(map(is_unseen, rows)) == (split == "unseen")
    found = accuracies(fresh_renders(rows, [1] * len(rows), 32, seed=7), rows, detector, colors)
    assert min(found.values()) >= 0.98, found


def test_renders_of_another_size_are_right_too(few_rows, detector, colors):
    renders = fresh_renders(few_rows, [2] * len(few_rows), 64, seed=7)
    rows = [row for row in few_rows for _ in range(2)]
    assert accuracies(renders, rows, detector, colors)["overall"] >= 0.95


@pytest.mark.parametrize("resolution", [32, 64])
def test_boxes_and_masks_lie_on_the_objects(resolution, few_rows, detector):
    scenes = [world.scene_for(row, np.random.default_rng(i)) for i, row in enumerate(few_rows)]
    found = detector(np.stack([world.render(s, resolution) for s in scenes]))
    for scene, seen in zip(scenes, found, strict=True):
        for thing in scene.items:
            box = np.array(thing.box) * resolution
            off, nearest = min(((np.abs(np.array(d.box) - box).max(), d) for d in seen[thing.shape]), key=lambda pair: pair[0])
            assert off < 0.06 * resolution
            truth = world.mask(thing, resolution)
            assert (truth & nearest.mask).sum() / (truth | nearest.mask).sum() > 0.6


def test_the_batch_does_not_matter(few_rows, detector):
    renders = fresh_renders(few_rows, [1] * len(few_rows), 32, seed=1)
    together = detector(renders)
    for image, found in zip(renders, together, strict=True):
        (alone,) = detector(image[None])
        assert found.keys() == alone.keys()
        for shape in found:
            assert [d.score for d in found[shape]] == pytest.approx([d.score for d in alone[shape]], abs=1e-4)


def test_nothing_is_found_where_nothing_is(detector):
    rng = np.random.default_rng(0)
    empty = [world.render(scene_of(grey=g), 32) for g in (0.1, 0.5, 0.9)]
    noise = list(rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8))
    assert [found for found in detector(np.stack(empty + noise)) if any(d.score > 0.3 for each in found.values() for d in each)] == []


@pytest.mark.parametrize("shape", world.SHAPES)
def test_an_object_fades_from_the_scores_as_it_fades_from_the_image(shape, detector):
    whole, ground = (world.render(scene_of(*things), 32).astype(float) for things in ([item(shape)], []))
    faded = [np.round(share * whole + (1 - share) * ground).astype(np.uint8) for share in (1.0, 0.5, 0.25, 0.0)]
    found = scores(detector, faded, shape)
    assert found[0] > 0.95 and found[3] < 0.05
    assert found[1] < found[0] - 0.1 and found[2] < 0.3


@pytest.mark.parametrize("shape", world.SHAPES)
def test_half_an_object_is_none(shape, detector):
    image = world.render(scene_of(item(shape)), 32)
    image[:, 16:] = world.render(scene_of(), 32)[:, 16:]
    assert scores(detector, [image], shape)[0] < 0.3


def test_two_objects_that_flow_together_are_not_counted_as_two(detector):
    pair = [item("circle", 0.40, size=0.14), item("circle", 0.60, size=0.14)]
    apart = [replace(pair[0], x=0.25), replace(pair[1], x=0.75)]
    merged, good = detector(np.stack([world.render(scene_of(*things), 32) for things in (pair, apart)]))
    assert sum(d.score > 0.9 for d in good["circle"]) == 2
    assert sum(d.score > 0.9 for d in merged.get("circle", [])) < 2


def test_colors_of_all_shapes_are_named(detector, colors):
    for shape in world.SHAPES:
        images = np.stack([world.render(scene_of(item(shape, color=c)), 32) for c in world.COLORS])
        named = [colors(image, found[shape][:1], shape)[0] for image, found in zip(images, detector(images), strict=True)]
        assert named == list(world.COLORS)


def test_the_crop_shows_the_mask_on_grey_alone():
    image = np.full((8, 8, 3), 200, np.uint8)
    image[2:5, 1:4] = (255, 0, 0)
    mask = np.zeros((8, 8), bool)
    mask[3:5, 1:4] = True
    crop = np.asarray(masked_crop(image, Detection((1.2, 1.8, 4.4, 5.1), 0.9, mask)))
    assert crop.shape == (3, 3, 3)
    assert (crop[0] == GREY).all() and (crop[1:] == (255, 0, 0)).all()
    assert masked_crop(image, Detection((3.0, 3.0, 3.1, 3.2), 0.9)).size == (1, 1), "a box within one pixel is that pixel"


def test_prompt_of_another_world_is_refused(detector):
    from evaluators.geneval.logic import check_known

    with pytest.raises(UserError, match="class 'cow'"):
        check_known({"include": [{"class": "cow", "count": 1}]}, "prompt 3", detector.classes, detector.colors)
