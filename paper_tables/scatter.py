"""Quality against what it costs and what it hides: latency, memory, training budget, coverage. One point per row, direct labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_tables import records
from paper_tables.plotting import FAINT, PALE, Label, Look, footer, label_column, panels, place_labels, plain_ticks, row_looks, short_name
from paper_tables.stats import Summary
from paper_tables.tables_cost import CONTROL_ROW
from paper_tables.tuning import read as read_tuning
from paper_tables.view import REFERENCE_NAMES, TEACHER, Key, View

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
    if rows := [row for row in view.rows if row not in drawn and not view.images_only(row)]:
        footer(figure, rows, words)


def quality_latency(view: View) -> Figure | None:
    """GenEval overall against end-to-end latency at batch 1; the references, which have no latency, as levels."""
    keys = [key for key in view.keys if key[0] == "teacher" or key[1] in view.compared]
    points = [(key, x, y) for key in keys if (x := view.get(key, "speed/latency_b1_s")) and (y := view.get(key, QUALITY))]
    if not points:
        return None
    look, labels, ends, lines = row_looks(view), [], [], {}
    figure = Figure(figsize=(10.4, 6.2))
    axes = figure.add_axes((0.065, 0.09, 0.92, 0.84))
    for key, x, y in points:
        _bar(axes, x, y, look[key[0]].color)
        _point(axes, x.value, y.value, look[key[0]])
        lines.setdefault(key[0], []).append((key[1], x.value, y.value))
    for row, places in lines.items():
        places.sort()
        _, xs, ys = zip(*places, strict=True)
        axes.plot(xs, ys, color=look[row].color, linewidth=0.8, alpha=0.5, zorder=1)
        # Every point has its label where there are few; else a row has one, at its last point.
        if row == "teacher" or len(points) <= FEW:
            labels += [Label(x, y, short_name((row, nfe)), look[row].color) for nfe, x, y in places]
        else:
            ends.append(Label(*places[-1][1:], row, look[row].color))
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.05, high * max(high / low, 4) ** 0.18)  # room for the labels on the right
    plain_ticks(axes.xaxis, *axes.get_xlim())
    machines = {one.record.hardware for one in view.found if one.record.evaluator == "speed"}
    axes.set(
        xlabel=f"latency of one image, s (batch 1, log scale; {'; '.join(sorted(machines))})", ylabel="GenEval overall", ylim=(-0.03, 1.05)
    )
    for name in sorted(REFERENCE_NAMES):
        level = view.get((name, 0), QUALITY)
        if level:
            axes.axhline(level.value, color="#8a9199", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
            labels.append(Label(axes.get_xlim()[1], level.value, name, PALE, right=True))
    nfes = ", ".join(map(str, view.compared))
    axes.set_title(
        f"Quality against latency, {view.split} set; a line joins a row's NFE {nfes}. Bars: 95% of quality, quartiles of latency"
    )
    written = label_column(axes, ends, 1.16 * max(label.x for label in ends)) if ends else []
    ways = [[(x, y) for _, x, y in places] for places in lines.values()]
    place_labels(axes, labels, [*((x.value, y.value) for _, x, y in points), *written], ways)
    _absent(figure, view, lines, "not run yet, or not timed")
    return figure


COVERAGE = (("coverage/spread", "spread"), ("coverage/recall", "recall"))


def coverage_quality(view: View) -> Figure | None:
    """Coverage against GenEval, a panel per NFE: a model that always draws one picture is high on one and low on the other."""
    levels: list[Key] = [("real", 0), TEACHER]
    chosen = [
        (nfe, metric, name)
        for metric, name in COVERAGE
        for nfe in view.compared
        if any(view.get(key, metric) and view.get(key, QUALITY) for key in view.methods if key[1] == nfe)
    ]
    if not chosen:
        return None
    columns = max(1, len({nfe for nfe, *_ in chosen}))
    title = f"Coverage against quality, {view.split} set, 95% intervals: GenEval does not see a lack of variety"
    names = [f"NFE {nfe}: {name} of a prompt's images" for nfe, _, name in chosen]
    figure, found = panels(names, columns, title, 5.0, 4.3)
    look = row_looks(view)
    for axes, (nfe, metric, _) in zip(found, chosen, strict=True):
        found_here = [view.get(key, metric) for key in [key for key in view.methods if key[1] == nfe] + levels]
        highest = max(one.value for one in found_here if one)
        axes.set(xlim=(-0.03, 1.1), ylim=(-0.03 * highest, 1.12 * highest), xticks=[0, 0.2, 0.4, 0.6, 0.8, 1.0], xlabel="GenEval overall")
        labels = []
        for key in [key for key in view.methods if key[1] == nfe] + levels:
            x, y = view.get(key, QUALITY), view.get(key, metric)
            if x and y:
                _bar(axes, x, y, look[key[0]].color)
                _point(axes, x.value, y.value, look[key[0]])
                labels.append(Label(x.value, y.value, short_name(key) if key in levels else key[0], look[key[0]].color))
        place_labels(axes, labels, size=7.5)
    _absent(figure, view, [key[0] for key in view.methods if any(view.get(key, metric) for metric, _ in COVERAGE)])
    return figure


STACK = 5


def _stack(labels: Sequence[Label], near: float) -> list[Label]:
    """The labels of many points above each other, as rows with the same networks are; none where there are few."""
    stacks = [[other for other in labels if abs(other.x - label.x) <= near] for label in labels]
    largest = max(stacks, key=len, default=[])
    return largest if len(largest) >= STACK else []


def quality_memory(view: View) -> Figure | None:
    """GenEval at the lowest NFE against memory in training: all of it, and the part that grows with the networks alone."""
    nfe = view.compared[0] if view.compared else 0
    rows = [(row, total, total - (view.cost(row, "memory_mb", "step") or 0.0), quality)
            for row in view.rows
            if (total := view.cost(row, "memory_mb", "total")) and (quality := view.get((row, nfe), QUALITY))]  # fmt: skip
    if not rows:
        return None
    look = row_looks(view)
    title = f"GenEval at NFE {nfe} against memory in training, {view.split} set, 95% intervals"
    names = ["all of it: networks, optimisers and one step's activations", "networks, their running mean and optimisers alone"]
    figure, found = panels(names, 2, title, 6.0, 4.7)
    for place, axes in enumerate(found, 1):
        own = next((one[place] for one in rows if one[0] == CONTROL_ROW), None)
        for row, *sizes, quality in rows:
            _bar(axes, Summary(sizes[place - 1]), quality, look[row].color)
            _point(axes, sizes[place - 1], quality.value, look[row])
        largest, least = max(one[place] for one in rows), min(one[place] for one in rows)
        room = max(largest - least, 0.1 * largest)
        axes.set(xlim=(max(0, least - 0.1 * room), largest + 0.25 * room), ylim=(-0.03, 1.05))
        axes.set_ylabel("GenEval overall", labelpad=1)
        axes.set_xlabel("MB" + (f"; dotted: 1, 1.5, 2, ... times {CONTROL_ROW}'s" if own else ""))
        for half in range(2, 2 + 60) if own else ():
            if axes.get_xlim()[0] <= half / 2 * own <= axes.get_xlim()[1]:
                axes.axvline(half / 2 * own, color="#8a9199", linewidth=0.8, linestyle=(0, (1, 3)), zorder=0)
        labels = [Label(one[place], one[-1].value, one[0], look[one[0]].color) for one in rows]
        stack = _stack(labels, 0.02 * room)
        written = label_column(axes, stack, stack[0].x + 0.06 * room) if stack else []
        place_labels(axes, [label for label in labels if label not in stack], [*((label.x, label.y) for label in stack), *written])
    _absent(figure, view, [one[0] for one in rows], "not run yet, or memory not recorded")
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
    families = [
        family for family in dict.fromkeys(view.families[row] for row in view.rows) if any(view.families[r] == family for r in points)
    ]
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
    return figure


def beside(folders: Sequence[Path]) -> list[View]:
    """The views of other results folders, at other budgets."""
    return [View(records.load(folder)) for folder in folders]
