"""Figures with twenty rows: they hold the tables' numbers, every row has its line, and no text covers another or is cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from paper_tables import build, curves, dynamics, forest, paper_plots, published, scatter
from paper_tables.plotting import FAINT, STYLE, row_looks
from paper_tables.render import Table
from paper_tables.view import TASKS, View


@pytest.fixture(scope="module")
def tables(matrix_view: View) -> dict[str, Table]:
    return {table.name: table for table in build.tables(matrix_view, published.load())}


def level_of(figure: Figure) -> dict[str, float]:
    """Name -> its level, of the first panel's ticks."""
    axes = figure.axes[0]
    return {text.get_text(): place for place, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}


def marks(figure: Figure, panel: int, level: float, hollow: bool | None = None) -> list[float]:
    """x of the single marks on a level, from the top."""
    found = [line for line in figure.axes[panel].lines if len(line.get_xdata()) == 1 and abs(line.get_ydata()[0] - level) < 0.5]
    found = [line for line in found if hollow is None or (line.get_markerfacecolor() == "white") == hollow]
    return [line.get_xdata()[0] for line in sorted(found, key=lambda line: line.get_ydata()[0])]


def said(figure: Figure, panel: int, level: float) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts if getattr(text, "xy", (0, None))[1] == level]


def test_paired_has_the_tables_differences_and_no_row_less(matrix_view: View, tables: dict[str, Table]) -> None:
    figure = forest.paired(matrix_view)
    level = level_of(figure)
    assert set(level) == {row for row in matrix_view.rows if row not in ("apex", "slower")}
    for line in tables["paired"].lines:
        row, nfe = line.cells["row"].text, line.cells["nfe"].text
        if row not in level or nfe not in ("1", "2", "4"):
            continue
        for key, hollow in (("difference", False), ("unseen_difference", True)):
            summary = line.cells[key].summary
            assert marks(figure, ("1", "2", "4").index(nfe), level[row], hollow) == ([summary.value] if summary else [])
    assert said(figure, 0, level["scm-late"]) == ["not run"]


def test_relative_has_the_tables_ratios_a_mark_per_nfe(matrix_view: View, tables: dict[str, Table]) -> None:
    figure = forest.relative(matrix_view)
    level = level_of(figure)
    assert set(level) == set(matrix_view.rows)
    keys = ("overall", "unseen", "spread", "recall", "clip_score", "fid", "latency")
    assert len(figure.axes) == len(keys)
    for panel, key in enumerate(keys):
        for row in matrix_view.rows:
            lines = [line.cells for line in tables["relative"].lines if line.cells["row"].text == row]
            wanted = [line[key].summary.value for line in lines if line[key].summary and line["nfe"].text in ("1", "2", "4")]
            assert marks(figure, panel, level[row]) == pytest.approx(wanted), (row, key)
            assert bool(said(figure, panel, level[row])) == (not wanted)


def test_tasks_has_the_tables_cells(matrix_view: View) -> None:
    figure = forest.tasks(matrix_view)
    level = level_of(figure)
    for panel, nfe in enumerate((1, 2, 4)):
        words = {(round(t.get_position()[0]), t.get_position()[1]): t.get_text() for t in figure.axes[panel].texts if not hasattr(t, "xy")}
        for row in matrix_view.rows:
            wanted = [matrix_view.get((row, nfe), f"geneval/{task}") for task in (*TASKS, "overall")]
            shown = [words.get((place, level[row])) for place in range(7)]
            assert shown == [f"{max(0, one.value):.2f}".removeprefix("0") if one else None for one in wanted]
            assert said(figure, panel, level[row]) == ([] if any(wanted) else ["not run" if row == "scm-late" else "–"])


def test_a_darker_tile_is_a_higher_share_and_its_number_can_be_read() -> None:
    figure = Figure()
    axes = figure.add_subplot()
    shares = np.linspace(0, 1, 21)
    for place, share in enumerate(shares):
        forest.tile(axes, place, 0, share)
    light = [np.array(tile.get_facecolor()[:3]) @ [0.2126, 0.7152, 0.0722] for tile in axes.patches]
    assert light == sorted(light, reverse=True)
    linear = np.array([np.array(tile.get_facecolor()[:3]) for tile in axes.patches])
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    for ground, text in zip(linear, axes.texts, strict=True):
        contrast = 1.05 / (ground + 0.05) if text.get_color() == "white" else (ground + 0.05) / (0.0115 + 0.05)
        assert contrast > 3.8


