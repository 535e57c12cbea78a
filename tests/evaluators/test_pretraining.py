"""How the evaluators' networks are made: targets, truth of captions, a trial of the machinery, and the bundled files."""

from __future__ import annotations

import itertools
import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from apex.data import world
from apex.errors import UserError
from evaluators.assets import BUNDLED
from evaluators.networks import DetectorNet, FeatureNet, decode_boxes, load_network
from evaluators.pretrain import __main__ as pretrain
from evaluators.pretrain import clip, detector, distort, features
from evaluators.pretrain.loop import fit_network

ROWS = [row for task in world.TASKS for row in itertools.islice(world.all_prompts(task), 0, None, 97)]


# ------------------------------------------------------------------------------------------------ scores and targets


@given(st.sampled_from(sorted(distort.RAMPS)), st.floats(-1, 3), st.floats(0, 1))
def test_a_worse_fault_leaves_no_more_of_an_object(fault, value, more):
    full, none = distort.RAMPS[fault]
    assert 0 <= distort.score(fault, value + more) <= distort.score(fault, value) <= 1
    assert (distort.score(fault, full), distort.score(fault, none)) == (1, 0)


def test_drawings_are_images_with_scored_objects():
    rng, scenes = np.random.default_rng(0), distort.WorldScenes()
    all_scores = []
    for _ in range(150):
        image, targets, cover = distort.draw(rng, scenes, 32)
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8 and cover.shape == (32, 32)
        assert cover.min() >= 0 and cover.max() <= 1
        assert all(0 < t.score <= 1 and t.shape in range(4) and t.box[0] < t.box[2] and t.box[1] < t.box[3] for t in targets)
        all_scores += [t.score for t in targets]
    assert np.mean(np.array(all_scores) == 1) > 0.3 and np.mean(np.array(all_scores) < 0.9) > 0.1, "fine objects and faulty ones"


def test_cells_carry_the_object_that_covers_them():
    box = (0.25, 0.25, 0.5, 0.5)
    classes, weight, boxes = detector.encode([distort.Target(2, 0.75, box)], 32, 4)
    x, y = 3, 3  # the cell whose centre is nearest to the box's: 7 of 32
    assert classes[:, y * 2 - 1, x * 2 - 1].tolist() == pytest.approx([0, 0, 0.75, 0, 0.25])
    assert boxes[:, y * 2 - 1, x * 2 - 1].tolist() == pytest.approx(list(box))
    assert classes[-1, 15, 15] == 1 and weight[15, 15] == 1, "far away there is nothing, and that counts"
    assert (weight == 0).any(), "the ring between is left out"
    assert torch.allclose(classes.sum(0), torch.ones(16, 16))


def test_the_right_maps_cost_least():
    rng, scenes, net = np.random.default_rng(0), distort.WorldScenes(), load_network(BUNDLED / "detector", DetectorNet)
    drawn = [distort.draw(rng, scenes, 32) for _ in range(8)]
    images = torch.from_numpy(np.stack([d[0] for d in drawn])).permute(0, 3, 1, 2).float() / 255
    maps = [torch.stack(part) for part in zip(*(detector.encode(d[1], 32, 4) for d in drawn), strict=True)]
    cover = torch.from_numpy(np.stack([d[2] for d in drawn]))
    right = detector.detector_loss(net, images, *maps, cover)
    wrong = detector.detector_loss(net, images, *(m.roll(1, 0) for m in maps), cover.roll(1, 0))
    assert 0 < right < wrong / 3


def test_boxes_are_read_as_they_are_written():
    raw = torch.zeros(1, 4, 16, 16)
    raw[0, :, 4, 8] = torch.tensor([0.8, -0.4, np.log(0.5), 0.0])
    x0, y0, x1, y1 = decode_boxes(raw, 32)[0, :, 4, 8].tolist()
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((8.5 / 16 + 0.1, 4.5 / 16 - 0.05))
    assert ((x1 - x0) / 2, (y1 - y0) / 2) == pytest.approx((0.08, 0.16))


# ------------------------------------------------------------------------------------------------ truth of captions


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(ROWS), st.integers(0, 1000))
def test_a_caption_is_true_of_its_scene(row, seed):
    scene = world.scene_for(row, np.random.default_rng(seed), allow_held_out=True)
    assert clip.is_true(row, [clip.Facts(scene.items, scene.background)])[0]


