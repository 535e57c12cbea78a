"""The look of every plot: colours that colour-blind readers tell apart, thin axes, labels beside the points. No pyplot: it loads slowly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_tables.view import REFERENCE_NAMES, Key

STYLE: dict[str, Any] = {
    "font.size": 9.5, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.labelsize": 9.5, "axes.edgecolor": "#9aa1a9",
    "axes.linewidth": 0.8, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e9ec", "grid.linewidth": 0.7, "xtick.color": "#48505a", "ytick.color": "#48505a", "legend.frameon": False,
    "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip

# Okabe and Ito's palette without its yellow; the rows of this suite that are always there keep their colours.
FIXED = {"apex": "#0072B2", "apex-eq25": "#D55E00", "fm": "#8a6d3b", "teacher": "#1b1f24"}
REFERENCE_COLOR = "#8a9199"
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5AA6", "#5B8C2A", "#A63D57", "#2F7F86")
MARKERS = {1: "o", 2: "s", 4: "D"}


def colors(rows: Sequence[str]) -> dict[str, str]:
    """Row -> colour; the same rows get the same colours, whatever their order."""
    free = sorted({row for row in rows if row not in FIXED and row not in REFERENCE_NAMES})
    found = {row: FIXED.get(row, REFERENCE_COLOR) for row in rows}
    return found | {row: OTHERS[index % len(OTHERS)] for index, row in enumerate(free)}


def marker(key: Key) -> str:
    """The marker says the number of steps."""
    return "X" if key[0] in REFERENCE_NAMES else MARKERS.get(key[1], "^")


def short_name(key: Key) -> str:
    """ "apex, 1"; references without their NFE."""
    return key[0] if key[1] == 0 else f"{key[0]}, {key[1]}"


def panels(titles: Sequence[str], columns: int, title: str, width: float = 3.1, height: float = 2.1) -> tuple[Figure, list[Axes]]:
    """A figure of equal panels with fixed margins (inches), room for one legend line below."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    size = (columns * width + 0.2, rows * height + 0.75)
    figure = Figure(figsize=size)
    figure.suptitle(title, x=0.1 / size[0], y=1 - 0.12 / size[1], ha="left", va="top", fontsize=11.5)
    found = []
    for index, name in enumerate(titles):
        row, column = divmod(index, columns)
        left, bottom = column * width + 0.55, 0.4 + (rows - 1 - row) * height + 0.45
        axes = figure.add_axes((left / size[0], bottom / size[1], (width - 0.65) / size[0], (height - 0.8) / size[1]))
        axes.set_title(name)
        found.append(axes)
    return figure, found


def legend(figure: Figure, entries: dict[str, dict[str, Any]]) -> None:
    """Below the panels: name -> style of its line."""
    handles = [Line2D([], [], label=name, **style) for name, style in entries.items()]
    columns = max(1, int(figure.get_size_inches()[0] / 1.5))
    figure.legend(handles=handles, loc="lower left", ncol=min(len(handles), columns), fontsize=9, handlelength=1.8, columnspacing=1.4)


def plain_ticks(axis: Axis, low: float, high: float) -> None:
    """1, 2, 5, 10, ... in plain digits on a logarithmic axis."""
    ticks = [step * 10.0**power for power in range(-9, 9) for step in (1, 2, 5) if low <= step * 10.0**power <= high]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


@dataclass
class Label:
    """Text to stand beside a point; `right` puts it at the inside of the right border."""

    x: float
    y: float
    text: str
    color: str
    right: bool = False


def place_labels(axes: Axes, labels: list[Label], gap: float = 11.0) -> None:
    """Writes the labels right of their points, moved up or down so that none overlaps another; a thin line leads to a moved one.

    Args:
        labels: in data coordinates; the axes' limits and place must be final.
        gap: least distance of two baselines, in points.
    """
    scale = axes.figure.dpi / 72.0
    boxes: list[tuple[float, float, float]] = []  # left, right, height of the labels already placed, in points
    items = sorted(((*(axes.transData.transform((label.x, label.y)) / scale), label) for label in labels), key=lambda item: -item[1])
    bottom, top = (value / scale for value in axes.transAxes.transform([(0, 0), (0, 1)])[:, 1])
    for x, y, label in items:
        width = 4.9 * len(label.text)
        left, right = (x - width - 4, x - 4) if label.right else (x + 7, x + 7 + width)

        def free(height: float, left: float = left, right: float = right) -> bool:
            return all(abs(height - other) >= gap or right < start or left > end for start, end, other in boxes)

        steps = [sign * step * 2.0 for step in range(80) for sign in (-1, 1)]
        start = y + (5.5 if label.right else 0)
        level = next((start + step for step in steps if bottom + 4 <= start + step <= top + 8 and free(start + step)), start)
        boxes.append((left, right, level))
        moved = abs(level - y) > 7 and not label.right
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(-4 if label.right else 7, level - y),
            textcoords="offset points",
            ha="right" if label.right else "left",
            va="center",
            fontsize=8.5,
            color=label.color,
            annotation_clip=False,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
            arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 0, "shrinkB": 3}
            if moved
            else None,
        )
