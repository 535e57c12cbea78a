"""The look of every plot: a hue per family, a shade and a marker per row, thin axes, labels beside points.

No pyplot: it loads slowly. matplotlib itself is imported where something is drawn: --help and figures that are kept need none of it.
"""

from __future__ import annotations

import gc
import io
import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paper_tables import drawn
from paper_tables.view import REFERENCE_NAMES, Key, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

STYLE: dict[str, Any] = {
    "font.size": 9.5, "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.labelsize": 9.5, "axes.edgecolor": "#9aa1a9",
    "axes.linewidth": 0.8, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e9ec", "grid.linewidth": 0.7, "xtick.color": "#48505a", "ytick.color": "#48505a", "legend.frameon": False,
    "figure.facecolor": "white", "savefig.facecolor": "white",
    "text.parse_math": False,  # a dollar in a row's name is a dollar
}  # fmt: skip

# Family -> the rows that keep their place in every figure, and its shades; other rows take the shades that are left.
FAMILY_LOOKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "consistency": (
        ("lcm", "scm", "ctm", "meanflow", "rcgm", "pcm"),
        ("#009E73", "#8DB600", "#004d40", "#5FBF8F", "#2E7D32", "#7A8B2A", "#26A69A", "#A5C882"),
    ),
    "adversarial": (
        ("ladd", "add", "dmd2", "sana-sprint"),
        ("#D55E00", "#F0A030", "#9E2A2B", "#E8788A", "#7F4F24", "#FF7F50", "#B5651D", "#C94F7C"),
    ),
    "self-adversarial": (
        ("apex", "apex-eq25", "twinflow"),
        ("#0072B2", "#56B4E9", "#1B2A80", "#5C7FDB", "#00A3C4", "#3D5A80", "#8FA8E0", "#12699E"),
    ),
    "regression": (
        ("regression", "progressive", "reflow"),
        ("#7A3FA0", "#CC79A7", "#4A148C", "#B07CC6", "#8E4585", "#D291BC", "#5E548E", "#9F6BA0"),
    ),
    "control": (("fm",), ("#8A6D3B", "#BFA16A", "#5C4A2A", "#A08050")),
}
SPARE = ("#5B8C2A", "#A63D57", "#2F7F86", "#B8860B", "#6A5ACD", "#708238", "#AA5500", "#4F6D7A")
REFERENCE_COLOR, TEACHER_COLOR, INK, PALE, FAINT = "#8a9199", "#1b1f24", "#1b1f24", "#5f6770", "#d5d9dd"
MARKS = ("o", "s", "^", "D", "v", "P", "h", "p")


@dataclass(frozen=True)
class Look:
    """How a row is drawn in every figure; a variant of a method as the method, but hollow and dashed."""

    color: str
    marker: str
    hollow: bool = False

    @property
    def line(self) -> dict[str, Any]:
        """Keywords of a line with marks."""
        face = {"markerfacecolor": "white"} if self.hollow else {}
        return {"color": self.color, "marker": self.marker, "linestyle": (0, (4, 2)) if self.hollow else "-", **face}


