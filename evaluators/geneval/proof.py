"""Compares the detectors of mmdet and transformers on one random network: the work of `python -m evaluators.geneval.agreement`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from apex.data import world
from apex.data.prompts import COMMITTED, load_prompts
from evaluators.command import progress
from evaluators.cost import CLASS_SCALE, MASK_SCALE
from evaluators.geneval import mmdet_detector
from evaluators.geneval.coco import COLORS
from evaluators.geneval.convert import from_mmdet
from evaluators.geneval.logic import COUNTING_THRESHOLD, RELATIONS, THRESHOLD, Detection, judge
from evaluators.geneval.mask2former import SCALE, Instances, TransformersDetector, by_class
from evaluators.geneval.mmdet_detector import MmdetDetector, official_configuration

if TYPE_CHECKING:
    from mmengine import Config

SIZES = ((512, 512), (256, 256), (1024, 1024), (300, 480), (577, 433))  # height, width
SMALL_SIZES = ((64, 64), (48, 80), (131, 97), (32, 200))
SMALL_SCALE = (190, 112)
PROMPTS = 60  # per image
# Rounding: relative to the largest logit, of scores, in pixels of a box, as a share of a mask's pixels. Where random logits of masks
# cross zero, a pixel more or less is rounding; a box follows its mask.
TOLERANCE = {"logits": 1e-4, "scores": 1e-3, "boxes": 2.0, "masks": 1e-4}


def small(config: Config) -> Config:
    """The official configuration with everything narrower, shallower and at a smaller scale; no part is left out."""
    width, heads = 64, 4
    config.merge_from_dict(
        {
            "model.backbone.embed_dims": 16,
            "model.backbone.depths": [2, 2, 4, 2],
            "model.backbone.num_heads": [1, 2, 4, 8],
            "model.panoptic_head.in_channels": [16, 32, 64, 128],
            "model.panoptic_head.feat_channels": width,
            "model.panoptic_head.out_channels": width,
            "model.panoptic_head.num_queries": 30,
        }
    )
    head = config.model.panoptic_head
    encoder, decoder = head.pixel_decoder.encoder, head.transformer_decoder
    encoder.num_layers, decoder.num_layers = 2, 4
    head.positional_encoding.num_feats = head.pixel_decoder.positional_encoding.num_feats = width // 2
    for attention in (encoder.layer_cfg.self_attn_cfg, decoder.layer_cfg.self_attn_cfg, decoder.layer_cfg.cross_attn_cfg):
        attention.update(embed_dims=width, num_heads=heads)
    encoder.layer_cfg.ffn_cfg.update(embed_dims=width, feedforward_channels=96)
    decoder.layer_cfg.ffn_cfg.update(embed_dims=width, feedforward_channels=128)
    resize = next(step for step in config.test_dataloader.dataset.pipeline if step.type == "Resize")
    resize.scale = SMALL_SCALE
    return config


def random_network(config: Config, seed: int) -> Any:
    """mmdet's network with random weights, biases, norms and position tables, sure enough of itself to pass GenEval's thresholds."""
    torch.manual_seed(seed)
    model = mmdet_detector.build(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or name.endswith("relative_position_bias_table"):
                parameter += 0.1 * torch.randn_like(parameter)
        model.panoptic_head.cls_embed.weight *= CLASS_SCALE
        model.panoptic_head.mask_embed[4].weight *= MASK_SCALE
    return model


def save_as_mmengine(model: Any, path: Path) -> None:
    """A checkpoint as mmengine's training loop writes it: with configuration, histories and numpy values beside the weights."""
    from mmengine.logging import HistoryBuffer

    meta = {"epoch": 50, "cfg": model.cfg.pretty_text, "seed": np.int64(3), "dataset_meta": {"classes": ("person",)}}
    histories = {"train/loss": HistoryBuffer([3.0, 2.0], [1, 1])}
    torch.save({"meta": meta, "message_hub": {"log_scalars": histories}, "state_dict": model.state_dict()}, path)


