"""Training of the world's detector (see `evaluators.networks.DetectorNet` and `evaluators.pretrain.distort`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apex.data import world
from evaluators.geneval.world_detector import WorldDetector
from evaluators.networks import DetectorNet, cell_centres, decode_boxes, load_network
from evaluators.pretrain.distort import Target, WorldScenes, draw, soften
from evaluators.pretrain.loop import fit_network


def encode(targets: list[Target], resolution: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Training maps of one image on the detector's grid (side G = R/2).

    Cells near an object's centre carry its score and box, a ring around them is left out of the loss, all
    other cells are "none". A cell belongs to the nearest object; two targets with one box (a morph) share it.

    Returns:
        Class probabilities (classes + 1, G, G), weights of the cells (G, G), boxes (4, G, G) in [0, 1].
    """
    x, y = cell_centres(resolution)
    grid = len(x)
    classes_map = torch.zeros(classes + 1, grid, grid)
    weight, boxes, nearest = torch.ones(grid, grid), torch.zeros(4, grid, grid), torch.full((grid, grid), 9.0)
    for t in targets:
        x0, y0, x1, y1 = t.box
        half = min(x1 - x0, y1 - y0) / 2
        away = torch.hypot(x - (x0 + x1) / 2, y - (y0 + y1) / 2)
        inner, outer = max(1.45 / 32, 0.35 * half), max(2.9 / 32, 0.8 * half)
        weight[(away <= outer) & (weight == 1) & (classes_map.sum(0) == 0)] = 0
        mine = (away <= inner) & (away <= nearest)
        closer = mine & (away < nearest - 1e-6)
        classes_map[:, closer] = 0
        classes_map[t.shape, mine] += t.score
        boxes[:, mine] = torch.tensor(t.box, dtype=torch.float32)[:, None]
        nearest[mine], weight[mine] = away[mine], 1
    classes_map[-1] = 1 - classes_map[:-1].sum(0).clamp(max=1)
    return classes_map, weight, boxes


def detector_loss(net: DetectorNet, images: Tensor, classes: Tensor, weight: Tensor, boxes: Tensor, cover: Tensor) -> Tensor:
    """Soft cross-entropy of the cells + L1 of the boxes, in half extents of 0.16 sides + cross-entropy of the mask."""
    logits, raw, mask = net(images)
    cells = -(classes * F.log_softmax(logits, dim=1)).sum(1)
    some = (1 - classes[:, -1]) * weight
    away = (decode_boxes(raw, net.resolution) - boxes).abs().mean(1) / 0.16
    return (
        (cells * weight).sum() / len(images) / 8
        + (away * some).sum() / some.sum().clamp(min=1)
        + F.binary_cross_entropy_with_logits(mask, cover)
    )


def train(*, steps: int, batch: int, lr: float, seed: int, resolution: int) -> tuple[DetectorNet, float]:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    net = DetectorNet(resolution, classes=len(world.SHAPES)).to(memory_format=torch.channels_last)
    scenes = WorldScenes()

    def step_loss(_: int) -> Tensor:
        drawn = [draw(rng, scenes, resolution) for _ in range(batch)]
        images = torch.from_numpy(np.stack([d[0] for d in drawn])).permute(0, 3, 1, 2).float() / 255
        maps = [torch.stack(part) for part in zip(*(encode(d[1], resolution, net.classes) for d in drawn), strict=True)]
        return detector_loss(net, images, *maps, torch.from_numpy(np.stack([d[2] for d in drawn])))

    seconds = fit_network("detector", net.parameters(), step_loss, steps=steps, lr=lr)
    return net.eval(), seconds


def measure(folder: Path, *, images: int = 600, seed: int = 10_000_019) -> dict[str, float]:
    """Held-out measures of a saved detector: scenes read exactly (each class's count, every object above 0.9), as
    rendered and after `soften`; mean overlap (IoU) of boxes; how far scores lie from the targets on faulty scenes."""
    net = load_network(folder, DetectorNet)
    detector, rng, scenes = WorldDetector(net), np.random.default_rng(seed), WorldScenes()
    found: dict[str, float] = {}
    drawn = [scenes(rng) for _ in range(images)]
    renders = np.stack([world.render(s, net.resolution) for s in drawn])
    soft = np.stack([np.round(np.clip(soften(rng, r / 255.0), 0, 1) * 255).astype(np.uint8) for r in renders])
    for name, pictures in (("renders", renders), ("softened", soft)):
        exact, overlaps = 0, []
        for scene, seen in zip(drawn, detector(pictures), strict=True):
            counts = {s: sum(i.shape == s for i in scene.items) for s in world.SHAPES}
            exact += all(sum(d.score > 0.9 for d in seen.get(s, [])) == n and len(seen.get(s, [])) >= n for s, n in counts.items())
            for item in scene.items:
                overlaps.append(max((_iou(np.array(item.box) * net.resolution, d.box) for d in seen.get(item.shape, [])), default=0.0))
        found[f"{name}/exact_scenes"] = round(exact / images, 4)
        found[f"{name}/mean_iou"] = round(float(np.mean(overlaps)), 4)
    errors = []
    for _ in range(images):
        image, targets, _cover = draw(rng, scenes, net.resolution)
        seen = detector(image[None])[0]
        for t in targets:
            near = [d.score for d in seen.get(world.SHAPES[t.shape], []) if _iou(np.array(t.box) * net.resolution, d.box) > 0.5]
            errors.append(abs(max(near, default=0.0) - t.score))
    found["faulty/mean_score_error"] = round(float(np.mean(errors)), 4)
    return found


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))
