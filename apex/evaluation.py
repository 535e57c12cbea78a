"""What an evaluator measures with, as a profile says it (`evaluation:`): networks, references and judges. None: the embedded world's own.

A key is an option of the evaluator's command, `detector_weights` is --detector-weights; what is left out is not passed on. Every option
that changes a number is here. The others are the machine's or the workflow's affair: `batch`, `device`, `threads`, `workers`, `tries`,
`timeout`, where answers and features are kept, the folder's layout, checks such as `self_test_image`. `seed`, of the bootstrap, stays 0.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from apex.strict import Strict

Options = dict[str, dict[str, Any]]
Assets = list[tuple[str, str, str]]
PLACES = ("detector_weights", "clip_weights", "weights", "reference", "model", "instruction")  # beside `assets`
HUB = re.compile(r"\w[\w.-]*/[\w.-]+")  # a model's name


class Settings(Strict):
    """Of one evaluator."""

    def options(self) -> dict[str, Any]:
        """What differs from the command's own defaults."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def assets(self) -> Assets:
        """(key, name in evaluators/assets.yaml, path given in its place or "") of every file of others that it opens."""
        return []

    def paths(self) -> list[Path]:
        """The files and folders that it names and that are there: their content decides about its numbers."""
        named = [value for key, value in self.options().items() if key in PLACES]
        return [path for path in map(Path, dict.fromkeys([*named, *(given for *_, given in self.assets() if given)])) if path.exists()]

    def lacks(self) -> str:
        """What it needs beside files of others and has not: `key: found ..., expected ...`; '' where nothing."""
        return ""


class GenEval(Settings):
    """GenEval's detector and the CLIP of its colours: docs/evaluators/geneval.md."""

    detector: Literal["world", "mmdet", "transformers"] = Field("world", description="what finds the objects")
    detector_weights: str = Field(
        "", description="its file or folder; '': the world's own, or the official ones (python -m evaluators.assets)"
    )
    clip_weights: str = Field("", description="the CLIP that names colours; '': the world's own, or OpenAI's ViT-L/14")

    def assets(self) -> Assets:
        if self.detector == "world":
            return []
        return [("detector_weights", "mask2former-mmdet", self.detector_weights), ("clip_weights", "clip-vit-l-14", self.clip_weights)]

    def lacks(self) -> str:
        if self.detector == "mmdet" and find_spec("mmdet") is None:
            return "detector: found mmdet, which is not installed: make env-mmdet, or take transformers, which computes the same"
        return ""


class Fid(Settings):
    """FID and KID: docs/evaluators/fid.md."""

    protocol: Literal["world", "pytorch-fid", "clean-fid"] = Field("world", description="network and resize")
    reference: str = Field("", description="folder of real images, or their statistics (protocols but `world`)")
    weights: str = Field("", description="of its network; '': the world's own, or Inception's official ones")
    resolution: int | None = Field(
        None, ge=1, le=4096, description="pytorch-fid: both sets are brought to it; null: the images' short side"
    )
    jpeg: int | None = Field(None, ge=1, le=100, description="quality to compress generated images with first (not `world`); null: not")

    @model_validator(mode="after")
    def _fits_the_protocol(self) -> Fid:
        if (self.protocol != "world") != bool(self.reference):
            raise ValueError(f"reference: found {self.reference!r} with protocol {self.protocol}, expected a path with all but `world`")
        for key, protocols in (("resolution", ["pytorch-fid"]), ("jpeg", ["pytorch-fid", "clean-fid"])):
            if getattr(self, key) is not None and self.protocol not in protocols:
                raise ValueError(
                    f"{key}: found {getattr(self, key)} with protocol {self.protocol}, expected it with {' or '.join(protocols)} alone"
                )
        return self

    def assets(self) -> Assets:
        return [] if self.protocol == "world" else [("weights", "inception", self.weights)]

    def lacks(self) -> str:
        if self.reference and not Path(self.reference).exists():
            return f"reference: found nothing at {self.reference}, expected real images or their statistics: docs/evaluators/fid.md"
        return ""


class ClipScore(Settings):
    """CLIP score: docs/evaluators/clip_score.md."""

    protocol: Literal["world", "openai"] = Field("world", description="the world's CLIP and renders, or SANA's: OpenAI's ViT-L/14")
    weights: str = Field("", description="of its CLIP; '': the world's own, or OpenAI's ViT-L/14")

    def assets(self) -> Assets:
        return [] if self.protocol == "world" else [("weights", "clip-vit-l-14", self.weights)]


