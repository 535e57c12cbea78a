"""Discriminator heads on the features of frozen networks, as LADD, ADD and DMD2 use them. No method; see `apex/methods`.

A head judges every token; features come from elsewhere and are cheap to judge, so a head is small: normalise, project,
add what the mean token says, and give a logit. The 1-D convolutions over tokens of published heads (StyleGAN-T's, which
LADD and Sana-Sprint take over) depend on the order in which tokens are laid out; the mean does not. What a head would
learn from the time is in the features already: they are those of a network that is told the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from apex.conditioning import Condition
from apex.errors import UserError
from apex.weights import RESTORE, pretrained


def pooled(cond: Condition) -> Tensor:
    """The mean token of each caption, (B, D)."""
    mask = cond.mask[..., None].to(cond.embeds.dtype)
    return (cond.embeds * mask).sum(1) / mask.sum(1).clamp_min(1)


def spaced(count: int, wanted: int = 4) -> list[int]:
    """Up to `wanted` of `count` blocks, evenly spaced, the last among them."""
    wanted = min(count, wanted)
    return [round((k + 1) * count / wanted) - 1 for k in range(wanted)]


def tokens(maps: Tensor) -> Tensor:
    """A feature map (B, C, H, W) as tokens (B, H W, C)."""
    return maps.flatten(2).transpose(1, 2)


class Head(nn.Module):
    """Features (B, N, D) to logits (B, N)."""

    def __init__(self, features: int, width: int, caption: int, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.inlet = norm(nn.Linear(features, width))
        self.mean = norm(nn.Linear(width, width, bias=False))
        self.middle = norm(nn.Linear(width, width))
        self.outlet = norm(nn.Linear(width, 1))
        self.text = nn.Linear(caption, width, bias=False) if caption else None

    def forward(self, x: Tensor, caption: Tensor | None) -> Tensor:
        act = nn.functional.leaky_relu
        h = act(self.inlet(x), 0.2)
        h = act(h + self.mean(h.mean(1, keepdim=True)), 0.2)
        h = act(h + self.middle(h), 0.2)
        logits = self.outlet(h)[..., 0]
        if self.text is not None:  # a projection discriminator (arXiv 1802.05637), as in ADD
            logits = logits + (h * self.text(caption)[:, None]).sum(-1) / math.sqrt(h.shape[-1])
        return logits


class Heads(nn.Module):
    """One head for each of several features.

    Args:
        widths: D of each feature.
        width: of the heads' hidden layers.
        caption: width of the captions that the heads are told; 0: none.
        spectral: whether weights are divided by their largest singular value (its running estimate is a buffer, saved with the state).
        normalise: whether every token is first brought to mean 0 and variance 1. Not for features of a few channels.
    """

    def __init__(self, widths: Sequence[int], width: int = 64, *, caption: int = 0, spectral: bool = False, normalise: bool = True) -> None:
        super().__init__()
        self.normalise, self.told = normalise, bool(caption)
        norm = spectral_norm if spectral else (lambda layer: layer)
        self.heads = nn.ModuleList(Head(d, width, caption, norm) for d in widths)

    def forward(
        self, features: Sequence[Tensor], caption: Tensor | None = None, penalty: bool = False
    ) -> list[Tensor] | tuple[list[Tensor], Tensor]:
        """Logits [(B, N), ...]; with `penalty` also R1, (B,): the squared gradient of a head's mean logit by its input, mean over heads.

        The penalty is made in here so that its derivatives are counted with the pass.
        """
        if self.normalise:
            features = [nn.functional.layer_norm(f.float(), f.shape[-1:]) for f in features]
        if penalty:
            features = [f.detach().requires_grad_(True) for f in features]
        logits = [head(f, caption if self.told else None) for head, f in zip(self.heads, features, strict=True)]
        if not penalty:
            return logits
        squares = []
        for value, f in zip(logits, features, strict=True):
            (slope,) = torch.autograd.grad(value.mean(1).sum(), f, create_graph=True)
            squares.append(slope.square().flatten(1).sum(1))
        return logits, torch.stack(squares).mean(0)


class DinoFeatures(nn.Module):
    """Token features of a local DINOv2 folder (transformers, safetensors): pixels (B, 3, H, W) in [-1, 1] to [(B, N, D), ...].

    Args:
        folder: as `AutoModel.save_pretrained` writes it.
        resolution: pixels are resized to this side, a multiple of the network's patch.
        layers: how many layers, evenly spaced.
    """

    constant = True

    def __init__(self, folder: Path, resolution: int, layers: int = 4) -> None:
        super().__init__()
        from transformers import AutoModel

        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: has no config.json; expected a folder of a DINOv2 network as transformers saves it")
        self.network = pretrained(AutoModel, folder, RESTORE, local_files_only=True).eval().requires_grad_(False)
        config = self.network.config
        if resolution % config.patch_size:
            raise UserError(f"feature_resolution: found {resolution}, expected a multiple of the patch of {folder}, {config.patch_size}")
        self.resolution, self.layers = resolution, spaced(config.num_hidden_layers, layers)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = nn.functional.interpolate(pixels, size=(self.resolution,) * 2, mode="bicubic", align_corners=False, antialias=True)
        x = ((x + 1) / 2 - self.mean) / self.std
        hidden = self.network(pixel_values=x, output_hidden_states=True).hidden_states
        return [hidden[k + 1] for k in self.layers]  # the first are the embedded patches