def test_cost_bars_add_up_to_the_tables_totals(matrix_view: View, tables: dict[str, Table]) -> None:
    figure = forest.cost(matrix_view)
    level = level_of(figure)
    for line in tables["cost"].lines:
        row = line.cells["row"].text
        if row in ("theirs", "slower"):
            assert row not in level
            continue
        widths = []
        for axes in figure.axes:
            bars = [bar for bar in axes.patches if isinstance(bar, Rectangle)]
            widths.append(sum(bar.get_width() for bar in bars if abs(bar.get_y() + bar.get_height() / 2 - level[row]) < 0.1))
        if line.cells["memory_total"].summary:
            wanted = [100, line.cells["memory_total"].summary.value, line.cells["per_thousand"].summary.value]
            assert widths == pytest.approx(wanted)
        else:
            assert widths == [0, 0, 0] and [said(figure, panel, level[row]) for panel in range(3)] == [["not run"]] * 3


def test_the_papers_tables_are_drawn_as_published(matrix_view: View) -> None:
    data = published.load()
    figure = paper_plots.table1(matrix_view, data)
    points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in figure.axes[0].lines if len(line.get_xdata()) == 1}
    assert points == {(float(row["latency_s"]), float(row["geneval"])) for row in data["table1"]}
    ours = {(line.get_xdata()[0], line.get_ydata()[0]) for line in figure.axes[1].lines if len(line.get_xdata()) == 1}
    assert len(ours) >= 30 and max(y for _, y in ours) < 0.95  # no published number among them
    figure = paper_plots.table2(matrix_view, data)
    shown = {text.get_text() for text in figure.axes[0].texts}
    assert {f"{float(row['overall']):.2f}".removeprefix("0") for row in data["table2"] if row["overall"]} <= shown


# ------------------------------------------------------------------------------------------------------------- legible


def crowd(make_results: Callable[..., Path], rows: int) -> View:
    """Rows of nearly one quality and one cost: the worst case for labels."""
    rng = np.random.default_rng(1)
    names = ["apex", *(f"method-{index:02d}" for index in range(1, rows))]
    quality = {(name, nfe): 0.7 + 0.02 * rng.standard_normal() + 0.05 * (nfe > 1) for name in names for nfe in (1, 2, 4)}
    return View.load(make_results(rows=quality | {("real", 0): 0.95, ("teacher", 25): 0.8, ("shuffled", 0): 0.1}, runs=True))


FIGURES: dict[str, Callable[[View], Figure | None]] = {
    "quality_latency": scatter.quality_latency,
    "coverage_quality": scatter.coverage_quality,
    "quality_memory": scatter.quality_memory,
    "paired": forest.paired,
    "relative": forest.relative,
    "tasks": forest.tasks,
    "cost": forest.cost,
    "nfe": curves.against_nfe,
    "nfe_sweep": curves.nfe_sweep,
    "training": dynamics.training,
    "table1": lambda view: paper_plots.table1(view, published.load()),
    "table2": lambda view: paper_plots.table2(view, published.load()),
    "table3": lambda view: paper_plots.table3(view, published.load()),
    "table4": lambda view: paper_plots.table4(view, published.load()),
}


def texts_of(figure: Figure) -> list[tuple[str, tuple[float, float, float, float]]]:
    """(text, left, bottom, right, top) of every text, but for ticks beyond the axes' ends and for slanted ones."""
    FigureCanvasAgg(figure).draw()
    found = [*figure.texts, *([figure._suptitle] if figure._suptitle else [])]
    for legend in figure.legends:
        found += legend.get_texts()
    for axes in figure.axes:
        found += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, sorted(axes.get_ylim()))):
            ticks = [(tick.label1, tick.get_loc()) for tick in [*axis.get_major_ticks()]]
            found += [label for label, place in ticks if low <= place <= high]
    shown = dict.fromkeys(text for text in found if text.get_visible() and text.get_text() and not text.get_rotation() % 90)
    return [(text.get_text(), tuple(Text.get_window_extent(text).extents)) for text in shown]