def images_of(sizes: tuple[tuple[int, int], ...], seed: int) -> list[np.ndarray]:
    """One image of each size, uint8 (H, W, 3), random blocks; then a rendered scene for each size, cut or stretched to it."""
    rng = np.random.default_rng(seed)
    rows = load_prompts(COMMITTED / "test.jsonl", limit=len(sizes))
    pictures = []
    for height, width in sizes:
        block = max(4, min(height, width) // 12)
        coarse = rng.integers(0, 256, (-(-height // block), -(-width // block), 3))
        pictures.append(coarse.repeat(block, 0).repeat(block, 1)[:height, :width].astype(np.uint8))
    for (height, width), row in zip(sizes, rows, strict=True):
        render = world.render(world.scene_for(row, rng, allow_held_out=True), max(height, width))
        pictures.append(np.ascontiguousarray(render[:height, :width]))
    return pictures


def sorted_by_class(found: Instances) -> Instances:
    """By class, then by score: the order in which `topk` gives equals and neighbours is free."""
    order = np.lexsort((found.scores.numpy(), found.labels.numpy()))
    return Instances(*(each[torch.from_numpy(order)] for each in found))


def difference(a: Tensor, b: Tensor) -> dict[str, float]:
    """Largest absolute difference of two tensors, the same relative to the largest value, and that."""
    largest, off = float(a.abs().max()), float((a - b).abs().max())
    return {"max_abs": off, "max_rel": off / largest, "largest": largest}


def mean_color(image: np.ndarray, objects: list[Detection]) -> list[str]:
    """A stand-in for CLIP that depends on every pixel of the mask: how bright it is inside, in steps of 5."""
    return [COLORS[int(image[d.mask].mean() / 5) % len(COLORS)] for d in objects]


def random_prompts(names: list[str], rng: np.random.Generator, count: int) -> list[dict]:
    """Prompts of every task, in GenEval's form, over the classes given."""
    rows = []
    for number in range(count):
        tag = world.TASKS[number % len(world.TASKS)]
        first, second = (str(name) for name in rng.choice(names, 2))
        include = [{"class": first, "count": int(rng.integers(1, 5)) if tag == "counting" else 1}]
        if tag in ("two_object", "position", "color_attr"):
            include.append({"class": second, "count": 1})
        if tag in ("colors", "color_attr"):
            for entry in include:
                entry["color"] = str(rng.choice(COLORS))
        if tag == "position":
            include[1]["position"] = [str(rng.choice(RELATIONS)), 0]
        row = {"tag": tag, "include": include, "prompt": tag}
        if tag == "counting":
            row["exclude"] = [{"class": first, "count": include[0]["count"] + 1}]
        rows.append(row)
    return rows


def compare(theirs: MmdetDetector, ours: TransformersDetector, image: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Both detectors on one image, uint8 (H, W, 3): all differences, and how many verdicts are the same."""
    kept: list[Tensor] = []
    hook = theirs.model.panoptic_head.register_forward_hook(lambda _, __, out: kept.extend((out[0][-1], out[1][-1])))
    started = time.process_time()
    (a,) = (sorted_by_class(found) for found in theirs.instances(image[None]))
    middle = time.process_time()
    (b,) = (sorted_by_class(found) for found in ours.instances(image[None]))
    ended = time.process_time()
    hook.remove()
    classes, masks = ours.logits(image[None])
    seen = [by_class(found) for found in (a, b)]
    rows = random_prompts(sorted(seen[0]), rng, PROMPTS)
    verdicts = [[judge(each, row, lambda objects, _: mean_color(image, objects)) for row in rows] for each in seen]
    return {
        "size": list(image.shape[:2]),
        "class_logits": difference(kept[0], classes),
        "mask_logits": difference(kept[1], masks),
        "detections": [len(a.labels), len(b.labels)],
        "above_0.3": [int((found.scores > THRESHOLD).sum()) for found in (a, b)],
        "above_0.9": [int((found.scores > COUNTING_THRESHOLD).sum()) for found in (a, b)],
        "same_labels": bool(torch.equal(a.labels, b.labels)),
        "scores_max_abs": float((a.scores - b.scores).abs().max()),
        "boxes_max_abs": float((a.boxes - b.boxes).abs().max()),
        "mask_pixels_that_differ": int((a.masks != b.masks).sum()),
        "mask_pixels": a.masks.numel(),
        "verdicts": len(rows),
        "verdicts_same": sum(x == y for x, y in zip(*verdicts, strict=True)),
        "verdicts_correct": sum(x.correct for x in verdicts[0]),
        "cpu_seconds": {"mmdet": round(middle - started, 2), "transformers": round(ended - middle, 2)},
    }


def faults(result: dict[str, Any]) -> list[str]:
    """What is beyond rounding in the comparison of one image."""
    found = []
    for name in ("class_logits", "mask_logits"):
        if result[name]["max_rel"] > TOLERANCE["logits"]:
            found.append(f"{name} differ by {result[name]['max_abs']:.3g}, largest {result[name]['largest']:.3g}")
    for name, limit in (("scores", TOLERANCE["scores"]), ("boxes", TOLERANCE["boxes"])):
        if result[f"{name}_max_abs"] > limit:
            found.append(f"{name} differ by {result[f'{name}_max_abs']:.3g}")
    if result["mask_pixels_that_differ"] > TOLERANCE["masks"] * result["mask_pixels"]:
        found.append(f"{result['mask_pixels_that_differ']} of {result['mask_pixels']} pixels of masks differ")
    if not result["same_labels"]:
        found.append("other classes are found")
    if result["verdicts_same"] != result["verdicts"]:
        found.append(f"{result['verdicts'] - result['verdicts_same']} of {result['verdicts']} verdicts differ")
    return found


def prove(folder: Path, is_small: bool, seed: int) -> list[dict[str, Any]]:
    """The comparison on every image; the .pth goes to `folder`."""
    config = official_configuration()
    model = random_network(small(config) if is_small else config, seed)
    weights = folder / "random.pth"
    save_as_mmengine(model, weights)
    theirs = MmdetDetector(model)
    ours = TransformersDetector(from_mmdet(weights), SMALL_SCALE if is_small else SCALE, floor=0.0)
    images = images_of(SMALL_SIZES if is_small else SIZES, seed)
    rng = np.random.default_rng(seed)
    return [compare(theirs, ours, image, rng) for image in progress(images, len(images), "geneval agreement, images", every=0.0)]


README = """\
# The two official detectors of GenEval agree

`python -m evaluators.geneval.agreement --out FOLDER{small}` wrote this: mmdet {mmdet} (mmcv {mmcv}) and transformers
{transformers}, torch {torch}, {hardware}; {size} Mask2Former with random weights (seed {seed}), saved as a .pth and
converted. Its last layers are scaled up (classes x {classes:g}, masks x {masks:g}), or no detection of a random network would pass
GenEval's thresholds. It shows that both compute the same function; it says nothing about the trained weights, which were not here.
Differences are the largest absolute ones, in brackets relative to the largest logit.

| image | class logits | mask logits | scores | boxes, px | mask pixels that differ | above 0.3 / 0.9 | verdicts alike |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{rows}

{same} of {verdicts} verdicts are the same ({correct} of them "correct"). All numbers: `agreement.json`.
"""


def readme(results: list[dict[str, Any]], about: dict[str, Any], is_small: bool, seed: int) -> str:
    rows = [
        f"| {r['size'][1]}x{r['size'][0]} | {r['class_logits']['max_abs']:.1e} ({r['class_logits']['max_rel']:.0e}) | "
        f"{r['mask_logits']['max_abs']:.1e} ({r['mask_logits']['max_rel']:.0e}) | {r['scores_max_abs']:.0e} | {r['boxes_max_abs']:g} | "
        f"{r['mask_pixels_that_differ']} of {r['mask_pixels']} | {r['above_0.3'][0]} / {r['above_0.9'][0]} | "
        f"{r['verdicts_same']} of {r['verdicts']} |"
        for r in results
    ]
    total = {key: sum(r[f"verdicts{key}"] for r in results) for key in ("", "_same", "_correct")}
    return README.format(
        small=" --small" if is_small else "",
        hardware=about["hardware"],
        **{name: about["versions"][name] for name in ("mmdet", "mmcv", "transformers", "torch")},
        size="a small" if is_small else "the official",
        seed=seed,
        classes=CLASS_SCALE,
        masks=MASK_SCALE,
        rows="\n".join(rows),
        same=total["_same"],
        verdicts=total[""],
        correct=total["_correct"],
    )
