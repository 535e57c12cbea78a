"""Published few-step models as rows: a stock diffusers pipeline as it is called by its users, with this suite's prompts and seeds.

Any class of diffusers will do. Weights are safetensors, no code of the folder is run; a LoRA, a scheduler and arguments of the call may
be named in the profile (`checkpoints`, see apex/config.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from apex.config import Checkpoint, Config
from apex.errors import UserError, readable
from apex.lora import load_into
from apex.pipeline import DTYPES
from apex.seeds import derive

DENOISERS = ("transformer", "unet")


def per_prompt(call: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The arguments of a call for `count` prompts: a negative prompt is one for each."""
    words = call.get("negative_prompt")
    return dict(call) | ({"negative_prompt": [words] * count} if isinstance(words, str) else {})


class StockGenerator:
    """A checkpoint of the profile at one NFE.

    Attributes:
        pipe: the diffusers pipeline. call: what it is called with beside the prompts. parameters: of its denoiser.
        sigmas, mode, guidance, made: what images say of their origin; the schedule is the pipeline's own.
    """

    trainable_parameters, mode = 0, "stock"

    def __init__(self, pipe: Any, checkpoint: Checkpoint, *, nfe: int, resolution: int, device: str) -> None:
        self.pipe, self.checkpoint, self.device = pipe, checkpoint, device
        self.call = {"num_inference_steps": nfe, "height": resolution, "width": resolution, **checkpoint.call}
        self.denoiser = next((part for name in DENOISERS if (part := getattr(pipe, name, None)) is not None), None)
        if self.denoiser is None:
            raise UserError(f"checkpoints: {checkpoint.row}: found neither {' nor '.join(DENOISERS)} in a {type(pipe).__name__}")
        self.parameters = sum(p.numel() for p in self.denoiser.parameters())
        self.latent_shape = (int(self.denoiser.config.in_channels), resolution, resolution)
        self.sigmas: list[float] = []
        self.guidance = float(checkpoint.call.get("guidance_scale", checkpoint.call.get("true_cfg_scale", 1.0)))
        self.made: dict[str, Any] = {"family": None, "tuning": None, "source": checkpoint.words, "variant": None}

    @classmethod
    def load(cls, config: Config, row: str, *, nfe: int, device: str = "cpu") -> StockGenerator:
        """Raises UserError where a folder is missing or damaged, or the pipeline knows no such scheduler."""
        import diffusers

        checkpoint = config.checkpoint_rows[row]
        pipeline, *lora = checkpoint.folders
        if not (pipeline / "model_index.json").is_file():
            raise UserError(f"checkpoints: {row}: found no {pipeline / 'model_index.json'}, expected a pipeline in diffusers' layout")
        with readable(pipeline, "fetch it again"):
            pipe = diffusers.DiffusionPipeline.from_pretrained(
                pipeline, use_safetensors=True, torch_dtype=DTYPES[config.sampling.precision]
            )
        if checkpoint.scheduler:
            told = dict(checkpoint.scheduler)
            kind = getattr(diffusers, str(told.pop("class")), None)
            if kind is None or not hasattr(kind, "from_config"):
                raise UserError(f"checkpoints: {row}: scheduler.class: found {checkpoint.scheduler['class']!r}, expected one of diffusers'")
            pipe.scheduler = kind.from_config(pipe.scheduler.config, **told)
        if lora:
            load_into(pipe, lora[0], checkpoint.lora_file)
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe.to(device), checkpoint, nfe=nfe, resolution=config.data.resolution, device=device)

    @torch.no_grad()
    def pictures(self, prompts: list[str], seed: int, places: list[tuple[int, int]]) -> np.ndarray:
        """uint8 images (B, H, W, 3) of `prompts` at (prompt number, image number); each from a random stream of its own."""
        random = [torch.Generator().manual_seed(derive(seed, "image", prompt, image)) for prompt, image in places]
        try:
            found = self.pipe(prompts, generator=random, output_type="np", **per_prompt(self.call, len(prompts))).images
        except TypeError as error:  # an argument that the pipeline does not have
            raise UserError(f"checkpoints: {self.checkpoint.row}: call: {type(self.pipe).__name__} refuses it ({error})") from error
        return (np.asarray(found, dtype=np.float32).clip(0, 1) * 255).round().astype(np.uint8)
