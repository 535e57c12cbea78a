"""The one result record that every evaluator writes, and its file: JSON, checked on writing and on reading. No torch.

A record is about one set of images (a row of the tables at one NFE, seed and split) and one evaluator. Who made
the images comes from their `made.json`, or from the command line for folders made elsewhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from apex.errors import UserError
from apex.files import read_json, write_atomic

SCHEMA = 1
ROUNDING = 1e-6  # of means of stored outcomes, and at the ends of a scale
Interval = Literal["bootstrap 95%", "jackknife 95%", "delta method 95%", "interquartile range"]
RESAMPLED = ("bootstrap 95%", "interquartile range")  # intervals whose ends are values of the metric itself


class Scale(NamedTuple):
    """What a metric is measured in and which values it can take, both ends included. `least`: the fewest it is a mean over.
    `above`: the low end is excluded."""

    unit: str
    low: float
    high: float
    least: int = 1
    above: bool = False


SPREAD = "share of the renderer's standard deviation"
# By the metric's name; the first pattern that matches counts. A name that none matches is another evaluator's, and is not judged.
SCALES: dict[str, Scale] = {
    "geneval/*": Scale("fraction", 0, 1),
    "coverage/precision": Scale("fraction", 0, 1),
    "coverage/recall": Scale("fraction", 0, 1),
    "coverage/spread": Scale(SPREAD, 0, 1),
    "coverage/*": Scale(SPREAD, 0, math.inf, 0),  # measured on the images where the objects are found, which may be none
    "clip_score": Scale("100 x cosine", -100, 100),
    "clip_score/*": Scale("100 x cosine", -100, 100),
    "fid/infinity": Scale("squared feature distance", -math.inf, math.inf),  # a line's value at 1/n = 0, not a distance
    "fid": Scale("squared feature distance", -1e-3, math.inf),  # below 0 by rounding alone
    "fid/*": Scale("squared feature distance", -1e-3, math.inf),
    "kid": Scale("squared MMD", -0.1, math.inf),  # unbiased, so below 0 by chance where the distance is 0
    "kid/*": Scale("squared MMD", -0.1, math.inf),
    "speed/latency_*": Scale("s", 0, math.inf, above=True),
    "speed/stage/*": Scale("s", 0, math.inf),  # a pipeline may have no such stage
    "speed/throughput_*": Scale("samples/s", 0, math.inf, above=True),
    "speed/peak_memory_*": Scale("MB", 0, math.inf),
    "dpg*/*": Scale("100 x share", 0, 100),
    "wise*/*": Scale("score", 0, 1),
}


@cache
def scale_of(metric: str) -> Scale | None:
    """The scale of a metric; None for one that the table does not know."""
    return next((scale for pattern, scale in SCALES.items() if fnmatchcase(metric, pattern)), None)


class Metric(BaseModel):
    """One number. `n` counts what it is a mean over (images, pairs, repeats); `interval` names what the bounds are."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    metric: str
    value: float
    unit: str
    n: int
    ci_low: float | None = None
    ci_high: float | None = None
    higher_is_better: bool
    interval: Interval | None = None

    @field_validator("value", "ci_low", "ci_high")
    @classmethod
    def _finite(cls, number: float | None) -> float | None:
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{number} is not a finite number")
        return number

    @model_validator(mode="after")
    def _ordered(self) -> Metric:
        if (self.ci_low is None) != (self.ci_high is None) or (self.ci_low is None) != (self.interval is None):
            raise ValueError("ci_low, ci_high and interval come together or not at all")
        if self.ci_low is not None and self.ci_low > self.ci_high:
            raise ValueError(f"ci_low {self.ci_low} is above ci_high {self.ci_high}")
        return self

    @model_validator(mode="after")
    def _on_its_scale(self) -> Metric:
        scale = scale_of(self.metric)
        if self.n < (scale.least if scale else 0):
            raise ValueError(f"{self.metric}: found n {self.n}, expected at least {scale.least if scale else 0}")
        if scale is None:
            return self
        if self.unit != scale.unit:
            raise ValueError(f"{self.metric}: found the unit {self.unit!r}, expected {scale.unit!r}")
        ends = ("value", "ci_low", "ci_high") if self.interval in RESAMPLED else ("value",)
        for name in ends:
            found = getattr(self, name)
            if not scale.low - ROUNDING <= found <= scale.high + ROUNDING or (scale.above and found <= scale.low):
                expected = f"more than {scale.low:g}" if scale.above else f"{scale.low:g} to {scale.high:g}"
                raise ValueError(f"{self.metric}: found {name} {found}, expected {expected}")
        return self


