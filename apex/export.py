"""What a run leaves behind: weights that stock diffusers loads, the sampling recipe, and how it was made.

RUN/transformer/          stock transformer folder (full tuning)
RUN/one_step/transformer/ the same network folded at (t = 1, r = 0): a plain stock transformer for NFE 1
RUN/lora/                 pytorch_lora_weights.safetensors (tuning by LoRA)
RUN/sampling.json         base pipeline, mode, sigmas per NFE, what stock loading reproduces
RUN/made.json             configuration, budget, timings, versions, hardware
RUN/README.md             the model card; `snakemake cards` adds what was measured
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apex import card
from apex.backbones.base import Backbone
from apex.backbones.sana import SanaBackbone
from apex.card import LORA_FILE


def stock_nfes(backbone: Backbone, nfes: list[int]) -> dict[str, list[int]]:
    """Which NFEs stock diffusers reproduces, and from which folder.

    A network that does not see r: all of them. The Sana family carries t - r in its stock guidance slot: all of
    them, when the caller passes `guidance = 1000 (t - r)`. Elsewhere the folded one-step transformer alone.
    """
    if backbone.target_time == "none":
        return {"transformer": nfes}
    if isinstance(backbone, SanaBackbone):
        return {"transformer (guidance = 1000 (t - r))": nfes, "one_step/transformer": [n for n in nfes if n == 1]}
    return {"one_step/transformer": [n for n in nfes if n == 1]}


def export_run(folder: Path, backbone: Backbone, *, tuning: str, recipe: dict[str, Any], made: dict[str, Any]) -> None:
    """Writes a finished run into `folder` (see the file's docstring)."""
    if tuning == "lora":
        backbone.transformer.save_lora_adapter(folder / "lora", weight_name=LORA_FILE)
    else:
        backbone.transformer.save_pretrained(folder / "transformer", safe_serialization=True)
        backbone.save_extra(folder)
        if backbone.target_time == "embedding":
            backbone.fold_one_step().save_pretrained(folder / "one_step" / "transformer", safe_serialization=True)
    stock = stock_nfes(backbone, [int(n) for n in recipe["sigmas"]])
    recipe = {"format": 1, "family": backbone.family, "tuning": tuning, "target_time": backbone.target_time, **recipe, "stock": stock}
    (folder / "sampling.json").write_text(json.dumps(recipe, indent=1) + "\n")
    (folder / "made.json").write_text(json.dumps(made, indent=1) + "\n")
    (folder / "README.md").write_text(card.text(made, recipe))
