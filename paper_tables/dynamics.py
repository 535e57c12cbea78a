"""Training as it was logged: a line of panels per row with its losses, its gradient norms and its discriminator's logits or diagnostics.

Every panel spans the whole budget, so that a run that stopped early is seen to; a cross stands where it did.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from paper_tables.logs import Log
from paper_tables.plotting import INK, PALE, blank, footer, ink, row_looks
from paper_tables.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOT_DRAWN = ("step", "wall_seconds", "forward_equivalents", "learning_rate")
LOGITS = {"d_real": "#009E73", "d_fake": "#D55E00"}
TINTS = ("#0072B2", "#D55E00", "#009E73", "#7A3FA0", "#B8860B", "#CC79A7", "#5B8C2A", "#8A6D3B")
STOP, CLIP = "#c00000", "#6b737c"
MOST_LINES = 5  # of one panel
WIDE = 6  # rows from which two stand abreast
WIDTH, HEIGHT, NAMES, HEAD = 2.15, 1.5, 1.15, 0.62  # inches: a panel, the names beside the last one, the figure's title


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean over `window` neighbours, NaN left out; shorter at the ends, so that the curve starts where the data does."""
    known, window = np.isfinite(values), min(window, len(values))
    total = np.convolve(np.where(known, values, 0.0), np.ones(window), mode="same")
    count = np.convolve(known.astype(float), np.ones(window), mode="same")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)


def _groups(logs: list[Log]) -> list[tuple[str, dict[str, str]]]:
    """(title, {column: what its line is called}) of a row's three panels: losses, gradient norms, discriminator's logits or the rest."""
    columns = [name for name in dict.fromkeys(name for log in logs for name in log.columns) if any(len(log.known(name)) for log in logs)]

    def by_role(name: str) -> dict[str, str]:
        return {c: "student" if c == name else c.split("/", 1)[1] for c in columns if c == name or c.startswith(f"{name}/")}

    losses, norms = by_role("loss"), by_role("grad_norm")
    logits = {name: name.removeprefix("d_") for name in LOGITS if name in columns}
    rest = {name: name for name in columns if name not in (*NOT_DRAWN, *losses, *norms)}
    own = ("logits", logits) if logits else ("diagnostics", dict(list(rest.items())[:MOST_LINES]))
    return [("loss", losses), ("gradient norm", norms), own]


def _tint(column: str, index: int) -> str:
    return LOGITS.get(column, TINTS[index % len(TINTS)])


