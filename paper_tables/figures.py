"""Figures from result records, training logs and images: PNG to look at, PDF for a paper.

    python -m paper_tables.figures --results results/world --out results/world/figures

quality_latency, coverage_quality, geneval_tasks (records); curves, curves_<row> (runs/<row>/seed<S>/log.csv);
grid_prompts, grid_prompts_more, grid_diversity (images/). Tables and records are enough for the first three; what has no
source is left out with a line that says so.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apex.errors import run_command
from apex.files import write_atomic
from paper_tables import curves, grids
from paper_tables.plotting import STYLE, Label, color, marker, place_labels, short_name, thin_axes
from paper_tables.stats import Summary
from paper_tables.view import REFERENCE_NAMES, TASK_NAMES, TASKS, Key, View


def _bar(axes: Axes, x: Summary, y: Summary, tint: str) -> None:
    """The intervals of a point, both ways."""
    for along, across, vertical in ((x, y, False), (y, x, True)):
        if along.low is not None and along.high is not None:
            ends = ([across.value] * 2, [along.low, along.high]) if vertical else ([along.low, along.high], [across.value] * 2)
            axes.plot(*ends, color=tint, linewidth=1.2, alpha=0.55, zorder=2, solid_capstyle="butt")


def _scatter(axes: Axes, view: View, keys: list[Key], x_metric: str, y_metric: str) -> list[Label]:
    """Points with intervals, joined along NFE; the labels are returned to be placed when the axes are final."""
    labels, lines = [], {}
    for key in keys:
        x, y = view.get(key, x_metric), view.get(key, y_metric)
        if x is None or y is None:
            continue
        tint = color(key, view)
        _bar(axes, x, y, tint)
        axes.plot([x.value], [y.value], marker=marker(key), markersize=7, color=tint, markeredgecolor="white", markeredgewidth=0.8, linestyle="", zorder=3)
        labels.append(Label(x.value, y.value, short_name(key), tint))
        if key[0] not in REFERENCE_NAMES:
            lines.setdefault(key[0], []).append((key[1], x.value, y.value))
    for row, points in lines.items():
        ordered = sorted(points)
        axes.plot([point[1] for point in ordered], [point[2] for point in ordered], color=color((row, 1), view), linewidth=0.8, alpha=0.5, zorder=1)
    return labels


def quality_latency(view: View) -> Figure | None:
    """GenEval overall against end-to-end latency at batch 1; the references, which have no latency, as levels."""
    keys = [key for key in view.keys if view.get(key, "speed/latency_b1_s") and view.get(key, "geneval/overall")]
    if not keys:
        return None
    figure, axes = plt.subplots(figsize=(8.2, 5.2), layout="constrained")
    labels = _scatter(axes, view, keys, "speed/latency_b1_s", "geneval/overall")
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.05, high * (high / low) ** 0.28)  # room for the labels on the right
    for name in sorted(REFERENCE_NAMES):
        level = view.get((name, 0), "geneval/overall")
        if level:
            axes.axhline(level.value, color="#8a9199", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
            labels.append(Label(axes.get_xlim()[1], level.value, name, "#6b737c", right=True))
    axes.set(xlabel="latency of one image, s (batch 1, log scale)", ylabel="GenEval overall", ylim=(-0.03, 1.03))
    axes.set_title(f"Quality against latency: split {view.split}, 95% intervals", loc="left")
    thin_axes(axes)
    place_labels(axes, labels)
    return figure


def coverage_quality(view: View) -> Figure | None:
    """Spread against GenEval: a one-step model that always draws one picture is high on one and low on the other."""
    keys = [key for key in view.keys if view.get(key, "coverage/spread") and view.get(key, "geneval/overall")]
    if not keys:
        return None
    figure, axes = plt.subplots(figsize=(8.2, 5.2), layout="constrained")
    labels = _scatter(axes, view, keys, "geneval/overall", "coverage/spread")
    axes.set(xlabel="GenEval overall", ylabel="spread of a prompt's images, relative to real ones", xlim=(-0.03, 1.2))
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_title("Coverage against quality: GenEval does not see a lack of spread", loc="left")
    thin_axes(axes)
    place_labels(axes, labels)
    return figure


def geneval_tasks(view: View) -> Figure | None:
    """Bars by task for each row x NFE, with intervals; the dashed line is the guided 25-step teacher."""
    keys = [key for key in view.keys if view.get(key, "geneval/overall") and key != ("noise", 0)]
    panels = [("geneval/overall", "overall"), *((f"geneval/{task}", TASK_NAMES[task]) for task in TASKS)]
    panels = [panel for panel in panels if any(view.get(key, panel[0]) for key in keys)]
    if not keys:
        return None
    columns = 4
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(11.5, rows * (0.8 + 0.2 * len(keys))), sharey=True, sharex=True, layout="constrained", squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (metric, title) in zip(grid.flat, panels, strict=False):
        for index, key in enumerate(keys):
            found = view.get(key, metric)
            if found is None:
                continue
            axes.barh(index, found.value, height=0.72, color=color(key, view), alpha=0.85, linewidth=0)
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [index, index], color="#1b1f24", linewidth=1.1, solid_capstyle="butt")
        teacher = view.get(("teacher", 25), metric)
        if teacher:
            axes.axvline(teacher.value, color="#1b1f24", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_title(title, loc="left")
        axes.set(xlim=(0, 1.02), xticks=[0, 0.5, 1])
        axes.set_yticks(range(len(keys)), [short_name(key) for key in keys])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        thin_axes(axes)
    grid[0, 0].invert_yaxis()
    figure.suptitle(f"GenEval by task, split {view.split}, 95% intervals; dashed: guided 25-step teacher", x=0.01, ha="left", fontsize=11)
    return figure


PLOTS = {"quality_latency": quality_latency, "coverage_quality": coverage_quality, "geneval_tasks": geneval_tasks}


def save(figure: Figure, out: Path, name: str) -> None:
    """Writes PNG (150 dpi) and PDF, without dates, so that equal input gives equal files."""
    for suffix, options in (("png", {"dpi": 150, "metadata": {"Software": None}}), ("pdf", {"metadata": {"CreationDate": None}})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, **options)
        write_atomic(out / f"{name}.{suffix}", buffer.getvalue())
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder that holds records/, and runs/ and images/ where there are any")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    args = parser.parse_args()
    view = View.load(args.results)
    made, left_out = [], []
    with plt.rc_context(STYLE):
        figures = {name: plot(view) for name, plot in PLOTS.items()} | curves.figures(args.results / "runs", view)
        for name, figure in figures.items():
            if figure is None:
                left_out.append(name)
                continue
            save(figure, args.out, name)
            made.append(name)
    for name, image in grids.grids(args.results / "images", view).items():
        if image is None:
            left_out.append(name)
            continue
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        write_atomic(args.out / f"{name}.png", buffer.getvalue())
        made.append(name)
    print(f"{args.out}: {', '.join(made)}" + (f"; left out, their numbers, logs or images are not in {args.results}: {', '.join(left_out)}" if left_out else ""))


if __name__ == "__main__":
    sys.exit(run_command(main))