def looks(families: Mapping[str, str]) -> dict[str, Look]:
    """Row -> its look, from row -> family; the same rows look the same, whatever their order.

    A row that is named after another of its family, `lcm-lora`, is a variant of it.
    """
    found = {name: Look(REFERENCE_COLOR, "X") for name in REFERENCE_NAMES} | {"teacher": Look(TEACHER_COLOR, "*")}
    for family in dict.fromkeys(families.values()):
        known, shades = FAMILY_LOOKS.get(family, ((), SPARE))
        rows = sorted(row for row, its in families.items() if its == family)
        own = [row for row in rows if row in known or not _base(row, [*known, *rows])]
        bases = {row: _base(row, [*known, *own]) for row in rows if row not in own}
        free = [place for place in range(max(len(shades), len(own) + len(known))) if place >= len(known) or known[place] not in own]
        # Places of known rows that are absent come last, so that a new row does not look like one that another figure shows.
        free.sort(key=lambda place: place < len(known))
        for row in own:
            place = known.index(row) if row in known else free.pop(0)
            found[row] = Look(shades[place % len(shades)], MARKS[(place + place // len(shades)) % len(MARKS)])
        for row, base in bases.items():
            of = found.get(base) or Look(shades[known.index(base)], MARKS[known.index(base) % len(MARKS)])
            variants = [other for other, its in bases.items() if its == base]
            at = MARKS.index(of.marker) + 3 * variants.index(row)
            found[row] = Look(of.color, MARKS[at % len(MARKS)], hollow=True)
    return found


def _base(row: str, names: Sequence[str]) -> str:
    """The longest of `names` that `row` continues with a hyphen; '' if none."""
    return max((name for name in names if row.startswith(f"{name}-")), key=len, default="")


READABLE = 4.5  # contrast of text with white that WCAG asks for


def ink(color: str) -> str:
    """The colour for text: the same hue, darkened where it would be too pale to read on white."""
    from matplotlib.colors import to_hex, to_rgb

    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    target = 1.05 / READABLE - 0.05
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    if luminance > target:
        linear = linear * target / luminance
        rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return to_hex(np.floor(rgb * 255) / 255)


def row_looks(view: View) -> dict[str, Look]:
    return looks(view.families)


def short_name(key: Key) -> str:
    """ "apex, 1"; references without their NFE."""
    return key[0] if key[1] == 0 else f"{key[0]}, {key[1]}"


def blank(size: tuple[float, float]) -> Figure:
    """An empty figure, its width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=size)


LEGEND_WIDTH, LEGEND_LINE = 1.5, 0.2  # inches of an entry


def panels(
    titles: Sequence[str], columns: int, title: str, width: float = 3.1, height: float = 2.1, entries: int = 0, between: float = 0.8
) -> tuple[Figure, list[Axes]]:
    """A figure of equal panels with fixed margins (inches), `between` of them for titles and ticks, room for a legend below."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    title, above = wrapped(title, columns * width)
    below = 0.05 + (0.15 + LEGEND_LINE * -(-entries // max(1, int((columns * width + 0.2) / LEGEND_WIDTH))) if entries else 0.0)
    size = (columns * width + 0.2, rows * height + 0.35 + above + below)
    figure = blank(size)
    figure.suptitle(title, x=0.1 / size[0], y=1 - 0.12 / size[1], ha="left", va="top", fontsize=11.5)
    found = []
    for index, name in enumerate(titles):
        row, column = divmod(index, columns)
        left, bottom = column * width + 0.55, below + (rows - 1 - row) * height + 0.56 * between
        axes = figure.add_axes((left / size[0], bottom / size[1], (width - 0.65) / size[0], (height - between) / size[1]))
        axes.set_title(name)
        found.append(axes)
    return figure, found


def wrapped(title: str, width: float, size: float = 11.5) -> tuple[str, float]:
    """A title in lines that fit so many inches, and the inches that its further lines take."""
    lines = textwrap.wrap(title, max(20, int(width * 128 / size)), break_on_hyphens=False)
    return "\n".join(lines), 1.25 * size / 72 * (len(lines) - 1)


def legend(figure: Figure, entries: Mapping[str, dict[str, Any]]) -> None:
    """Below the panels: name -> style of its line."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, **style) for name, style in entries.items()]
    columns = max(1, int(figure.get_size_inches()[0] / LEGEND_WIDTH))
    figure.legend(handles=handles, loc="lower left", ncol=min(len(handles), columns), fontsize=9, handlelength=1.8, columnspacing=1.4)


def footer(figure: Figure, rows: Sequence[str], words: str = "not run yet") -> None:
    """At the foot of the figure, which rows are not in it, as many lines as that takes; the figure grows for them."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(f"{words}: {', '.join(rows)}", int(width * 15.5), break_on_hyphens=False)
    more = 0.16 * len(lines) + 0.1
    for axes in figure.axes:
        left, bottom, wide, high = axes.get_position().bounds
        axes.set_position((left, (bottom * height + more) / (height + more), wide, high * height / (height + more)))
    for text in [*figure.texts, *([figure._suptitle] if figure._suptitle and figure._suptitle not in figure.texts else [])]:
        x, y = text.get_position()
        text.set_position((x, (y * height + more) / (height + more)))
    foot = getattr(figure, "foot", 0.0) + more  # inches, those of earlier calls included
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0, foot / (height + more), 1, 1 - foot / (height + more)))
    figure.foot = foot
    figure.set_size_inches(width, height + more)
    figure.text(0.1 / width, 0.06 / (height + more), "\n".join(lines), ha="left", va="bottom", fontsize=8, color=PALE)


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib in this style. Its many objects would make Python look for garbage again and again, which is a fifth of the time."""
    import matplotlib

    collects = gc.isenabled()
    gc.disable()
    try:
        with matplotlib.rc_context(STYLE):
            yield
    finally:
        if collects:
            gc.enable()


def png(figure: Figure, stamp: str = "") -> bytes:
    """110 dots an inch, no version or date inside, so that equal input gives equal files. A stamp stands in its text (`drawn.KEY`)."""
    import matplotlib
    from matplotlib.text import Text

    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.get_scale() == "log"):
        for text in axis.findobj(Text):
            text.set_parse_math(True)  # powers of ten
    buffer = io.BytesIO()
    with matplotlib.rc_context({"text.parse_math": True}):  # of ticks that are made now
        figure.savefig(
            buffer, format="png", dpi=110, metadata={"Software": None, drawn.KEY: stamp or None}, pil_kwargs={"compress_level": 3}
        )
    return buffer.getvalue()


def plain_ticks(axis: Axis, low: float, high: float) -> None:
    """1, 2, 5, 10, ... in plain digits on a logarithmic axis; more where the axis is short."""
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)):
        ticks = [step * 10.0**power for power in range(-9, 9) for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) > 2:
            break
    axis.set_ticks(ticks, [f"{tick / 1e6:g}M" if tick >= 1e5 else f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


@dataclass
class Label:
    """Text to stand beside a point; `right` puts it at the inside of the right border."""

    x: float
    y: float
    text: str
    color: str
    right: bool = False


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places at least `gap` apart, in falling order as `wanted`, each as near to what it wants as its neighbours let it."""
    blocks: list[tuple[list[int], float]] = []  # members, place of the block's middle
    for index, place in enumerate(wanted):
        members, middle = [index], place
        while blocks and blocks[-1][1] - gap * (len(blocks[-1][0]) - 1) / 2 < middle + gap * (len(members) - 1) / 2 + gap:
            before, _ = blocks.pop()
            members = before + members
            middle = sum(wanted[i] + gap * (n - (len(members) - 1) / 2) for n, i in enumerate(members)) / len(members)
        half = gap * (len(members) - 1) / 2
        blocks.append((members, max(low + half, min(high - half, middle))))
    return [middle + gap * ((len(members) - 1) / 2 - n) for members, middle in blocks for n in range(len(members))]


def label_column(axes: Axes, labels: Sequence[Label], x: float, size: float = 8.0) -> list[tuple[float, float]]:
    """Writes the labels one below the other at `x` (data), in the order of their points; a thin line leads from each to its point.

    Returns:
        Places along the texts (data), which other labels may keep clear of.
    """
    written: list[tuple[float, float]] = []
    scale = axes.figure.dpi / 72.0
    ordered = sorted(labels, key=lambda label: -label.y)
    heights = [axes.transData.transform((label.x, label.y))[1] / scale for label in ordered]
    bottom, top = (axes.transAxes.transform((0, edge))[1] / scale for edge in (0, 1))
    levels = _spread(heights, size * 1.22, bottom + 4, top - 2)
    start = axes.transData.transform((x, labels[0].y))[0] / scale if labels else 0.0
    for label, level in zip(ordered, levels, strict=True):
        ends = [(start + step * size, level) for step in range(int(0.6 * len(label.text)) + 1)]
        written += [tuple(place) for place in axes.transData.inverted().transform(np.array(ends) * scale)]
        axes.annotate(
            label.text, (label.x, label.y), xytext=(x, written[-1][1]), ha="left", va="center", fontsize=size, color=ink(label.color),
            zorder=5, annotation_clip=False, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.3},
            arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.5, "alpha": 0.7, "shrinkA": 0, "shrinkB": 3,
                        "relpos": (0, 0.5)},
        )  # fmt: skip
    return written


# Where a label may stand: right of its point, then around it, farther and farther.
ANGLES = np.deg2rad([0, 25, -25, 50, -50, 75, -75, 180, 155, -155, 130, -130, 105, -105])
RADII = (8.0, 13.0, 19.0, 26.0, 34.0, 44.0, 56.0, 70.0, 86.0, 104.0, 124.0, 146.0, 170.0)
AROUND = np.array([(radius * np.cos(angle), radius * np.sin(angle)) for radius in RADII for angle in ANGLES])
INWARD = np.array([(-4.0, 5.5 + 2 * step * sign) for step in range(60) for sign in (1, -1)])  # of a level at the right border
AWAY = 12.0  # points: a label farther from its point than this has a line to it
SAMPLES = np.linspace(0.15, 1, 8)  # of such a line
ROUNDS = 4


def _shared(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area that each of `boxes` (left, bottom, right, top) shares with each of `others`, (boxes, others)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=2)


def _crossings(start: np.ndarray, ends: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many of `others` (n, 2 ends, 2) each segment from `start` to one of `ends` crosses."""

    def side(origin: np.ndarray, along: np.ndarray, point: np.ndarray) -> np.ndarray:
        return np.sign(along[..., 0] * (point - origin)[..., 1] - along[..., 1] * (point - origin)[..., 0])

    along, first, second = ends[:, None] - start, others[None, :, 0], others[None, :, 1]
    parts_them = side(start, along, first) * side(start, along, second) < 0
    parts_this = side(first, second - first, start) * side(first, second - first, ends[:, None]) < 0
    return (parts_them & parts_this).sum(1)


@dataclass
class _Placed:
    """A label on its way to a place, in points: where it may stand, and what each of these places costs by itself."""

    label: Label
    spot: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    near: np.ndarray  # the end of the label's line at its text
    cost: np.ndarray
    at: int | None = None

    @property
    def leads(self) -> np.ndarray:
        """Whether the label has a line to its point, at each place."""
        return np.zeros(len(self.offsets), bool) if self.label.right else np.hypot(*self.offsets.T) > AWAY

    def choose(self, others: Sequence[_Placed]) -> int:
        """The best place beside the others: apart from their texts above all, its line across neither their texts nor their lines."""
        cost = self.cost.copy()
        if others:
            taken = np.array([one.boxes[one.at] for one in others])
            shared = _shared(self.boxes, taken).sum(1)
            on_way = self.spot + SAMPLES[:, None, None] * (self.near - self.spot)  # (samples, places, 2)
            over = ((on_way[:, :, None] > taken[:, :2]) & (on_way[:, :, None] < taken[:, 2:])).all(3).any(0).sum(1)
            cost += 1e6 * (shared > 0) + 1e3 * shared + 40 * over * self.leads
        if lines := [(one.spot, one.near[one.at]) for one in others if one.leads[one.at]]:
            cost += 60 * _crossings(self.spot, self.near, np.array(lines)) * self.leads
            ends = np.array(lines)
            through = (ends[:, :1] + SAMPLES[:, None] * (ends[:, 1:] - ends[:, :1])).reshape(-1, 2)
            cost += 10 * ((through > self.boxes[:, None, :2]) & (through < self.boxes[:, None, 2:])).all(2).sum(1)
        return int(np.argmin(cost))


def place_labels(
    axes: Axes,
    labels: Sequence[Label],
    points: Sequence[tuple[float, float]] = (),
    lines: Sequence[Sequence[tuple[float, float]]] = (),
    size: float = 8.0,
) -> None:
    """Writes the labels beside their points, inside the axes, so that none overlaps another, and a point only where it must.

    Args:
        labels: in data coordinates; the axes' limits and place must be final.
        points, lines: what labels should not cover beside their own points, in data coordinates.
        size: of the text, in points. A thin line leads to a label that had to go away from its point.
    """
    figure = axes.figure
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.font_manager import FontProperties

    scale, renderer, font = figure.dpi / 72.0, FigureCanvasAgg(figure).get_renderer(), FontProperties(size=size)

    def place(pairs: Sequence[tuple[float, float]]) -> np.ndarray:
        return axes.transData.transform(np.asarray(pairs, float).reshape(-1, 2)) / scale

    spots = place([*((label.x, label.y) for label in labels if not label.right), *points])
    marks = np.hstack([spots - 3.5, spots + 3.5])
    (left, bottom), (right, top) = (axes.transAxes.transform(corner) / scale for corner in ((0, 0), (1, 1)))
    ways = [place(line) for line in lines]
    steps = [np.linspace(a, b, max(2, int(np.hypot(*(b - a)) / 5))) for way in ways for a, b in itertools.pairwise(way)]
    way = np.concatenate(steps) if steps else np.zeros((0, 2))
    found: list[_Placed] = []
    for label in labels:
        spot = place([(label.x, label.y)])[0]
        width, height = (value / scale for value in renderer.get_text_width_height_descent(label.text, font, False)[:2])
        height = max(height, size) + 1.5
        offsets = INWARD if label.right else AROUND
        to_left = (offsets[:, 0] < -1) | label.right
        near = spot + offsets
        low = near - np.column_stack([np.where(to_left, width, 0) + 1.5, np.full(len(near), height / 2)])
        boxes = np.hstack([low, low + np.array([width + 3, height])])
        outside = np.clip(np.hstack([[left, bottom] - boxes[:, :2], boxes[:, 2:] - [right, top]]), 0, None).sum(1)
        covered = np.zeros(len(near)) if label.right else _shared(boxes, marks).sum(1)
        struck = ((way > boxes[:, None, :2]) & (way < boxes[:, None, 2:])).all(2).sum(1)
        cost = 1e4 * (outside > 0) + 60 * outside + 2.0 * covered + 4 * struck + 1.2 * np.hypot(*offsets.T) + 0.02 * np.arange(len(near))
        found.append(_Placed(label, spot, offsets, boxes, near, cost))
    crowd = {id(one): (np.abs(spots - one.spot).sum(1) < 40).sum() for one in found}
    # Levels at the border first, then from the top, those in a crowd before those that are alone; then each again beside all others.
    found.sort(key=lambda one: (not one.label.right, -one.spot[1], -crowd[id(one)]))
    for _ in range(ROUNDS):
        before = [one.at for one in found]
        for one in found:
            one.at = one.choose([other for other in found if other is not one and other.at is not None])
        if [one.at for one in found] == before:
            break
    for one in found:
        right_side = one.label.right or one.offsets[one.at][0] < -1
        axes.annotate(
            one.label.text, (one.label.x, one.label.y), xytext=one.offsets[one.at], textcoords="offset points",
            ha="right" if right_side else "left", va="center", fontsize=size, color=ink(one.label.color), annotation_clip=False, zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.6, "pad": 0.3},
            arrowprops={"arrowstyle": "-", "color": one.label.color, "linewidth": 0.5, "alpha": 0.7, "shrinkA": 0, "shrinkB": 2,
                        "relpos": (1 if right_side else 0, 0.5)} if one.leads[one.at] else None,
        )  # fmt: skip
