"""GenEval as published: its verdicts, crops and colours against slow literal transcriptions; mmdet's weights to transformers and back;
the command with an official detector; folders that both codes read. Networks are small and random."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from apex.data import world
from apex.errors import UserError, run_command
from evaluators.clip_model import Clip
from evaluators.geneval import __main__ as geneval
from evaluators.geneval import convert, proof
from evaluators.geneval.checkpoint import read_state
from evaluators.geneval.coco import CLASSES, COLORS
from evaluators.geneval.color import TEMPLATES, ClipColors, masked_crop
from evaluators.geneval.logic import Detection, judge
from evaluators.geneval.mask2former import Instances, TransformersDetector, by_class
from evaluators.images import open_images
from evaluators.result import read_record

ROOT = Path(__file__).resolve().parents[2]
SCALE = (190, 112)
needs_mmdet = pytest.mark.skipif(find_spec("mmdet") is None, reason="mmdet is not installed: make env-mmdet")

# ------------------------------------------------------------------- verdicts, as the published code comes to them


def published_relations(a: np.ndarray, b: np.ndarray) -> set[str]:
    """In float32, the type of mmdet's boxes, step by step as the published code computes."""
    corners = np.stack([a, b]).reshape(2, 2, 2)
    centre = corners.mean(1)
    extent = np.abs(corners[:, 1] - corners[:, 0])
    offset = centre[0] - centre[1]
    shrunk = np.maximum(np.abs(offset) - 0.1 * (extent[0] + extent[1]), 0) * np.sign(offset)
    if (np.abs(shrunk) < 1e-3).all():
        return set()
    dx, dy = shrunk / np.linalg.norm(offset)
    return {name for name, holds in zip(world.RELATIONS, (dx < -0.5, dx > 0.5, dy < -0.5, dy > 0.5), strict=True) if holds}


def published_verdict(per_class: dict[str, np.ndarray], row: dict, color_of) -> bool:
    """`per_class`: rows x0, y0, x1, y1, score in float32, in the detector's order."""
    objects = {}
    for name, found in per_class.items():
        order = np.argsort(found[:, 4], kind="stable")[::-1]
        order = order[found[order, 4] > (0.9 if row["tag"] == "counting" else 0.3)][:16]
        if len(order):
            objects[name] = found[order]
    right, groups = True, []
    for wanted in row["include"]:
        found = objects.get(wanted["class"], np.zeros((0, 5)))[: wanted["count"]]
        fine = len(found) >= wanted["count"]
        if fine and "color" in wanted:
            fine = sum(color_of(each) == wanted["color"] for each in found) >= wanted["count"]
        if fine and "position" in wanted:
            relation, target = wanted["position"]
            fine = groups[target] is not None and all(
                relation in published_relations(each[:4], other[:4]) for each in found for other in groups[target]
            )
        groups.append(found if fine else None)
        right = right and fine
    return right and not any(len(objects.get(no["class"], ())) >= no["count"] for no in row.get("exclude", []))


def test_verdicts_are_the_published_ones_on_random_detections() -> None:
    """Whole-pixel boxes that often touch the borders of the position rule, scores at the thresholds, and many equal ones."""
    rng = np.random.default_rng(0)
    names = ["cat", "dog", "computer mouse"]
    right = wrong = ties = 0
    for _ in range(1500):
        labels = rng.choice([CLASSES.index(name) for name in names], rng.integers(0, 60))
        corner, extent = rng.integers(0, 25, (len(labels), 2)), 5 * rng.integers(1, 3, (len(labels), 2))
        boxes = np.concatenate([corner, corner + extent], 1).astype(np.float32)
        scores = rng.choice(np.float32([0.3, 0.31, 0.6, 0.9, np.nextafter(np.float32(0.9), np.float32(1)), 0.95, 0.99]), len(labels))
        found = by_class(Instances(*map(torch.from_numpy, (boxes, scores, labels)), torch.zeros(len(labels), 1, 1, dtype=torch.bool)))
        rows = np.concatenate([boxes, scores[:, None]], 1)
        per_class = {name: rows[labels == CLASSES.index(name)] for name in names}
        ties += any(len(set(each[:, 4])) < len(each) for each in per_class.values())
        for row in proof.random_prompts(names, rng, 6):
            verdict = judge(found, row, lambda objects, _: [COLORS[int(sum(d.box)) % 10] for d in objects]).correct
            assert verdict == published_verdict(per_class, row, lambda each: COLORS[int(each[:4].sum()) % 10]), (row, per_class)
            right, wrong = right + verdict, wrong + (not verdict)
    assert min(right, wrong) > 1000 and ties > 500


