"""A text-to-image pipeline in diffusers' folder layout: frozen text encoder and codec, and the velocity network.

    FOLDER/transformer vae text_encoder tokenizer scheduler

The same code opens the embedded world's bundled pipeline and a local or hub copy of a full-size one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from torch import Tensor, nn

from apex.backbones.base import Backbone
from apex.backbones.qwen_image import QwenImageBackbone
from apex.backbones.sana import SanaBackbone
from apex.conditioning import Condition
from apex.data.latents import decode_latents, load_vae, pixels_per_latent
from apex.errors import UserError, check_images, readable
from apex.files import read_object
from apex.text import TextPath
from apex.weights import RESTORE, pretrained

# Progress bars of a few milliseconds' loading would bury our own lines.
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BACKBONES: dict[str, type[Backbone]] = {c.transformer_class.__name__: c for c in (SanaBackbone, QwenImageBackbone)}


def load_backbone(folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Backbone:
    """The velocity network of a diffusers transformer folder (config.json names its class), its weights in `dtype`."""
    kind = BACKBONES[_config(folder)["_class_name"]]
    return kind(pretrained(kind.transformer_class, folder, RESTORE, dtype)).to(device)


def empty_backbone(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> Backbone:
    """The velocity network of a transformer's configuration on torch's meta device: its shapes, no weights."""
    kind = BACKBONES[config["_class_name"]]
    known = {k: v for k, v in config.items() if not k.startswith("_")}
    with torch.device("meta"):
        return kind(kind.transformer_class(**known)).to(dtype)


def empty_like(folder: Path, dtype: torch.dtype = torch.float32) -> Backbone:
    """`load_backbone` without weights, on the meta device."""
    config = _config(folder)
    with readable(folder / "config.json", "restore the file"):
        return empty_backbone(config, dtype)


def _config(folder: Path) -> dict[str, Any]:
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{config}: not found; expected a diffusers transformer folder; `snakemake pretrained` makes the world's")
    found = read_object(config, "restore the file")
    if found.get("_class_name") not in tuple(BACKBONES):
        raise UserError(f"{config}: unknown backbone {found.get('_class_name')!r}; known: {', '.join(BACKBONES)}")
    return found


class Pipeline:
    """The frozen parts: prompts to `Condition`, latents to images. The velocity network is loaded apart.

    Attributes:
        path: the folder. text: the text path, None without it. pixels: image pixels a side for one latent. latent_size: of the codec's
            configuration, None where it names no image size.
    """

    def __init__(self, path: Path, device: str = "cpu", dtype: torch.dtype = torch.float32, *, text: bool = True) -> None:
        """dtype: of the text encoder's weights; the codec's stay fp32. text: whether to load the text encoder, which `encode` needs."""
        self.path, self.device = path, device
        for part in ("vae", "tokenizer", "text_encoder"):
            if not (path / part).is_dir():
                raise UserError(
                    f"{path}: has no folder {part}/; expected a pipeline in diffusers' layout; `snakemake pretrained` makes the world's"
                )
        self.text = TextPath(path, device, dtype) if text else None
        self.vae = load_vae(path).eval().requires_grad_(False).to(device)
        self.pixels = pixels_per_latent(self.vae)
        size = getattr(self.vae.config, "sample_size", None)
        if size and not isinstance(size, int):
            raise UserError(f"{path / 'vae/config.json'}: sample_size: found {size!r}, expected a whole number; restore the file")
        self.latent_size = size // self.pixels if size else None

    def encode(self, prompts: list[str]) -> Condition:
        """Captions to their condition: embeds (B, L, D), mask (B, L); "" is the null condition."""
        return self.text.encode(prompts)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to uint8 images (B, H, W, 3). Raises `NotFinite` where one is NaN or infinite."""
        decoded = decode_latents(self.vae, latents)
        check_images(decoded.isfinite().flatten(1).all(1).tolist())
        return ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


class Decoder(nn.Module):
    """The frozen codec's decoder with gradient to its input: latents (B, C, h, w) to pixels (B, 3, H, W), about [-1, 1]."""

    constant = True

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.vae = pipeline.vae

    def forward(self, latents: Tensor) -> Tensor:
        return decode_latents(self.vae, latents)


class EncoderFeatures(nn.Module):
    """Feature maps of the frozen codec's encoder, one per down block: pixels (B, 3, H, W) to [(B, C', h, w), ...]."""

    constant = True

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.encoder, self.dtype = pipeline.vae.encoder, pipeline.vae.dtype

    def forward(self, pixels: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        handles = [block.register_forward_hook(lambda _m, _i, out: found.append(out)) for block in self.encoder.down_blocks]
        try:
            self.encoder(pixels.to(self.dtype))
        finally:
            for handle in handles:
                handle.remove()
        return [f.float() for f in found]


class CaptionTable:
    """Encoded captions kept in memory, so that training does not run the text encoder. The empty caption is last.

    Captions are padded to the longest; a batch is cut to its own longest.
    """

    def __init__(self, pipeline: Pipeline, captions: list[str], batch: int = 512) -> None:
        texts = [*captions, ""]
        parts = [pipeline.encode(texts[i : i + batch]) for i in range(0, len(texts), batch)]
        length = max(p.embeds.shape[1] for p in parts)
        self.embeds = torch.zeros(len(texts), length, parts[0].embeds.shape[2], dtype=parts[0].embeds.dtype, device=parts[0].embeds.device)
        self.mask = torch.zeros(len(texts), length, dtype=parts[0].mask.dtype, device=parts[0].mask.device)
        row = 0
        for part in parts:
            end = row + len(part)
            self.embeds[row:end, : part.embeds.shape[1]] = part.embeds
            self.mask[row:end, : part.mask.shape[1]] = part.mask
            row = end
        self.lengths = (self.mask > 0).sum(1)  # a sum in bf16 is not exact beyond 256
        self.empty = len(captions)

    def __getitem__(self, index: Tensor) -> Condition:
        longest = int(self.lengths[index].max())
        return Condition(self.embeds[index, :longest], self.mask[index, :longest])

    def longest(self) -> Condition:
        """The caption of most tokens, a batch of one."""
        return self[self.lengths.argmax()[None].cpu()]

    def null(self, count: int) -> Condition:
        return self[torch.full((count,), self.empty)]


class CaptionStream:
    """The same captions encoded when they are asked for: more work at every step, and no memory for sets whose table would not fit."""

    def __init__(self, pipeline: Pipeline, captions: list[str]) -> None:
        self.pipeline, self.captions = pipeline, captions
        self._null = pipeline.encode([""])

    def __getitem__(self, index: Tensor) -> Condition:
        return self.pipeline.encode([self.captions[at] for at in index.tolist()])

    def longest(self) -> Condition:
        """The caption of most letters, a batch of one."""
        return self.pipeline.encode([max(self.captions, key=len)])

    def null(self, count: int) -> Condition:
        return self._null[torch.zeros(count, dtype=torch.long)]


def to_float(images: np.ndarray | Tensor) -> Tensor:
    """uint8 images (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1
