"""Training logs: runs/<row>/seed<S>/log.csv as `apex.train` writes it, one line every few steps, a column per loss and diagnostic."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apex.errors import UserError
from paper_tables.records import runs


@dataclass(frozen=True)
class Log:
    """One run's log.

    Attributes:
        columns: float64 arrays by name, NaN where a cell is empty or holds no finite number.
        bad: how many cells of a column hold nan or inf; a role that skips a step leaves its cell empty, which is no fault.
    """

    columns: dict[str, np.ndarray]
    bad: dict[str, int]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return len(self.columns["step"])

    def known(self, name: str) -> np.ndarray:
        """The finite numbers of a column, in order; none where there is no such column."""
        values = self.columns.get(name, np.zeros(0))
        return values[np.isfinite(values)]


def read_log(path: Path) -> Log:
    """A missing `step`, steps that do not rise, or a cell that is no number is a `UserError`."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV log ({error}); train the row again") from None
    if not rows or "step" not in rows[0]:
        raise UserError(f"{path}: column 'step' is missing; expected step, wall_seconds and one column per loss; train the row again")
    if twice := sorted({name for name in rows[0] if rows[0].count(name) > 1}):
        raise UserError(f"{path}: column {twice[0]!r} stands there twice; train the row again")
    columns: dict[str, list[float]] = {name: [] for name in rows[0]}
    bad = dict.fromkeys(rows[0], 0)
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]):
            raise UserError(f"{path}: line {number} has {len(row)} cells, expected {len(rows[0])}; train the row again")
        for name, cell in zip(rows[0], row, strict=True):
            try:
                value = float(cell) if cell else np.nan
            except ValueError:
                raise UserError(f"{path}: line {number}, column {name!r}: found {cell!r}, expected a number or nothing") from None
            bad[name] += bool(cell) and not np.isfinite(value)
            columns[name].append(value if np.isfinite(value) else np.nan)
        last = columns["step"][-2] if number > 2 else -1.0
        if not columns["step"][-1] > last:
            raise UserError(f"{path}: line {number}, column 'step': found {row[rows[0].index('step')]!r}, expected more than {last:g}")
    return Log({name: np.array(values) for name, values in columns.items()}, {name: count for name, count in bad.items() if count})


def read_logs(results: Path) -> dict[str, dict[int, Log]]:
    """Row -> seed -> its log; logs of one line are left out."""
    found: dict[str, dict[int, Log]] = {}
    for row, seed, path in runs(results, "log.csv"):
        log = read_log(path)
        if len(log) > 1:
            found.setdefault(row, {})[seed] = log
    return found