def test_positions_are_the_published_ones_on_every_border() -> None:
    """All whole-pixel offsets of two boxes of these sizes, in float64 here and in float32 there."""
    from evaluators.geneval.logic import relative_position

    for width in (5, 10, 15, 40):
        for x in range(-40, 41):
            for y in (-12, -9, -3, 0, 3, 4, 9, 12):
                a, b = (50 + x, 50 + y, 50 + x + width, 60 + y), (50, 50, 60, 60)
                assert relative_position(a, b) == published_relations(np.float32(a), np.float32(b)), (a, b)


def test_the_crop_is_the_published_one() -> None:
    """Pillow crops at the box's float corners, rounded; here the same comes out, mask and all."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for _ in range(200):
        mask = rng.random((40, 50)) > 0.5
        x0, y0 = rng.uniform(0, 30, 2)
        box = np.float32([x0, y0, x0 + rng.uniform(1.5, 19), y0 + rng.uniform(1.5, 9)])
        theirs = Image.composite(Image.fromarray(image), Image.new("RGB", (50, 40), color="#999"), Image.fromarray(mask)).crop(
            tuple(box.tolist())
        )
        ours = masked_crop(image, Detection(tuple(map(float, box)), 0.9, mask))
        assert np.array_equal(np.asarray(theirs), np.asarray(ours))


def test_colors_are_named_as_by_the_published_classifier(clip: Clip) -> None:
    """Per colour: the unit vectors of its three texts, their mean, made a unit vector; the crop goes to the largest product."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    objects = [Detection((x, 2, x + 8, 20), 0.9, rng.random((32, 32)) > 0.2) for x in range(0, 24, 3)]
    names = list(world.COLORS)
    columns = []
    for color in names:
        each = [F.normalize(clip.encode_texts([text.format(c=color, cls="square")])[0], dim=0) for text in TEMPLATES]
        mean = sum(each) / 3
        columns.append(mean / mean.norm())
    crops = [clip.encode_images([masked_crop(image, d)])[0] for d in objects]
    wanted = [names[int((100 * crop @ torch.stack(columns, 1)).argmax())] for crop in crops]
    assert ClipColors(clip, names)(image, objects, "square") == wanted


# ------------------------------------------------------------------- mmdet's weights to transformers


@pytest.fixture(scope="module")
def network():
    """A small network of transformers with every weight at random."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = {"model_type": "swin", "embed_dim": 16, "depths": [2, 1, 2, 1], "num_heads": [1, 2, 4, 8], "drop_path_rate": 0.0}
    config = Mask2FormerConfig(
        backbone_config={**swin, "out_features": stages}, feature_size=64, mask_feature_size=64, hidden_dim=64, num_attention_heads=4,
        encoder_layers=2, encoder_feedforward_dim=48, decoder_layers=4, dim_feedforward=80, num_queries=20, num_labels=80,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.05 * torch.randn_like(parameter)
            if name.startswith("class_predictor.w"):
                parameter *= 24
            if name.endswith("mask_embedder.2.0.weight"):
                parameter *= 60
    return model.eval().requires_grad_(False)


def unfolded(tensor: torch.Tensor) -> torch.Tensor:
    """The inputs of a patch merging in mmdet's order, written out place by place."""
    channels = tensor.shape[-1] // 4
    out = torch.empty_like(tensor)
    for channel in range(channels):
        for row in range(2):
            for column in range(2):
                out[..., channel * 4 + row * 2 + column] = tensor[..., (column * 2 + row) * channels + channel]
    return out


