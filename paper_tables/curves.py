"""Curves: how a metric moves with NFE, what the shift-visibility probe found, GenEval's calibration.

Reads runs/<row>/seed<S>/made.json (`apex.train`) and calibration/calibration.json (`evaluators.geneval.calibrate`); what training
logged is drawn by `paper_tables.dynamics`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apex.errors import UserError
from apex.files import read_object
from paper_tables.plotting import (
    FAINT,
    PALE,
    TEACHER_COLOR,
    Label,
    Look,
    blank,
    footer,
    label_column,
    legend,
    looks,
    panels,
    plain_ticks,
    row_looks,
)
from paper_tables.records import runs
from paper_tables.stats import Summary
from paper_tables.tables_sweep import MANY, SWEPT, sweep_points, swept_rows
from paper_tables.view import TASK_NAMES, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WEAK, STRONG = 0.1, 3.0  # of the probe, as `apex.loop` judges it


def shift_visibility(results: Path, view: View) -> Figure | None:
    """The probe before training: how much the shift changes the network's output, over t; one line per row and seed."""
    found: dict[str, list[dict[float, float]]] = {}
    for row, _, path in runs(results, "made.json"):
        probe = read_object(path).get("shift_visibility")
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
    figure = blank((7.0, 4.0))
    axes = figure.add_axes((0.1, 0.21, 0.86, 0.66))
    look = looks(view.families | {row: view.families.get(row, "") for row in found})
    for place, (row, seeds) in enumerate(found.items()):  # side by side: rows of one shift have equal values
        for values in seeds:
            times, changes = zip(*sorted(values.items()), strict=True)
            aside = 0.008 * (place - (len(found) - 1) / 2)
            axes.plot(np.array(times) + aside, changes, markersize=4, linewidth=1.4, alpha=0.85, **look[row].line)
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
    legend(figure, {row: {"markersize": 4, **look[row].line} for row in found})
    return figure


# metric, title, split ('' for the main one)
AGAINST_NFE = (
    ("geneval/overall", "GenEval ↑", ""),
    ("geneval/overall", "GenEval, unseen ↑", "unseen"),
    ("clip_score", "CLIP score ↑", ""),
    ("coverage/spread", "spread ↑", ""),
    ("coverage/recall", "recall ↑", ""),
    ("fid", "FID ↓", ""),
)


Points = list[tuple[int, Summary]]


def _points(view: View, row: str, metric: str, split: str) -> Points:
    """A row's numbers by NFE."""
    keys = [key for key in view.keys if key[0] == row and key[1]]
    return sorted((nfe, found) for key in keys for nfe in [key[1]] if (found := view.get(key, metric, split or None)))


def _draw_line(axes: Axes, points: Points, look: Look, shift: float = 1.0) -> None:
    """One row over NFE with its intervals; `shift` moves it aside, so that rows stand beside each other."""
    places = np.array([nfe for nfe, _ in points]) * shift
    axes.plot(places, [one.value for _, one in points], markersize=4.5, linewidth=1.3, zorder=3, **look.line)
    for place, (_, one) in zip(places, points, strict=True):
        if one.low is not None:
            axes.plot([place, place], [one.low, one.high], color=look.color, linewidth=1.0, alpha=0.5, zorder=2)


def _nfe_axis(axes: Axes, ticks: list[int], room: float = 1.25) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(nfe) for nfe in ticks])
    axes.minorticks_off()
    axes.set_xlim(ticks[0] / 1.25, ticks[-1] * room)