class Training(BaseModel):
    """What a record says of the training behind a row. Keys that are not named here may hold anything."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    forward_equivalents: float | None = Field(None, ge=0)
    flops: float | None = Field(None, ge=0)
    steps: int | None = Field(None, ge=0)
    wall_seconds: float | None = Field(None, ge=0)
    peak_memory_mb: float | None = Field(None, ge=0)
    flops_by_network: dict[str, float] | None = None
    memory_mb: dict[str, float] | None = None
    stopped: str | None = None
    load: dict[str, Any] | None = None


class Identity(BaseModel):
    """Who made the images: the part of `made.json` that a record repeats. Unknown keys are left where they are.

    `run_hash` is the identity of the row's own settings (`Config.run_hash`), None where no training of this suite made the row.
    `config_hash` covers the whole profile that the images were made with; no table compares it.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    row: str
    method: str
    family: str | None = None
    variant: str | None = None
    tuning: str | None = None
    backbone: str | None = None
    profile: str | None = None
    seed: int | None = None
    nfe: int = Field(ge=0)
    guidance: float | None = None
    prompts: str | None = None
    prompts_sha256: str | None = None
    run_hash: str | None = None
    config_hash: str | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None
    training: dict[str, Any] | None = None

    @field_validator("training")
    @classmethod
    def _of_training(cls, found: dict[str, Any] | None) -> dict[str, Any] | None:
        if found is not None:
            _checked(Training, found)
        return found


def _checked(model: type[BaseModel], found: Any) -> None:
    """Raises a `ValueError` of one line where `found` does not fit; what was read stays as it was."""
    try:
        model.model_validate(found)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None


class Seen(BaseModel):
    """How many prompts of a set are training captions (`apex.data.overlap`)."""

    model_config = ConfigDict(extra="allow", strict=True)

    prompts: int = Field(ge=0)
    prompts_seen: int = Field(ge=0)
    samples: int = Field(ge=0)
    samples_seen: int = Field(ge=0)
    opening: str
    samples_alike: int = Field(ge=0)


class Made(BaseModel):
    """The part of a `made.json`, a run's or its images', that tables read. Other keys may hold anything."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    row: str | None = None
    method: str | None = None
    family: str | None = None
    citation: str | None = None
    tuning: str | None = None
    seed: int | None = None
    source: str | None = None
    hardware: str | None = None
    git_commit: str | None = None
    run_hash: str | None = None
    teacher: str | None = None
    sigmas: list[float] | None = None
    run: dict[str, Any] | None = None
    params: dict[str, Any] | None = None
    revision: int | None = Field(None, ge=1)
    prompts_seen: dict[str, Seen] | None = None
    left_out: dict[str, Any] | None = None
    shift_visibility: dict[str, float] | None = None
    training: Training | None = None


class Details(BaseModel):
    """The part of a record's `details` that tables read. Other keys are the evaluator's own."""

    model_config = ConfigDict(extra="allow", strict=True)

    made: Made | None = None
    comparable: bool | None = None
    differs: list[str] | None = None
    judge: dict[str, Any] | None = None
    per_prompt: list[Any] | None = None
    load: dict[str, Any] | None = None
    busy: bool | None = None


class Record(Identity):
    """An evaluator's result. `git_commit`, `hardware`, `versions`, `wall_seconds` and `peak_memory_mb` are those of the
    evaluation; the images' own stand in `details["made"]`."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, strict=True)

    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    evaluator: str
    evaluator_version: str
    git_commit: str
    hardware: str
    versions: dict[str, str]
    wall_seconds: float = Field(ge=0, allow_inf_nan=False)
    peak_memory_mb: float = Field(ge=0, allow_inf_nan=False)
    metrics: list[Metric]
    details: dict[str, Any] = {}

    @model_validator(mode="after")
    def _says_why(self) -> Record:
        if not self.metrics and not self.failed:
            raise ValueError("metrics is empty, and details.failed does not say why")
        return self

    @field_validator("metrics")
    @classmethod
    def _unique(cls, metrics: list[Metric]) -> list[Metric]:
        names = [m.metric for m in metrics]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"metrics named twice: {', '.join(twice)}")
        return metrics

    @field_validator("details")
    @classmethod
    def _of_details(cls, details: dict[str, Any]) -> dict[str, Any]:
        _checked(Details, details)
        return details

    @model_validator(mode="after")
    def _means_of_what_is_stored(self) -> Record:
        again = recomputed(self.evaluator, self.details)
        for metric in self.metrics:
            value, n, rounding = again.get(metric.metric, (metric.value, metric.n, 0.0))
            if abs(metric.value - value) > rounding + ROUNDING:
                raise ValueError(f"{metric.metric}: found {metric.value}, but details.per_prompt gives {value:.6g}")
            if n is not None and metric.n != n:
                raise ValueError(f"{metric.metric}: found n {metric.n}, but details.per_prompt holds {n} images")
        return self

    @property
    def run(self) -> str | None:
        """The identity of the training run behind the images; records of images have it in `details["made"]` alone before it was a key."""
        return self.run_hash or (self.details.get("made") or {}).get("run_hash")

    @property
    def failed(self) -> str:
        """Why there is no number; "" where there is one."""
        return "" if self.metrics else str(self.details.get("failed") or "")

    def value(self, metric: str) -> float:
        return next(m.value for m in self.metrics if m.metric == metric)

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False) + "\n")