def as_mmdet(model) -> dict[str, torch.Tensor]:
    """The same weights as mmdet names and lays them out."""
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(convert.UNUSED)}
    theirs: dict[str, torch.Tensor] = {}
    for name, pattern in convert.NAMES.items():
        split = "{qkv}" in pattern
        expression = re.escape(pattern.replace("{qkv}", "q")).replace(r"\#", r"(\d+)").replace(r"\*", "(weight|bias)")
        for ours in [k for k in state if re.fullmatch(expression, k)]:
            found = iter(re.fullmatch(expression, ours).groups())
            key = re.sub(r"[#*]", lambda _, found=found: next(found), name)
            if split:
                theirs[key] = torch.cat([state.pop(ours.replace(".q_proj", f".{part}_proj")) for part in "qkv"])
            else:
                tensor = state.pop(ours)
                theirs[key] = unfolded(tensor) if ".downsample." in ours else tensor
    assert not state, "every weight has a name in mmdet"
    return theirs


@pytest.fixture(scope="module")
def pth(network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save({"meta": {"epoch": 50}, "state_dict": as_mmdet(network)}, path)
    return path


@pytest.fixture
def small_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectors that are loaded work at a small scale: minutes become seconds."""
    monkeypatch.setattr(TransformersDetector.__init__, "__defaults__", (SCALE, 0.3))


def picture(seed: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).repeat(side // 8, 0).repeat(side // 8, 1).astype(np.uint8)


def test_weights_come_back_from_mmdets_names(network, pth: Path) -> None:
    again = convert.from_mmdet(pth)
    for name, tensor in network.state_dict().items():
        if not name.startswith(convert.UNUSED):
            assert torch.equal(again.state_dict()[name], tensor), name
    assert again.config.id2label[64] == "mouse" and again.config.backbone_config.depths == [2, 1, 2, 1]


def test_patch_merging_takes_the_same_neighbours() -> None:
    """mmdet unfolds the image, transformers stacks four of its quarters; with reordered weights the product is the same."""
    image, weight = torch.randn(1, 6, 8, 10), torch.randn(12, 24)
    theirs = F.unfold(image, 2, stride=2).transpose(1, 2) @ weight.T
    last = image.permute(0, 2, 3, 1)
    quarters = torch.cat([last[:, row::2, column::2] for column in range(2) for row in range(2)], -1).flatten(1, 2)
    assert torch.allclose(theirs, quarters @ convert.neighbours_outermost(weight).T, atol=1e-5)


def test_the_old_form_of_a_pth_is_read_too(tmp_path: Path) -> None:
    """OpenMMLab publishes its files in the form from before torch 1.6."""
    torch.save(
        {"meta": {"mean": np.ones(3)}, "state_dict": {"a": torch.arange(3.0)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )
    assert torch.equal(read_state(tmp_path / "old.pth")["a"], torch.arange(3.0))
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    with pytest.raises(UserError, match=r"text\.pth: .*publisher"):
        read_state(tmp_path / "text.pth")


def test_the_converted_folder_is_read_by_transformers_itself_and_by_the_detector(pth: Path, tmp_path: Path, small_scale, capsys) -> None:
    from transformers import Mask2FormerForUniversalSegmentation

    convert.main(["--weights", str(pth), "--out", str(tmp_path / "folder")])
    assert "parameters from random.pth" in capsys.readouterr().out
    theirs = TransformersDetector(Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "folder").eval())
    image = picture(0)[None]
    each = [d.logits(image) for d in (theirs, TransformersDetector.load(pth), TransformersDetector.load(tmp_path / "folder"))]
    for classes, masks in each[1:]:
        assert torch.allclose(classes, each[0][0], atol=1e-4) and torch.allclose(masks, each[0][1], atol=1e-3)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda state: state.pop("panoptic_head.query_feat.weight"), r"panoptic_head\.query_feat\.weight is missing"),
        (lambda state: state.pop("panoptic_head.level_embed.weight"), r"transformer_module\.level_embed\.weight is missing"),
        (lambda state: state.update({"panoptic_head.extra": torch.zeros(1)}), r"panoptic_head\.extra not known"),
        (
            lambda state: state.update({"backbone.stages.0.blocks.0.attn.w_msa.relative_position_index": torch.zeros(49, 49).long()}),
            "orders the positions otherwise",
        ),
    ],
)
def test_a_pth_that_is_not_whole_is_one_line(network, spoil, said: str, tmp_path: Path) -> None:
    state = as_mmdet(network)
    spoil(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=rf"w\.pth: .*{said}"):
        TransformersDetector.load(tmp_path / "w.pth")


# ------------------------------------------------------------------- mmdet itself


@needs_mmdet
def test_names_that_are_confused_are_noticed_by_the_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "SMALL_SIZES", ((64, 64),))
    swapped = {"cross_attn_layer_norm": "self_attn_layer_norm", "self_attn_layer_norm": "cross_attn_layer_norm"}
    wrong = [
        (pattern, re.sub("|".join(swapped), lambda m: swapped[m[0]], template) if "transformer_module" in template else template)
        for pattern, template in convert._PATTERNS
    ]
    monkeypatch.setattr(convert, "_PATTERNS", wrong)
    found = [proof.faults(result) for result in proof.prove(tmp_path, is_small=True, seed=0)]
    assert all("class_logits differ" in " ".join(each) for each in found)


@needs_mmdet
def test_mmdet_refuses_other_weights_in_one_line(pth: Path) -> None:
    from evaluators.geneval.mmdet_detector import MmdetDetector

    with pytest.raises(UserError, match=r"random\.pth: .*give the weights of mask2former/mask2former_swin-s"):
        MmdetDetector.load(pth)


# ------------------------------------------------------------------- the command


ROWS = [
    {"tag": "single_object", "include": [{"class": "computer mouse", "count": 1}], "prompt": "a photo of a computer mouse"},
    {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "pink"}], "prompt": "a photo of a pink cat"},
    {
        "tag": "position",
        "include": [{"class": "dog", "count": 1}, {"class": "tie", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a tie right of a dog",
    },
]


@pytest.fixture
def official(pth: Path, make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_scale):
    """official(out, *more): the command with the detector of transformers, small; its colours are named by the bundled CLIP."""
    monkeypatch.setattr(Clip, "openai", classmethod(lambda cls, path, device="cpu": cls(path, device)))
    folder = make_folder(ROWS, np.stack([picture(seed) for seed in range(6)]), per_prompt=2)

    def run(out: str, *more: object, weights: Path = pth) -> int:
        arguments = ["--images", folder, "--out", tmp_path / out, "--device", "cpu", "--detector", "transformers"]
        arguments += ["--detector-weights", weights, "--clip-weights", geneval.BUNDLED / "clip", *more]
        return run_command(lambda: geneval.main([str(a) for a in arguments]))

    return run


def test_a_folder_becomes_a_record_that_says_by_what(official, pth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert official("a.json") == 0
    record = read_record(tmp_path / "a.json")
    assert {m.metric for m in record.metrics} == {"geneval/overall", "geneval/single_object", "geneval/colors", "geneval/position"}
    weights = record.details["detector_weights"]
    assert (record.details["detector"], weights["file"], weights["official"]) == ("transformers", "random.pth", False)
    assert len(weights["sha256"]) == 64 and record.details["clip"].startswith("clip ")
    assert record.details["prompt_set"]["name"] == "other" and set(record.details["self_test"]["drawn"]) == {
        "stop sign",
        "clock",
        "traffic light",
    }

    seen = []
    find = TransformersDetector.instances
    monkeypatch.setattr(TransformersDetector, "instances", lambda self, images: seen.append(len(images)) or find(self, images))
    assert official("a.json") == 0
    assert seen == [3], "only the drawn pictures of the self-test: the verdicts are kept"
    assert official("b.json", "--batch", 1) == 0 and seen[1:] == [3, *[1] * 6]
    again = read_record(tmp_path / "b.json")
    assert again.metrics == record.metrics == read_record(tmp_path / "a.json").metrics, "whatever the batch"

    convert.main(["--weights", str(pth), "--out", str(tmp_path / "folder")])
    assert official("c.json", weights=tmp_path / "folder") == 0
    converted = read_record(tmp_path / "c.json")
    assert converted.metrics == record.metrics and converted.details["detector_weights"]["converted_from"] == weights["sha256"]


def test_a_self_test_that_fails_says_what_was_found_and_nothing_is_scored(official, tmp_path: Path, capsys) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "own.png")
    assert official("a.json", "--self-test-image", tmp_path / "own.png") == 2
    assert "--self-test-image and --self-test-class: expected both or none" in capsys.readouterr().err
    assert official("a.json", "--self-test-image", tmp_path / "own.png", "--self-test-class", "zebra") == 2
    assert re.search(r"error: .*own\.png: self-test failed: expected a zebra above 0\.3, found ", capsys.readouterr().err)
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("detector", "given", "named"),
    [
        ("transformers", [], "mask2former_swin-s-p4-.*-c9d0c4f2.pth: not found; .* --detector-weights PATH"),
        ("mmdet", ["--detector-weights", "nowhere.pth"], r"--detector-weights nowhere\.pth: not found"),
        ("transformers", ["--detector-weights", __file__], "ViT-L-14.pt: not found; .* --clip-weights PATH"),
    ],
)
def test_missing_weights_are_named_before_any_work(detector: str, given: list, named: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """Before images are opened too: those of this call are not there either."""
    monkeypatch.setenv("APEX_ASSETS", str(tmp_path / "assets"))
    line = ["--images", tmp_path / "nowhere", "--out", tmp_path / "o.json", "--device", "cpu", "--detector", detector, *given]
    assert run_command(lambda: geneval.main([str(a) for a in line])) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(named, error) and "images" not in error


def test_a_class_that_coco_lacks_is_named(official, tmp_path: Path, capsys) -> None:
    (tmp_path / "images/00001/metadata.jsonl").write_text(json.dumps({**ROWS[0], "include": [{"class": "mouse", "count": 1}]}))
    assert official("a.json") == 2
    assert "prompt 1: class 'mouse'; this detector knows person, bicycle" in capsys.readouterr().err


def test_without_mmdet_one_line_says_how_to_get_it(official, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmdet", None)
    assert official("a.json", "--detector", "mmdet") == 2
    assert re.search(r"error: mmdet cannot be imported .*make env-mmdet.*--detector transformers", capsys.readouterr().err)


# ------------------------------------------------------------------- folders that both read


def test_the_published_code_finds_all_our_images(make_folder, few_rows) -> None:
    """Its walk: folders that are numbers, one JSON object in metadata.jsonl, files of samples/ that begin as NUMBER.png."""
    folder = make_folder(few_rows[:5], per_prompt=3)
    seen = []
    for name in os.listdir(folder):
        if (folder / name).is_dir() and name.isdigit():
            row = json.loads((folder / name / "metadata.jsonl").read_text())
            files = [f for f in os.listdir(folder / name / "samples") if re.match(r"\d+\.png", f)]
            seen += [(row["prompt"], row["tag"], folder / name / "samples" / f) for f in files]
    ours = open_images(folder)
    assert sorted(seen) == sorted((ours.rows[p]["prompt"], ours.rows[p]["tag"], f) for p, f in zip(ours.prompt_of, ours.paths, strict=True))
    assert len(seen) == 15


# ------------------------------------------------------------------- the step that installs mmdet


def test_condas_file_has_the_versions_of_the_lock_and_of_mmdets_step() -> None:
    def pins(file: str) -> dict[str, str]:
        return dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", (ROOT / file).read_text(), flags=re.MULTILINE))

    def listed(file: str) -> dict[str, str]:
        (packages,) = [d["pip"] for d in yaml.safe_load((ROOT / file).read_text())["dependencies"] if isinstance(d, dict)]
        return dict(p.split("==") for p in packages)

    step, mmdet = pins("requirements-mmdet.txt"), listed("workflows/envs/mmdet.yml")
    later = (ROOT / "workflows/envs/mmdet.post-deploy.sh").read_text()
    assert {k: v for k, v in mmdet.items() if k not in step} == {
        k: v for k, v in listed("workflows/envs/suite.yaml").items() if k not in step
    }
    assert {k: mmdet.get(k, v) for k, v in step.items()} == step
    missing = {k: v for k, v in step.items() if k not in mmdet}
    assert set(missing) == {"mmdet", "mmengine"} and all(f"{k}=={v}" in later for k, v in missing.items())
    assert re.search(r"^MMCV := (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1] in later
    assert not {k: v for k, v in pins("requirements.lock").items() if step.get(k, v) != v}, "mmdet's step changes nothing of the lock"
