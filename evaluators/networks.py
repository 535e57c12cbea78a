"""The world's own evaluator networks: the detector and the FID network, their weights and their configuration.

A network is a folder: `config.json` (the constructor's arguments), `model.safetensors`, and `made.json`
(how it was made). The scoring CLIP is a folder in open_clip's format and is loaded by `evaluators.clip_score`.
All three are trained apart (`python -m evaluators.pretrain`) and share no weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apex.errors import UserError
from apex.files import read_object
from apex.weights import take

STRIDE = 2  # of the detector's output grid, in input pixels


class Residual(nn.Module):
    """Pre-activation residual block with two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


def _trunk(widths: tuple[int, int, int], blocks: tuple[int, int]) -> tuple[nn.Sequential, nn.Sequential]:
    """Input -> 1/2 resolution (widths[1] channels) -> 1/4 resolution (widths[2] channels)."""
    a, b, c = widths
    half = [nn.Conv2d(3, a, 3, padding=1), nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, b, 3, stride=2, padding=1)]
    quarter = [nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, c, 3, stride=2, padding=1)]
    return (
        nn.Sequential(*half, *(Residual(b) for _ in range(blocks[0]))),
        nn.Sequential(*quarter, *(Residual(c) for _ in range(blocks[1]))),
    )


def fit(images: Tensor, resolution: int) -> Tensor:
    """Images (B, 3, H, W) resized with anti-aliasing to the network's own input size; unchanged when they have it."""
    if images.shape[-2:] == (resolution, resolution):
        return images
    return F.interpolate(images, (resolution, resolution), mode="bilinear", antialias=True, align_corners=False)


class DetectorNet(nn.Module):
    """Fully convolutional detector: per cell of a grid of stride 2 the class, the box, and a foreground mask.

    `classes` shapes and "none" compete in a softmax, so one place holds at most one object and a shape
    between two classes scores low in both.
    """

    def __init__(
        self, resolution: int = 32, classes: int = 4, widths: tuple[int, int, int] = (16, 48, 96), blocks: tuple[int, int] = (1, 2)
    ):
        super().__init__()
        self.config = {"resolution": resolution, "classes": classes, "widths": list(widths), "blocks": list(blocks)}
        self.resolution, self.classes = resolution, classes
        self.at2, self.at4 = _trunk(widths, blocks)
        self.lateral = nn.Conv2d(widths[2], widths[1], 1)
        self.merge = nn.Sequential(Residual(widths[1]), nn.BatchNorm2d(widths[1]), nn.ReLU())
        self.head = nn.Conv2d(widths[1], classes + 1 + 4 + STRIDE * STRIDE, 1)
        with torch.no_grad():
            self.head.bias[classes] = 3.0  # most cells hold no object: start there

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, R, R) in [0, 1] -> class logits (B, classes + 1, R/2, R/2), the last one "none";
        boxes (B, 4, R/2, R/2) as `decode_boxes` reads them; mask logits (B, R, R)."""
        x = self.at2(images * 2 - 1)
        x = x + F.interpolate(self.lateral(self.at4(x)), scale_factor=2, mode="nearest")
        logits, boxes, mask = self.head(self.merge(x)).split([self.classes + 1, 4, STRIDE * STRIDE], dim=1)
        return logits, boxes, F.pixel_shuffle(mask, STRIDE)[:, 0]


def cell_centres(resolution: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """x and y of the grid's cell centres as fractions of the side, each (R/2, R/2)."""
    grid = (torch.arange(resolution // STRIDE, device=device) + 0.5) * STRIDE / resolution
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    return x, y


def decode_boxes(raw: Tensor, resolution: int) -> Tensor:
    """(B, 4, G, G) as the network gives them: centre offset in 1/8 sides, log half extents over 0.16 -> corner boxes
    (x0, y0, x1, y1) as fractions of the side, (B, 4, G, G)."""
    x, y = cell_centres(resolution, raw.device)
    cx, cy = x + raw[:, 0] / 8, y + raw[:, 1] / 8
    hx, hy = 0.16 * raw[:, 2].clamp(-3, 2).exp(), 0.16 * raw[:, 3].clamp(-3, 2).exp()
    return torch.stack([cx - hx, cy - hy, cx + hx, cy + hy], dim=1)


class FeatureNet(nn.Module):
    """Classifier of scene attributes; its `features` stand in for Inception's in FID, KID, precision and recall.

    The features keep the spatial layout (no pooling over the whole image), so position counts. They are
    standardised over real renders: `shift` and `scale` are set after training.
    """

    def __init__(
        self,
        resolution: int = 32,
        features: int = 64,
        outputs: int = 1,
        widths: tuple[int, int, int] = (16, 32, 64),
        blocks: tuple[int, int] = (1, 1),
    ):
        super().__init__()
        self.config = {"resolution": resolution, "features": features, "outputs": outputs, "widths": list(widths), "blocks": list(blocks)}
        self.resolution = resolution
        self.at2, self.at4 = _trunk(widths, blocks)
        c = widths[2]
        self.at8 = nn.Sequential(
            nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c, 3, stride=2, padding=1), Residual(c), nn.BatchNorm2d(c), nn.ReLU()
        )
        self.project = nn.Linear(c * (resolution // 8) ** 2, features)
        self.head = nn.Sequential(
            nn.BatchNorm1d(features), nn.ReLU(), nn.Linear(features, 4 * features), nn.ReLU(), nn.Linear(4 * features, outputs)
        )
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def raw_features(self, images: Tensor) -> Tensor:
        return self.project(self.at8(self.at4(self.at2(fit(images, self.resolution) * 2 - 1))).flatten(1))

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> standardised features (B, features)."""
        return (self.raw_features(images) - self.shift) * self.scale

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> attribute outputs (B, outputs), as `evaluators.pretrain.features` reads them."""
        return self.head(self.raw_features(images))


def half_precision(model: nn.Module) -> dict[str, Tensor]:
    """The state in float16 (integers as they are): half the size in the repository; networks run in float32."""
    return {k: (v.half() if v.is_floating_point() else v).contiguous().cpu() for k, v in model.state_dict().items()}


def save_network(model: DetectorNet | FeatureNet, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"network": type(model).__name__, **model.config}, indent=1) + "\n")
    save_file(half_precision(model), folder / "model.safetensors")


def load_network(folder: Path, kind: type, device: str = "cpu"):
    """Loads a network of class `kind` from its folder, in evaluation mode.

    Raises:
        UserError: a file is missing, is not readable, or belongs to another network; a weight is missing, superfluous or not finite.
    """
    hint = "make it with `python -m evaluators.pretrain` or name another folder"
    try:
        if not (folder / "config.json").exists():
            raise UserError(f"{folder}: config.json is missing; {hint}")
        config = read_object(folder / "config.json", hint)
        name = config.pop("network")
        if name != kind.__name__:
            raise UserError(f"{folder}: holds a {name}, expected a {kind.__name__}; {hint}")
        model, given = kind(**config), load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise UserError(f"{folder}: {Path(error.filename or 'model.safetensors').name} is missing; {hint}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: not a readable {kind.__name__} ({str(error).splitlines()[0]}); {hint}") from error
    take(model, given, folder / "model.safetensors", hint)
    return model.eval().requires_grad_(False).to(device)
