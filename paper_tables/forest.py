"""Rows down, by family, numbers across: each against `apex`, each against the teacher, GenEval by task, cost. One figure per table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paper_tables import tables_cost
from paper_tables.plotting import FAINT, INK, PALE, TEACHER_COLOR, Look, blank, ink, legend, plain_ticks, row_looks, wrapped
from paper_tables.stats import Summary
from paper_tables.tables_repeat import METRICS, beside
from paper_tables.view import TASK_NAMES, TASKS, Key, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE, NAMES, HEAD, FOOT = 0.215, 1.25, 0.78, 0.62  # inches: a row, the column of names, above and below the panels
FAILED = "failed: not finite"
STEPS = ("o", "s", "D", "^", "v", "P")  # a mark per NFE


@dataclass(frozen=True)
class _Line:
    """A row of the figure: its level (downward), name and colour."""

    level: int
    name: str
    color: str


def _levels(groups: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> tuple[list[_Line], list[tuple[int, str]], int]:
    """Lines and family headings from (family, its (name, colour)); and how many levels they take."""
    lines, headings, level = [], [], 0
    for family, rows in groups:
        headings.append((level, family))
        level += 1
        for name, color in rows:
            lines.append(_Line(level, name, color))
            level += 1
    return lines, headings, level


def families(view: View, rows: Sequence[str], look: Mapping[str, Look]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The rows by family, in the tables' order."""
    return [(family, [(row, look[row].color) for row in own]) for family, own in view.by_family(rows).items()]


def frame(
    groups: Sequence[tuple[str, Sequence[tuple[str, str]]]],
    titles: Sequence[str],
    title: str,
    widths: Sequence[float],
    entries: int = 0,
    names: float = NAMES,
) -> tuple[Figure, list[Axes], dict[str, int]]:
    """A figure of panels abreast that share their rows; names stand left of the first. Returns also the level of each name."""
    lines, headings, count = _levels(groups)
    foot = FOOT + (0.28 if entries else 0.0)
    width = names + sum(widths) + 0.2
    title, above = wrapped(title, width - 0.2, 11)
    size = (width, HEAD + above + foot + LINE * count)
    figure = blank(size)
    figure.suptitle(title, x=0.1 / size[0], y=1 - 0.1 / size[1], ha="left", va="top", fontsize=11)
    left, found = names, []
    for index, (words, width) in enumerate(zip(titles, widths, strict=True)):
        axes = figure.add_axes((left / size[0], foot / size[1], (width - 0.22) / size[0], LINE * count / size[1]))
        axes.set(ylim=(count - 0.4, -0.6))
        axes.set_title(words, fontsize=9.5)
        axes.tick_params(labelsize=8)
        axes.set_yticks(*([line.level for line in lines], [line.name for line in lines]) if index == 0 else ([],))
        axes.tick_params(axis="y", length=0)
        for line in lines:
            axes.axhline(line.level, color=FAINT, linewidth=0.4, zorder=0)
        axes.grid(visible=False, axis="y")
        for level, words in headings if index == 0 else ():
            axes.annotate(words, (0, level), xycoords=("axes fraction", "data"), xytext=(-names * 72 + 7, 0), textcoords="offset points",
                          va="center", fontsize=8.5, color=PALE, style="italic", annotation_clip=False)  # fmt: skip
        found.append(axes)
        left += width
    for text, line in zip(found[0].get_yticklabels(), lines, strict=True):
        text.set_color(ink(line.color))
    return figure, found, {line.name: line.level for line in lines}


def say(axes: Axes, level: int, words: str) -> None:
    """What stands in the place of a number that is missing."""
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axes.annotate(words, (0.01, level), xycoords=("axes fraction", "data"), va="center", fontsize=7, color=PALE, bbox=box, zorder=4)


def _why(view: View, key: Key) -> str:
    if view.failed(*key):
        return FAILED
    if view.evaluators(key) or key not in view.keys:
        return "–"
    return "not run"


def bar(axes: Axes, one: Summary, level: float, color: str) -> None:
    """The interval of a number, as a line."""
    if one.low is not None:
        axes.plot([one.low, one.high], [level] * 2, color=color, linewidth=1.3, alpha=0.5, zorder=2, solid_capstyle="butt")


