"""The plots of the paper's Tables 1 to 4: its published numbers beside what was measured here, never in one panel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from paper_tables.expected import described
from paper_tables.forest import frame, tile
from paper_tables.plotting import FAMILY_LOOKS, INK, PALE, Label, Look, looks, panels, place_labels, plain_ticks, row_looks
from paper_tables.published import GENEVAL_TASKS, Published, Row, label
from paper_tables.tables_paper import PAPER_MACHINE, TABLE3, TABLE4, Columns
from paper_tables.view import TASK_NAMES, View, family_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NFES = (1, 2)  # of Table 1
ROOM = 1.6  # of the latency axis, for the labels


def _color(row: Row) -> str:
    """The hue that the suite's row of the same method has; a pale one where the suite has none."""
    method = next(iter(row.get("suite_methods", "").split()), "")
    family = family_name(described(method).get("family", ""))
    return looks({method: family})[method].color if method and family in FAMILY_LOOKS else PALE


def table1(view: View, data: Published) -> Figure | None:
    """GenEval against latency: the paper's rows on its machine, and the rows measured here at the same NFEs on ours."""
    rows = [row for row in data["table1"] if row["latency_s"] and row["geneval"] and int(row["nfe"]) in NFES]
    ours = [
        (key, x, y)
        for key in view.methods
        if key[1] in NFES and (x := view.get(key, "speed/latency_b1_s")) and (y := view.get(key, "geneval/overall"))
    ]
    if not rows or not ours:
        return None
    machines = sorted({one.record.hardware for one in view.found if one.record.evaluator == "speed"})
    titles = [f"published in arXiv 2604.12322, Table 1; {PAPER_MACHINE}", f"measured here; {'; '.join(machines)}"]
    two = "worlds" if view.of_a_world else "machines"
    title = f"GenEval against latency at NFE 1 (filled) and 2 (hollow): two {two}, to be read each by itself"
    figure, (left, right) = panels(titles, 2, title, 6.6, 5.2)
    told = [(label(row), float(row["latency_s"]), float(row["geneval"]), Look(_color(row), "o", row["nfe"] == "2")) for row in rows]
    _cloud(left, told, 6.8)
    look = row_looks(view)
    _cloud(right, [(key[0], x.value, y.value, Look(look[key[0]].color, look[key[0]].marker, key[1] == 2)) for key, x, y in ours], 7.2)
    return figure


def _cloud(axes: Axes, points: list[tuple[str, float, float, Look]], size: float) -> None:
    """The points with a label each; of one name at two NFEs the higher one alone is labelled."""
    axes.set_xscale("log")
    xs, ys = [x for _, x, *_ in points], [y for _, _, y, _ in points]
    room = max(0.06 * (max(ys) - min(ys)) + 0.01, 0.05 - (max(ys) - min(ys)) / 2)
    axes.set(xlim=(min(xs) / 1.15, max(xs) * ROOM), ylim=(min(ys) - room, max(ys) + room), xlabel="latency of one image, s, log scale")
    axes.set_ylabel("GenEval overall", labelpad=1)
    plain_ticks(axes.xaxis, *axes.get_xlim())
    labels: dict[str, Label] = {}
    for name, x, y, look in points:
        edge = {"markeredgecolor": look.color, "markeredgewidth": 1.2} if look.hollow else {"markeredgecolor": "white"}
        axes.plot([x], [y], markersize=6.5, zorder=3, **(look.line | {"linestyle": ""} | edge))
        if name not in labels or y > labels[name].y:
            labels[name] = Label(x, y, name, look.color)
    place_labels(axes, list(labels.values()), [(x, y) for _, x, y, _ in points], size=size)


def table2(view: View, data: Published) -> Figure:
    """GenEval by task as the paper prints it, in its order; ours stand in `tasks`."""
    heads = {name: TASK_NAMES[task] for name, task in GENEVAL_TASKS.items()} | {"overall": "overall"}
    return _printed(data, "table2", "GenEval by task", heads, 1.0)


def table3(view: View, data: Published) -> Figure:
    """DPG-Bench by category, shaded from 50 to 100, with the rows that were measured here."""
    return _printed(data, "table3", "DPG-Bench by category", {name: name for name, *_ in TABLE3}, 100.0, 50.0, _scored(view, TABLE3))


def table4(view: View, data: Published) -> Figure:
    """WISE by category, with the rows that were measured here."""
    return _printed(data, "table4", "WISE by category", {name: name for name, *_ in TABLE4}, 1.0, measured=_scored(view, TABLE4))


def _scored(view: View, columns: Columns) -> dict[str, dict[str, str]]:
    """Rows that have any of these metrics: name -> column -> the number as the table shows it."""
    found = {
        f"{row}, NFE {nfe}": {
            name: f"{number.value:.{digits}f}" for name, _, metric, digits in columns if (number := view.get(key, metric))
        }
        for key in view.keys
        for row, nfe in [key]
    }
    return {name: numbers for name, numbers in found.items() if numbers}


def _printed(
    data: Published,
    table: str,
    title: str,
    heads: dict[str, str],
    most: float,
    least: float = 0.0,
    measured: Mapping[str, Mapping[str, str]] | None = None,
) -> Figure:
    """The numbers of one of the paper's tables in its order, then those `measured` here, dark where they are high.

    `most` and `least` are the ends of the shades.
    """
    rows = data[table]
    names = [label(row) + (f", NFE {row['nfe']}" if row.get("nfe") else "") for row in rows]
    methods = {label(row): _color(row) for row in data["table1"]}
    groups = [("published", [(name, methods.get(label(row), INK)) for name, row in zip(names, rows, strict=True)])]
    what = "as published"
    if measured:
        groups.append(("measured here", [(name, INK) for name in measured]))
        what = "as published and as measured here"
    figure, (axes,), level = frame(groups, [f"Table {table[-1]} of arXiv 2604.12322"], f"{title}, {what}", [6.4], names=2.2)
    axes.grid(visible=False)
    axes.set(xlim=(-0.5, len(heads) - 0.5))
    axes.set_xticks(range(len(heads)), list(heads.values()), rotation=25, ha="right")
    for name, row in [*zip(names, rows, strict=True), *(measured or {}).items()]:
        for place, column in enumerate(heads):
            if row.get(column):
                tile(axes, place, level[name], (float(row[column]) - least) / (most - least), row[column].removeprefix("0"))
    return figure
