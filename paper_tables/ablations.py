"""The ablations as tables and figures: every cell of a grid, what the paper prints for it, and what it scores beside the control.

    python -m paper_tables.ablations --config workflows/config/world.yaml --results results/world/ablations --out DIR
    python -m paper_tables.ablations ... --grid table7 --out DIR           one grid
    python -m paper_tables.ablations ... --grid table7 --ends ends.json    its best, worst and control cell, for more seeds

Reads <cell>/seed<S>/records/{geneval,coverage}.json, run/made.json and pictures.zip below --results. Writes <grid>.md, .tex, .csv, .html,
.png and, of what has pictures, <grid>_pictures.png. A cell that was not run says so; without --grid, a grid of which nothing was run
is left out.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from apex.ablations import BUDGET, CELL, Ablation, Plan
from apex.command import Parser
from apex.errors import UserError, run_command
from apex.files import write_atomic
from evaluators.result import Record, read_record
from paper_tables import evidence, grids, plotting, published, stats
from paper_tables.archives import opened
from paper_tables.cells import FAILED, failed_words, missing, number, plain
from paper_tables.expected import read
from paper_tables.forest import bar, frame, say
from paper_tables.published import Published, find
from paper_tables.records import read_made
from paper_tables.render import Cell, Column, Line, Table, all_formats
from paper_tables.shared import shared
from paper_tables.stats import Summary
from paper_tables.tables_paper import NOT_PUBLISHED
from paper_tables.view import family_name, per_prompt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERALL = "geneval/overall"
COVERAGE = ("spread", "recall")


@dataclass(frozen=True)
class Trial:
    """One cell of a grid: its name, its settings as written, and its records by seed."""

    name: str
    settings: dict[str, Any]
    geneval: dict[int, Record]
    coverage: dict[int, Record]
    made: dict[int, dict[str, Any]]
    remarks: dict[str, str] = field(default_factory=dict)  # short remark -> its sentences

    def score(self, metric: str) -> Summary | None:
        found = [m for records in (self.geneval, self.coverage) for r in records.values() for m in r.metrics if m.metric == metric]
        return stats.over_seeds(found) if found else None

    @cached_property
    def per_prompt(self) -> stats.PerPrompt | None:
        return per_prompt([record for record in self.geneval.values() if not record.failed])

    @property
    def visibility(self) -> float | None:
        """Of the shift, the mean over times and seeds; None where the method has none."""
        found = [list(made["shift_visibility"].values()) for made in self.made.values() if made.get("shift_visibility")]
        return sum(sum(v) / len(v) for v in found) / len(found) if found else None

    @property
    def failed(self) -> dict[int, str]:
        return {seed: record.failed for seed, record in self.geneval.items() if record.failed}

    @property
    def stopped(self) -> dict[int, str]:
        return {seed: text for seed, made in self.made.items() if (text := (made.get("training") or {}).get("stopped"))}


@dataclass(frozen=True)
class Grid:
    """A grid with its cells; `shown`: the settings that differ between them, which are the table's first columns. coverage: whether it is
    measured, which needs renders."""

    name: str
    ablation: Ablation
    cells: list[Trial]
    control: str
    budget: float
    nfe: int
    coverage: bool = True

    @property
    def shown(self) -> list[str]:
        return list(dict.fromkeys([*self.ablation.grid, *(key for cell in self.ablation.cells for key in cell)]))

    @cached_property
    def noise(self) -> float | None:
        """Training noise: the largest standard deviation of GenEval over seeds of a cell with three or more; None without one."""
        found = [cell.per_prompt.seeds for cell in self.cells if cell.per_prompt]
        return max((statistics.stdev(values) for values in found if len(values) >= 3), default=None)

    def difference(self, cell: Trial, other: Trial) -> stats.Summary | None:
        """`cell` minus `other` in GenEval, by the rule of `View.difference`; None where one was not run, or other prompts were scored."""
        found = stats.paired_difference(cell.per_prompt, other.per_prompt) if cell.per_prompt and other.per_prompt else None
        return found and stats.with_noise(found, [self.noise if len(one.geneval) == 1 else 0.0 for one in (cell, other)])

    @property
    def of_control(self) -> Trial:
        return next(cell for cell in self.cells if cell.name == self.control)

    @property
    def family(self) -> str:
        return family_name(next((r.family or "" for cell in self.cells for r in cell.geneval.values()), "self-adversarial"))


@shared
def plan_of(profile: Path, *settings: str) -> Plan:
    """The ablations of a profile's file, with single keys that override it."""
    return Plan(read(profile, *settings).config)