def against_nfe(view: View) -> Figure | None:
    """Metrics of the distilled rows over the compared NFEs: a column per family, the other families' lines pale behind it.

    The guided teacher of many steps and the real renders are levels.
    """
    levels = {
        f"teacher, {view.teacher[1]} steps": (view.teacher, TEACHER_COLOR, (0, (5, 3))),
        "real renders": (("real", 0), "#8a9199", (0, (1, 2))),
    }
    lines = {
        (row, metric, split): [point for point in _points(view, row, metric, split) if point[0] in view.compared]
        for row in view.rows
        for metric, _, split in AGAINST_NFE
    }
    chosen = [one for one in AGAINST_NFE if any(lines[row, one[0], one[2]] for row in view.rows)]
    drawn = {row for (row, *_), found in lines.items() if found}
    families = list(view.by_family(drawn))
    if not chosen or not families:
        return None
    names = [family if place == 0 else "" for place in range(len(chosen)) for family in families]
    title = f"Metrics against NFE (number of steps), {view.split} set, 95% intervals; pale: the other families"
    figure, found = panels(names, len(families), title, max(2.5, 7.0 / len(families)), 1.6, len(drawn) + len(levels), 0.5)
    look, shown = row_looks(view), {}
    for index, axes in enumerate(found):
        (metric, head, split), family = chosen[index // len(families)], families[index % len(families)]
        if index % len(families) == 0:
            axes.set_ylabel(head)
            axes.yaxis.set_label_coords(-0.4 / (axes.get_position().width * figure.get_figwidth()), 0.5)
        for name, (key, shade, dash) in levels.items():
            if level := view.get(key, metric, split or None):
                shown[name] = {"color": shade, "linestyle": dash}
                axes.axhline(level.value, linewidth=1.1, zorder=1, **shown[name])
        rows = [row for row in view.rows if lines[row, metric, split]]
        mine = [row for row in rows if view.families[row] == family]
        for row in rows:
            points = lines[row, metric, split]
            if row in mine:
                _draw_line(axes, points, look[row], 1.03 ** (mine.index(row) - (len(mine) - 1) / 2))
                shown.setdefault(row, {"markersize": 4.5, **look[row].line})
            else:
                axes.plot(*zip(*((nfe, one.value) for nfe, one in points), strict=True), color=FAINT, linewidth=0.8, zorder=0)
        if not mine:
            axes.annotate("not measured", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", fontsize=8.5, color=PALE)
        _nfe_axis(axes, view.compared)
        if metric.startswith(("geneval/", "coverage/")):
            axes.set_ylim(-0.03, 1.05)
        elif metric == "fid":
            axes.set_yscale("log")
            plain_ticks(axes.yaxis, *axes.get_ylim())
    legend(figure, {row: shown[row] for row in (*view.rows, *levels) if row in shown})
    if absent := [row for row in view.not_run if row not in drawn]:
        footer(figure, absent)
    if failed := [row for row in view.rows if view.failed(row)]:
        footer(figure, failed, "images not finite at some or all NFEs")
    return figure


def nfe_sweep(view: View) -> Figure | None:
    """GenEval and FID of the rows that were sampled at many NFEs, from one step to their largest; the guided teacher's own curve."""
    curves = {(row, metric): sweep_points(view, row, metric) for row in [*swept_rows(view), "teacher"] for *_, metric in SWEPT}
    rows = [row for row in view.rows if any(len(curves.get((row, metric), ())) >= MANY for *_, metric in SWEPT)]
    if not rows:
        return None
    title = f"From one step to many, {view.split} set, one seed, 95% over prompts; a guided step of the teacher runs the network twice"
    figure, found = panels([name for _, name, _ in SWEPT], 3, title, 5.0, 4.4)
    look = row_looks(view)
    for axes, (*_, metric) in zip(found, SWEPT, strict=True):
        labels, ticks = [], set()
        for row in [*rows, "teacher"]:
            if not (points := curves[row, metric]):
                continue
            _draw_line(axes, points, look[row])
            ticks |= {nfe for nfe, _ in points}
            labels.append(Label(points[-1][0], points[-1][1].value, row, look[row].color))
        if not labels:
            axes.annotate("not run", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", fontsize=8.5, color=PALE)
            continue
        _nfe_axis(axes, _thinned(sorted(ticks)), 2.6)
        axes.set_xlabel("NFE (number of steps), log scale")
        if metric == "fid":
            axes.set_yscale("log")
            plain_ticks(axes.yaxis, *axes.get_ylim())
        else:
            axes.set_ylim(-0.03, 1.05)
        label_column(axes, labels, 1.2 * max(ticks))
    if absent := [row for row in swept_rows(view) if row not in rows]:
        footer(figure, absent, "no sweep yet")
    return figure


def _thinned(nfes: list[int]) -> list[int]:
    """Those with room for a tick on a logarithmic axis; the first and the last among them."""
    kept = [nfes[0]]
    for nfe in nfes[1:-1]:
        if nfe >= 1.3 * kept[-1] and nfes[-1] >= 1.3 * nfe:
            kept.append(nfe)
    return [*kept, *nfes[-1:]] if len(nfes) > 1 else kept


def calibration(results: Path) -> Figure | None:
    """GenEval as real renders are spoiled more and more: it must fall. Thick: overall; thin: tasks."""
    path = results / "calibration" / "calibration.json"
    if not path.is_file():
        return None
    record = read_object(path)
    try:
        units = record["units"]
        found = {
            fault: [(p["level"], p["overall"], {t: p[t] for t in TASK_NAMES if t in p}) for p in ps]
            for fault, ps in record["curves"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a calibration record ({type(error).__name__}: {error}); make it again") from None
    title = f"GenEval on spoiled real renders, {record.get('n', '?')} prompts a level"
    figure, all_axes = panels(list(found), 4, title, 3.1, 2.9, 7)
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
