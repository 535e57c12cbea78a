"""Figures from result records, training logs and images, as PNG, and one page that shows them with all tables.

    python -m paper_tables.figures --results results/world --out results/world/figures

From records: quality_latency, quality_memory, quality_budget, coverage_quality, paired, tasks, relative, cost, nfe, nfe_sweep, table1; with
`--committed DIR` repeated. From the paper: table2, table3, table4. From runs/: training, shift_visibility. From calibration/: calibration.
From tune/: tuning. From images/: grid (all rows at one step), grid_nfe<K>, grid_unseen, grid_samples, sweep_<row> (one row, few steps to
many); committed results have the images that these show in pictures/. index.html shows all figures. What has no source is left out with
a line that says so. With `--config FILE`, each figure names the rows that were not run, and folders of images that the profile brings
stand in the grids.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from apex.command import Parser
from apex.errors import run_command
from apex.files import write_atomic
from paper_tables import curves, drawn, dynamics, expected, forest, grids, page, paper_plots, pictures, published, records, scatter, tuning
from paper_tables.plotting import drawing, footer, png
from paper_tables.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WITHOUT_ROWS = ("calibration", "tuning")  # figures that show none of the view's rows
PUBLISHED = ("table2", "table3", "table4")  # figures of the paper's numbers alone


def draw(results: Path, out: Path, view: View, beside: Sequence[View] = ()) -> list[str]:
    """Writes every figure that has a source; returns their names in the page's order."""
    data = published.load()
    plots = {  # those that take longest first, so that no core waits for them at the end
        "training": lambda: dynamics.training(view),
        "nfe": lambda: curves.against_nfe(view),
        "quality_latency": lambda: scatter.quality_latency(view),
        "quality_memory": lambda: scatter.quality_memory(view),
        "quality_budget": lambda: scatter.quality_budget(view, beside),
        "coverage_quality": lambda: scatter.coverage_quality(view),
        "paired": lambda: forest.paired(view),
        "tasks": lambda: forest.tasks(view),
        "relative": lambda: forest.relative(view),
        "repeated": lambda: forest.repeated(view),
        "cost": lambda: forest.cost(view),
        "table1": lambda: paper_plots.table1(view, data),
        "table2": lambda: paper_plots.table2(view, data),
        "table3": lambda: paper_plots.table3(view, data),
        "table4": lambda: paper_plots.table4(view, data),
        "nfe_sweep": lambda: curves.nfe_sweep(view),
        "shift_visibility": lambda: curves.shift_visibility(results, view),
        "calibration": lambda: curves.calibration(results),
        "tuning": lambda: tuning.draw(tuning.read(view.tuning)) if view.tuning else None,
    }
    stamps = {name: _stamp(name, results, view, beside) for name in plots}
    jobs: dict[str, Callable[[], bytes | None]] = {name: partial(_plotted, name, plot, view, stamps[name]) for name, plot in plots.items()}
    with pictures.gathered([results]) as images:
        for name, sheet in grids.sheets(images, view).items():
            stamps[name] = sheet.stamp()
            jobs[name] = partial(_pasted, sheet, stamps[name])
        made = {name: content for name in jobs if (content := _kept(f"{name}.png", (out, results / "figures"), stamps[name]))}
        if absent := {name: job for name, job in jobs.items() if name not in made}:
            import matplotlib.backends.backend_agg  # noqa: F401, here once, and not in each of the processes that are forked to draw

            made |= drawn.run(absent)
    for name, content in made.items():
        if drawn.kept(path := out / f"{name}.png", stamps[name]) != content:
            write_atomic(path, content)
    return page.ordered(made)


def _stamp(name: str, results: Path, view: View, beside: Sequence[View]) -> str:
    """Of everything that a plot shows."""
    if name != "calibration":
        return drawn.stamp(drawn.code(), name, *(one.stamp for one in (view, *beside)))
    path = results / "calibration" / "calibration.json"
    return drawn.stamp(drawn.code(), name, view.origin, path.read_bytes() if path.is_file() else "")


def _kept(file: str, folders: Sequence[Path], stamp: str) -> bytes | None:
    """The first file of that name and stamp; what is committed with results counts."""
    return next((content for folder in folders if (content := drawn.kept(folder / file, stamp))), None)


def _plotted(name: str, plot: Callable[[], Figure | None], view: View, stamp: str) -> bytes | None:
    with drawing():
        figure = plot()
        if figure is None:
            return None
        if name not in WITHOUT_ROWS:
            for remark, rows in view.remarked.items():
                footer(figure, rows, remark)
        origin = records.of_reference(view.tuning) if name == "tuning" else view.origin
        if origin and name not in PUBLISHED:
            footer(figure, [origin], records.REFERENCE)
        return png(figure, stamp)


def _pasted(sheet: grids.Sheet, stamp: str) -> bytes:
    return grids.png(sheet.draw(), stamp)


def main() -> None:
    parser = Parser("paper_tables.figures", __doc__)
    parser.add_argument(
        "--results", type=Path, required=True, help="folder that holds records/, and runs/, images/, calibration/ where there are any"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures and index.html")
    parser.add_argument(
        "--beside",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="results at another budget, for quality_budget",
    )
    parser.add_argument("--committed", type=Path, metavar="DIR", help="what is committed of the profile, for repeated")
    parser.add_argument("--gallery", type=Path, metavar="FILE", help="also one page that holds every picture grid")
    expected.add_arguments(parser)
    args = parser.parse_args()
    view = View.load(args.results, expected.from_arguments(args), args.committed)
    made = draw(args.results, args.out, view, scatter.beside(args.beside))
    write_atomic(args.out / "index.html", page.index(view, made))
    if args.gallery:
        write_atomic(args.gallery, page.gallery(args.out, made))
    absent = [name for name in page.CAPTIONS if name not in made and (args.committed or name != "repeated")]
    print(
        f"{args.out}: index.html, {', '.join(made)}"
        + (f"; left out, {args.results} has no source of them: {', '.join(absent)}" if absent else "")
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