@shared
def load_grid(plan: Plan, name: str, results: Path) -> Grid:
    """The grid with whatever was run of it."""
    ablation, cells = plan.found.grids[name], []
    for settings in ablation.settings():
        folder = results / ablation.name(settings)
        found: dict[str, dict[int, Any]] = {"geneval": {}, "coverage": {}, "made": {}}
        for place in sorted(folder.glob("seed*")):
            if match := re.fullmatch(r"seed(\d+)", place.name):
                for evaluator in ("geneval", "coverage"):
                    if (path := place / "records" / f"{evaluator}.json").is_file():
                        found[evaluator][int(match[1])] = read_record(path)
                if (path := place / "run" / "made.json").is_file():
                    found["made"][int(match[1])] = read_made(path, "", int(match[1]))
        remarks = _remarks(plan, ablation.name(settings), **found) if any(found.values()) else {}
        cells.append(Trial(ablation.name(settings), settings, **found, remarks=remarks))
    covered = "coverage" in plan.config.evaluators or any(cell.coverage for cell in cells)
    return Grid(name, ablation, cells, plan.control(name), plan.budget({}), plan.found.nfe, covered)


def _remarks(
    plan: Plan, name: str, geneval: dict[int, Record], coverage: dict[int, Record], made: dict[int, dict[str, Any]]
) -> dict[str, str]:
    """Why a cell's numbers do not stand unmarked, as `View.remarks` of a row: short remark -> sentences."""
    wanted, found = evidence.Wanted(plan.config_of(name)), {}
    for records in (geneval, coverage):
        for seed, record in records.items():
            run = made.get(seed, {})
            for sentence in [*wanted.of_making(CELL, run), *wanted.of_record(record, "test", run)]:
                found.setdefault(evidence.OTHER, {}).setdefault(sentence)
            if one := evidence.correction(record.method, {**(record.details.get("made") or {}), **run}):
                found.setdefault(one.remark, {}).setdefault(one.sentence)
    return {remark: " ".join(sentences) for remark, sentences in found.items()}


def ends(grid: Grid, seeds: list[int]) -> list[str]:
    """The cells that get more seeds: the best and the worst by GenEval of the first `seeds`, and the control.

    Raises:
        UserError: a cell has no record yet.
    """
    scores: dict[str, float] = {}
    for cell in grid.cells:
        if not all(seed in cell.geneval for seed in seeds):
            raise UserError(f"{grid.name}: cell {cell.name!r} has no record yet; `snakemake ablation_{grid.name}` runs it")
        values = [metric.value for seed in seeds for metric in cell.geneval[seed].metrics if metric.metric == OVERALL]
        if values:  # none where its images are not finite
            scores[cell.name] = sum(values) / len(values)
    if not scores:
        raise UserError(f"{grid.name}: found no cell with images, expected one or more; mend the grid's settings")
    return list(dict.fromkeys([max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__), grid.control]))


# --------------------------------------------------------------------------------------------------------- the table


