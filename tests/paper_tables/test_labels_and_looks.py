"""Labels that keep apart, colours that can be told apart and read."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from paper_tables import plotting
from paper_tables.plotting import Label, label_column, looks, place_labels


def boxes_of(figure: Figure) -> list[Bbox]:
    """Where the texts stand, at the figure's own resolution: a saved file has another one. Without the lines that lead to moved ones."""
    FigureCanvasAgg(figure).draw()
    return [Text.get_window_extent(text) for axes in figure.axes for text in axes.texts]


def overlap(boxes: list[Bbox]) -> bool:
    return any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])


@pytest.mark.parametrize("count", [1, 6, 18])
def test_labels_of_one_place_do_not_overlap(count: int) -> None:
    for write in (place_labels, lambda axes, labels: label_column(axes, labels, 0.6)):
        figure, (axes,) = plotting.panels(["one"], 1, "title", 8, 5)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        write(axes, [Label(0.5, 0.5, f"label {index}", "black") for index in range(count)])
        boxes = boxes_of(figure)
        assert len(boxes) == count and not overlap(boxes)


@pytest.mark.parametrize("middle", [(0.5, 0.5), (0.75, 0.75), (0.95, 0.97), (0.03, 0.5)])
def test_labels_of_a_cloud_do_not_overlap_and_stay_inside(middle: tuple[float, float]) -> None:
    figure, (axes,) = plotting.panels(["one"], 1, "title", 5, 4.3)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    places = np.clip(middle + 0.06 * np.random.default_rng(0).standard_normal((18, 2)), 0, 1)
    place_labels(axes, [Label(x, y, f"a row {index}", "black") for index, (x, y) in enumerate(places)], size=7.5)
    boxes, frame = boxes_of(figure), axes.get_window_extent()
    assert not overlap(boxes)
    assert all(frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1) for box in boxes)


