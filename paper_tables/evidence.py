"""Whether a number is of what the tables are made for, by its own record: the row's settings, budget, prompt file and teacher, and the
revision of its objective. Every table, figure and claim asks `View.remarks`, which asks here. No torch.

A row is compared with the same row of the profile and with nothing else, so that a row added to a profile marks none of the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_core import to_jsonable_python

from apex.config import LOOP_ONLY, Budget, Config, Data, Lora, Train, fingerprint, locate
from apex.data.prompts import load_prompts, prompts_sha256
from apex.errors import UserError
from apex.strict import Strict, parse_yaml
from evaluators.result import Record, first_fault

CORRECTIONS = Path(__file__).with_name("corrections.yaml")
SCHEMA = "workflows/schemas/config.schema.json"
OTHER = "not as the profile says"  # the short form of every difference from the profile
# Keys of a run's settings that name it, or steer its loop alone.
NO_SETTING = frozenset({"row", "variant", "method_files", *(f"train.{key}" for key in LOOP_ONLY)})


# ------------------------------------------------------------------------------------------- corrections


class Correction(Strict):
    """One entry of corrections.yaml."""

    methods: list[str] = Field(min_length=1)
    revision: int = Field(ge=2)
    unless: dict[str, bool | int | float | str] = Field({})
    remark: str = Field(min_length=1)
    says: str = Field(min_length=1)

    @property
    def sentence(self) -> str:
        return f"{self.remark[0].upper()}{self.remark[1:]}: {self.says}."


class Corrections(Strict):
    found: list[Correction]


@cache
def corrections(path: Path = CORRECTIONS) -> tuple[Correction, ...]:
    """The file's entries. What does not fit is one `UserError` that names the file and the key."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
        return tuple(Corrections.model_validate({"found": values}).found)
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}; mend the entry") from None


def correction(method: str, made: Mapping[str, Any]) -> Correction | None:
    """The correction that a run is older than; None where its objective is the present one or the fault had no effect on it."""
    params = {**((made.get("run") or {}).get("params") or {}), **(made.get("params") or {})}
    for one in corrections():
        harmless = any(key in params and params[key] == value for key, value in one.unless.items())
        if method in one.methods and (made.get("revision") or 1) < one.revision and not harmless:
            return one
    return None


# ------------------------------------------------------------------------------------------- settings


def flat(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted keys and their values."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}{key}.")
        else:
            yield path + key, value


@cache
def _defaults() -> dict[str, Any]:
    """The defaults of a run's settings: what a key means in a record that is older than the key."""
    models = {"train": Train, "budget": Budget, "data": Data, "lora": Lora}  # a dump leaves some keys out at their defaults
    fields = ((f"{part}.{name}", field.default) for part, model in models.items() for name, field in model.model_fields.items())
    return {key: to_jsonable_python(default) for key, default in fields if key not in NO_SETTING}


@cache
def method_defaults(method: str) -> dict[str, Any]:
    """The settings of a method that lies in the package, from the schema, which is written from its class; else nothing."""
    path = locate(SCHEMA)
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))["$defs"].get(f"params-{method}", {}).get("properties", {})
    return {key: about["default"] for key, about in found.items() if "default" in about}


