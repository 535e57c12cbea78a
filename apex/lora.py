"""LoRA files: written in the naming of stock pipelines, and checked key by key, so that a LoRA that is loaded acts.

The keys of ours are `transformer.<module>.lora_A.weight` and `.lora_B.weight`, as `pipe.load_lora_weights` and the tools that follow its
naming take them; rank, alpha and targets are in the file's metadata. Older runs left the `transformer.` out, and are read too.

diffusers only warns when keys of a LoRA fit no module, and draws without them. Here each of these is refused: a key that fits no module,
a tensor of another shape, a module without its tensors.
"""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor, nn

from apex.backbones.base import Backbone
from apex.card import LORA_FILE, STOCK
from apex.errors import UserError, readable
from apex.weights import finite

PREFIX = "transformer."
METADATA = "lora_adapter_metadata"  # diffusers' name for the adapter's configuration in the file
SIZES = re.compile(r"size mismatch for (\S+): copying a param with shape torch\.Size\((.*?)\) from checkpoint, .*? torch\.Size\((.*?)\)")


def configuration(rank: int, alpha: float | None, targets: Sequence[str]) -> LoraConfig:
    """An adapter of `rank` on the modules whose names end in one of `targets`; its scale is alpha / rank, alpha = rank without one."""
    return LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=list(targets), init_lora_weights="gaussian")


def save(backbone: Backbone, folder: Path) -> None:
    """Writes the one adapter of the backbone to `folder`/LORA_FILE."""
    ((name, config),) = backbone.transformer.peft_config.items()
    told = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    getattr(diffusers, STOCK[backbone.family][0]).save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(backbone.transformer, adapter_name=name),
        weight_name=LORA_FILE,
        transformer_lora_adapter_metadata=told,
    )


def load(backbone: Backbone, file: Path, promised: Mapping[str, Any] | None) -> None:
    """Adds the adapter of a run's `file` to the backbone.

    promised: `rank` and `alpha` of the run's configuration; None: what the file's metadata say.

    Raises:
        UserError: the file is damaged, or its keys, shapes, values or alpha are not those that the run promises.
    """
    model, mend = backbone.transformer, "put back the file that the run wrote, or train the row again"
    with readable(file, mend), safe_open(file, "pt") as opened:
        found = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118, it is no dictionary
        told = json.loads((opened.metadata() or {}).get(METADATA, "{}"))
        told = {key.removeprefix(PREFIX): value for key, value in told.items()}
    rank, alpha = (promised["rank"], promised.get("alpha")) if promised else (told.get("r"), told.get("lora_alpha"))
    if not rank:
        raise UserError(f"{file}: rank: found none in its metadata or in made.json, expected one; {mend}")
    config = configuration(rank, alpha, backbone.lora_targets)
    if told.get("lora_alpha", config.lora_alpha) != config.lora_alpha:
        raise UserError(f"{file}: lora_alpha: found {told['lora_alpha']}, expected {config.lora_alpha} as in made.json; {mend}")
    model.add_adapter(config)
    held = get_peft_model_state_dict(model, adapter_name="default")
    prefix = "" if held.keys() & found.keys() else PREFIX  # none in older runs
    expected = {prefix + key: value.shape for key, value in held.items()}
    fit = sum(key in expected for key in found)
    for key, value in found.items():
        if key not in expected:
            raise UserError(
                f"{file}: {key}: found a key that fits no module of {type(model).__name__} ({fit} of {len(found)} keys fit), "
                f"expected keys as {next(iter(expected))}; {mend}"
            )
        if value.shape != expected[key]:
            raise UserError(f"{file}: {key}: found shape {list(value.shape)}, expected {list(expected[key])} of rank {rank}; {mend}")
        if not finite(value):
            raise UserError(f"{file}: {key}: found values that are not finite, expected numbers; {mend}")
    for key, shape in expected.items():
        if key not in found:
            raise UserError(
                f"{file}: {key}: found no such key ({len(found)} of {len(expected)} keys are there), expected shape {list(shape)}; {mend}"
            )
    state = {key.removeprefix(prefix): value for key, value in found.items()}
    set_peft_model_state_dict(model, state, adapter_name="default")
    if fault := _fault(state, model):
        raise UserError(f"{file}: {fault}; {mend}")