def test_a_caption_is_false_where_a_word_is():
    red, blue = (world.Item(s, c, x, 0.5, 0.1, world.COLORS[c]) for s, c, x in (("circle", "red", 0.2), ("square", "blue", 0.8)))
    facts = [clip.Facts((red, blue), "dark")]
    true = {
        "a circle": [{"class": "circle", "count": 1}],
        "a red circle and a blue square": [
            {"class": "circle", "count": 1, "color": "red"},
            {"class": "square", "count": 1, "color": "blue"},
        ],
        "a circle left of a square": [{"class": "square", "count": 1}, {"class": "circle", "count": 1, "position": ["left of", 0]}],
        "a red object": [{"class": None, "count": 1, "color": "red"}],
    }
    false = {
        "a cross": [{"class": "cross", "count": 1}],
        "a blue circle": [{"class": "circle", "count": 1, "color": "blue"}],
        "a circle right of a square": [{"class": "square", "count": 1}, {"class": "circle", "count": 1, "position": ["right of", 0]}],
        "a green object": [{"class": None, "count": 1, "color": "green"}],
    }
    for text, include in (true | false).items():
        assert clip.is_true({"tag": "x", "include": include}, facts)[0] == (text in true), text
    two = {"tag": "counting", "include": [{"class": "circle", "count": 2}]}
    assert not clip.is_true(two, facts)[0]
    assert not clip.is_true({"tag": "x", "include": true["a circle"], "background": "light"}, facts)[0]


def test_a_caption_that_is_true_of_another_image_is_no_negative():
    eye, true = torch.eye(3), torch.eye(3, dtype=torch.bool)
    clear = clip.contrastive_loss(eye, eye, torch.tensor(20.0), true)
    twins = torch.stack([eye[0], eye[0], eye[2]])  # images and captions 0 and 1 say the same
    true[0, 1] = true[1, 0] = True
    assert clip.contrastive_loss(twins, twins, torch.tensor(20.0), true) == pytest.approx(float(clear), abs=1e-5)
    assert clip.contrastive_loss(twins, twins, torch.tensor(20.0), torch.eye(3, dtype=torch.bool)) > clear + 0.4


def test_attributes_by_hand():
    ring = [world.Item("circle", "red", 0.25, 0.75, 0.18, (0.9, 0.1, 0.1)), world.Item("circle", "blue", 0.75, 0.75, 0.18, (0.1, 0.1, 0.9))]
    found = features.attributes(world.Scene(tuple(ring), "dark", (0.5, 0.5), 0.0, 1.1), 0.0, 0.0)
    circle = world.SHAPES.index("circle")
    assert found["counts"].sum() == found["counts"][circle] == 2
    assert found["pairs"].sum() == 2 and found["pairs"][circle, [list(world.COLORS).index(c) for c in ("red", "blue")]].tolist() == [1, 1]
    assert found["places"][circle].tolist() == pytest.approx([0.0, 1.0, 0.0])
    assert found["tints"][circle].tolist() == pytest.approx([0.0, -1.2, 0.0], abs=1e-6)
    assert (found["ground"].tolist(), found["look"].tolist()) == (pytest.approx([0, 0, 0]), pytest.approx([0, 0, 0]))
    assert {k: v.size for k, v in found.items()} == {**features.PARTS, "counts": features.N}


# ------------------------------------------------------------------------------------------------ the machinery


@pytest.mark.parametrize("network", sorted(pretrain.RECIPES))
def test_a_short_training_learns_and_leaves_a_whole_folder(network, tmp_path, monkeypatch, capsys):
    modules = {"detector": detector, "fid": features, "clip": clip}
    measure = modules[network].measure
    monkeypatch.setattr(modules[network], "measure", lambda folder: measure(folder, images=24))
    out = tmp_path / network
    monkeypatch.setattr(sys, "argv", ["pretrain", network, "--out", str(out), "--steps", "8", "--batch", "16"])
    pretrain.main()
    made = json.loads((out / "made.json").read_text())
    assert made["arguments"] == {
        **{"network": network, "steps": 8, "batch": 16, "lr": pretrain.RECIPES[network][2]},
        **{"seed": 0, "resolution": 32, "threads": 1},
    }
    assert made["held_out"] and made["training_cpu_seconds"] > 0
    assert [p.name for p in tmp_path.iterdir()] == [network], "no temporary folder is left"
    lines = [line for line in capsys.readouterr().out.splitlines() if "loss" in line]
    first, last = (float(line.split("loss ")[1].split(",")[0]) for line in (lines[0], lines[-1]))
    assert last < first
    weights = load_file(next(out.glob("*.safetensors")))
    assert not any(w.dtype == torch.float32 for w in weights.values())
    assert sorted(weights) == sorted(load_file(next((BUNDLED / network).glob("*.safetensors"))))


