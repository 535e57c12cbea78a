"""What a run leaves behind: weights that stock diffusers loads, the sampling recipe, and how it was made.

RUN/transformer/          stock transformer folder (full tuning)
RUN/one_step/transformer/ the same network folded for the one step of the run's grid of NFE 1: a plain stock transformer
RUN/lora/                 pytorch_lora_weights.safetensors (tuning by LoRA), as `pipe.load_lora_weights` takes it
RUN/sampling.json         base pipeline, mode, sigmas per NFE, what stock loading reproduces
RUN/made.json             configuration, budget, timings, versions, hardware
RUN/README.md             the model card; `snakemake cards` adds what was measured
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apex import card, flow, lora
from apex.backbones.base import Backbone
from apex.backbones.sana import SanaBackbone
from apex.card import FOLDED, GUIDED


def stock(backbone: Backbone, tuning: str, sigmas: Mapping[str, list[float]]) -> dict[str, Any]:
    """What sampling.json says of stock diffusers.

    stock: place in the run's folder -> the NFEs that it reproduces. A network that does not see r: all of them. The Sana family carries
        t - r in its stock guidance slot: all of them, when the caller passes `guidance = 1000 (t - r)`. Every network that sees r: NFE 1
        from the folded transformer.
    stock_sigmas: place -> NFE -> the one time grid for which it is exact; a place that is not named is exact for every grid.
    """
    nfes = [int(n) for n in sigmas]
    if backbone.target_time == "none":
        return {"stock": {"lora" if tuning == "lora" else "transformer": nfes}, "stock_sigmas": {}}
    guided = {GUIDED: nfes} if isinstance(backbone, SanaBackbone) else {}
    return {"stock": guided | {FOLDED: [1]}, "stock_sigmas": {FOLDED: {"1": sigmas["1"]}}}


def export_run(folder: Path, backbone: Backbone, *, tuning: str, recipe: dict[str, Any], made: dict[str, Any]) -> None:
    """Writes a finished run into `folder` (see the file's docstring)."""
    sigmas = {"1": flow.uniform_sigmas(1)} | recipe["sigmas"]
    if tuning == "lora":
        lora.save(backbone, folder / "lora")
    else:
        backbone.transformer.save_pretrained(folder / "transformer", safe_serialization=True)
        backbone.save_extra(folder)
        if backbone.target_time == "embedding":
            (gap,) = card.gaps(sigmas["1"], recipe["mode"])
            backbone.fold_one_step(gap).save_pretrained(folder / FOLDED, safe_serialization=True)
    about = {"format": 1, "family": backbone.family, "tuning": tuning, "target_time": backbone.target_time}
    recipe = about | recipe | {"sigmas": sigmas} | stock(backbone, tuning, sigmas)
    (folder / "sampling.json").write_text(json.dumps(recipe, indent=1) + "\n")
    (folder / "made.json").write_text(json.dumps(made, indent=1) + "\n")
    (folder / "README.md").write_text(card.text(made, recipe))
