"""Quality against what it costs and what it hides: latency, memory, training budget, coverage. One point per row, direct labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paper_tables import records
from paper_tables.plotting import FAINT, PALE, Label, Look, footer, label_column, panels, place_labels, plain_ticks, row_looks, short_name
from paper_tables.stats import Summary
from paper_tables.tables_cost import CONTROL_ROW
from paper_tables.tuning import read as read_tuning
from paper_tables.view import REFERENCE_NAMES, Key, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 16  # points that can each have a label of their own
QUALITY = "geneval/overall"


def _bar(axes: Axes, x: Summary, y: Summary, tint: str) -> None:
    """The intervals of a point, both ways."""
    for along, across, vertical in ((x, y, False), (y, x, True)):
        if along.low is not None:
            ends = ([across.value] * 2, [along.low, along.high]) if vertical else ([along.low, along.high], [across.value] * 2)
            axes.plot(*ends, color=tint, linewidth=1.0, alpha=0.45, zorder=2)


def _point(axes: Axes, x: float, y: float, look: Look, size: float = 7) -> None:
    size *= 1.5 if look.marker == "*" else 1
    edge = {"markeredgecolor": look.color, "markeredgewidth": 1.2} if look.hollow else {"markeredgecolor": "white", "markeredgewidth": 0.7}
    axes.plot([x], [y], markersize=size, zorder=3, **(look.line | {"linestyle": ""} | edge))


def _absent(figure: Figure, view: View, drawn: Iterable[str], words: str = "not run yet") -> None:
    """Says which trained rows the figure does not show."""
    drawn = set(drawn)
    rows = [row for row in view.rows if row not in drawn and not view.images_only(row)]
    failed = [row for row in rows if view.failed(row)]
    if rest := [row for row in rows if row not in failed]:
        footer(figure, rest, words)
    if failed:
        footer(figure, failed, "images not finite")


def _height(groups: Mapping[str, Sequence[str]], least: float, line: float, more: int = 0) -> float:
    """Inches of a panel in which the names of the largest group, and `more`, have room below each other."""
    return max(least, 0.9 + line * (max(map(len, groups.values())) + more))


def _measures(
    view: View, drawn: Sequence[str], measures: int, title: str, size: tuple[float, float], more: int = 0
) -> tuple[Figure, bool, list[tuple[Axes, int, list[str]]]]:
    """Panels of a few measures of each row: a panel a measure, of this size; where there are many rows, a line of panels a measure, a
    column a family. `more`: names in every panel beside its rows'.

    Returns:
        The figure, whether there are many rows, and for each panel its axes, its measure and the rows that have colour and name there.
    """
    crowded = len(drawn) > FEW
    groups = view.by_family(drawn) if crowded else {"": list(drawn)}
    title += "; pale: the other families" if len(groups) > 1 else ""
    if crowded:
        heads = [family if measure == 0 else "" for measure in range(measures) for family in groups]
        figure, found = panels(heads, len(groups), title, max(3.0, 8.0 / len(groups)), _height(groups, 2.9, 0.13, more))
    else:
        figure, found = panels([""] * measures, 2, title, *size)
    places = [(measure, rows) for measure in range(measures) for rows in groups.values()]
    return figure, crowded, [(axes, *place) for axes, place in zip(found, places, strict=True)]


def _pale(axes: Axes, x: float, y: float) -> None:
    """A point of another family."""
    axes.plot([x], [y], marker=".", markersize=6, color=FAINT, zorder=0)


def quality_latency(view: View) -> Figure | None:
    """GenEval overall against end-to-end latency at batch 1; the references, which have no latency, as levels.

    Where there are many points, a panel per family: the teacher in each, the other families pale behind.
    """
    lines: dict[str, list[tuple[int, Summary, Summary]]] = {}
    for key in sorted(view.keys, key=lambda key: key[1]):
        if key[0] == "teacher" or key[1] in view.compared:
            x, y = view.get(key, "speed/latency_b1_s"), view.get(key, QUALITY)
            if x and y:
                lines.setdefault(key[0], []).append((key[1], x, y))
    if not lines:
        return None
    places = {row: [(x.value, y.value) for _, x, y in found] for row, found in lines.items()}
    xs = [bound for found in lines.values() for _, x, _ in found for bound in (x.low, x.value, x.high) if bound]
    limits = min(xs) / 1.1, max(xs) * max(max(xs) / min(xs), 4) ** 0.18  # room for the labels on the right
    crowded = sum(map(len, lines.values())) > FEW
    groups = (view.by_family(lines) if crowded else {}) or {"": list(lines)}
    machines = "; ".join(sorted({one.record.hardware for one in view.found if one.record.evaluator == "speed"}))
    nfes = ("a line joins " if len(view.compared) > 1 else "") + "NFE " + ", ".join(map(str, view.compared))
    title = f"Quality against latency of one image (batch 1; {machines}), {view.split} set; {nfes}"
    title += ". Bars: 95% of quality, quartiles of latency" + ("; pale: the other families" if len(groups) > 1 else "")
    figure, found = panels(list(groups), 3, title, *((4.1, _height(groups, 3.4, 0.14)) if crowded else (10.4, 6.0)))
    look = row_looks(view)
    for axes, rows in zip(found, groups.values(), strict=True):
        axes.set_xscale("log")
        axes.set(xlim=limits, ylim=(-0.03, 1.05), xlabel="latency, s, log scale")
        axes.set_ylabel("GenEval overall", labelpad=1)
        plain_ticks(axes.xaxis, *limits)
        labels, ends = [], []
        for name in sorted(REFERENCE_NAMES):
            if level := view.get((name, 0), QUALITY):
                axes.axhline(level.value, color="#8a9199", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
                labels.append(Label(limits[1], level.value, name, PALE, right=True))
        for row, way in places.items():
            if row not in rows and row != "teacher":
                axes.plot(*zip(*way, strict=True), color=FAINT, linewidth=0.8, marker=".", markersize=4, zorder=0)
                continue
            axes.plot(*zip(*way, strict=True), color=look[row].color, linewidth=0.8, alpha=0.5, zorder=1)
            for nfe, x, y in lines[row]:
                _bar(axes, x, y, look[row].color)
                _point(axes, x.value, y.value, look[row])
                # Every point has its label where there are few; else a row has one, at its last point.
                if not crowded or row == "teacher":
                    short = crowded and (x.value, y.value) != way[-1]
                    labels.append(Label(x.value, y.value, str(nfe) if short else short_name((row, nfe)), look[row].color))
            if crowded and row != "teacher":
                ends.append(Label(*way[-1], row, look[row].color))
        written = label_column(axes, ends, 1.16 * max(label.x for label in ends)) if ends else []
        ways = [way for row, way in places.items() if row in rows or row == "teacher"]
        place_labels(axes, labels, [*(point for way in ways for point in way), *written], ways)
    _absent(figure, view, lines, "not run yet, or not timed")
    timings: dict[str, list[str]] = {}
    for key in view.keys:
        if key[0] in lines and (words := view.timing(key).partition(":")[0]):
            timings.setdefault(words, []).append(key[0])
    for words, marked in timings.items():
        rows = list(dict.fromkeys(marked))
        footer(figure, ["all rows"] if len(rows) == len(lines) else rows, words[0].lower() + words[1:])
    return figure


COVERAGE = (("coverage/spread", "spread"), ("coverage/recall", "recall"))


def coverage_quality(view: View) -> Figure | None:
    """Coverage against GenEval at the lowest NFE: a model that always draws one picture is high on one and low on the other.

    Where there are many rows, a column per family, the others pale behind.
    """
    nfe = view.compared[0] if view.compared else 0
    levels: list[Key] = [("real", 0), view.teacher]
    found = {metric: {key: (x, y) for key in [*view.methods, *levels] if (key in levels or key[1] == nfe)
                      and (x := view.get(key, QUALITY)) and (y := view.get(key, metric))} for metric, _ in COVERAGE}  # fmt: skip
    chosen = [(metric, name) for metric, name in COVERAGE if any(key not in levels for key in found[metric])]
    if not chosen:
        return None
    drawn = [row for row in view.rows if any((row, nfe) in found[metric] for metric, _ in chosen)]
    title = f"Coverage against quality at NFE {nfe}, {view.split} set, 95% intervals: GenEval does not see a lack of variety"
    figure, crowded, grid = _measures(view, drawn, len(chosen), title, (5.0, 4.3), len(levels))
    look = row_looks(view)
    for axes, measure, rows in grid:
        metric, name = chosen[measure]
        here = found[metric]
        highest = max(y.value for _, y in here.values())
        axes.set(xlim=(-0.05, 2.0 if crowded else 1.1), ylim=(-0.05 * highest, 1.12 * highest), xlabel="GenEval overall")
        axes.set_xticks([0, 0.5, 1.0] if crowded else [0, 0.2, 0.4, 0.6, 0.8, 1.0])
        axes.set_ylabel(f"{name} of a prompt's images", labelpad=1)
        labels = []
        for key, (x, y) in here.items():
            if key not in levels and key[0] not in rows:
                _pale(axes, x.value, y.value)
                continue
            _bar(axes, x, y, look[key[0]].color)
            _point(axes, x.value, y.value, look[key[0]])
            labels.append(Label(x.value, y.value, short_name(key) if key in levels else key[0], look[key[0]].color))
        if crowded:
            label_column(axes, labels, 1.12, 7.5)
        else:
            place_labels(axes, labels, size=7.5)
    _absent(figure, view, drawn)
    return figure


def quality_memory(view: View) -> Figure | None:
    """GenEval at the lowest NFE against memory in training: all of it, and the part that grows with the networks alone.

    Where there are many rows, a column per family, the others pale behind.
    """
    nfe = view.compared[0] if view.compared else 0
    found = {row: (total, total - (view.cost(row, "memory_mb", "step") or 0.0), quality)
             for row in view.rows
             if (total := view.cost(row, "memory_mb", "total")) and (quality := view.get((row, nfe), QUALITY))}  # fmt: skip
    if not found:
        return None
    look = row_looks(view)
    names = ["with one step's activations", "without activations"]
    title = f"GenEval at NFE {nfe} against memory in training, {view.split} set, 95% intervals"
    title += f"; dotted: 1, 1.5, 2, ... times {CONTROL_ROW}'s" if CONTROL_ROW in found else ""
    figure, crowded, grid = _measures(view, list(found), len(names), title, (6.0, 4.7))
    for axes, measure, rows in grid:
        sizes = {row: values[measure] for row, values in found.items()}
        own = sizes.get(CONTROL_ROW)
        largest, least = max(sizes.values()), min(sizes.values())
        room = max(largest - least, 0.1 * largest)
        axes.set(xlim=(max(0, least - 0.1 * room), largest + (0.8 if crowded else 0.25) * room), ylim=(-0.03, 1.05))
        axes.set_ylabel("GenEval overall", labelpad=1)
        axes.set_xlabel(f"MB, {names[measure]}")
        for half in range(2, 2 + 60) if own else ():
            if axes.get_xlim()[0] <= half / 2 * own <= largest + 0.05 * room:
                axes.axvline(half / 2 * own, color="#8a9199", linewidth=0.8, linestyle=(0, (1, 3)), zorder=0)
        labels = []
        for row, size in sizes.items():
            quality = found[row][-1]
            if row not in rows:
                _pale(axes, size, quality.value)
                continue
            _bar(axes, Summary(size), quality, look[row].color)
            _point(axes, size, quality.value, look[row])
            labels.append(Label(size, quality.value, row, look[row].color))
        if crowded:
            label_column(axes, labels, largest + 0.08 * room, 7.5)
        else:
            place_labels(axes, labels)
    _absent(figure, view, found, "not run yet, or memory not recorded")
    return figure


def quality_budget(view: View, others: Sequence[View] = ()) -> Figure | None:
    """GenEval against what training spent: this folder's rows, those of other folders, and the tuned candidates at their share."""
    nfe = view.compared[0] if view.compared else 0
    points: dict[str, list[tuple[float, Summary, bool]]] = {}
    for one in (view, *others):
        for row in view.rows:
            spent, quality = one.cost(row, "forward_equivalents"), one.get((row, nfe), QUALITY)
            if spent and quality:
                points.setdefault(row, []).append((spent, quality, False))
    if not points:
        return None
    tuning = read_tuning(view.tuning) if view.tuning else None
    if tuning and tuning.nfe == nfe:
        for row in points:
            method = tuning.methods.get(row)  # a variant of the method has other settings
            if method:
                best = method.candidates[method.chosen]
                quality = Summary(best.geneval, best.geneval_low, best.geneval_high)
                points[row].append((best.forward_equivalents or tuning.budget, quality, True))
    spends = [spent for places in points.values() for spent, *_ in places]
    if max(spends) < 1.1 * min(spends):
        return None  # equal budgets: the tables say it
    families = list(view.by_family(points))
    title = f"GenEval at NFE {nfe} against the training budget, 95% intervals"
    title += "; small: the chosen candidate of tuning, on the validation prompts" if tuning else ""
    figure, found = panels(families, 3, title, 4.1, 3.2)
    look = row_looks(view)
    for axes, family in zip(found, families, strict=True):
        axes.set_xscale("log")
        axes.set(xlim=(min(spends) / 1.3, max(spends) * (max(spends) / min(spends)) ** 0.45 * 1.1), ylim=(-0.03, 1.05))
        plain_ticks(axes.xaxis, *axes.get_xlim())
        axes.set_xlabel("teacher forward-equivalents, log scale")
        labels = []
        for row, places in points.items():
            places = sorted(places, key=lambda place: place[0])
            tint = look[row].color if view.families[row] == family else FAINT
            axes.plot([x for x, *_ in places], [y.value for _, y, _ in places], color=tint, linewidth=1.0, zorder=1 if tint == FAINT else 2)
            if tint == FAINT:
                continue
            for spent, quality, tuned in places:
                _bar(axes, Summary(spent), quality, tint)
                _point(axes, spent, quality.value, look[row], 4 if tuned else 7)
            labels.append(Label(places[-1][0], places[-1][1].value, row, tint))
        label_column(axes, labels, max(label.x for label in labels) * (max(spends) / min(spends)) ** 0.09)
    _absent(figure, view, points)
    for remark, methods in tuning.remarked.items() if tuning else ():
        if old := [name for name in methods if name in points]:
            footer(figure, old, f"candidates of tuning {remark}")
    return figure


def beside(folders: Sequence[Path]) -> list[View]:
    """The views of other results folders, at other budgets."""
    return [View(records.load(folder)) for folder in folders]
