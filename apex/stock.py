"""Published few-step models as rows: a stock diffusers pipeline as it is called by its users, with this suite's prompts and seeds.

Any class of diffusers will do. Weights are safetensors, no code of the folder is run; a LoRA, a scheduler and arguments of the call may
be named in the profile (`checkpoints`, see apex/config.py).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apex.config import Checkpoint, Config
from apex.errors import UserError, check_images, naming, readable
from apex.files import read_object
from apex.lora import load_into
from apex.pipeline import DTYPES
from apex.seeds import derive
from apex.strict import unknown
from apex.weights import pretrained

DENOISERS = ("transformer", "unet")
FETCH = "fetch it again"  # what mends a published folder


def scheduler_class(name: str, settings: Mapping[str, Any], where: str, *, own: bool = True) -> Any:
    """The scheduler class of diffusers of this name, which must know all of `settings`; diffusers itself leaves out what it does not.

    Args:
        where: the file or key that holds them.
        own: False: a setting that a compatible class knows is no fault either. Published files carry such leftovers of another scheduler.

    Raises:
        UserError: no such class, or a setting that it does not know.
    """
    import diffusers

    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise UserError(f"{where}.class: found {name!r}, expected one of diffusers' schedulers")
    known = inspect.signature(kind.__init__).parameters.keys() - {"self", "kwargs"}
    taken = known.union(*(() if own else (inspect.signature(one.__init__).parameters for one in kind._get_compatibles())))
    for key in settings:
        if key not in taken and not key.startswith("_"):
            raise UserError(f"{where}: {name}: {unknown('setting', key, known)}")
    return kind


def load_networks(pipeline: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The networks of a stock pipeline by the names in its model_index.json, each as `apex.weights` reads it: diffusers would not check.

    Raises:
        UserError: the index or a network's files are missing or damaged; or weights are not the network's.
    """
    import diffusers
    import transformers

    index = pipeline / "model_index.json"
    with readable(index, FETCH):
        parts = {name: told for name, told in json.loads(index.read_text()).items() if isinstance(told, list) and all(told)}
        found = {}
        for name, (library, kind) in parts.items():
            # A pipeline's own classes stand in a module of its name.
            module = {"diffusers": diffusers, "transformers": transformers}.get(library) or getattr(diffusers.pipelines, library, None)
            found[name] = getattr(module, kind, None)
    networks = (diffusers.ModelMixin, transformers.PreTrainedModel)
    found = {name: kind for name, kind in found.items() if isinstance(kind, type) and issubclass(kind, networks)}
    return {name: pretrained(kind, pipeline / name, FETCH, dtype) for name, kind in found.items()}


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
        if (file := pipeline / "scheduler" / "scheduler_config.json").is_file():
            given = read_object(file, FETCH)
            scheduler_class(given.get("_class_name"), given, str(file), own=False)
        told = dict(checkpoint.scheduler)
        kind = scheduler_class(told.pop("class"), told, f"checkpoints: {row}: scheduler") if told else None
        dtype = DTYPES[config.sampling.precision]
        networks = load_networks(pipeline, dtype)
        with readable(pipeline, FETCH):
            pipe = diffusers.DiffusionPipeline.from_pretrained(pipeline, use_safetensors=True, torch_dtype=dtype, **networks)
        if kind:
            pipe.scheduler = kind.from_config(pipe.scheduler.config, **told)
        if lora:
            load_into(pipe, lora[0], checkpoint.lora_file)
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe.to(device), checkpoint, nfe=nfe, resolution=config.data.resolution, device=device)

    @torch.no_grad()
    def pictures(self, prompts: list[str], seed: int, places: list[tuple[int, int]]) -> np.ndarray:
        """uint8 images (B, H, W, 3) of `prompts` at (prompt number, image number); each from a random stream of its own.

        Raises:
            NotFinite: an image is NaN. UserError: the pipeline does not take an argument of the profile.
        """
        random = [torch.Generator().manual_seed(derive(seed, "image", prompt, image)) for prompt, image in places]
        try:
            found = self.pipe(prompts, generator=random, output_type="np", **per_prompt(self.call, len(prompts))).images
        except TypeError as error:  # an argument that the pipeline does not have
            raise UserError(f"checkpoints: {self.checkpoint.row}: call: {type(self.pipe).__name__} refuses it ({error})") from error
        values = np.asarray(found, dtype=np.float32)
        with naming(prompts, seed, places):
            check_images(np.isfinite(values).reshape(len(values), -1).all(1).tolist())
        return (values.clip(0, 1) * 255).round().astype(np.uint8)