def check_legible(figure: Figure, slack: float = 1.5) -> None:
    """No text is cut by the figure's edge, and no two share more than a sliver."""
    texts = texts_of(figure)
    width, height = figure.bbox.width, figure.bbox.height
    cut = [
        text
        for text, (left, bottom, right, top) in texts
        if left < -slack or bottom < -slack or right > width + slack or top > height + slack
    ]
    assert not cut
    boxes = np.array([box for _, box in texts]) + np.array([slack, slack, -slack, -slack])
    covered = [
        (texts[a][0], texts[b][0])
        for a in range(len(boxes))
        for b in range(a)
        if (np.minimum(boxes[a, 2:], boxes[b, 2:]) > np.maximum(boxes[a, :2], boxes[b, :2])).all()
    ]
    assert not covered


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_covers_another_or_is_cut_with_twenty_rows(name: str, matrix_view: View) -> None:
    with matplotlib.rc_context(STYLE):
        check_legible(FIGURES[name](matrix_view))


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in ("nfe_sweep", "table1", "table2", "table3", "table4")])
def test_no_text_covers_another_where_all_rows_are_alike(name: str, make_results: Callable[..., Path]) -> None:
    with matplotlib.rc_context(STYLE):
        check_legible(FIGURES[name](crowd(make_results, 17)))


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "paired"])
def test_no_text_covers_another_or_is_cut_with_one_row(name: str, make_results: Callable[..., Path]) -> None:
    rows = {("fm", nfe): 0.3 for nfe in (1, 2, 4, 8, 16)} | {("teacher", 25): 0.8, ("real", 0): 0.95}
    with matplotlib.rc_context(STYLE):
        check_legible(FIGURES[name](View.load(make_results(rows=rows, runs=True))))


DRAWN: dict[str, Callable[[View, str], object]] = {
    "quality_latency": lambda view, row: view.get((row, 1), "speed/latency_b1_s"),
    "coverage_quality": lambda view, row: view.get((row, 1), "coverage/recall"),
    "quality_memory": lambda view, row: view.cost(row, "memory_mb", "total"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_crowd_is_drawn_by_family_each_row_named_in_its_own_and_pale_in_the_others(name: str, matrix_view: View) -> None:
    """A name once in a row of panels, in the panel of its family; elsewhere its points are there without colour."""
    figure, look = FIGURES[name](matrix_view), row_looks(matrix_view)
    rows = [row for row in matrix_view.rows if DRAWN[name](matrix_view, row)]
    families = list(dict.fromkeys(matrix_view.families[row] for row in rows))
    count = len(families)
    assert [axes.get_title() for axes in figure.axes[:count]] == families
    assert len(figure.axes) == count * (1 if name == "quality_latency" else 2)
    for index, axes in enumerate(figure.axes):
        own = {row for row in rows if matrix_view.families[row] == families[index % count]}
        assert {text.get_text() for text in axes.texts} & set(rows) == own
        colors = [line.get_color() for line in axes.lines]
        assert {look[row].color for row in own} <= set(colors)
        assert not {look[row].color for row in rows} - {look[row].color for row in own} & set(colors)
        assert colors.count(FAINT) == len(rows) - len(own)


def test_a_row_looks_the_same_in_every_figure(matrix_view: View) -> None:
    """Its hue in the scatter plot is the hue of its name in the forest plots."""
    look = row_looks(matrix_view)
    drawn = {line.get_color() for axes in scatter.quality_latency(matrix_view).axes for line in axes.lines}
    for row in ("apex", "dmd2", "scm-fd", "regression"):
        assert look[row].color in drawn
    figure = forest.relative(matrix_view)
    for level, row in ((place, name) for name, place in level_of(figure).items()):
        colors = {
            line.get_color() for line in figure.axes[0].lines if len(line.get_xdata()) == 1 and abs(line.get_ydata()[0] - level) < 0.5
        }
        assert colors <= {look[row].color}