def step_bar(axes: Axes, one: Summary, level: float, turn: int, count: int, color: str) -> None:
    """A number at the `turn`th of `count` NFEs, at its place on the row's level, with its interval."""
    at = level + 0.22 * (turn - (count - 1) / 2)
    bar(axes, one, at, color)
    axes.plot([one.value], [at], marker=STEPS[turn % len(STEPS)], markersize=4.2, color=color, linestyle="",
              markerfacecolor=color if turn == 0 else "white", zorder=3)  # fmt: skip


def step_legend(figure: Figure, nfes: Sequence[int]) -> None:
    """The marks of `step_bar`."""
    marks = {f"NFE {nfe}": {"marker": STEPS[turn % len(STEPS)], "color": INK, "linestyle": "", "markersize": 5,
                            "markerfacecolor": INK if turn == 0 else "white"} for turn, nfe in enumerate(nfes)}  # fmt: skip
    legend(figure, marks)


# ---------------------------------------------------------------------------------------------- each against apex


def paired(view: View) -> Figure | None:
    """GenEval of every row minus that of the baseline, a panel per NFE: filled on the test prompts, hollow on unseen combinations."""
    splits = ((None, 0.0), ("unseen", 0.24))
    nfes = [nfe for nfe in view.compared if (view.baseline, nfe) in view.methods]
    rows = [row for row in view.rows if row != view.baseline and any((row, nfe) in view.methods for nfe in nfes)]
    known = {
        (row, nfe, split): found
        for row in rows
        for nfe in nfes
        for split, _ in splits
        if (row, nfe) in view.methods and (found := view.difference((row, nfe), (view.baseline, nfe), "geneval/overall", split))
    }
    if not known:
        return None
    look = row_looks(view)
    unseen = ", hollow: unseen combinations" if any(split for *_, split in known) else ""
    title = f"GenEval of every row minus {view.baseline}'s at the same NFE, 95% intervals; filled: {view.split} prompts{unseen}"
    figure, found, level = frame(families(view, rows, look), [f"NFE {nfe}" for nfe in nfes], title, [10.2 / len(nfes)] * len(nfes))
    ends = [end for one in known.values() for end in (one.value, one.low, one.high) if end is not None]
    for axes, nfe in zip(found, nfes, strict=True):
        axes.axvline(0, color=look[view.baseline].color, linewidth=1.0, zorder=1)
        axes.set(xlim=(min([*ends, -0.05]) - 0.04, max([*ends, 0.05]) + 0.04), xlabel=f"row − {view.baseline}")
        for row in rows:
            for split, down in splits:
                if one := known.get((row, nfe, split)):
                    bar(axes, one, level[row] + down, look[row].color)
                    face = look[row].color if split is None else "white"
                    axes.plot([one.value], [level[row] + down], marker="o", markersize=5.5 if split is None else 4, color=look[row].color,
                              markerfacecolor=face, linestyle="", zorder=3)  # fmt: skip
            if (row, nfe, None) not in known:
                say(axes, level[row], _why(view, (row, nfe)) if view.evaluators((view.baseline, nfe)) else f"{view.baseline}: not run")
    return figure


# ------------------------------------------------------------------------------------------ each against the committed run


def repeated(view: View) -> Figure | None:
    """GenEval and coverage recall of every row minus the committed run's, a panel each, a mark per NFE."""
    both = beside(view)
    metrics = [(metric, head.removesuffix(" ↑")) for metric, head, judged in METRICS if judged and metric != "clip_score"]
    known = {
        (row, nfe, metric): found
        for row, nfe in (both.keys if both else ())
        for metric, _ in metrics
        if row in view.rows and not both.other_settings(row) and (found := both.difference((row, nfe), metric))
    }
    if not known:
        return None
    rows = [row for row in view.rows if any(row == name for name, _, _ in known)]
    nfes, look = sorted({nfe for _, nfe, _ in known}), row_looks(view)
    title = "Every row of this run minus the same of the committed one, 95% intervals over prompts and seeds"
    titles = [f"{head}, here − committed" for _, head in metrics]
    figure, found, level = frame(families(view, rows, look), titles, title, [5.1] * len(metrics), entries=len(nfes))
    for axes, (metric, _) in zip(found, metrics, strict=True):
        shown = {key: one for key, one in known.items() if key[2] == metric}
        far = max([0.05, *(abs(end) for one in shown.values() for end in (one.value, one.low, one.high) if end is not None)])
        axes.axvline(0, color=TEACHER_COLOR, linewidth=1.0, zorder=1)
        axes.set_xlim(-1.1 * far, 1.1 * far)
        for (row, nfe, _), one in shown.items():
            step_bar(axes, one, level[row], nfes.index(nfe), len(nfes), look[row].color)
    step_legend(figure, nfes)
    return figure