def _lines(axes: Axes, logs: Mapping[int, Log], names: Mapping[str, str], axis: str, stopped: Mapping[int, str]) -> None:
    """A colour per column, a line per seed; a cross at the last value of a run that stopped."""
    values: list[np.ndarray] = []
    for index, column in enumerate(names):
        for seed, log in logs.items():
            known = np.isfinite(log[column]) if column in log else np.zeros(0, bool)
            if known.any():  # a role that skips steps has empty cells between
                line = smooth(log[column][known], max(3, int(known.sum()) // 25))
                axes.plot(log[axis][known], line, color=_tint(column, index), linewidth=0.9, alpha=0.8)
                values.append(line)
                if seed in stopped:
                    axes.plot(log[axis][known][-1:], line[-1:], marker="X", markersize=6, color=STOP, zorder=4)
    together = np.concatenate(values)
    if together.min() > 0 and together.max() / together.min() > 30:
        axes.set_yscale("log")


def _title(axes: Axes, title: str, names: Mapping[str, str]) -> None:
    """What the panel shows; where its lines are few, their names in their colours, else beside the panel."""
    words = [(title, INK)]
    if len(names) > 1 and title in ("loss", "gradient norm", "logits"):
        words += [(name, ink(_tint(column, index))) for index, (column, name) in enumerate(names.items())]
    before = None
    for text, tint in words:
        where = {"xy": (0, 1), "xycoords": "axes fraction", "xytext": (0, 7)} if before is None else {
            "xy": (1, 0.5), "xycoords": before, "xytext": (4, 0)}  # fmt: skip
        before = axes.annotate(text, textcoords="offset points", fontsize=7.5, color=tint, va="center", annotation_clip=False, **where)
    if len(words) == 1 and len(names) > 1:
        for index, (column, name) in enumerate(names.items()):
            axes.annotate(textwrap.shorten(name, 20, placeholder="…"), (1, 1), xycoords="axes fraction", xytext=(5, -3 - 10 * index),
                          textcoords="offset points", fontsize=7, color=ink(_tint(column, index)), va="center")  # fmt: skip


def training(view: View) -> Figure | None:
    """A block of three panels per row, in the tables' order of rows; two blocks abreast where there are many."""
    logs = view.logs
    rows = [row for row in view.rows if row in logs] + [row for row in logs if row not in view.rows]
    if not rows:
        return None
    axis = "forward_equivalents" if all("forward_equivalents" in log for seeds in logs.values() for log in seeds.values()) else "step"
    label = "teacher forward-equivalents" if axis == "forward_equivalents" else axis
    furthest = max(log.known(axis).max() for seeds in logs.values() for log in seeds.values())
    abreast = 2 if len(rows) > WIDE else 1
    block, lines = 3 * WIDTH + NAMES, -(-len(rows) // abreast)
    size = (abreast * block + 0.1, lines * HEIGHT + HEAD + 0.25)
    figure = blank(size)
    title = f"Training: running means, a line per seed, against {label}"
    figure.suptitle(title, x=0.1 / size[0], y=1 - 0.08 / size[1], ha="left", va="top", fontsize=11)
    words = "dotted: the bound that gradients are clipped to; a red cross: the run diverged there"
    figure.text(0.1 / size[0], 1 - 0.32 / size[1], words, ha="left", va="top", fontsize=8.5, color=PALE)
    look = row_looks(view)
    for index, row in enumerate(rows):
        side, place = divmod(index, lines)  # down the left side, then the right
        top, stopped = size[1] - HEAD - place * HEIGHT, view.stopped(row)
        for column, (title, names) in enumerate(_groups(list(logs[row].values()))):
            if not names:
                continue
            left = side * block + column * WIDTH + 0.48
            box = (left / size[0], (top - HEIGHT + 0.28) / size[1], (WIDTH - 0.55) / size[0], (HEIGHT - 0.76) / size[1])
            axes = figure.add_axes(box)
            axes.tick_params(labelsize=7, length=2, pad=2)
            _lines(axes, logs[row], names, axis, stopped)
            _title(axes, title, names)
            axes.set_xlim(-0.02 * furthest, 1.02 * furthest)
            _thousands(axes, furthest)
            if title == "gradient norm" and (clip := view.setting(row, "train", "max_grad_norm")):
                low, high = axes.get_ylim()
                axes.axhline(clip, color=CLIP, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
                axes.set_ylim((low, high) if not low / 2 <= clip <= 2 * high else (min(low, 0.95 * clip), max(high, 1.05 * clip)))
        _heading(figure, (side * block + 0.08) / size[0], (top - 0.12) / size[1], row, look[row].color if row in look else INK, view)
    if absent := [row for row in view.rows if row not in logs and not view.images_only(row)]:
        footer(figure, absent, "no training log yet")
    return figure


def _thousands(axes: Axes, furthest: float) -> None:
    """Three or four ticks in plain words: 0, 0.5M, 1M."""
    power = 10.0 ** np.floor(np.log10(furthest))
    step = next(step * power for step in (0.1, 0.2, 0.25, 0.5, 1, 2, 2.5, 5) if furthest / (step * power) <= 4.2)
    ticks = np.arange(0, furthest * 1.001, step)
    unit, letter = (1e6, "M") if furthest >= 1e6 else (1e3, "k") if furthest >= 1e4 else (1.0, "")
    axes.set_xticks(ticks, [f"{tick / unit:g}{letter if tick else ''}" for tick in ticks])


def _heading(figure: Figure, x: float, y: float, row: str, tint: str, view: View) -> None:
    """The row's name above its panels, its family, where it diverged and how much in its log is no number."""
    family = f"({view.families[row]})" if row in view.families else ""
    name = figure.text(x, y, row, fontsize=9.5, fontweight="bold", color=ink(tint), va="center")
    place = {"xy": (1, 0.5), "xytext": (4, 0), "textcoords": "offset points", "fontsize": 8, "va": "center", "annotation_clip": False}
    axes = figure.axes[-1]
    beside = axes.annotate(family, xycoords=name, color=PALE, **place)
    bad = sum(sum(log.bad.values()) for log in view.logs[row].values())
    words = [f"{bad} nan or inf logged"] if bad else []
    words += [f"diverged: {text}" for text in dict.fromkeys(view.stopped(row).values())]
    if words:
        axes.annotate(textwrap.shorten("; ".join(words), 96, placeholder=" …"), xycoords=beside, color=STOP, **place)
