"""The look of every plot: colours that colour-blind readers tell apart, thin axes, labels beside the points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from paper_tables.view import REFERENCE_NAMES, Key, View

STYLE: dict[str, Any] = {
    "font.size": 9.5, "axes.titlesize": 10.5, "axes.labelsize": 9.5, "axes.edgecolor": "#9aa1a9", "axes.linewidth": 0.8,
    "xtick.color": "#48505a", "ytick.color": "#48505a", "axes.grid": True, "grid.color": "#e6e9ec", "grid.linewidth": 0.7,
    "axes.axisbelow": True, "figure.facecolor": "white", "savefig.facecolor": "white", "pdf.fonttype": 42,
}  # fmt: skip

# Okabe and Ito's palette without its yellow; the methods of this suite that are always there keep their colours.
FIXED = {"apex": "#0072B2", "apex-eq25": "#D55E00", "fm": "#8a6d3b", "teacher": "#1b1f24"}
REFERENCE_COLOR = "#8a9199"
OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5AA6", "#5B8C2A", "#A63D57", "#2F7F86")
MARKERS = {1: "o", 2: "s", 4: "D"}


@dataclass
class Label:
    """Text to stand beside a point; `right` puts it at the inside of the right border."""

    x: float
    y: float
    text: str
    color: str
    right: bool = False


def color(key: Key, view: View) -> str:
    """The row's colour, the same in every figure of a results folder."""
    if key[0] in REFERENCE_NAMES:
        return REFERENCE_COLOR
    if key[0] in FIXED:
        return FIXED[key[0]]
    free = sorted({row for row, _ in view.methods if row not in FIXED})
    return OTHERS[free.index(key[0]) % len(OTHERS)] if key[0] in free else REFERENCE_COLOR


def marker(key: Key) -> str:
    """The marker says the number of steps."""
    return "X" if key[0] in REFERENCE_NAMES else MARKERS.get(key[1], "^")


def short_name(key: Key) -> str:
    """"apex, 1"; references without their NFE."""
    return key[0] if key[1] == 0 else f"{key[0]}, {key[1]}"


def thin_axes(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def place_labels(axes: Axes, labels: list[Label], gap: float = 12.0) -> None:
    """Writes the labels right of their points, moved up or down so that none overlaps another; a thin line leads to a moved one.

    Args:
        labels: in data coordinates; the axes' limits must be final.
        gap: least distance of two baselines, in points of the display.
    """
    figure = axes.figure
    figure.canvas.draw()
    scale = figure.dpi / 72.0
    boxes: list[tuple[float, float, float]] = []  # left, right, height of the labels already placed, in points
    items = sorted(((*(axes.transData.transform((label.x, label.y)) / scale), label) for label in labels), key=lambda item: -item[1])
    bottom, top = (value / scale for value in axes.transAxes.transform([(0, 0), (0, 1)])[:, 1])
    for x, y, label in items:
        width = 5.4 * len(label.text)
        left, right = (x - width - 4, x - 4) if label.right else (x + 7, x + 7 + width)

        def free(height: float, left: float = left, right: float = right) -> bool:
            return all(abs(height - other) >= gap or right < start or left > end for start, end, other in boxes)

        steps = [sign * step * 2.0 for step in range(80) for sign in (-1, 1)]
        level = next((y + step for step in steps if bottom + 5 <= y + step <= top - 3 and free(y + step)), y)
        boxes.append((left, right, level))
        moved = abs(level - y) > 7 and not label.right
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=((-4 if label.right else 7), level - y + (4.5 if label.right else 0)),
            textcoords="offset points",
            ha="right" if label.right else "left",
            va="center",
            fontsize=8.5,
            color=label.color,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 0, "shrinkB": 3} if moved else None,
        )