# ------------------------------------------------------------------------------------------- each against the teacher


RELATIVE = (
    ("geneval/overall", "GenEval ↑", "", 2.6, False),
    ("geneval/overall", "GenEval, unseen ↑", "unseen", 1.9, False),
    ("coverage/spread", "spread ↑", "", 1.6, False),
    ("coverage/recall", "recall ↑", "", 1.6, False),
    ("clip_score", "CLIP score ↑", "", 1.6, False),
    ("fid", "FID ↓", "", 1.9, True),
    ("speed/latency_b1_s", "latency ↓", "", 1.9, True),
)


def relative(view: View) -> Figure | None:
    """Every row's numbers over the guided teacher's of many steps, a panel per metric, a mark per NFE."""
    rows, nfes = view.rows, view.compared
    known = {
        (row, nfe, place): found
        for row, nfe in view.methods
        if nfe in nfes
        for place, (metric, _, split, *_) in enumerate(RELATIVE)
        if (found := view.relative((row, nfe), metric, split or None))
    }
    chosen = [place for place in range(len(RELATIVE)) if any(key[2] == place for key in known)]
    if not chosen:
        return None
    look = row_looks(view)
    title = f"Every row over the guided {view.teacher[1]}-step teacher, {view.split} set: 1 is as good, 95% intervals"
    heads, widths = [RELATIVE[place][1] for place in chosen], [RELATIVE[place][3] for place in chosen]
    figure, found, level = frame(families(view, rows, look), heads, title, widths, len(nfes))
    for axes, place in zip(found, chosen, strict=True):
        axes.axvline(1, color=TEACHER_COLOR, linewidth=1.0, linestyle=(0, (5, 3)), zorder=1)
        shown = [one for (*_, its), one in known.items() if its == place]
        values = [one.value for one in shown]
        if RELATIVE[place][4]:
            axes.set_xscale("log")
            bounds = min([*values, 1]) / 1.25, max([*values, 1]) * 1.25
            axes.set_xlim(*bounds)
            _few_ticks(axes, *bounds)
        else:
            highs = [min(one.high, 1.25 * max(values)) for one in shown if one.high is not None]  # a wide interval is cut
            axes.set_xlim(-0.04, max([*values, *highs, 1]) * 1.05)
        for row in rows:
            for turn, nfe in enumerate(nfes):
                if one := known.get((row, nfe, place)):
                    step_bar(axes, one, level[row], turn, len(nfes), look[row].color)
            if not any((row, nfe, place) in known for nfe in nfes):
                say(axes, level[row], "not run" if row in view.not_run else "–")
    step_legend(figure, nfes)
    return figure


def _few_ticks(axes: Axes, low: float, high: float) -> None:
    """A few powers and their halves on a short logarithmic axis."""
    if high / low < 30:
        plain_ticks(axes.xaxis, low, high)
    else:
        ticks = [10.0**power for power in range(-9, 9) if low <= 10.0**power <= high]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)


# ------------------------------------------------------------------------------------------------- GenEval by task


def tasks(view: View) -> Figure | None:
    """GenEval by task and overall, a panel per NFE: dark is high. Above the rows: real renders, the guided teacher, another prompt's."""
    nfes = [nfe for nfe in view.compared if any(view.get((row, nfe), "geneval/overall") for row in view.rows)]
    if not nfes:
        return None
    look = row_looks(view)
    stock = view.stock_teachers
    levels = [key for key in (("real", 0), view.teacher, *stock, ("shuffled", 0)) if view.get(key, "geneval/overall")]
    names = {key: key[0] if not key[1] else f"{key[0]}, {key[1]}" for key in levels}
    groups = [("levels", [(names[key], look[key[0]].color) for key in levels])] if levels else []
    rows = [row for row in view.rows if any(name == row and (name, nfe) not in stock for name, nfe in view.methods)]
    title = f"GenEval by task, {view.split} set"
    columns = [*TASKS, "overall"]
    figure, found, level = frame(
        [*groups, *families(view, rows, look)], [f"NFE {nfe}" for nfe in nfes], title, [max(2.9, 9 / len(nfes))] * len(nfes)
    )
    short = {"single_object": "single", "two_object": "two", "color_attr": "binding"}
    for axes, nfe in zip(found, nfes, strict=True):
        axes.grid(visible=False)
        axes.set(xlim=(-0.5, len(columns) - 0.5))
        axes.set_xticks(range(len(columns)), [short.get(name, TASK_NAMES.get(name, name)) for name in columns], rotation=35, ha="right")
        for key, name in [*names.items(), *(((row, nfe), row) for row in rows)]:
            values = [view.get(key, f"geneval/{column}") for column in columns]
            if not any(values):
                say(axes, level[name], _why(view, key))
            for place, value in enumerate(values):
                if value:
                    tile(axes, place, level[name], value.value)
        axes.axvline(len(TASKS) - 0.5, color="white", linewidth=3, zorder=4)
    return figure


