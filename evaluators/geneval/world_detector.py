"""The embedded world's object detector: a small learned network in the place of GenEval's Mask2Former."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from apex.data import world
from evaluators.assets import BUNDLED
from evaluators.geneval.logic import Detection
from evaluators.networks import DetectorNet, decode_boxes, fit, load_network

FLOOR = 0.05  # detections below are dropped: GenEval's own thresholds are 0.3 and 0.9


class WorldDetector:
    """`detector(images)` gives, per image, class name -> detections, most confident first.

    Scores are the network's softmax, trained towards "how much of an object a person would accept". Near
    duplicates (centres within 0.6 of the summed half extents, any class) are one object: the best is kept.
    An object's mask is the foreground inside its box, widened by one pixel of the network's input.
    """

    name = "world"
    classes = world.SHAPES
    colors = tuple(world.COLORS)

    def __init__(self, net: DetectorNet) -> None:
        self.net = net

    @classmethod
    def load(cls, folder: Path = BUNDLED / "detector", device: str = "cpu") -> WorldDetector:
        return cls(load_network(folder, DetectorNet, device))

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> list[dict[str, list[Detection]]]:
        """Images uint8 (B, H, W, 3) of any size; boxes and masks are in their pixels."""
        height, width = images.shape[1:3]
        device = next(self.net.parameters()).device
        x = fit(torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255, self.net.resolution)
        logits, raw, mask_logits = self.net(x)
        scores = logits.softmax(1)[:, :-1].flatten(2).cpu().numpy()  # (B, classes, cells)
        boxes = decode_boxes(raw, self.net.resolution).flatten(2).cpu().numpy()  # (B, 4, cells)
        masks = F.interpolate(mask_logits[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0] > 0
        return [self._objects(s, b, m, width, height) for s, b, m in zip(scores, boxes, masks.cpu().numpy(), strict=True)]

    def _objects(
        self, scores: np.ndarray, boxes: np.ndarray, foreground: np.ndarray, width: int, height: int
    ) -> dict[str, list[Detection]]:
        best = scores.argmax(0)
        top = scores.max(0)
        kept: list[int] = []
        for cell in np.argsort(-top, kind="stable"):
            if top[cell] <= FLOOR:
                break
            if all(_apart(boxes[:, cell], boxes[:, other]) for other in kept):
                kept.append(int(cell))
        found: dict[str, list[Detection]] = {}
        for cell in kept:
            x0, y0, x1, y1 = boxes[:, cell] * np.array([width, height, width, height])
            box = (float(max(x0, 0)), float(max(y0, 0)), float(min(x1, width)), float(min(y1, height)))
            mask = _inside(box, foreground, width / self.net.resolution)
            found.setdefault(self.classes[best[cell]], []).append(Detection(box, float(top[cell]), mask))
        return found


def _apart(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two boxes are two objects: their centres differ by 0.6 of the summed half extents along some axis."""
    away = np.abs((a[:2] + a[2:]) - (b[:2] + b[2:])) / 2
    extent = ((a[2:] - a[:2]) + (b[2:] - b[:2])) / 2
    return bool((away >= 0.6 * extent).any())


def _inside(box: tuple[float, float, float, float], foreground: np.ndarray, margin: float) -> np.ndarray:
    """The foreground within a box; the whole box where it holds no foreground. Boolean (H, W)."""
    height, width = foreground.shape
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    within = ((x >= box[0] - margin) & (x <= box[2] + margin))[None] & ((y >= box[1] - margin) & (y <= box[3] + margin))[:, None]
    mask = foreground & within
    return mask if mask.any() else within