def _settings(run: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings as dotted keys; `params`: the method's, resolved."""
    values = dict(flat({key: value for key, value in run.items() if key != "params"}))
    return {key: value for key, value in values.items() if key not in NO_SETTING} | {f"params.{k}": v for k, v in params.items()}


def _same(first: Any, second: Any) -> bool:
    numbers = all(isinstance(one, int | float) for one in (first, second))
    return first == second and (numbers or type(first) is type(second))


def differences(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, what the run had, what `wanted` has) of every setting that differs. `wanted`: a `RunConfig` as JSON.

    A key that the record does not have, because it is younger, stands for its default; one that `wanted` does not have is not compared.
    """
    run = made.get("run") or {}
    if not run:
        return []
    method = wanted.get("method", "")
    defaults = method_defaults(method) if run.get("method", method) == method else {}
    written = {**(run.get("params") or {}), **(made.get("params") or {})}
    said = "params" in run or "params" in made
    had = _settings(run, defaults | written if said else {})
    want = _settings(wanted, (defaults or written) | dict(wanted["params"]) if said else {})
    known, found = _defaults(), []
    for key in dict.fromkeys([*want, *(key for key in had if key in known)]):
        if (key not in had and key not in known) or _part_missing(key, had) or _part_missing(key, want):
            continue
        theirs, ours = (side.get(key, known.get(key)) for side in (had, want))
        if not _same(theirs, ours):
            found.append((key, theirs, ours))
    return found


def _part_missing(key: str, side: Mapping[str, Any]) -> bool:
    """Whether one has no LoRA at all, as its `tuning` says already."""
    return key.startswith("lora.") and side.get("lora", "") is None


def _words(value: Any) -> str:
    if isinstance(value, int | float) and abs(value) >= 1000 and value == int(value):
        return f"{value:,.0f}"
    return "nothing" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _named(key: str) -> str:
    return "budget of" if key == "budget.forward_equivalents" else key.removeprefix("params.").removeprefix("train.")


class Wanted:
    """What a profile asks of each of its rows.

    Every method returns sentences that say what differs; none where nothing does, or where the record does not say.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._runs: dict[str, dict[str, Any] | None] = {}
        self._prompts: dict[str, str | None] = {}
        self._counts: dict[str, int | None] = {}
        self._known: dict[tuple[str, str], str] = {}
        self._external = {one.row for one in config.external}

    def run(self, row: str) -> dict[str, Any] | None:
        """The row's resolved settings; None where the profile has no such row."""
        if row not in self._runs:
            try:
                self._runs[row] = self.config.run_config(row).model_dump(mode="json")
            except UserError:
                self._runs[row] = None
        return self._runs[row]

    @cached_property
    def teacher(self) -> str:
        """The teacher's checksum; "missing" where its files are not on this machine."""
        return fingerprint(self.config.pipeline_path)

    def prompts(self, split: str) -> str | None:
        """The SHA-256 of the profile's prompt file; None where it names none or the file is not here."""
        if split not in self._prompts:
            known = split in (*self.config.prompts.sets, "test", "val", "unseen")
            path = self.config.prompts_path(split) if known else None
            self._prompts[split] = prompts_sha256(path) if path and path.is_file() else None
        return self._prompts[split]

    def count(self, split: str) -> int | None:
        """How many prompts the profile takes of a set; None where its file is not here."""
        if split not in self._counts:
            self._counts[split] = None
            if self.prompts(split):
                rows = load_prompts(self.config.prompts_path(split))
                each = self.config.prompts.per_task
                tasks = len({row.get("tag", "") for row in rows})
                self._counts[split] = len(rows) if each is None else min(len(rows), each * tasks)
        return self._counts[split]

    def _incomplete(self, record: Record, split: str) -> list[str]:
        """Of scores of a prompt set that is not whole: a benchmark's own count, or, of a folder from elsewhere, the profile's."""
        if missing := record.details.get("prompts_missing"):
            return [f"Scored by {record.evaluator} without {missing} of the benchmark's prompts."]
        had, ours = record.details.get("prompts"), self.count(split) if record.row in self._external else None
        return [f"Scored on {had} prompts of the {ours} of the profile's {split} set."] if had and ours and had < ours else []

    def of_making(self, row: str, made: Mapping[str, Any]) -> list[str]:
        """Of a training run."""
        wanted, out = self.run(row), []
        if wanted is None:
            return ["Trained in another profile: this one has no row of that name."] if made.get("run") else []
        if words := self._differences(row, made):
            out.append(f"Trained with {words}.")
        if made.get("teacher") and self.teacher != "missing" and made["teacher"] != self.teacher:
            out.append(f"Made with another teacher (checksum {made['teacher']}, the profile's is {self.teacher}).")
        return out

    def _differences(self, row: str, made: Mapping[str, Any]) -> str:
        """Of a run's settings from the row's, in words. A run has as many records as evaluations, so each answer is kept."""
        asked = row, json.dumps({key: made[key] for key in ("run", "params") if key in made}, default=str)
        if asked not in self._known:
            found = differences(made, self.run(row) or {})
            said = (f"{_named(key)} {_words(theirs)}, the profile has {_words(ours)}" for key, theirs, ours in found)
            self._known[asked] = "; ".join(said)
        return self._known[asked]

    def of_record(self, record: Record, split: str, made: Mapping[str, Any]) -> list[str]:
        """Of images and their scores. `made`: the training run behind them; empty where there is none."""
        out = []
        if record.prompts_sha256 and (ours := self.prompts(split)) and record.prompts_sha256 != ours:
            out.append(
                f"Scored on another prompt file (SHA-256 {record.prompts_sha256[:12]}) than the profile's {split} set ({ours[:12]})."
            )
        out += self._incomplete(record, split)
        if record.row == "teacher" and record.guidance is not None and record.guidance != self.config.guidance:
            out.append(f"Sampled with guidance {record.guidance:g}, the profile has {self.config.guidance:g}.")
        sigmas = (record.details.get("made") or {}).get("sigmas")
        if sigmas and record.training and record.nfe:
            ours = self.config.sampling.sigmas.get(record.nfe) or [1 - k / record.nfe for k in range(record.nfe)]
            if len(sigmas) != len(ours) or any(abs(a - b) > 1e-9 for a, b in zip(sigmas, ours, strict=True)):
                out.append(f"Sampled at the times {_times(sigmas)}, the profile has {_times(ours)}.")
        if record.training and not made.get("run") and (wanted := self.run(record.row)):
            out += _spent(record.training, wanted["budget"]["forward_equivalents"])
        return out


def _times(sigmas: list[float]) -> str:
    return ", ".join(f"{one:.4g}" for one in sigmas)


def _spent(training: Mapping[str, Any], budget: float) -> list[str]:
    """Of a record without its run's settings: a run ends with the step that reaches its budget, or where it diverged."""
    spent, steps = training.get("forward_equivalents"), training.get("steps")
    if spent is None or training.get("stopped"):
        return []
    step = 5 * spent / steps if steps else 0.0  # steps of one run differ in cost
    return [] if budget <= spent <= budget + max(step, 0.01 * budget) else [f"Trained for {spent:,.0f}, the profile has {budget:,.0f}."]
