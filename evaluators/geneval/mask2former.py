"""GenEval's official detector, Mask2Former Swin-S on COCO instances, run by transformers on mmdet's weights: no compiler is needed.

What mmdet 3.3.0 does before and after the network (its configuration mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py, `Resize`,
`DetDataPreprocessor`, and `instance_postprocess` of MaskFormerFusionHead) is written here anew, for images in RGB.
`python -m evaluators.geneval.agreement` runs both on the same images.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apex.errors import UserError
from evaluators.geneval.coco import CLASSES, COLORS
from evaluators.geneval.convert import from_folder, from_mmdet
from evaluators.geneval.logic import THRESHOLD, Detection

if TYPE_CHECKING:
    from transformers import Mask2FormerForUniversalSegmentation

SCALE = (1333, 800)  # the longer side at most, the shorter side at most, pixels
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, RGB, 0 to 255
DIVISOR = 32  # the sides are padded to multiples of it, with zeros, on the right and below
MOST = 100  # detections per image


class Instances(NamedTuple):
    """Detections of one image: boxes (n, 4) in pixels, scores (n,), labels (n,), masks boolean (n, H, W)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor


def network_size(height: int, width: int, scale: tuple[int, int] = SCALE) -> tuple[int, int]:
    """Height and width to which an image is resized: the largest that fits the scale, proportions kept."""
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def prepare(
    images: np.ndarray, device: str | torch.device = "cpu", scale: tuple[int, int] = SCALE, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Images uint8 (B, H, W, 3), RGB -> the network's input (B, 3, h, w): resized (bilinear, not smoothed before), normalised, padded."""
    height, width = network_size(*images.shape[1:3], scale)
    x = torch.from_numpy(images.copy()).to(device).permute(0, 3, 1, 2).to(dtype)
    x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(values, dtype=dtype, device=device).view(3, 1, 1) for values in (MEAN, STD))
    return F.pad((x - mean) / std, (0, -width % DIVISOR, 0, -height % DIVISOR))


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    scale: tuple[int, int] = SCALE,
    floor: float = 0.0,
) -> Instances:
    """The detections of one image.

    Of all pairs of query and class the 100 with the highest class score are taken. A detection's score is that times the mean
    probability of its mask's pixels; its box is the mask's extent, in whole pixels, the lower right corner exclusive.

    Args:
        class_logits: (queries, classes + 1), the last one "nothing".
        mask_logits: (queries, h / 4, w / 4) of the padded input.
        size: height and width of the image.
        scale: what the image was resized to, as in `prepare`.
        floor: pairs whose class score is not above it are left out. A detection's score is not above its class score, so
            what is left out is not above it either; it saves most of the work on masks.
    """
    scores = class_logits.softmax(-1)[:, :-1]
    top, places = scores.flatten().topk(min(MOST, scores.numel()), sorted=False)
    top, places = top[top > floor], places[top > floor]
    queries, labels = places // scores.shape[1], places % scores.shape[1]
    used, position = queries.unique(return_inverse=True)
    inside = network_size(*size, scale)
    padded = tuple(side * 4 for side in mask_logits.shape[-2:])
    logits = F.interpolate(mask_logits[used][None], padded, mode="bilinear", align_corners=False)
    logits = F.interpolate(logits[..., : inside[0], : inside[1]], size, mode="bilinear", align_corners=False)[0]
    masks = logits > 0
    mean = (logits.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
    return Instances(extents(masks)[position], top * mean[position], labels, masks[position])


def extents(masks: Tensor) -> Tensor:
    """Boxes (x0, y0, x1, y1) around masks, boolean (n, H, W), the far corner exclusive; zeros where a mask is empty. Float32 (n, 4)."""
    boxes = []
    for seen in (masks.any(1), masks.any(2)):  # columns, rows
        near = seen.int().argmax(1)
        far = seen.shape[1] - seen.flip(1).int().argmax(1)
        boxes.append((near, torch.where(seen.any(1), far, 0)))
    (x0, x1), (y0, y1) = boxes
    return torch.stack([x0, y0, x1, y1], 1).float()


def by_class(found: Instances) -> dict[str, list[Detection]]:
    """The detections of one image under GenEval's class names.

    The later one first: the official code sorts by score in ascending order and reverses that, so of two with equal scores it takes the
    later one; `logic.keep` takes the first.
    """
    boxes, scores, labels, masks = (each.cpu().numpy() for each in found)
    grouped: dict[str, list[Detection]] = {}
    for place in range(len(labels) - 1, -1, -1):
        box = tuple(float(v) for v in boxes[place])
        grouped.setdefault(CLASSES[labels[place]], []).append(Detection(box, float(scores[place]), masks[place]))
    return grouped


def check_classes(count: int, path: Path) -> None:
    if count != len(CLASSES):
        raise UserError(f"{path}: a network for {count} classes; GenEval's detector has COCO's {len(CLASSES)}")


class TransformersDetector:
    """`detector(images)` gives, per image, class name -> detections with scores above `floor`."""

    name = "transformers"
    classes = CLASSES
    colors = COLORS

    def __init__(self, model: Mask2FormerForUniversalSegmentation, scale: tuple[int, int] = SCALE, floor: float = THRESHOLD) -> None:
        self.model, self.scale, self.floor = model, scale, floor

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> TransformersDetector:
        """Loads mmdet's checkpoint (.pth), or the folder that `evaluators.geneval.convert` made of it.

        Raises:
            UserError: it cannot be read, tensors are missing or left over, or it is not for COCO's classes.
        """
        model = from_folder(path) if path.is_dir() else from_mmdet(path)
        check_classes(model.config.num_labels, path)
        return cls(model.to(device))

    @torch.no_grad()
    def logits(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images uint8 (B, H, W, 3) -> class logits (B, queries, classes + 1) and mask logits (B, queries, h / 4, w / 4)."""
        weights = next(self.model.parameters())
        out = self.model(pixel_values=prepare(images, weights.device, self.scale, weights.dtype))
        return out.class_queries_logits, out.masks_queries_logits

    @torch.no_grad()
    def instances(self, images: np.ndarray) -> list[Instances]:
        size = images.shape[1:3]
        return [instances(c, m, size, self.scale, self.floor) for c, m in zip(*self.logits(images), strict=True)]

    def __call__(self, images: np.ndarray) -> list[dict[str, list[Detection]]]:
        return [by_class(found) for found in self.instances(images)]
