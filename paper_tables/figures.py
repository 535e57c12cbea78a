"""Figures from result records, training logs and images, as PNG, and one page that shows them with all tables.

    python -m paper_tables.figures --results results/world --out results/world/figures

quality_latency, coverage_quality, nfe (from records); training, shift_visibility (runs/); calibration (calibration/); grid,
grid_unseen, grid_samples (images/); index.html. What has no source is left out with a line that says so. A results
folder without images keeps the grids that its own figures/ holds.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apex.errors import run_command
from apex.files import write_atomic
from paper_tables import curves, grids, page
from paper_tables.plotting import STYLE, Label, colors, marker, place_labels, plain_ticks, short_name
from paper_tables.stats import Summary
from paper_tables.view import REFERENCE_NAMES, View


def _bar(axes: Axes, x: Summary, y: Summary, tint: str) -> None:
    """The intervals of a point, both ways."""
    for along, across, vertical in ((x, y, False), (y, x, True)):
        if along.low is not None:
            ends = ([across.value] * 2, [along.low, along.high]) if vertical else ([along.low, along.high], [across.value] * 2)
            axes.plot(*ends, color=tint, linewidth=1.2, alpha=0.55, zorder=2)


def _scatter(view: View, x_metric: str, y_metric: str) -> tuple[Figure, Axes, list[Label]] | None:
    """Points with intervals, joined along NFE; the labels are to be placed when the axes are final."""
    points = [(key, x, y) for key in view.keys if (x := view.get(key, x_metric)) and (y := view.get(key, y_metric))]
    if not points:
        return None
    figure = Figure(figsize=(8.4, 5.2))
    axes = figure.add_axes((0.08, 0.1, 0.9, 0.82))
    tint, lines, labels = colors([row for row, _ in view.keys]), {}, []
    for key, x, y in points:
        _bar(axes, x, y, tint[key[0]])
        style = {"markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.8, "linestyle": "", "zorder": 3}
        axes.plot([x.value], [y.value], marker=marker(key), color=tint[key[0]], **style)
        labels.append(Label(x.value, y.value, short_name(key), tint[key[0]]))
        if key[0] not in REFERENCE_NAMES:
            lines.setdefault(key[0], []).append((key[1], x.value, y.value))
    for row, places in lines.items():
        _, xs, ys = zip(*sorted(places), strict=True)
        axes.plot(xs, ys, color=tint[row], linewidth=0.8, alpha=0.5, zorder=1)
    return figure, axes, labels


def quality_latency(view: View) -> Figure | None:
    """GenEval overall against end-to-end latency at batch 1; the references, which have no latency, as levels."""
    made = _scatter(view, "speed/latency_b1_s", "geneval/overall")
    if made is None:
        return None
    figure, axes, labels = made
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.05, high * max(high / low, 4) ** 0.3)  # room for the labels on the right
    plain_ticks(axes.xaxis, *axes.get_xlim())
    machines = {one.record.hardware for one in view.found if one.record.evaluator == "speed"}
    axes.set(
        xlabel=f"latency of one image, s (batch 1, log scale; {'; '.join(sorted(machines))})", ylabel="GenEval overall", ylim=(-0.03, 1.05)
    )
    for name in sorted(REFERENCE_NAMES):
        level = view.get((name, 0), "geneval/overall")
        if level:
            axes.axhline(level.value, color="#8a9199", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
            labels.append(Label(axes.get_xlim()[1], level.value, name, "#5f6770", right=True))
    axes.set_title(f"Quality against latency, {view.split} set. Bars: 95% of quality, quartiles of latency")
    place_labels(axes, labels)
    return figure


def coverage_quality(view: View) -> Figure | None:
    """Spread against GenEval: a one-step model that always draws one picture is high on one and low on the other."""
    made = _scatter(view, "geneval/overall", "coverage/spread")
    if made is None:
        return None
    figure, axes, labels = made
    axes.set(xlabel="GenEval overall", xlim=(-0.03, 1.2), ylim=(-0.03, 1.08), xticks=[0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_ylabel("spread of a prompt's images, 1 = as real ones")
    axes.set_title(f"Coverage against quality, {view.split} set, 95% intervals: GenEval does not see a lack of spread")
    place_labels(axes, labels)
    return figure


def png(figure: Figure) -> bytes:
    """110 dots an inch, no version or date inside, so that equal input gives equal files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    return buffer.getvalue()


def draw(results: Path, out: Path, view: View) -> list[str]:
    """Writes every figure that has a source; returns their names in the page's order."""
    plots = {
        "quality_latency": lambda: quality_latency(view),
        "coverage_quality": lambda: coverage_quality(view),
        "nfe": lambda: curves.against_nfe(view),
        "training": lambda: curves.training(results),
        "shift_visibility": lambda: curves.shift_visibility(results),
        "calibration": lambda: curves.calibration(results),
    }
    made = {}
    with matplotlib.rc_context(STYLE):
        for name, plot in plots.items():
            if figure := plot():
                made[name] = png(figure)
    for name, image in grids.grids(results / "images", view).items():
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=6)
        made[name] = buffer.getvalue()
    for name in grids.NAMES:
        kept = results / "figures" / f"{name}.png"
        if name not in made and not (results / "images").is_dir() and kept.is_file():
            made[name] = kept.read_bytes()
    for name, content in made.items():
        write_atomic(out / f"{name}.png", content)
    return [name for name in page.CAPTIONS if name in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, required=True, help="folder that holds records/, and runs/, images/, calibration/ where there are any"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures and index.html")
    args = parser.parse_args()
    view = View.load(args.results)
    made = draw(args.results, args.out, view)
    write_atomic(args.out / "index.html", page.index(view, made))
    absent = [name for name in page.CAPTIONS if name not in made]
    print(
        f"{args.out}: index.html, {', '.join(made)}"
        + (f"; left out, {args.results} has no source of them: {', '.join(absent)}" if absent else "")
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
