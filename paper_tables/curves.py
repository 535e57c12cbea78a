"""Training curves: every column of runs/<row>/seed<S>/log.csv against the step, whatever the method logged."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apex.errors import UserError
from paper_tables.plotting import Label, color, place_labels, thin_axes
from paper_tables.view import View

AXES = ("step", "wall_seconds")
Log = dict[str, np.ndarray]


def read_log(path: Path) -> Log:
    """Column name -> float64 array, NaN where a cell is empty. A missing `step` or a cell that is no number is a `UserError`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or "step" not in rows[0]:
        raise UserError(f"{path}: column 'step' is missing; expected step, wall_seconds and one column per loss or diagnostic")
    columns: dict[str, list[float]] = {name: [] for name in rows[0]}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]):
            # The last line of a run that was stopped may be cut.
            if number == len(rows):
                break
            raise UserError(f"{path}: line {number} has {len(row)} cells, expected {len(rows[0])}")
        for name, cell in zip(rows[0], row, strict=True):
            try:
                columns[name].append(float(cell) if cell else np.nan)
            except ValueError:
                raise UserError(f"{path}: line {number}, column {name!r}: found {cell!r}, expected a number or nothing") from None
    return {name: np.array(values) for name, values in columns.items()}


def read_runs(folder: Path) -> dict[str, dict[int, Log]]:
    """row -> seed -> log, for every `<row>/seed<S>/log.csv` with at least two lines."""
    runs: dict[str, dict[int, Log]] = {}
    for path in sorted(folder.glob("*/seed*/log.csv")):
        match = re.fullmatch(r"seed(\d+)", path.parent.name)
        if match and not path.parent.parent.name.startswith("."):
            log = read_log(path)
            if len(log["step"]) > 1:
                runs.setdefault(path.parent.parent.name, {})[int(match[1])] = log
    return runs


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean over `window` neighbours, NaN left out; shorter at the ends, so that the curve starts where the data does."""
    known = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    count = np.convolve(known.astype(float), kernel, mode="same")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)


def _draw(axes: Axes, log: Log, name: str, tint: str, faint: bool = True) -> tuple[float, float] | None:
    """One column; sparse ones (validation) as points. Returns the last point."""
    steps, values = log["step"], log[name]
    known = np.isfinite(values)
    if not known.any():
        return None
    steps, values = steps[known], values[known]
    if len(values) < 0.5 * len(log["step"]) or len(values) < 12:
        axes.plot(steps, values, color=tint, linewidth=1.3, marker="o", markersize=3.5)
        return float(steps[-1]), float(values[-1])
    line = smooth(values, max(3, len(values) // 25))
    if faint:
        axes.plot(steps, values, color=tint, linewidth=0.5, alpha=0.25)
    axes.plot(steps, line, color=tint, linewidth=1.4)
    return float(steps[-1]), float(line[-1])


def _panels(names: list[str], title: str) -> tuple[Figure, list[Axes]]:
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(3.8 * columns, 2.5 * rows + 0.4), layout="constrained", squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, names, strict=False):
        axes.set_title(name, loc="left")
        axes.margins(x=0.02)
        thin_axes(axes)
    for axes in grid[-1]:
        axes.set_xlabel("step")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure, list(grid.flat[: len(names)])


def _scale(axes: Axes, logs: list[Log], name: str) -> None:
    """Logarithmic where a positive quantity runs over more than a factor of thirty."""
    values = np.concatenate([log[name][np.isfinite(log[name])] for log in logs if name in log])
    if len(values) and values.min() > 0 and values.max() / values.min() > 30:
        axes.set_yscale("log")


def figures(folder: Path, view: View) -> dict[str, Figure | None]:
    """`curves`: what two or more rows logged, together; `curves_<row>`: everything one row logged, a line per seed."""
    runs = read_runs(folder)
    if not runs:
        return {"curves": None}
    columns = {row: list(dict.fromkeys(name for log in seeds.values() for name in log if name not in AXES)) for row, seeds in runs.items()}
    shared = [name for name in dict.fromkeys(name for names in columns.values() for name in names) if sum(name in names for names in columns.values()) > 1]
    out: dict[str, Figure | None] = {"curves": None}
    if shared:
        figure, panels = _panels(shared, "Training curves that the methods share (running means; one line per seed)")
        for axes, name in zip(panels, shared, strict=True):
            labels = []
            for row, seeds in runs.items():
                ends = [end for log in seeds.values() if name in log and (end := _draw(axes, log, name, color((row, 1), view), faint=False))]
                labels += [Label(*ends[0], row, color((row, 1), view))] if ends else []
            _scale(axes, [log for seeds in runs.values() for log in seeds.values()], name)
            axes.set_xlim(right=axes.get_xlim()[1] * 1.32)
            place_labels(axes, labels)
        out["curves"] = figure
    for row, seeds in runs.items():
        if not columns[row]:
            continue
        count = f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {next(iter(seeds))}"
        figure, panels = _panels(columns[row], f"Training of {row}: all that was logged ({count}; faint: as logged, strong: running mean)")
        for axes, name in zip(panels, columns[row], strict=True):
            for log in seeds.values():
                if name in log:
                    _draw(axes, log, name, color((row, 1), view))
            _scale(axes, list(seeds.values()), name)
        out[f"curves_{row}"] = figure
    return out