def test_a_loss_that_is_no_number_stops_the_training():
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(UserError, match="the loss is inf at step 2; lower --lr"):
        fit_network("x", [weight], lambda step: weight.sum() * (float("inf") if step == 2 else 1.0), steps=5, lr=0.1)


@pytest.mark.parametrize("wrong", [["--steps", "0"], ["--batch", "8"], ["--lr", "0"], ["--resolution", "30"], ["--threads", "0"]])
def test_a_bad_recipe_is_named(wrong, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pretrain", "fid", "--out", str(tmp_path / "fid"), *wrong])
    with pytest.raises(UserError, match=": found ".join(wrong)):
        pretrain.main()
    assert not (tmp_path / "fid").exists()


# ------------------------------------------------------------------------------------------------ what is bundled


def test_bundled_networks_were_made_by_the_recipes():
    for network, recipe in pretrain.RECIPES.items():
        asked = json.loads((BUNDLED / network / "made.json").read_text())["arguments"]
        assert (asked["network"], asked["steps"], asked["batch"], asked["lr"]) == (network, *recipe)


def test_bundled_networks_measure_up():
    held_out = {n: json.loads((BUNDLED / n / "made.json").read_text())["held_out"] for n in pretrain.RECIPES}
    assert held_out["detector"]["renders/exact_scenes"] >= 0.99 and held_out["detector"]["softened/exact_scenes"] >= 0.97
    assert held_out["fid"]["counts"] >= 0.97 and held_out["fid"]["pairs"] >= 0.9
    assert held_out["clip"]["crop_colors"] >= 0.99 and held_out["clip"]["beats_sibling"] >= 0.9


def test_bundled_networks_share_no_weights_and_are_small():
    found: dict[tuple, list[tuple[str, torch.Tensor]]] = {}
    for network in pretrain.RECIPES:
        for tensor in load_file(next((BUNDLED / network).glob("*.safetensors"))).values():
            if tensor.is_floating_point() and tensor.numel() > 8 and tensor.float().std() > 0:
                found.setdefault(tuple(tensor.shape), []).append((network, tensor))
    alike = [pair for group in found.values() for pair in itertools.combinations(group, 2) if pair[0][0] != pair[1][0]]
    assert len(alike) > 20, "shapes that two networks have in common"
    assert not any(torch.allclose(a.float(), b.float(), atol=1e-3) for (_, a), (_, b) in alike)
    assert sum(f.stat().st_size for f in BUNDLED.rglob("*") if f.is_file()) < 8e6


def test_the_features_see_what_a_scene_is_made_of():
    net = load_network(BUNDLED / "fid", FeatureNet)
    base = world.Scene((world.Item("circle", "red", 0.35, 0.4, 0.17, world.COLORS["red"]),), "dark", (0.15, 0.15), 0.0, 1.1)
    (thing,) = base.items

    def change(**parts) -> world.Scene:
        return world.Scene((world.Item(**vars(thing) | parts),), "dark", (0.15, 0.15), 0.0, 1.1)

    scenes = [
        base,
        change(x=0.36),  # a third of a pixel: nearly nothing
        change(color="blue", rgb=world.COLORS["blue"]),
        change(shape="square"),
        change(x=0.65),
        change(size=0.25),
        world.Scene((*base.items, world.Item("cross", "green", 0.75, 0.75, 0.14, world.COLORS["green"])), "dark", (0.15, 0.15), 0.0, 1.1),
        world.Scene(base.items, "light", (0.85, 0.85), 0.0, 1.1),
    ]
    images = torch.from_numpy(np.stack([world.render(s, 32) for s in scenes])).permute(0, 3, 1, 2).float() / 255
    away = (net.features(images) - net.features(images[:1])).norm(dim=1)
    assert (away[2:] > 3 * away[1]).all(), away