Again = dict[str, tuple[float, int | None, float]]  # metric -> its value, n (None: not known) and how far stored outcomes are rounded


def recomputed(evaluator: str, details: Mapping[str, Any]) -> Again:
    """The means that follow from a record's outcomes by prompt; empty where it holds none.

    Raises:
        ValueError: outcomes that are not as the evaluator writes them.
    """
    found = details.get("per_prompt")
    if not found or evaluator not in RECOMPUTED:
        return {}
    try:
        return RECOMPUTED[evaluator](found, details)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"details.per_prompt: not as {evaluator} writes it ({type(error).__name__}: {error})") from None


def _geneval(found: Sequence[Any], details: Mapping[str, Any]) -> Again:
    """Each task's share of correct images, and their unweighted mean."""
    right: dict[str, int] = {}
    images: dict[str, int] = {}
    for number, item in enumerate(found):
        tag, correct, count = item["tag"], item["correct"], item["images"]
        whole = type(correct) is type(count) is int and isinstance(tag, str) and isinstance(item["prompt"], str)
        if not (whole and 0 <= correct <= count and count):
            raise ValueError(f"details.per_prompt.{number}: found {str(item)[:120]}, expected whole numbers, correct of images")
        right[tag] = right.get(tag, 0) + correct
        images[tag] = images.get(tag, 0) + count
    again: Again = {f"geneval/{tag}": (right[tag] / images[tag], images[tag], 0.0) for tag in right}
    return again | {"geneval/overall": (sum(value for value, *_ in again.values()) / len(again), sum(images.values()), 0.0)}


def _clip_score(found: Sequence[Any], details: Mapping[str, Any]) -> Again:
    """The mean over prompts: each has as many images as the others."""
    return {"clip_score": (_mean(found), details.get("images"), 1e-4)}


def _dpg(found: Sequence[Any], details: Mapping[str, Any]) -> Again:
    """The mean over prompts of both readings; the official code's leaves prompts out, and records older than `official` do not have it."""
    again: Again = {"dpg_all/overall": (_mean([item["score"] for item in found]), len(found), 1e-4)}
    if official := [item["official"] for item in found if item.get("official") is not None]:
        again["dpg/overall"] = (_mean(official), len(official), 1e-4)
    return again


def _wise(found: Sequence[Any], details: Mapping[str, Any]) -> Again:
    """Means by category and their weighted sum, where a prompt has one image, so that each score is one image's."""
    from evaluators.wise.versions import VERSIONS

    version = VERSIONS.get(str(details.get("protocol", "")).removeprefix("WISE ").partition(",")[0])
    if version is None or details.get("images_per_prompt") != 1:
        return {}
    scores: dict[str, list[float]] = {}
    for item in found:
        if item["score"] is not None:
            scores.setdefault(version.category(item["prompt_id"]), []).append(item["score"])
    means = {name: _mean(values) for name, values in scores.items()}
    again: Again = {f"{version.prefix}/{name}": (mean, len(scores[name]), 1e-4) for name, mean in means.items()}
    if means.keys() == version.weights.keys():
        again[f"{version.prefix}/overall"] = (version.overall(means), sum(map(len, scores.values())), 1e-4)
    return again


RECOMPUTED = {"geneval": _geneval, "clip_score": _clip_score, "dpg": _dpg, "wise": _wise}


def _mean(values: Sequence[Any]) -> float:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"details.per_prompt: found {value!r}, expected a number")
    return sum(values) / len(values)


def read_record(path: Path) -> Record:
    """Reads and checks one record.

    Raises:
        UserError: the file is missing, is not JSON, or is not a record of this schema.
    """
    hint = "delete the file and evaluate again"
    if not path.exists():
        raise UserError(f"{path}: no such result record; evaluate first")
    try:
        return Record.model_validate(read_json(path, hint))
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}; {hint}") from error


def compared(differs: Mapping[str, bool]) -> dict[str, Any]:
    """What a record says of its numbers beside published ones: `comparable`, and those of `differs` (what differs -> whether) that hold."""
    found = [words for words, holds in differs.items() if holds]
    return {"comparable": not found, "differs": found}


def first_fault(error: ValidationError) -> str:
    """The first failure of a pydantic model in one line: key, what was found, what is wrong."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"]) or "record"
    if fault["type"] == "value_error":  # its own words say what was found
        return f"{where}: {fault['ctx']['error']}" if fault["loc"] else str(fault["ctx"]["error"])
    return f"{where}: found {str(fault['input'])[:80]!r}, {fault['msg']}"