class Dpg(Settings):
    """DPG-Bench: docs/evaluators/dpg.md."""

    judge: Literal["mplug", "transformers-vqa", "transformers-vlm"] = Field("mplug", description="who answers; mplug is the protocol's own")
    model: str = Field("", description="folder or hub name of a judge of transformers")
    questions: str = Field("", description="DPG-Bench's table of questions; '': the fetched one")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of a judge of transformers")
    partial: bool = Field(False, description="score images that lack prompts of the benchmark")

    @model_validator(mode="after")
    def _is_a_judge(self) -> Dpg:
        if self.judge != "mplug" and not self.model:
            raise ValueError(f"model: found none with judge {self.judge}, expected its folder or hub name")
        if self.judge == "mplug" and self.precision != "float32":
            raise ValueError(f"precision: found {self.precision} with judge mplug, expected float32")
        return self

    def assets(self) -> Assets:
        return [("questions", "dpg-bench", self.questions)]

    def lacks(self) -> str:
        if self.judge == "mplug" and find_spec("modelscope") is None:
            return "judge: found mplug, whose modelscope is not installed: docs/evaluators/dpg.md; or take a judge of transformers"
        if self.model and not Path(self.model).is_dir() and not HUB.fullmatch(self.model):
            return f"model: found no folder {self.model}, expected a judge's, or its hub name: docs/evaluators/dpg.md"
        return ""


class Wise(Settings):
    """WISE: docs/evaluators/wise.md."""

    endpoint: str = Field("", description="base URL of an OpenAI-compatible server; its key comes from the environment")
    model: str = Field("", description="the judge's name there; gpt-4o-2024-05-13 is the protocol's own")
    version: Literal["2025", "2026"] = Field("2025", description="of prompts and scoring; 2026 has metrics of its own name")
    prompts: str = Field("", description="folder of its three files; '': the fetched ones")
    instruction: str = Field("", description="YAML with the judge's instruction; '': this suite's wording")
    key_variable: str = Field("OPENAI_API_KEY", description="environment variable that holds the key; '': the server needs none")
    parser: Literal["official", "tolerant"] = Field("official", description="what reads the answers; official: as the benchmark's script")
    attempts: int | None = Field(
        None, ge=1, le=1000, description="how often an answer that lacks a score is asked for; null: as the official script, 1, of 2026 3"
    )
    partial: bool = Field(False, description="score images that lack prompts of the benchmark")

    @field_validator("endpoint")
    @classmethod
    def _holds_no_secret(cls, endpoint: str) -> str:
        from evaluators.wise.endpoint import url_fault

        if endpoint and (fault := url_fault(endpoint)):
            raise ValueError(fault)
        return endpoint

    @field_validator("key_variable")
    @classmethod
    def _is_a_variable(cls, name: str) -> str:
        from evaluators.wise.endpoint import variable_fault

        if name and (fault := variable_fault(name)):
            raise ValueError(fault)
        return name

    def assets(self) -> Assets:
        year, end = ("", "") if self.version == "2025" else (self.version, "_verified")
        parts = {"cultural": "cultural_common_sense", "spatio-temporal": "spatio-temporal_reasoning", "natural-science": "natural_science"}
        return [("prompts", f"wise{year}-{part}", self.prompts and f"{self.prompts}/{file}{end}.json") for part, file in parts.items()]

    def lacks(self) -> str:
        from evaluators.wise.endpoint import is_local

        for key in ("endpoint", "model"):
            if not getattr(self, key):
                return f"{key}: found none, expected the judge's: docs/evaluators/wise.md"
        if self.instruction and not Path(self.instruction).is_file():
            return f"instruction: found no file {self.instruction}, expected YAML with the judge's instruction: docs/evaluators/wise.md"
        if self.key_variable and not os.environ.get(self.key_variable) and not is_local(self.endpoint):
            return f"key_variable: found {self.key_variable} not set, and {self.endpoint} may need a key: set it, or give ''"
        return ""


class Evaluation(Strict):
    """Networks, references and judges of the evaluators; left alone, the embedded world's own."""

    geneval: GenEval = GenEval()
    fid: Fid = Fid()
    clip_score: ClipScore = ClipScore()
    dpg: Dpg = Dpg()
    wise: Wise = Wise()

    def options(self) -> Options:
        """evaluator -> option -> value, of what is not the command's default."""
        found = {name: getattr(self, name).options() for name in type(self).model_fields}
        return {name: options for name, options in found.items() if options}

    def chosen(self, evaluators: Iterable[str]) -> dict[str, Settings]:
        """evaluator -> its settings, of those that have any."""
        return {name: getattr(self, name) for name in sorted(evaluators) if name in type(self).model_fields}


def command_line(options: Mapping[str, Any]) -> list[str]:
    """{"detector_weights": "x", "partial": True} to ["--detector-weights", "x", "--partial"]."""
    words = []
    for name, value in options.items():
        if value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words
