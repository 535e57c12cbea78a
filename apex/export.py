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
from apex.errors import UserError, check_format
from apex.files import read_object

FORMATS = frozenset({1})  # of sampling.json, that can be read
MADE_FORMATS = frozenset({1})  # of made.json; one without a format has the first
MODES = ("few", "any", "multi")
AGAIN = "train the row again"


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """sampling.json and made.json of an exported run.

    Raises:
        UserError: one is missing, is not JSON, is of an unknown format, or lacks what sampling needs.
    """
    recipe, made = (read_object(folder / name, AGAIN) for name in ("sampling.json", "made.json"))
    check_format(recipe.get("format"), FORMATS, f"{folder / 'sampling.json'}: format", AGAIN)
    check_format(made.get("format", 1), MADE_FORMATS, f"{folder / 'made.json'}: format", AGAIN)
    expected = {
        "base": (lambda value: isinstance(value, str) and value, "the folder of the pipeline"),
        "mode": (lambda value: value in MODES, f"one of {', '.join(MODES)}"),
        "tuning": (lambda value: value in ("full", "lora"), "full or lora"),
        "target_time": (lambda value: value in ("none", "embedding"), "none or embedding"),
        "sigmas": (_are_grids, "NFE: as many falling times in (0, 1]"),
    }
    for key, (fits, words) in expected.items():
        if not fits(recipe.get(key)):
            raise UserError(f"{folder / 'sampling.json'}: {key}: found {recipe.get(key)!r}, expected {words}; {AGAIN}")
    return recipe, made


def _are_grids(found: Any) -> bool:
    def grid(nfe: str, sigmas: Any) -> bool:
        numbers = isinstance(sigmas, list) and all(isinstance(s, int | float) and 0 < s <= 1 for s in sigmas)
        return numbers and nfe == str(len(sigmas)) and sorted(sigmas, reverse=True) == sigmas

    return isinstance(found, dict) and all(grid(nfe, sigmas) for nfe, sigmas in found.items())


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
