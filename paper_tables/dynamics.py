"""Training as it was logged: a line of panels per row with its losses, its gradient norms and its own diagnostics.

Reads runs/<row>/seed<S>/log.csv (`apex.train`).
"""

from __future__ import annotations

import csv
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apex.errors import UserError
from paper_tables.plotting import INK, PALE, row_looks
from paper_tables.records import runs
from paper_tables.view import View

Log = dict[str, np.ndarray]
NOT_DRAWN = ("step", "wall_seconds", "forward_equivalents", "learning_rate")
LOGITS = {"d_real": "#009E73", "d_fake": "#D55E00"}
TINTS = ("#0072B2", "#D55E00", "#009E73", "#7A3FA0", "#E69F00", "#CC79A7", "#5B8C2A", "#8A6D3B")
MOST_LINES = 5  # of one panel
WIDE = 6  # rows from which two stand abreast


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


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean over `window` neighbours, NaN left out; shorter at the ends, so that the curve starts where the data does."""
    known, window = np.isfinite(values), min(window, len(values))
    total = np.convolve(np.where(known, values, 0.0), np.ones(window), mode="same")
    count = np.convolve(known.astype(float), np.ones(window), mode="same")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)


def read_logs(results: Path) -> dict[str, list[Log]]:
    """Row -> the logs of its seeds; logs of one line are left out."""
    found: dict[str, list[Log]] = {}
    for row, _, path in runs(results, "log.csv"):
        log = read_log(path)
        if len(log["step"]) > 1:
            found.setdefault(row, []).append(log)
    return found


def _groups(logs: list[Log]) -> list[tuple[str, dict[str, str]]]:
    """(title, {column: what its line is called}) of a row's three panels: losses, gradient norms, discriminator's logits or the rest."""
    columns = [
        name
        for name in dict.fromkeys(name for log in logs for name in log)
        if any(np.isfinite(log.get(name, np.array([]))).any() for log in logs)
    ]

    def by_role(name: str) -> dict[str, str]:
        return {c: "student" if c == name else c.split("/", 1)[1] for c in columns if c == name or c.startswith(f"{name}/")}

    losses, norms = by_role("loss"), by_role("grad_norm")
    logits = {name: name.removeprefix("d_") for name in LOGITS if name in columns}
    rest = {name: name for name in columns if name not in (*NOT_DRAWN, *losses, *norms)}
    own = ("logits of the discriminator", logits) if logits else ("diagnostics", dict(list(rest.items())[:MOST_LINES]))
    return [("loss", losses), ("gradient norm", norms), own]


def _panel(axes: Axes, logs: list[Log], title: str, names: dict[str, str], axis: str) -> None:
    """Lines of one panel: a colour per column, a line per seed; named inside the panel where there is more than one column."""
    values: list[np.ndarray] = []
    for index, (column, words) in enumerate(names.items()):
        tint = LOGITS.get(column, TINTS[index % len(TINTS)])
        for log in logs:
            known = np.isfinite(log[column]) if column in log else np.zeros(0, bool)
            if known.any():  # a role that skips steps has empty cells between
                line = smooth(log[column][known], max(3, int(known.sum()) // 25))
                axes.plot(log[axis][known], line, color=tint, linewidth=0.9, alpha=0.8)
                values.append(line)
        if len(names) > 1:
            axes.plot([], [], color=tint, linewidth=1.5, label=words)
    axes.set_title(title, fontsize=8.5)
    axes.tick_params(labelsize=7.5)
    if values:
        together = np.concatenate(values)
        if together.min() > 0 and together.max() / together.min() > 30:
            axes.set_yscale("log")
    if len(names) > 1:
        legend = axes.legend(fontsize=6.5, loc="best", handlelength=1.0, labelspacing=0.15, borderaxespad=0.1, borderpad=0.1, frameon=True)
        legend.get_frame().set(facecolor="white", edgecolor="none", alpha=0.7)
    axes.ticklabel_format(axis="x", scilimits=(-3, 4))
    axes.xaxis.get_offset_text().set_fontsize(7)


def training(results: Path, view: View) -> Figure | None:
    """A block of three panels per row, in the tables' order of rows; two blocks abreast where there are many."""
    logs = read_logs(results)
    rows = [row for row in view.rows if row in logs] + [row for row in logs if row not in view.rows]
    if not rows:
        return None
    axis = "forward_equivalents" if all("forward_equivalents" in log for seeds in logs.values() for log in seeds) else "step"
    label = "teacher forward-equivalents" if axis == "forward_equivalents" else axis
    abreast = 2 if len(rows) > WIDE else 1
    width, height, block = 2.45, 1.62, 3 * 2.45 + 0.25
    lines = -(-len(rows) // abreast)
    size = (abreast * block + 0.15, lines * height + 0.62)
    figure = Figure(figsize=size)
    title = "Training: running means, a line per seed" + (f", against {label}" if abreast > 1 else f";\nagainst {label}")
    figure.suptitle(title, x=0.1 / size[0], y=1 - 0.1 / size[1], ha="left", va="top", fontsize=11)
    look = row_looks(view)
    for index, row in enumerate(rows):
        side, place = divmod(index, lines)  # down the left side, then the right
        bottom = size[1] - 0.55 - (place + 1) * height
        for column, (title, names) in enumerate(_groups(logs[row])):
            left = side * block + column * width + 0.5
            axes = figure.add_axes((left / size[0], (bottom + 0.32) / size[1], (width - 0.55) / size[0], (height - 0.78) / size[1]))
            if names:
                _panel(axes, logs[row], title, names, axis)
            else:
                axes.set_axis_off()
            if column == 0:
                corner = ((left - 0.42) / size[0], (bottom + height - 0.2) / size[1])
                _heading(figure, axes, corner, row, look[row].color if row in look else INK, view)
    return figure


def _heading(figure: Figure, axes: Axes, corner: tuple[float, float], row: str, tint: str, view: View) -> None:
    """The row's name above its panels, and its family and where it diverged."""
    words = f" ({view.families[row]})" if row in view.families else ""
    if stopped := view.stopped(row):
        words += f", diverged: {'; '.join(dict.fromkeys(stopped.values()))}"
    name = figure.text(*corner, row, fontsize=9.5, fontweight="bold", color=tint, va="center")
    axes.annotate(textwrap.shorten(words, 95), (1, 0.5), xycoords=name, xytext=(3, 0), textcoords="offset points", fontsize=8, color=PALE,
                  va="center", annotation_clip=False)  # fmt: skip