def printed(grid: Grid, cell: Trial, data: Published) -> dict[str, str]:
    """What the paper prints for the cell: column -> the number as printed; empty where its table has no such cell."""
    own = grid.ablation.own | cell.settings
    if grid.ablation.paper == "table7":
        if own.get("params.learn_shift"):
            return {}
        rows = [r for r in data["table7"] if (float(r["a"]), float(r["b"])) == (own.get("params.a"), own.get("params.b"))]
        return {"(a, b)": rows[0]["geneval"]} if rows else {}
    if grid.ablation.paper == "table6":
        weights = (own.get("params.fake_weight"), own.get("params.mix_weight"))
        rows = [r for r in data["table6"] if (float(r["lambda_p"]), float(r["lambda_e"])) == weights]
        names = {"apex_0_6b": "0.6B", "apex_1_6b": "1.6B", "apex_20b_lora_r32": "20B LoRA"}
        return {name: rows[0][key] for key, name in names.items()} if rows else {}
    if grid.ablation.paper == "table5":
        own = {"forward_equivalents": grid.budget} | own
        columns = [called.get(own.get(key)) for key, called in grid.ablation.printed.items()]
        if None in columns or not columns:
            return {}
        where = {name: value for column in columns for name, value in column.items()}
        return {row["model"].removeprefix("APEX "): row["geneval"] for row in find(data["table5"], where)}
    return {}


def short(key: str) -> str:
    """`params.learn_shift` -> `learn_shift`."""
    return key.rpartition(".")[2]


