"""GenEval's colour check: zero-shot classification of an object's crop by a CLIP in open_clip's format.

As the official code does it: everything outside the object's mask is painted grey #999, the image is cropped to
the object's box, and the crop goes to the colour whose mean text embedding (over the templates) is nearest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from evaluators.clip_model import Clip
from evaluators.geneval.logic import Detection

TEMPLATES = ("a photo of a {c} {cls}", "a photo of a {c}-colored {cls}", "a photo of a {c} object")
GREY = (0x99, 0x99, 0x99)


def masked_crop(image: np.ndarray, detection: Detection) -> Image.Image:
    """The object on grey #999, cropped to its box (rounded to pixels, at least one pixel each way)."""
    picture = Image.fromarray(image)
    if detection.mask is not None:
        picture = Image.composite(picture, Image.new("RGB", picture.size, GREY), Image.fromarray(detection.mask))
    x0, y0, x1, y1 = (round(v) for v in detection.box)
    return picture.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))


class ClipColors:
    """`ColorClassifier` by a CLIP. The class's text embeddings are computed once per class."""

    def __init__(self, clip: Clip, colors: Sequence[str]) -> None:
        self._clip, self._colors = clip, list(colors)
        self._texts: dict[str, torch.Tensor] = {}

    def _weights(self, class_name: str) -> torch.Tensor:
        if class_name not in self._texts:
            texts = [t.format(c=c, cls=class_name) for c in self._colors for t in TEMPLATES]
            each = self._clip.encode_texts(texts).reshape(len(self._colors), len(TEMPLATES), -1)
            self._texts[class_name] = F.normalize(each.mean(1), dim=-1)
        return self._texts[class_name]

    def __call__(self, image: np.ndarray, objects: Sequence[Detection], class_name: str) -> list[str]:
        crops = self._clip.encode_images([masked_crop(image, d) for d in objects])
        return [self._colors[i] for i in (crops @ self._weights(class_name).T).argmax(1).tolist()]
