"""The one result record that every evaluator writes, and its file: JSON, checked on writing and on reading. No torch.

A record is about one set of images (a row of the tables at one NFE, seed and split) and one evaluator. Who made
the images comes from their `made.json`, or from the command line for folders made elsewhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from apex.errors import UserError
from apex.files import write_atomic

SCHEMA = 1
Interval = Literal["bootstrap 95%", "jackknife 95%", "delta method 95%", "interquartile range"]


class Metric(BaseModel):
    """One number. `n` counts what it is a mean over (images, pairs, repeats); `interval` names what the bounds are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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


class Identity(BaseModel):
    """Who made the images: the part of `made.json` that a record repeats. Unknown keys are left where they are."""

    model_config = ConfigDict(extra="ignore")

    row: str
    method: str
    family: str | None = None
    variant: str | None = None
    tuning: str | None = None
    backbone: str | None = None
    profile: str | None = None
    seed: int | None = None
    nfe: int
    guidance: float | None = None
    prompts: str | None = None
    prompts_sha256: str | None = None
    config_hash: str | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None
    training: dict[str, Any] | None = None


class Record(Identity):
    """An evaluator's result. `git_commit`, `hardware`, `versions`, `wall_seconds` and `peak_memory_mb` are those of the
    evaluation; the images' own stand in `details["made"]`."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    evaluator: str
    evaluator_version: str
    git_commit: str
    hardware: str
    versions: dict[str, str]
    wall_seconds: float
    peak_memory_mb: float
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

    @property
    def failed(self) -> str:
        """Why there is no number; "" where there is one."""
        return "" if self.metrics else str(self.details.get("failed") or "")

    def value(self, metric: str) -> float:
        return next(m.value for m in self.metrics if m.metric == metric)

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(self.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False) + "\n")


def read_record(path: Path) -> Record:
    """Reads and checks one record.

    Raises:
        UserError: the file is missing, is not JSON, or is not a record of this schema.
    """
    hint = "delete the file and evaluate again"
    try:
        return Record.model_validate(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such result record; evaluate first") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a JSON result record ({error}); {hint}") from error
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
    return f"{where}: found {str(fault['input'])[:80]!r}, {fault['msg']}"