def value_words(value: Any) -> str:
    return (
        "–"
        if value is None
        else ("no", "yes")[value]
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def table(grid: Grid, data: Published) -> Table:
    """A line per cell: its settings, the paper's number, what was measured, the difference from the control prompt by prompt."""
    known = {cell.name: printed(grid, cell, data) for cell in grid.cells}
    theirs = list(dict.fromkeys(name for found in known.values() for name in found))
    columns = [Column(key, short(key), numeric=False) for key in grid.shown]
    columns += [Column(f"pub_{name}", name, "published GenEval") for name in theirs]
    columns += [Column("geneval", "GenEval ↑", "measured here"), Column("difference", "minus control", "measured here")]
    columns += [Column(name, f"{name} ↑", "measured here") for name in COVERAGE if grid.coverage]
    columns += [Column("visibility", "shift's visibility", "measured here")] if any(c.visibility is not None for c in grid.cells) else []
    columns += [Column("n", "n"), Column("seeds", "seeds"), Column("note", "note", numeric=False)]
    caption = (
        f"{grid.ablation.about} Row `{grid.ablation.row}`, {_spent_words(grid)}, test prompts, NFE {grid.nfe}. "
        "Intervals: 95%, over prompts and, with several seeds, over seeds. Minus control: paired over prompts; "
        f"{_noise_words(grid)}. The control is bold. Visibility: the change that the shift makes in the untrained student's velocity over "
        "that of another caption."
    )
    found = Table(grid.name, grid.ablation.title, caption.strip(), columns)
    for cell in grid.cells:
        control, own = cell.name == grid.control, grid.ablation.own | cell.settings
        why = f"Not run yet: snakemake ablation_{grid.name} makes it."
        if cell.failed:
            why = f"{FAILED}{cell.name} has no images. {failed_words({(grid.nfe, s): text for s, text in cell.failed.items()})}."
        line = {key: Cell(value_words(own.get(key)), strong=control) for key in grid.shown}
        for name in theirs:
            text = known[cell.name].get(name)
            line[f"pub_{name}"] = Cell(text) if text else missing(NOT_PUBLISHED, merge=True)
        score = cell.score(OVERALL)
        line["geneval"] = number(score, 3) if score else missing(why)
        line["difference"] = _difference(cell, grid, why)
        for name in COVERAGE if grid.coverage else ():
            line[name] = number(one, 2, interval=False) if (one := cell.score(f"coverage/{name}")) else missing(why)
        line["visibility"] = plain(cell.visibility, why, 2)
        line["n"] = Cell(str(score.n), Summary(score.n)) if score else missing(why)
        line["seeds"] = Cell(str(score.seeds), Summary(score.seeds)) if score else missing(why)
        said = "; ".join(f"seed {seed}: {text}" for seed, text in cell.stopped.items())
        failed = f"{len(cell.failed)} of {len(cell.geneval)} seeds not finite" if cell.failed and score else ""
        words = ", ".join(filter(None, ["control" if control else "", "diverged" if said else "", failed, *cell.remarks]))
        line["note"] = Cell(words, None, " ".join([*([f"{cell.name}: {said}."] if said else []), *cell.remarks.values()]))
        found.lines.append(Line(line))
    return found


def _spent_words(grid: Grid) -> str:
    """What the cells' trainings cost, by their records; cells that name a budget of their own, and runs that diverged, are left out."""
    trained = [
        record.training["forward_equivalents"]
        for cell in grid.cells
        for record in cell.geneval.values()
        if not cell.settings.keys() & set(BUDGET) and record.training and "forward_equivalents" in record.training and not cell.stopped
    ]
    if not trained:
        return "budget not recorded"
    ends = dict.fromkeys(f"{found(trained):,.0f}" for found in (min, max))
    return f"{' to '.join(ends)} forward passes of the teacher where no other budget is given"


def _noise_words(grid: Grid) -> str:
    if grid.noise is None:
        return "no cell has three seeds, so training noise is not in it"
    return f"of a cell with one seed it takes in the training noise of those with three (a standard deviation of {grid.noise:.2g})"


def _difference(cell: Trial, grid: Grid, why: str) -> Cell:
    control = grid.of_control
    if cell.name == control.name:
        return Cell("–")
    if cell.per_prompt is None or control.per_prompt is None:
        return missing(why)
    found = grid.difference(cell, control)
    return number(found, 3) if found else missing("The two records are not of the same prompts.")


# -------------------------------------------------------------------------------------------------------- the figure


def label(grid: Grid, cell: Trial) -> str:
    """The cell's settings in a few words, as they differ within the grid."""
    standard = grid.ablation.own
    own = {key: value for key, value in (standard | cell.settings).items() if key in grid.shown}
    own = {key: value for key, value in own.items() if not isinstance(value, bool) or standard.get(key) != value}
    words = [
        f"{short(key)} {value_words(own[key])}" if not isinstance(own[key], bool) else short(key) if own[key] else f"no {short(key)}"
        for key in grid.shown
        if key in own
    ]
    return ", ".join(words) or "as it is"


def draw(grid: Grid, data: Published) -> Figure:
    """A line per cell: GenEval with its interval and, as crosses, what the paper prints; spread; the shift's visibility."""
    names = {cell.name: label(grid, cell) + (" (control)" if cell.name == grid.control else "") for cell in grid.cells}
    look = plotting.looks({grid.ablation.row: grid.family})[grid.ablation.row]
    seen = any(cell.visibility is not None for cell in grid.cells)
    metrics = [OVERALL, *(["coverage/spread"] if grid.coverage else [])]
    heads = ["GenEval ↑", "coverage: spread ↑"][: len(metrics)] + (["visibility of the shift"] if seen else [])
    groups = [(grid.ablation.row, [(name, plotting.INK if name.endswith("(control)") else look.color) for cell, name in names.items()])]
    wide = max(len(name) for name in names.values()) * 0.068 + 0.35
    budget = "" if set(grid.shown) & set(BUDGET) else f"; {_spent_words(grid).removesuffix(' where no other budget is given')}"
    title = f"{grid.ablation.title}{budget}; NFE {grid.nfe}" + ("; ×: the paper's numbers" if grid.ablation.paper else "")
    marked = {}
    for cell in grid.cells:
        for remark in cell.remarks:
            marked.setdefault(remark, []).append(names[cell.name])
    figure, found, level = frame(groups, heads, title, [4.4, 2.2, 2.2][: len(heads)], names=max(1.25, wide))
    found[0].set(xlim=(-0.02, 1.02))
    if grid.coverage:
        found[1].set(xlim=(-0.02, 1.1))
    control = grid.of_control.score(OVERALL)
    if control:
        found[0].axvline(control.value, color=plotting.PALE, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for cell in grid.cells:
        at, color = level[names[cell.name]], look.color
        for text in printed(grid, cell, data).values():
            found[0].plot([float(text)], [at], marker="x", markersize=4.5, color=plotting.PALE, linestyle="", zorder=2)
        for axes, metric in zip(found, metrics, strict=False):
            if one := cell.score(metric):
                bar(axes, one, at, color)
                axes.plot([one.value], [at], marker="X" if cell.stopped else "o", markersize=5.5, color=color, linestyle="", zorder=3)
            else:
                say(axes, at, "failed: not finite" if cell.failed else "not run")
        if seen and cell.visibility is not None:
            found[-1].plot([cell.visibility], [at], marker="o", markersize=5, color=color, linestyle="", zorder=3)
    if seen:
        most = max(1.0, *(cell.visibility for cell in grid.cells if cell.visibility is not None))
        found[-1].set(xlim=(-0.03 * most, 1.06 * most))  # no dot is cut by an edge
        found[-1].axvline(1, color=plotting.PALE, linewidth=0.8, zorder=1)
        found[-1].set_xlabel("1: another caption", fontsize=8)
    for remark, cells in marked.items():
        plotting.footer(figure, ["all cells"] if len(cells) == sum(bool(cell.geneval) for cell in grid.cells) else cells, remark)
    return figure


PICTURES = "pictures.zip"


def draw_pictures(grid: Grid, results: Path, seed: int) -> Image.Image | None:
    """A line of pictures per cell that keeps some, the same prompts and noise for all; None where none does."""
    family = plotting.looks({grid.ablation.row: grid.family})[grid.ablation.row].color
    with ExitStack() as stack:
        folders, rows = {}, []
        for cell in grid.cells:
            if not (archive := results / cell.name / f"seed{seed}" / PICTURES).is_file():
                continue
            key = (cell.name, grid.nfe)
            folders[key] = stack.enter_context(opened(archive))
            control = cell.name == grid.control
            below = ("control, " if control else "") + (f"{score.value:.3f}" if (score := cell.score(OVERALL)) else "not scored")
            rows.append(grids.Row(key, label(grid, cell), below, color=grids.INK if control else plotting.ink(family)))
        if not rows:
            return None
        without = [label(grid, cell) for cell in grid.cells if (cell.name, grid.nfe) not in folders]
        title = f"{grid.ablation.title}: NFE {grid.nfe}, seed {seed}; below each GenEval over its seeds; prompts by place in the list"
        foot = f"no images yet: {'; '.join(without)}" if without else ""
        return grids.Sheet(folders, rows, grids.prompts_of(folders, rows), 1, title, foot).draw()


def main() -> None:
    parser = Parser("paper_tables.ablations", __doc__)
    parser.add_argument("--config", type=Path, required=True, help="the profile; its `ablations` names the grids")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of the profile")
    parser.add_argument("--results", type=Path, required=True, help="results/<profile>/ablations")
    parser.add_argument("--grid", help="one grid; default: all")
    parser.add_argument("--out", type=Path, help="folder for the tables and figures")
    parser.add_argument("--ends", type=Path, help="write the grid's best, worst and control cell here, as a JSON list")
    args = parser.parse_args()
    plan = plan_of(args.config, *args.set)
    names = [args.grid] if args.grid else list(plan.found.grids)
    for name in names:
        if name not in plan.found.grids:
            raise UserError(f"--grid {name}: unknown; {args.config} has: {', '.join(plan.found.grids) or 'none'}")
    if args.ends:
        if not args.grid:
            parser.error("--ends needs --grid")
        write_atomic(args.ends, json.dumps(ends(load_grid(plan, args.grid, args.results), plan.found.seeds)) + "\n")
        return
    if not args.out:
        parser.error("give --out or --ends")
    data = published.load()
    for name in names:
        grid = load_grid(plan, name, args.results)
        done = sum(bool(cell.geneval) for cell in grid.cells)
        if not done and not args.grid:
            print(f"{name}: not run yet, left out; snakemake ablation_{name} makes it")
            continue
        for file, content in all_formats(table(grid, data)).items():
            write_atomic(args.out / file, content)
        with plotting.drawing():
            write_atomic(args.out / f"{name}.png", plotting.png(draw(grid, data)))
        if image := draw_pictures(grid, args.results, plan.found.seeds[0]):
            write_atomic(args.out / f"{name}_pictures.png", grids.png(image))
        print(f"{args.out}/{name}: {done} of {len(grid.cells)} cells were run")


if __name__ == "__main__":
    sys.exit(run_command(main))
