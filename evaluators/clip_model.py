"""A CLIP in open_clip's format, for the CLIP score and for GenEval's colours: text and images to unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from apex.errors import UserError
from apex.provenance import file_sha256
from evaluators.networks import BUNDLED


class Clip:
    """Encodes with open_clip's own transform and tokenizer; results do not depend on the batch size beyond rounding."""

    def __init__(self, folder: Path = BUNDLED / "clip", device: str = "cpu", batch: int = 64) -> None:
        """Loads a folder with `open_clip_config.json`, safetensors weights and, where configured, a tokenizer.

        Raises:
            UserError: a file is missing or not readable.
        """
        hint = "make it with `python -m evaluators.pretrain clip` or name another folder"
        weights = sorted(folder.glob("*.safetensors"))
        if not weights or not (folder / "open_clip_config.json").is_file():
            raise UserError(f"{folder}: open_clip_config.json or *.safetensors is missing; {hint}")
        import open_clip  # seconds: only once it is needed

        name = f"local-dir:{folder}"
        try:
            self._model, _, self._transform = open_clip.create_model_and_transforms(name, device=device)
            self._tokenizer = open_clip.get_tokenizer(name)
        except (ValueError, TypeError, KeyError, RuntimeError, OSError, SafetensorError) as error:
            raise UserError(f"{folder}: not a readable open_clip folder ({str(error).splitlines()[0]}); {hint}") from error
        self._model.eval().requires_grad_(False)
        self._device, self._batch = device, batch
        self.identity = f"{folder.name} {file_sha256(weights[0])[:12]}"

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """PIL images -> unit vectors, float32 (N, D) on the CPU."""
        parts = []
        for start in range(0, len(images), self._batch):
            batch = torch.stack([self._transform(image) for image in images[start : start + self._batch]])
            parts.append(self._model.encode_image(batch.to(self._device), normalize=True).float().cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> unit vectors, float32 (N, D) on the CPU."""
        parts = []
        for start in range(0, len(texts), self._batch):
            tokens = self._tokenizer(list(texts[start : start + self._batch]))
            parts.append(self._model.encode_text(tokens.to(self._device), normalize=True).float().cpu())
        return torch.cat(parts)