def cross(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two segments, (2 ends, 2), cross."""

    def turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        return float(np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])))

    return turn(*one, other[0]) * turn(*one, other[1]) < 0 and turn(*other, one[0]) * turn(*other, one[1]) < 0


@pytest.mark.parametrize("seed", range(3))
def test_lines_from_labels_to_their_points_do_not_cross(seed: int) -> None:
    figure, (axes,) = plotting.panels(["one"], 1, "title", 5, 4.3)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    places = 0.5 + 0.05 * np.random.default_rng(seed).standard_normal((12, 2))
    place_labels(axes, [Label(x, y, f"row {index}", "black") for index, (x, y) in enumerate(places)], size=7.5)
    boxes_of(figure)
    lines = [text.arrow_patch.get_path().vertices[[0, -1]] for text in axes.texts if text.arrow_patch]
    assert len(lines) >= 4
    assert not any(cross(one, other) for index, one in enumerate(lines) for other in lines[:index])


def test_a_label_stands_off_a_line_that_runs_where_it_would() -> None:
    """Alone, a label stands right of its point; with a line drawn there, above or below it."""
    for lines, struck in (((), True), ([[(0.5, 0.5), (0.9, 0.5)]], False)):
        figure, (axes,) = plotting.panels(["one"], 1, "title", 5, 4.3)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        place_labels(axes, [Label(0.5, 0.5, "a row", "black")], lines=lines)
        (box,) = boxes_of(figure)
        way = axes.transData.transform([(0.5, 0.5), (0.9, 0.5)])
        assert (box.x1 > way[0, 0] and box.y0 < way[0, 1] < box.y1) == struck


@pytest.mark.parametrize(
    ("wanted", "found"),
    [([50, 30], [50, 30]), ([50, 50], [55, 45]), ([50, 49, 48, 20], [59, 49, 39, 20]), ([99, 98], [100, 90]), ([2, 1], [10, 0])],
)
def test_spread_moves_only_what_is_too_near(wanted: list[float], found: list[float]) -> None:
    assert plotting._spread(wanted, 10, 0, 100) == pytest.approx(found)


def test_a_remark_below_moves_nothing_inside_the_figure() -> None:
    """The figure grows by the remark; panels, title and legend keep their size and their distance from the top."""
    figure, (axes, _) = plotting.panels(["one", "two"], 2, "title", 4, 3, entries=2)
    plotting.legend(figure, {"a": {}, "b": {}})
    FigureCanvasAgg(figure).draw()

    def from_top() -> list[float]:
        parts = [axes.get_window_extent(), figure._suptitle.get_window_extent(), figure.legends[0].get_window_extent()]
        return [edge for box in parts for edge in (box.x0, box.x1, figure.bbox.height - box.y0, figure.bbox.height - box.y1)]

    before, height = from_top(), figure.bbox.height
    plotting.footer(figure, [f"row-{index}" for index in range(40)])
    FigureCanvasAgg(figure).draw()
    assert figure.bbox.height > height + 20
    assert from_top() == pytest.approx(before, abs=1.0)
    below = figure.texts[-1].get_window_extent()
    assert below.y0 >= 0 and below.x1 <= figure.bbox.width and below.y1 <= figure.legends[0].get_window_extent().y0 + 1


# ---------------------------------------------------------------------------------------------------------------- looks

FAMILIES = {
    "consistency": ("lcm", "scm", "ctm", "meanflow", "rcgm", "pcm"),
    "adversarial": ("ladd", "add", "dmd2", "sana-sprint"),
    "self-adversarial": ("apex", "apex-eq25", "twinflow"),
    "regression": ("regression", "progressive", "reflow"),
    "control": ("fm",),
    "made up": ("mine", "yours"),
}


def test_looks_do_not_depend_on_order_or_company_and_differ() -> None:
    rows = {row: family for family, names in FAMILIES.items() for row in names}
    found = looks(rows)
    assert found == looks(dict(reversed(rows.items())))
    assert len({(look.color, look.marker) for look in found.values()}) >= len(rows) + 2
    assert len({found[row].color for row in rows}) == len(rows)
    for row in ("apex", "dmd2", "fm"):  # the suite's rows look alike in every results folder
        assert looks({row: rows[row]})[row] == found[row]
    assert looks({"mine": "consistency"})["mine"] not in [found[row] for row in FAMILIES["consistency"]]


def test_a_variant_has_its_methods_hue_and_is_hollow() -> None:
    variants = {
        "lcm-lora": "lcm", "lcm-slow": "lcm", "scm-fd": "scm", "pcm-4": "pcm", "apex-lora": "apex", "apex-eq25-lora": "apex-eq25",
        "sana-sprint-lora": "sana-sprint", "mine-2": "mine",
    }  # fmt: skip
    family = {row: name for name, rows in FAMILIES.items() for row in rows}
    found = looks(family | {row: family[base] for row, base in variants.items()})
    for row, base in variants.items():
        assert (found[row].color, found[row].hollow) == (found[base].color, True)
    assert not any(found[row].hollow for row in family)
    assert len({found[row] for row in (*family, *variants)}) == len(family) + len(variants)
    assert looks({"lcm-lora": "consistency"})["lcm-lora"] == found["lcm-lora"]  # also without its method


@pytest.mark.parametrize("name", sorted({shade for _, shades in plotting.FAMILY_LOOKS.values() for shade in shades} | {*plotting.SPARE}))
def test_text_can_be_read_on_white_and_keeps_its_hue(name: str) -> None:
    def linear(color: str) -> np.ndarray:
        rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)

    before, after = linear(name), linear(plotting.ink(name))
    assert 1.05 / (after @ [0.2126, 0.7152, 0.0722] + 0.05) >= 4.5
    if 1.05 / (before @ [0.2126, 0.7152, 0.0722] + 0.05) >= 4.5:
        assert plotting.ink(name) == name.lower()
    else:
        assert after / after.max() == pytest.approx(before / before.max(), abs=0.02)


@pytest.mark.parametrize(("low", "high"), [(0.004, 0.3), (11, 47), (0.9, 1.3), (1, 1e4)])
def test_a_logarithmic_axis_has_ticks_in_plain_digits(low: float, high: float) -> None:
    figure, (axes,) = plotting.panels(["one"], 1, "title")
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    plotting.plain_ticks(axes.xaxis, low, high)
    FigureCanvasAgg(figure).draw()
    ticks, words = axes.get_xticks(), [text.get_text() for text in axes.get_xticklabels()]
    assert len(ticks) >= 3 and all(low <= tick <= high for tick in ticks)
    assert [float(text) for text in words] == pytest.approx(list(ticks))
