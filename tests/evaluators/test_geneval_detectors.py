"""GenEval's official detector: what mmdet computes and what transformers computes of its weights are the same; files are opened without
running what is in them; what was judged before a cut is not judged again. Networks are random; those of mmdet need `make env-mmdet`."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from apex.data import world
from apex.data.prompts import load_prompts
from apex.errors import UserError
from evaluators.cost import MASK2FORMER
from evaluators.geneval import __main__ as geneval
from evaluators.geneval import self_test
from evaluators.geneval.checkpoint import read_state
from evaluators.geneval.coco import CLASSES, COCO, COLORS
from evaluators.geneval.convert import build, configuration, converted, from_folder, save
from evaluators.geneval.logic import Detection
from evaluators.geneval.mask2former import MOST, TransformersDetector, extents, instances, network_size, prepare
from evaluators.geneval.prompts import OFFICIAL, content_sha256, prompt_set
from evaluators.images import open_images
from evaluators.journal import Journal

OFFICIAL_FILE = Path(__file__).resolve().parents[3] / "shared/data/geneval/evaluation_metadata.jsonl"
SMALL = {
    "model_type": "mask2former", "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 4,
    "encoder_layers": 1, "encoder_feedforward_dim": 48, "decoder_layers": 3, "dim_feedforward": 64, "num_queries": 20, "num_labels": 80,
    "backbone_config": {
        "model_type": "swin", "embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "window_size": 7, "mlp_ratio": 4.0,
        "patch_size": 4, "drop_path_rate": 0.0, "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
}  # fmt: skip
SCALE = (190, 112)


@pytest.fixture(scope="module")
def network():
    """A small random network that is sure of many things."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig.from_dict(dict(SMALL)))
    with torch.no_grad():
        model.class_predictor.weight *= 24
        for name, weight in model.named_parameters():
            if name.endswith("mask_embedder.2.0.weight"):
                weight *= 60
    return model.eval().requires_grad_(False)


@pytest.fixture
def detector_of_random(network) -> TransformersDetector:
    return TransformersDetector(network, SCALE, floor=0.0)


def blocks(height: int, width: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3))
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.uint8)


# --------------------------------------------------------------------------------------------- both are the same


def test_mmdet_and_transformers_agree_on_a_small_network(tmp_path: Path) -> None:
    """The same proof with the official size: results/reference/geneval_agreement."""
    pytest.importorskip("mmdet", reason="make env-mmdet installs it")
    from evaluators.geneval.agreement import main
    from evaluators.geneval.proof import faults

    main(["--small", "--out", str(tmp_path)])
    proof = json.loads((tmp_path / "agreement.json").read_text())
    results = proof["images"]
    assert [faults(result) for result in results] == [[]] * len(results)
    assert sum(result["verdicts_correct"] for result in results) > 10 and all(result["above_0.9"][0] for result in results)
    assert {"mmdet", "mmcv", "mmengine", "opencv", "torch"} <= set(proof["versions"])
    assert (tmp_path / "README.md").read_text().count(" of 60 |") == len(results)


def test_what_is_timed_has_the_official_shape() -> None:
    """The network of evaluators.throughput is the one that the converter makes of mmdet's official configuration."""
    pytest.importorskip("mmdet", reason="make env-mmdet installs it")
    from evaluators.geneval import mmdet_detector

    official = configuration(mmdet_detector.build(mmdet_detector.official_configuration()).state_dict(), "mmdet")
    assert {key: official[key] for key in MASK2FORMER} == MASK2FORMER
    assert set(official) - set(MASK2FORMER) == {"model_type", "architectures"}


def test_the_committed_proof_is_of_the_official_size_and_passed() -> None:
    from evaluators.geneval.proof import faults

    proof = json.loads((Path(__file__).resolve().parents[2] / "results/reference/geneval_agreement/agreement.json").read_text())
    assert "small" not in proof["configuration"] and len(proof["images"]) >= 10 and not any(map(faults, proof["images"]))


# --------------------------------------------------------------------------------------------- the network and its files


