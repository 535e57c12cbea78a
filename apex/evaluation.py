"""What an evaluator measures with, as a profile says it (`evaluation:`): networks, references and judges. None: the embedded world's own.

A key is an option of the evaluator's command, `detector_weights` is --detector-weights; what is left out is not passed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from apex.strict import Strict

Options = dict[str, dict[str, Any]]


class Settings(Strict):
    """Of one evaluator."""

    def options(self) -> dict[str, Any]:
        """What differs from the command's own defaults."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def assets(self) -> list[tuple[str, str]]:
        """(name in evaluators/assets.yaml, path given in its place or "") of every file of others that it opens."""
        return []


class GenEval(Settings):
    """GenEval's detector and the CLIP of its colours: docs/evaluators/geneval.md."""

    detector: Literal["world", "mmdet", "transformers"] = Field("world", description="what finds the objects")
    detector_weights: str = Field(
        "", description="its file or folder; '': the world's own, or the official ones (python -m evaluators.assets)"
    )
    clip_weights: str = Field("", description="the CLIP that names colours; '': the world's own, or OpenAI's ViT-L/14")

    def assets(self) -> list[tuple[str, str]]:
        if self.detector == "world":
            return []
        return [("mask2former-mmdet", self.detector_weights), ("clip-vit-l-14", self.clip_weights)]


class Fid(Settings):
    """FID and KID: docs/evaluators/fid.md."""

    protocol: Literal["world", "pytorch-fid", "clean-fid"] = Field("world", description="network and resize")
    reference: str = Field("", description="folder of real images, or their statistics (protocols but `world`)")
    weights: str = Field("", description="of its network; '': the world's own, or Inception's official ones")

    @model_validator(mode="after")
    def _has_a_reference(self) -> Fid:
        if (self.protocol != "world") != bool(self.reference):
            raise ValueError(f"reference: found {self.reference!r} with protocol {self.protocol}, expected a path with all but `world`")
        return self

    def assets(self) -> list[tuple[str, str]]:
        return [] if self.protocol == "world" else [("inception", self.weights)]


class ClipScore(Settings):
    """CLIP score: docs/evaluators/clip_score.md."""

    protocol: Literal["world", "openai"] = Field("world", description="the world's CLIP and renders, or SANA's: OpenAI's ViT-L/14")
    weights: str = Field("", description="of its CLIP; '': the world's own, or OpenAI's ViT-L/14")

    def assets(self) -> list[tuple[str, str]]:
        return [] if self.protocol == "world" else [("clip-vit-l-14", self.weights)]


class Dpg(Settings):
    """DPG-Bench: docs/evaluators/dpg.md."""

    judge: Literal["mplug", "transformers-vqa", "transformers-vlm"] = Field("mplug", description="who answers; mplug is the protocol's own")
    model: str = Field("", description="folder or hub name of a judge of transformers")
    questions: str = Field("", description="DPG-Bench's table of questions; '': the fetched one")

    def assets(self) -> list[tuple[str, str]]:
        return [("dpg-bench", self.questions)]


class Wise(Settings):
    """WISE: docs/evaluators/wise.md."""

    endpoint: str = Field("", description="base URL of an OpenAI-compatible server; its key comes from the environment")
    model: str = Field("", description="the judge's name there; gpt-4o-2024-05-13 is the protocol's own")
    version: Literal["2025", "2026"] = Field("2025", description="of prompts and scoring; 2026 has metrics of its own name")
    prompts: str = Field("", description="folder of its three files; '': the fetched ones")
    instruction: str = Field("", description="YAML with the judge's instruction; '': this suite's wording")
    key_variable: str = Field("OPENAI_API_KEY", description="environment variable that holds the key")

    def assets(self) -> list[tuple[str, str]]:
        year = "" if self.version == "2025" else self.version
        return [(f"wise{year}-{part}", self.prompts) for part in ("cultural", "spatio-temporal", "natural-science")]


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

    def assets(self, evaluators: Sequence[str]) -> list[tuple[str, str]]:
        return [asset for name in evaluators if name in type(self).model_fields for asset in getattr(self, name).assets()]


def command_line(options: Mapping[str, Any]) -> list[str]:
    """{"detector_weights": "x"} to ["--detector-weights", "x"]."""
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