def load_into(pipe: Any, folder: Path, name: str) -> None:
    """`pipe.load_lora_weights(folder)` of a published LoRA in any naming that diffusers converts, all of whose tensors must be used.

    Raises:
        UserError: the pipeline takes no LoRA; the file is damaged; a key or a shape fits no module; values are not finite or all zero.
    """
    file, mend = folder / name, "name a LoRA that was made for this pipeline, or fetch it again"
    if not hasattr(pipe, "load_lora_weights"):
        raise UserError(f"{file}: found a LoRA for a {type(pipe).__name__}, which takes none in diffusers; leave it out")
    unet = {"unet_config": pipe.unet.config} if hasattr(pipe, "unet") else {}
    with readable(file, mend):
        converted = pipe.lora_state_dict(folder, weight_name=name, use_safetensors=True, **unet)
    # Some pipelines return their alphas besides. What has no "lora" in its name is not of an adapter.
    converted = converted[0] if isinstance(converted, tuple) else converted
    state = {key: value for key, value in converted.items() if "lora" in key or "lokr" in key}
    parts = {part: model for part in pipe._lora_loadable_modules if (model := getattr(pipe, part, None)) is not None}
    try:
        with _quiet():
            pipe.load_lora_weights(folder, weight_name=name, use_safetensors=True)
    except Exception as error:  # diffusers, peft and torch each have their own
        if sizes := SIZES.search(" ".join(str(error).split())):
            key, mine, theirs = sizes.groups()
            key = re.sub(r"\.default_\d+", "", key)
            key = next((full for part in parts if (full := f"{part}.{key}") in state), key)
            raise UserError(f"{file}: {key}: found shape {mine}, expected {theirs} of {type(pipe).__name__}; {mend}") from error
        with readable(file, mend):
            raise
    for key, value in state.items():
        if not finite(value):
            raise UserError(f"{file}: {key}: found values that are not finite, expected numbers; {mend}")
        if key.partition(".")[0] not in parts:
            names = " or ".join(f"{part}." for part in parts)
            raise UserError(f"{file}: {key}: found a key of no part of {type(pipe).__name__}, expected it to begin with {names}; {mend}")
    for part, model in parts.items():
        mine = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
        if mine and (fault := _fault(_named_by_peft(mine, model), model)):
            raise UserError(f"{file}: {part}.{fault}; {mend}")
    if not any(bool(value.any()) for key, value in state.items() if "lora_A" not in key and ".down." not in key):
        raise UserError(f"{file}: found {len(state)} tensors that change nothing, expected an update; {mend}")


@contextmanager
def _quiet() -> Iterator[None]:
    """What diffusers and peft log of a LoRA that does not fit is refused here in one line."""
    log, level = logging.getLogger("diffusers"), logging.getLogger("diffusers").level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.setLevel(level)


def _named_by_peft(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a part under the names that diffusers gives them when it hands them to peft (its loaders' own calls)."""
    if isinstance(model, diffusers.ModelMixin):
        first = next(iter(state))
        return state if "lora_A" in first or ".lokr_" in first else convert_unet_state_dict_to_peft(state)
    state = convert_state_dict_to_peft(convert_state_dict_to_diffusers(state))
    return state if hasattr(model, "text_model") else {key.removeprefix("text_model."): value for key, value in state.items()}


def _fault(state: Mapping[str, Tensor], model: nn.Module) -> str:
    """The first key of `state` that the model's newest adapter does not have, or the other way round; '' where they agree and it is on."""
    adapter = next(reversed(getattr(model, "peft_config", None) or {"": None}))
    held = get_peft_model_state_dict(model, adapter_name=adapter) if adapter else {}
    for key in state:
        if key not in held:
            return f"{key}: found a key that fits no module of {type(model).__name__}, expected keys of its modules alone"
    for key, value in held.items():
        if key not in state:
            return f"{key}: found no such key, expected one beside the module's others"
        if value.is_meta:
            return f"{key}: found in the file, but not in the network after loading, expected its values there"
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer) or adapter not in getattr(module, "scaling", {}):
            continue
        if module.disable_adapters or adapter not in module.active_adapters or not module.scaling[adapter]:
            return f"{name}: found an adapter that is off, expected it to act"
    return ""
