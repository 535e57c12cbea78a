"""Curves: what training logged, what the shift-visibility probe found, how a metric moves with NFE, and GenEval's calibration.

Reads runs/<row>/seed<S>/log.csv and made.json (`apex.train`), calibration/calibration.json (`evaluators.geneval.calibrate`).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from apex.errors import UserError
from paper_tables.plotting import colors, legend, panels, plain_ticks
from paper_tables.stats import Summary
from paper_tables.view import TASK_NAMES, TEACHER, View

NOT_DRAWN = ("step", "wall_seconds", "forward_equivalents", "learning_rate")
MOST_PANELS = 16
WEAK, STRONG = 0.1, 3.0  # of the probe, as `apex.train` judges it
Log = dict[str, np.ndarray]


def read_log(path: Path) -> Log:
    """Column name -> float64 array, NaN where a cell is empty. A missing `step` or a cell that is no number is a `UserError`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if not rows or "step" not in rows[0]:
        raise UserError(f"{path}: column 'step' is missing; expected step, wall_seconds and one column per loss; train the row again")
    columns: dict[str, list[float]] = {name: [] for name in rows[0]}
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(rows[0]):
            raise UserError(f"{path}: line {number} has {len(row)} cells, expected {len(rows[0])}; train the row again")
        for name, cell in zip(rows[0], row, strict=True):
            try:
                columns[name].append(float(cell) if cell else np.nan)
            except ValueError:
                raise UserError(f"{path}: line {number}, column {name!r}: found {cell!r}, expected a number or nothing") from None
    return {name: np.array(values) for name, values in columns.items()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or a `UserError` naming the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); make it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: found {type(found).__name__}, expected a JSON object; make it again")
    return found