def test_a_saved_network_comes_back(network, tmp_path: Path) -> None:
    source = tmp_path / "source.pth"
    source.write_bytes(b"x")
    save(network, tmp_path / "folder", source)
    again = from_folder(tmp_path / "folder")
    image = prepare(blocks(64, 64, 0)[None], scale=SCALE)
    for name in ("class_queries_logits", "masks_queries_logits"):
        assert torch.equal(getattr(again(pixel_values=image), name), getattr(network(pixel_values=image), name))
    (tmp_path / "folder" / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json is missing; convert the weights again"):
        from_folder(tmp_path / "folder")


@pytest.mark.parametrize(
    ("change", "said"),
    [("drop", "is missing"), ("add", "is left over"), ("shape", "expected"), ("nan", "found values that are not finite")],
)
def test_weights_that_do_not_fit_are_named(network, change: str, said: str) -> None:
    state = dict(network.state_dict())
    name = "class_predictor.bias"
    if change == "drop":
        del state[name]
    elif change == "nan":
        state[name] = torch.full_like(state[name], torch.nan)
    else:
        state["class_predictor.gain" if change == "add" else name] = torch.zeros(3)
    with pytest.raises(UserError, match=rf"w\.pth: class_predictor.*{said}"):
        build(dict(SMALL), state, "w.pth")


def test_another_checkpoint_than_mask2formers_is_one_line() -> None:
    with pytest.raises(UserError, match=r"w\.pth: neck\.conv\.weight not known"):
        converted({"neck.conv.weight": torch.zeros(1)}, "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: .* is missing; expected mmdet 3's Mask2Former"):
        configuration({"panoptic_head.cls_embed.bias": torch.zeros(81)}, "w.pth")


class Harmful:
    def __reduce__(self):
        return os.mkdir, (os.environ["HARM"],)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    torch.save({"state_dict": {"a": torch.ones(2)}, "meta": Harmful()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad\.pth: not opened, for it holds more than weights and plain values"):
        read_state(tmp_path / "bad.pth")
    assert not (tmp_path / "harm").exists()
    with pytest.raises(FileExistsError), open(tmp_path / "plain.pkl", "wb") as file:  # it would have
        os.mkdir(tmp_path / "harm")
        pickle.loads(pickle.dumps(Harmful()))
        file.write(b"")


def test_what_a_training_loop_keeps_beside_the_weights_is_left(tmp_path: Path) -> None:
    content = {"meta": {"seed": np.int64(3), "mean": np.ones(3), "path": Path("x")}, "state_dict": {"a": torch.arange(3.0)}}
    torch.save(content, tmp_path / "w.pth")
    assert torch.equal(read_state(tmp_path / "w.pth")["a"], torch.arange(3.0))
    (tmp_path / "cut.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:200])
    with pytest.raises(UserError, match=r"cut\.pth: "):
        read_state(tmp_path / "cut.pth")


# --------------------------------------------------------------------------------------------- before and after the network


@pytest.mark.parametrize(("size", "found"), [((512, 512), (800, 800)), ((1024, 1024), (800, 800)), ((300, 900), (444, 1333))])
def test_the_image_fits_the_scale_with_its_proportions(size, found) -> None:
    assert network_size(*size) == found
    assert prepare(np.zeros((1, *size, 3), np.uint8)).shape[2:] == tuple(-(-side // 32) * 32 for side in found)


def test_boxes_are_the_extents_of_masks() -> None:
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((50, 9, 13)) > 0.95)
    for mask, box in zip(masks, extents(masks), strict=True):
        y, x = np.nonzero(mask.numpy())
        assert box.tolist() == ([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0])


def test_a_detections_score_is_its_classes_times_its_masks() -> None:
    """Slowly, pair by pair, with masks at the image's own size."""
    torch.manual_seed(1)
    classes, masks = 3 * torch.randn(4, 6), 5 * torch.randn(4, 8, 8)
    found = instances(classes, masks, (32, 32), scale=(32, 32))
    assert len(found.labels) == 20 <= MOST
    whole = torch.nn.functional.interpolate(masks[None], (32, 32), mode="bilinear", align_corners=False)[0]
    wanted = []
    for query in range(4):
        inside = whole[query] > 0
        sure = (whole[query].sigmoid()[inside].sum() / (inside.sum() + 1e-6)).item()
        wanted += [(round(sure * classes[query].softmax(0)[label].item(), 5), label, int(inside.sum())) for label in range(5)]
    seen = [(round(s.item(), 5), int(n), int(m.sum())) for s, n, m in zip(found.scores, found.labels, found.masks, strict=True)]
    assert sorted(seen) == sorted(wanted)


def test_a_batch_finds_what_one_by_one_finds(detector_of_random) -> None:
    images = np.stack([blocks(96, 64, seed) for seed in range(3)])
    together = detector_of_random.instances(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = detector_of_random.instances(image[None])
        assert torch.allclose(found.scores.sort().values, alone.scores.sort().values, atol=1e-4)
        assert (found.labels.sort().values == alone.labels.sort().values).all() and found.masks.shape[1:] == (96, 64)


# --------------------------------------------------------------------------------------------- classes and prompts


@pytest.mark.skipif(not OFFICIAL_FILE.is_file(), reason="the official prompt file is not part of the repository")
def test_the_official_prompts_are_known_and_can_be_judged() -> None:
    rows = load_prompts(OFFICIAL_FILE)
    asked = {entry["class"] for row in rows for key in ("include", "exclude") for entry in row.get(key, [])}
    colors = {entry["color"] for row in rows for entry in row["include"] if "color" in entry}
    assert len(rows) == 553 and asked <= set(CLASSES) and colors <= set(COLORS) and len(COCO) == len(set(CLASSES)) == 80
    assert prompt_set(rows) == {"name": "official", "sha256": OFFICIAL, "prompts": 553}
    assert prompt_set(rows[:-1])["name"] == prompt_set(rows[::-1])["name"] == "other"
    assert content_sha256([dict(reversed(row.items())) for row in rows]) == OFFICIAL


# --------------------------------------------------------------------------------------------- the command


class Counting:
    """Finds one object of the first class in bright images; counts what it is shown."""

    name, classes, colors = "stand-in", ("cat",), ("red",)

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: np.ndarray) -> list[dict[str, list[Detection]]]:
        self.seen += len(images)
        return [{"cat": [Detection((0, 0, 4, 4), 0.95)]} if image.mean() > 100 else {} for image in images]


@pytest.fixture
def cats(make_folder: Callable[..., Path]) -> Path:
    rows = [{"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": f"cat {n}"} for n in range(6)]
    images = np.stack([np.full((8, 8, 3), 20 * n + 10 * k, np.uint8) for n in range(6) for k in range(4)])
    return make_folder(rows, images)


def no_colors(image, objects, name) -> list[str]:
    raise AssertionError("no colour was asked for")


def test_what_is_in_the_journal_is_not_looked_at_again(cats: Path, tmp_path: Path) -> None:
    images, whole, counting = open_images(cats), Counting(), Counting()
    wanted = geneval.score(images, whole, no_colors, batch=5)
    assert whole.seen == 24
    with Journal(tmp_path, "v", {}) as journal:
        geneval.score(images, counting, no_colors, batch=5, journal=journal)
    lines = journal.path.read_text().splitlines(keepends=True)
    journal.path.write_text("".join(lines[:4]) + lines[4][:9])  # three prompts, and a torn line
    counting.seen = 0
    with Journal(tmp_path, "v", {}) as journal:
        assert geneval.score(images, counting, no_colors, batch=5, journal=journal) == wanted
        assert counting.seen == 12
        (cats / "00000/samples/0000.png").write_bytes((cats / "00005/samples/0003.png").read_bytes())
        other = geneval.score(open_images(cats), counting, no_colors, batch=5, journal=journal)
    assert counting.seen == 16 and other[0] != wanted[0], "other images are judged anew"


def test_seen_and_unseen_prompts_are_told_apart_for_the_world_alone() -> None:
    rows = [{"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a red cat"}] * 3
    weights = np.ones((4, 3))
    names = {on: {m.metric for m in geneval.metrics(rows, np.ones(3), np.full(3, 4.0), weights, divided=on)} for on in (True, False)}
    assert names[False] == {"geneval/overall", "geneval/colors"} and names[True] - names[False] == {"geneval/seen"}


def test_the_official_layout_is_read(cats: Path) -> None:
    """Five digits, and the grid beside the samples, as the official script writes them."""
    for folder in cats.glob("0*"):
        for path in sorted((folder / "samples").glob("*.png")):
            path.rename(path.with_name(f"0{path.name}"))
        (folder / "grid.png").write_bytes((folder / "samples/00000.png").read_bytes())
    assert len(open_images(cats)) == 24


def test_official_weights_that_are_missing_are_one_line_before_work(cats: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("APEX_ASSETS", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"it is GenEval's detector.*evaluators.assets fetch mask2former-mmdet or give --detector-weights"):
        geneval.main(["--images", str(cats), "--out", str(tmp_path / "g.json"), "--detector", "transformers"])


# --------------------------------------------------------------------------------------------- the self-test


def test_the_worlds_own_detector_passes_and_a_blind_one_is_caught(detector, colors) -> None:
    assert "all found" in self_test.try_world(detector, colors, Path("w"))
    with pytest.raises(UserError, match=r"w: self-test failed on a render of one \w+ \w+: found nothing above 0\.3"):
        self_test.try_world(lambda images: [{} for _ in images], colors, Path("w"))


def test_a_miss_on_drawn_pictures_warns_and_on_ones_own_ends(tmp_path: Path, capsys) -> None:
    from PIL import Image

    class Blind(Counting):
        classes = CLASSES

        def __call__(self, images):
            return [{"bench": [Detection((0, 0, 4, 4), 0.5)]} for _ in images]

    found = self_test.try_drawn(Blind())
    assert set(found) == set(self_test.DRAWN) and "warning: the detector finds none of the drawn stop sign" in capsys.readouterr().err
    Image.fromarray(world.render(world.scene_for(world_row(), np.random.default_rng(0)), 64)).save(tmp_path / "own.png")
    with pytest.raises(UserError, match=r"own\.png: self-test failed: expected a dog above 0\.3, found bench 0\.50"):
        self_test.try_picture(Blind(), tmp_path / "own.png", "dog")
    with pytest.raises(UserError, match=r"--self-test-class unicorn: not known"):
        self_test.try_picture(Blind(), tmp_path / "own.png", "unicorn")


def world_row() -> dict:
    return {"tag": "single_object", "include": [{"class": "square", "count": 1}], "prompt": "a square", "background": None}
