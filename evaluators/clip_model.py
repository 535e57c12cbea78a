"""A CLIP in open_clip's format, for the CLIP score and for GenEval's colours: text and images to unit vectors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from apex.errors import UserError
from apex.files import read_object
from apex.provenance import file_sha256
from apex.weights import check_finite, take
from evaluators.assets import BUNDLED, registry

# OpenAI's weights need their activation x sigmoid(1.702 x): open_clip from 2.29 on gives it to the names that say so alone.
OPENAI = "ViT-L-14-quickgelu"
NO_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}  # numbers that OpenAI's archives keep among the weights


def untrained(name: str, **settings: Any) -> tuple[nn.Module, Any]:
    """open_clip's network of this name with random weights, and its transform, without the warnings that it has no weights."""
    import open_clip  # seconds: only once it is needed

    logging.disable(logging.WARNING)
    try:
        model, _, transform = open_clip.create_model_and_transforms(name, load_weights=False, **settings)
    finally:
        logging.disable(logging.NOTSET)
    return model, transform


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
            said = " ".join(line.strip() for line in str(error).splitlines()[:2])  # the second names the first tensor
            where = weights[0] if isinstance(error, RuntimeError | SafetensorError) else folder  # torch's errors are of the weights
            raise UserError(f"{where}: not a readable open_clip folder ({said}); {hint}") from error
        check_finite(self._model.state_dict(), {}, weights[0], hint)
        self._ready(folder.name, file_sha256(weights[0]), device, batch)

    def _ready(self, name: str, sha256: str, device: str, batch: int) -> None:
        self._model.eval().requires_grad_(False)
        self._device, self._batch = device, batch
        self.sha256, self.identity = sha256, f"{name} {sha256[:12]}"

    @classmethod
    def openai(cls, path: Path, device: str = "cpu", batch: int = 64, architecture: str = OPENAI) -> Self:
        """OpenAI's CLIP ViT-L/14 with its own transform and tokenizer (77 tokens), in float32.

        Args:
            path: OpenAI's archive (`ViT-L-14.pt`, the asset `clip-vit-l-14`), a safetensors file with its weights under OpenAI's or
                open_clip's names, or a folder in open_clip's format.
            device: where it computes. batch: images or texts at once.
            architecture: open_clip's name of the network that the weights belong to.

        Raises:
            UserError: no such file; neither an archive nor safetensors; the weights of another network.
        """
        path = Path(path)
        file = _openai_file(path)
        clip = cls._without_weights(architecture)
        _load_openai(clip._model, _openai_weights(file), file, architecture)
        clip._model.to(device)
        clip._ready(architecture, file_sha256(file), device, batch)
        return clip

    @classmethod
    def random(cls, device: str = "cpu", batch: int = 64, architecture: str = OPENAI) -> Self:
        """As `openai`, with weights at random: what it costs can be measured with nothing fetched."""
        clip = cls._without_weights(architecture)
        clip._model.to(device)
        clip._ready(architecture, "random", device, batch)
        return clip

    @classmethod
    def _without_weights(cls, architecture: str) -> Self:
        import open_clip

        clip = cls.__new__(cls)
        clip._model, clip._transform = untrained(architecture, precision="fp32")
        clip._tokenizer = open_clip.get_tokenizer(architecture)
        return clip

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """Indices of the texts that do not fit, begin and end marks included, and are cut: only their beginning is seen."""
        if not hasattr(self._tokenizer, "encode"):
            raise TypeError("known for OpenAI's tokenizer alone")
        return [index for index, text in enumerate(texts) if len(self._tokenizer.encode(text)) + 2 > self._tokenizer.context_length]

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


def is_official(clip: Clip) -> bool:
    """Whether a CLIP's file is OpenAI's own archive of ViT-L/14."""
    return clip.sha256 == registry()["clip-vit-l-14"].sha256


EXPECTED = "OpenAI's ViT-L-14.pt, a safetensors file with its weights, or a folder in open_clip's format"


def _openai_file(path: Path) -> Path:
    """The file that holds the weights. A folder's configuration must ask for OpenAI's activation: the shapes cannot tell."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: not found; expected {EXPECTED}")
    weights, config = sorted(path.glob("*.safetensors")), path / "open_clip_config.json"
    if len(weights) != 1 or not config.is_file():
        here = "" if config.is_file() else "no "
        raise UserError(f"{path}: {len(weights)} *.safetensors and {here}{config.name}; expected one of each: give {EXPECTED}")
    try:
        quick = read_object(config, f"give {EXPECTED}")["model_cfg"].get("quick_gelu", False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{config}: not open_clip's configuration ({error!r}); give {EXPECTED}") from error
    if quick is not True:
        raise UserError(f"{config}: quick_gelu is {quick!r}, OpenAI's weights have it true; these are others' weights: give {EXPECTED}")
    return weights[0]


def _openai_weights(file: Path) -> dict[str, Tensor]:
    """The weights of a file, read without Python's pickle (a TorchScript archive has its own, of plain types)."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return dict(torch.jit.load(str(file), map_location="cpu").state_dict())
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        kind = "safetensors" if file.suffix == ".safetensors" else "a TorchScript archive"
        raise UserError(f"{file}: not {kind} ({str(error).splitlines()[0][:120]}); give {EXPECTED}") from error


def _load_openai(model: nn.Module, weights: dict[str, Tensor], file: Path, architecture: str) -> None:
    """Takes the weights, every one of them, into the network; `text.` before a name is open_clip's other way to say it."""
    given = {name.removeprefix("text."): value for name, value in weights.items() if name not in NO_WEIGHTS}
    take(model, given, file, f"not the weights of {architecture}: give {EXPECTED}")