def runs(results: Path, file: str) -> Iterator[tuple[str, int, Path]]:
    """(row, seed, path) of every runs/<row>/seed<S>/`file`; folders that begin with a dot are half-finished."""
    for path in sorted((results / "runs").glob(f"*/seed*/{file}")):
        match = re.fullmatch(r"seed(\d+)", path.parent.name)
        if match and not path.parent.parent.name.startswith("."):
            yield path.parent.parent.name, int(match[1]), path


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean over `window` neighbours, NaN left out; shorter at the ends, so that the curve starts where the data does."""
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), np.ones(window), mode="same")
    count = np.convolve(known.astype(float), np.ones(window), mode="same")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)


def training(results: Path) -> Figure | None:
    """Every logged column, a colour per row and a line per seed, against what was spent; columns that rows share come first."""
    logs: dict[str, list[Log]] = {}
    for row, _, path in runs(results, "log.csv"):
        log = read_log(path)
        if len(log["step"]) > 1:
            logs.setdefault(row, []).append(log)
    owners: dict[str, set[str]] = {}
    for row, seeds in logs.items():
        for log in seeds:
            for name in log:
                if name not in NOT_DRAWN and np.isfinite(log[name]).any():
                    owners.setdefault(name, set()).add(row)
    names = sorted(owners, key=lambda name: (name != "loss", -len(owners[name])))[:MOST_PANELS]
    if not names:
        return None
    axis = "forward_equivalents" if all("forward_equivalents" in log for seeds in logs.values() for log in seeds) else "step"
    label = "teacher forward-equivalents" if axis == "forward_equivalents" else axis
    figure, found = panels(names, 4, f"Training: running means of what was logged, a line per seed, against {label}")
    tint = colors(list(logs))
    for axes, name in zip(found, names, strict=True):
        drawn = [(row, log) for row, seeds in logs.items() for log in seeds if name in log and np.isfinite(log[name]).any()]
        for row, log in drawn:
            axes.plot(log[axis], smooth(log[name], max(3, len(log[name]) // 25)), color=tint[row], linewidth=1.1, alpha=0.85)
        values = np.concatenate([log[name][np.isfinite(log[name])] for _, log in drawn])
        if values.min() > 0 and values.max() / values.min() > 30:
            axes.set_yscale("log")
        axes.ticklabel_format(axis="x", scilimits=(-3, 4))
    legend(figure, {row: {"color": tint[row]} for row in logs})
    return figure


def shift_visibility(results: Path) -> Figure | None:
    """The probe before training: how much the shift changes the network's output, over t; one line per row and seed."""
    found: dict[str, list[dict[float, float]]] = {}
    for row, _, path in runs(results, "made.json"):
        probe = read_json(path).get("shift_visibility")
        try:
            values = {float(time): float(value) for time, value in (probe or {}).items()}
        except (AttributeError, TypeError, ValueError):
            raise UserError(
                f"{path}: key 'shift_visibility': found {probe!r:.60}, expected times and numbers; train the row again"
            ) from None
        if values:
            found.setdefault(row, []).append(values)
    if not found:
        return None
    figure = Figure(figsize=(7.0, 4.0))
    axes = figure.add_axes((0.1, 0.21, 0.86, 0.66))
    tint = colors(list(found))
    for row, seeds in found.items():
        for values in seeds:
            axes.plot(*zip(*sorted(values.items()), strict=True), color=tint[row], marker="o", markersize=4, linewidth=1.4, alpha=0.85)
    highest = max(value for seeds in found.values() for values in seeds for value in values.values())
    lowest = min(value for seeds in found.values() for values in seeds for value in values.values())
    bounds = (max(min(0.05, lowest / 1.5), 1e-4), max(6.0, highest * 1.5))
    axes.set_yscale("log")
    axes.set(xlim=(0, 1), ylim=bounds, xlabel="t (1 is noise)", ylabel="change of F, 1 = another caption")
    plain_ticks(axes.yaxis, *bounds)
    for level, words in ((WEAK, "below: too weak, the network hardly sees it"), (1.0, "as another caption"), (STRONG, "above: too strong")):
        axes.axhline(level, color="#6b737c", linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(words, (0.995, level), xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8, color="#6b737c")
    axes.set_title("Shift visibility before training, a line per seed")
    legend(figure, {row: {"color": tint[row], "marker": "o", "markersize": 4} for row in found})
    return figure


# metric, title, split ('' for the main one)
AGAINST_NFE = (
    ("geneval/overall", "GenEval ↑", ""),
    ("geneval/overall", "GenEval, unseen combinations ↑", "unseen"),
    ("clip_score", "CLIP score ↑", ""),
    ("coverage/spread", "spread ↑", ""),
    ("coverage/recall", "recall ↑", ""),
    ("fid", "FID ↓", ""),
)


def against_nfe(view: View) -> Figure | None:
    """Metrics of the distilled rows over NFE, with intervals; the guided 25-step teacher and the real renders as levels."""

    def points(row: str, metric: str, split: str) -> list[tuple[int, Summary]]:
        return [(nfe, found) for name, nfe in view.methods if name == row and (found := view.get((name, nfe), metric, split or None))]

    rows = list(dict.fromkeys(row for row, _ in view.methods))
    chosen = [one for one in AGAINST_NFE if any(points(row, one[0], one[2]) for row in rows)]
    if not chosen:
        return None
    figure, found = panels(
        [title for _, title, _ in chosen], 3, f"Metrics against NFE (number of steps), {view.split} set, 95% intervals", 3.5, 2.4
    )
    tint, ticks = colors(rows), sorted({nfe for _, nfe in view.methods if nfe})
    levels = {"teacher, 25 steps": (TEACHER, "#1b1f24", (0, (5, 3))), "real renders": (("real", 0), "#8a9199", (0, (1, 2)))}
    shown: dict[str, dict[str, Any]] = {}
    for axes, (metric, _, split) in zip(found, chosen, strict=True):
        for name, (key, shade, dash) in levels.items():
            level = view.get(key, metric, split or None)
            if level:
                shown[name] = {"color": shade, "linestyle": dash}
                axes.axhline(level.value, linewidth=1.2, **shown[name])
        for index, row in enumerate(rows):
            line = points(row, metric, split)
            if line:
                places = np.array([nfe for nfe, _ in line]) * 1.03 ** (index - (len(rows) - 1) / 2)  # beside each other, not on top
                axes.plot(places, [one.value for _, one in line], color=tint[row], marker="o", markersize=4, linewidth=1.4)
                for place, (_, one) in zip(places, line, strict=True):
                    if one.low is not None:
                        axes.plot([place, place], [one.low, one.high], color=tint[row], linewidth=1.1, alpha=0.6)
                shown.setdefault(row, {"color": tint[row], "marker": "o", "markersize": 4})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(nfe) for nfe in ticks])
        axes.minorticks_off()
        axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
        if metric.startswith(("geneval/", "coverage/")):
            axes.set_ylim(-0.03, 1.05)
    legend(figure, shown)
    return figure


def calibration(results: Path) -> Figure | None:
    """GenEval as real renders are spoiled more and more: it must fall. Thick: overall; thin: tasks."""
    path = results / "calibration" / "calibration.json"
    if not path.is_file():
        return None
    record = read_json(path)
    try:
        units = record["units"]
        found = {
            fault: [(p["level"], p["overall"], {t: p[t] for t in TASK_NAMES if t in p}) for p in ps]
            for fault, ps in record["curves"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a calibration record ({type(error).__name__}: {error}); make it again") from None
    title = f"GenEval on spoiled real renders, {record.get('n', '?')} prompts a level"
    figure, all_axes = panels(list(found), 4, title, 3.1, 2.9)
    tint = dict(zip(TASK_NAMES, ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5AA6", "#D55E00"), strict=True))
    for axes, (fault, points) in zip(all_axes, found.items(), strict=True):
        levels = [level for level, *_ in points]
        for task, color in tint.items():
            axes.plot(levels, [tasks.get(task, np.nan) for *_, tasks in points], color=color, linewidth=0.9)
        axes.plot(levels, [overall for _, overall, _ in points], color="#1b1f24", linewidth=2.2, marker="o", markersize=3.5)
        axes.set(ylim=(-0.03, 1.03))
        axes.set_xlabel(units.get(fault, ""), fontsize=8.5)
    legend(
        figure, {"overall": {"color": "#1b1f24", "linewidth": 2.2}} | {TASK_NAMES[task]: {"color": color} for task, color in tint.items()}
    )
    return figure
