"""Result records: one JSON file per evaluator, row, NFE and seed, read, checked and held against the path they lie at.

    results/<profile>/records/<row>/nfe<K>/seed<S>/<split>/<evaluator>.json

What a record holds is checked by `evaluators.result.read_record`. Where the path names a row, an NFE or a seed, it must
agree with what the file says. A record that does not fit is one `UserError` naming the file and the key.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from apex.errors import UserError
from apex.files import read_object
from evaluators.result import Made, Record, first_fault, read_record
from paper_tables.shared import shared

SPLITS = ("test", "val", "unseen")
REFERENCE = "records of the committed reference"


@dataclass(frozen=True)
class Found:
    """A record, the file it came from and the prompt set it speaks of ('' where its path names none)."""

    path: Path
    split: str
    record: Record

    @property
    def key(self) -> tuple[str, int]:
        """(row, NFE): a line of the tables."""
        return self.record.row, self.record.nfe


def read(path: Path, root: Path) -> Found:
    """Reads one record; `root` is the `records` folder that its path is relative to."""
    record = read_record(path)
    parts = path.relative_to(root).parts
    named = len(parts) > 2 and not re.fullmatch(r"(nfe|seed)\d+", parts[-2])
    split = parts[-2] if named else ""
    told: dict[str, str | int] = {"row": parts[0]} if len(parts) > 1 else {}
    for part in parts[1:-1]:
        if match := re.fullmatch(r"(nfe|seed)(\d+)", part):
            told[match[1]] = int(match[2])
    for key, value in told.items():
        found = getattr(record, key)
        if found is not None and found != value:
            raise UserError(f"{path}: key {key!r} is {found!r}, but the file lies under {value!r}; move it or evaluate again")
    return Found(path, split, record)


def of_reference(path: Path | None) -> str:
    """The path, where it lies in the committed reference (results/reference/<profile>) and is there; else empty."""
    if path is None or not path.exists():
        return ""
    parts = path.resolve().parts
    return str(path) if ("results", "reference") in itertools.pairwise(parts) else ""


def reference_words(*paths: Path | None) -> str:
    """Says which of the paths hold records of the committed reference; '' where all are of results that were made here."""
    found = ", ".join(filter(None, map(of_reference, paths)))
    return f"{REFERENCE[0].upper()}{REFERENCE[1:]}, not of a run in this folder: {found}." if found else ""


@shared
def load(results: Path) -> list[Found]:
    """All records below `results`/records, ordered by path. No folder, no record, or one number twice is a `UserError`."""
    root = results / "records"
    expected = "<row>/nfe<K>/seed<S>/<split>/<evaluator>.json"
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected {expected} in it (run the evaluators first)")
    # Names that start with a dot are half-written files.
    paths = sorted(path for path in root.rglob("*.json") if not any(part.startswith(".") for part in path.relative_to(root).parts))
    if not paths:
        raise UserError(f"{root}: holds no record; expected {expected} (run the evaluators first)")
    found = [read(path, root) for path in paths]
    seen: dict[tuple, Path] = {}
    for one in found:
        for metric in one.record.metrics:
            key = (*one.key, one.record.seed, one.split, metric.metric)
            if key in seen:
                raise UserError(
                    f"{one.path}: key 'metrics': {metric.metric} of this row, NFE, seed and split also stands in {seen[key]}; keep one"
                )
            seen[key] = one.path
    return found


def read_made(path: Path, row: str = "", seed: int | None = None) -> dict[str, Any]:
    """A run's record of making, checked; where `row` and `seed` are given it must be theirs. What does not fit is one `UserError`."""
    found = read_object(path)
    try:
        made = Made.model_validate(found)
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}; train the row again") from None
    for key, value in (("row", row), ("seed", seed)):
        if value not in ("", None) and getattr(made, key) not in (value, None):
            raise UserError(f"{path}: key {key!r} is {getattr(made, key)!r}, but the file lies under {value!r}; move it or train again")
    return found


def runs(results: Path, file: str) -> Iterator[tuple[str, int, Path]]:
    """(row, seed, path) of every runs/<row>/seed<S>/`file`; folders that begin with a dot are half-finished."""
    for path in sorted((results / "runs").glob(f"*/seed*/{file}")):
        match = re.fullmatch(r"seed(\d+)", path.parent.name)
        if match and not path.parent.parent.name.startswith("."):
            yield path.parent.parent.name, int(match[1]), path
