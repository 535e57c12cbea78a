"""Result records: one JSON file per evaluator, row, NFE and seed, read and checked.

    results/<profile>/records/<row>/nfe<K>/seed<S>/<split>/<evaluator>.json

The last parts of the path are optional (a record may lie anywhere below `records/`), but where they are given they must agree
with what the file says. A record that does not fit is one `UserError` naming the file and the key.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apex.errors import UserError

SCHEMA = 1
SPLITS = ("test", "val", "unseen")
TEXT, COUNT, NUMBER, FLAG = "a text", "a whole number", "a finite number", "true or false"

# key: (what it is, may be null or absent)
RECORD_KEYS = {
    "evaluator": (TEXT, False),
    "row": (TEXT, False),
    "method": (TEXT, False),
    "nfe": (COUNT, False),
    "family": (TEXT, True),
    "variant": (TEXT, True),
    "tuning": (TEXT, True),
    "backbone": (TEXT, True),
    "profile": (TEXT, True),
    "seed": (COUNT, True),
    "guidance": (NUMBER, True),
    "git_commit": (TEXT, True),
    "config_hash": (TEXT, True),
    "hardware": (TEXT, True),
    "wall_seconds": (NUMBER, True),
    "peak_memory_mb": (NUMBER, True),
    "parameters": (COUNT, True),
    "trainable_parameters": (COUNT, True),
}
METRIC_KEYS = {
    "metric": (TEXT, False),
    "value": (NUMBER, False),
    "unit": (TEXT, True),
    "n": (COUNT, True),
    "ci_low": (NUMBER, True),
    "ci_high": (NUMBER, True),
    "higher_is_better": (FLAG, True),
}
TRAINING_KEYS = {key: (NUMBER, True) for key in ("flops", "forward_equivalents", "wall_seconds", "steps", "peak_memory_mb")}


@dataclass(frozen=True)
class Metric:
    """One number of a record, with the record it belongs to."""

    name: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    unit: str
    higher_is_better: bool | None
    record: Record


@dataclass(frozen=True)
class Record:
    """One record file. `data` is the JSON object as it stands; the fields are what tables are keyed by."""

    path: Path
    row: str
    nfe: int
    seed: int | None
    split: str
    evaluator: str
    data: dict[str, Any]

    def metrics(self) -> list[Metric]:
        return [
            Metric(
                item["metric"],
                float(item["value"]),
                item.get("ci_low"),
                item.get("ci_high"),
                item.get("n"),
                item.get("unit") or "",
                item.get("higher_is_better"),
                self,
            )
            for item in self.data["metrics"]
        ]


def _fits(value: Any, kind: str) -> bool:
    if kind == TEXT:
        return isinstance(value, str) and bool(value)
    if kind == FLAG:
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return kind == NUMBER or (float(value).is_integer() and value >= 0)


def _check(path: Path, where: str, data: Any, keys: dict[str, tuple[str, bool]]) -> None:
    if not isinstance(data, dict):
        raise UserError(f"{path}: {where or 'the record'} is {type(data).__name__}, expected an object")
    for key, (kind, optional) in keys.items():
        name = f"{where}.{key}" if where else key
        if data.get(key) is None:
            # An empty text in an optional key says the same as null.
            if not optional:
                raise UserError(f"{path}: key {name!r} is missing, expected {kind}; score the images again with this version's evaluator")
        elif not _fits(data[key], kind) and not (optional and data[key] == ""):
            raise UserError(f"{path}: key {name!r} is {data[key]!r}, expected {kind}{' or null' if optional else ''}")


def read(path: Path, root: Path) -> Record:
    """Reads and checks one record; `root` is the `records` folder that its path is relative to."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a JSON file ({error}); delete it and score the images again") from None
    _check(path, "", data, {})
    if data.get("schema") != SCHEMA:
        raise UserError(f"{path}: key 'schema' is {data.get('schema')!r}, expected {SCHEMA}; score the images again with this version's evaluator")
    _check(path, "", data, RECORD_KEYS)
    if data.get("training") is not None:
        _check(path, "training", data["training"], TRAINING_KEYS)
    if not isinstance(data.get("metrics"), list) or not data["metrics"]:
        raise UserError(f"{path}: key 'metrics' is {type(data.get('metrics')).__name__} or empty, expected a list with at least one number")
    for index, item in enumerate(data["metrics"]):
        _check(path, f"metrics[{index}]", item, METRIC_KEYS)
        low, high = item.get("ci_low"), item.get("ci_high")
        if low is not None and high is not None and low > high:
            raise UserError(f"{path}: key 'metrics[{index}].ci_low' is {low}, above ci_high {high} ({item['metric']})")
    seed = None if data.get("seed") is None else int(data["seed"])
    parts = path.relative_to(root).parts
    split = parts[-2] if len(parts) > 1 and parts[-2] in SPLITS else ""
    told = {"row": parts[0] if len(parts) > 1 else None, "nfe": None, "seed": None}
    for part in parts[1:-1]:
        if match := re.fullmatch(r"(nfe|seed)(\d+)", part):
            told[match[1]] = int(match[2])
    for key, value in told.items():
        found = seed if key == "seed" else data[key]
        if value is not None and found is not None and found != value:
            raise UserError(f"{path}: key {key!r} is {found!r}, but the file lies under {value!r}; move it or score the images again")
    return Record(path, data["row"], int(data["nfe"]), seed, split, data["evaluator"], data)


def load(results: Path) -> list[Record]:
    """All records below `results`/records, ordered by path. No folder, no record, or one number twice is a `UserError`."""
    root = results / "records"
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected <row>/nfe<K>/seed<S>/<split>/<evaluator>.json in it (run the evaluators first)")
    # Names that start with a dot are half-written files.
    paths = sorted(path for path in root.rglob("*.json") if not any(part.startswith(".") for part in path.relative_to(root).parts))
    if not paths:
        raise UserError(f"{root}: holds no record; expected <row>/nfe<K>/seed<S>/<split>/<evaluator>.json (run the evaluators first)")
    records, seen = [read(path, root) for path in paths], {}
    for record in records:
        for metric in record.metrics():
            key = (record.row, record.nfe, record.seed, record.split, metric.name)
            if key in seen:
                raise UserError(f"{record.path}: key 'metrics': {metric.name} of this row, NFE, seed and split also stands in {seen[key]}; keep one")
            seen[key] = record.path
    return records