LIGHT, DARK = np.array([0.94, 0.955, 0.97]), np.array([0.03, 0.25, 0.43])


def tile(axes: Axes, place: int, level: int, value: float, text: str = "") -> None:
    """A square of a heat map: a share, dark where it is high, with its number, or with `text`."""
    from matplotlib.patches import Rectangle

    share = min(1.0, max(0.0, value))
    axes.add_patch(Rectangle((place - 0.47, level - 0.46), 0.94, 0.92, color=LIGHT + share * (DARK - LIGHT), linewidth=0, zorder=2))
    axes.text(
        place,
        level,
        text or f"{share:.2f}".removeprefix("0"),
        ha="center",
        va="center",
        fontsize=7,
        color="white" if share > 0.62 else INK,
        zorder=5,
    )


# ------------------------------------------------------------------------------------------------------------- cost


PARTS = {
    "student": "#4C78A8", "teacher": "#1b1f24", "ema": "#9ecae9", "extra": "#D55E00", "optimizer": "#b9a0cf", "step": "#cfd4da",
}  # fmt: skip
PARTS_NAMES = {"extra": "extra networks", "ema": "running mean", "optimizer": "AdamW's moments", "step": "one step's activations"}


def cost(view: View) -> Figure | None:
    """The budget's share by network, memory by part, and seconds: what the tables of cost say, as bars."""
    rows = [row for row in view.rows if not view.images_only(row)]

    def shares(row: str) -> dict[str, float]:
        found = tables_cost.shares(view, row)
        own = {name: 100 * found.get(name, 0.0) for name in tables_cost.OWN}
        return own | {"extra": 100 - sum(own.values())} if found else {}

    def memory(row: str) -> dict[str, float]:
        found = {name: view.cost(row, "memory_mb", name) for name in tables_cost.PARTS}
        return {name: value or 0.0 for name, value in found.items()} if any(value is not None for value in found.values()) else {}

    def pace(row: str) -> dict[str, float]:
        seconds, spent = view.cost(row, "wall_seconds"), view.cost(row, "forward_equivalents")
        return {"student": 1000 * seconds / spent} if seconds and spent else {}

    panels: list[tuple[str, str, float, Callable[[str], dict[str, float]]]] = [
        ("share of the budget", "% of training FLOPs", 3.6, shares),
        ("memory in training", "MB", 3.6, memory),
        ("time", "seconds per 1,000 forward-equivalents", 2.6, pace),
    ]
    panels = [one for one in panels if any(one[3](row) for row in rows)]
    if not panels:
        return None
    look = row_looks(view)
    title = "What training costs, means over seeds; seconds on a machine that may have done other work"
    figure, found, level = frame(families(view, rows, look), [one[0] for one in panels], title, [one[2] for one in panels], len(PARTS))
    drawn: dict[str, dict[str, object]] = {}
    for axes, (_, unit, _, numbers) in zip(found, panels, strict=True):
        axes.set_xlabel(unit, fontsize=8.5)
        for row in rows:
            start, parts = 0.0, numbers(row)
            for name, value in parts.items():
                tint = look[row].color if numbers is pace else PARTS[name]
                axes.barh(level[row], value, left=start, height=0.66, color=tint, zorder=2)
                start += value
                if value and numbers is not pace:
                    drawn[PARTS_NAMES.get(name, name)] = {"color": tint, "linewidth": 6}
            if not parts:
                say(axes, level[row], "not run" if row in view.not_run else "not recorded")
        axes.set_xlim(left=0)
    if drawn:
        legend(figure, drawn)
    return figure
