"""The plan of a profile as a table and a figure: parameters, memory by part beside the card's, steps, FLOPs, hours.

    python -m paper_tables.plan --plan results/sana_0_6b/plan

Reads plan.json of that folder, as `apex.estimate` writes it; writes plan.md, .tex, .csv, .html and .png beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex.command import Parser
from apex.errors import UserError, run_command
from apex.files import read_object, write_atomic
from paper_tables import plotting
from paper_tables.cells import missing, plain, significant
from paper_tables.render import Cell, Column, Line, Table, all_formats
from paper_tables.stats import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = {
    "student": "#2F5D8A", "teacher": "#7FA6C9", "extra": "#B3382C", "ema": "#8A6D3B", "optimizer": "#5B8C5A", "gradients": "#A9C4A0",
    "gathered": "#6E5A7E", "frozen parts": "#9aa1a9", "step": "#D9A441",
}  # fmt: skip
NOT_RUN = "No finished run of this row in results/ or results/reference/, and no steps of it measured by `snakemake measure`."


def gigabytes(plan: dict[str, Any], value: float) -> tuple[float, str]:
    """In the unit that suits the plan: a world's megabytes, a large network's gigabytes."""
    return (value * 1024, "MB") if max(row["total"] for row in plan["rows"]) < 1 else (value, "GB")


def table(plan: dict[str, Any]) -> Table:
    """A line per row."""
    unit = gigabytes(plan, 0.0)[1]
    columns = [Column("row", "row", numeric=False), Column("parameters", "all", "parameters"), Column("trainable", "trained", "parameters")]
    columns += [Column(f"memory_{part}", part, f"memory, {unit}") for part in PARTS]
    columns += [Column("total", "total", f"memory, {unit}"), Column("measured_memory", "as measured", f"memory, {unit}")]
    columns += [Column("fits", "fits", numeric=False), Column("mend", "what would fit", numeric=False)]
    columns += [Column("fe", "forward-equivalents a sample"), Column("steps", "steps"), Column("flops", "EFLOP")]
    columns += [Column("hours", "hours"), Column("measured_hours", "measured hours")]
    disk = plan.get("captions_gb_per_1000")
    parts = f"codec; captions are read from disk, {disk:.3g} GB for 1,000" if disk else "text encoder and codec"
    card = f" of {plan['memory_gb']:.4g} GB" if plan["memory_gb"] else ""
    count = plan.get("processes", 1)
    devices = f"{count} devices, each" if count > 1 else "One device"
    split = " Weights, gradients, moments and mean are split over them; gathered: the blocks that are whole." if plan.get("split") else ""
    caption = (
        f"Profile {plan['profile']}: latents of {' x '.join(map(str, plan['latent']))}, captions of {plan['tokens']} tokens, a budget of "
        f"{plan['budget']:g} forward-equivalents; networks from {plan['source']}. {devices}{card} at {plan['rate_tflops']:.3g} TFLOP/s "
        f"({plan['rate_source']}), of which training is taken to reach {plan['share']:g}.{split} Nothing was run: the "
        f"networks are built without weights and measured there. frozen parts: {parts}. step: activations at their "
        "peak; with the gradients a bound from above. Measured: a finished run, or a few steps with random weights (`snakemake measure`); "
        "gradients count within the step there, and frozen parts not at all."
    )
    out = Table("plan", "What the runs need", caption, columns)
    for row in plan["rows"]:
        line = {"row": Cell(row["row"]), "fits": Cell({True: "yes", False: "no", None: ""}[row["fits"]], strong=row["fits"] is False)}
        for key in ("parameters", "trainable"):
            line[key] = Cell(f"{row[key]:,}", Summary(row[key]))
        for part in PARTS:
            value = gigabytes(plan, row["memory"].get(part, 0.0))[0]
            line[f"memory_{part}"] = Cell(significant(value) if value > 5e-4 else "0", Summary(value))
        line["total"] = plain(gigabytes(plan, row["total"])[0], "", 1)
        had = row["measured_memory"]
        line["measured_memory"] = plain(gigabytes(plan, had)[0] if had is not None else None, NOT_RUN, 1)
        line["mend"] = Cell(row["mend"])
        words = f"{row['row']}: the FLOPs of {', '.join(row['uncounted'])} are left out." if row["uncounted"] else ""
        cell = plain(row["forward_equivalents"], "", 2)
        line["fe"] = Cell(cell.text, cell.summary, words)
        line["steps"] = Cell(f"{row['steps']:,}", Summary(row["steps"]))
        line["flops"] = Cell(significant(row["flops"] / 1e18), Summary(row["flops"] / 1e18))
        line["hours"] = (
            Cell(significant(row["hours"]), Summary(row["hours"])) if row["hours"] is not None else missing("No rate was given.")
        )
        line["measured_hours"] = plain(row["measured_hours"], NOT_RUN, 2)
        out.lines.append(Line(line))
    return out


def draw(plan: dict[str, Any]) -> Figure:
    """A bar per row, a part per use, the card's memory as a line."""
    rows = plan["rows"]
    figure = plotting.blank((8.6, 1.5 + 0.32 * len(rows)))
    axes = figure.add_axes((0.2, 0.9 / (1.5 + 0.32 * len(rows)), 0.77, 1 - 1.25 / (1.5 + 0.32 * len(rows))))
    for level, row in enumerate(rows):
        start = 0.0
        for part, color in PARTS.items():
            value = gigabytes(plan, row["memory"].get(part, 0.0))[0]
            axes.barh(level, value, left=start, color=color, height=0.66)
            start += value
    if plan["memory_gb"]:
        axes.axvline(gigabytes(plan, plan["memory_gb"])[0], color=plotting.INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(rows)), [row["row"] for row in rows])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlabel(f"{gigabytes(plan, 0.0)[1]} of memory in training" + ("; dashed: the card's" if plan["memory_gb"] else ""))
    axes.set_title(f"{plan['profile']}: memory by part, estimated")
    plotting.legend(figure, {part: {"color": color, "linewidth": 6} for part, color in PARTS.items()})
    return figure


def main() -> None:
    parser = Parser("paper_tables.plan", __doc__)
    parser.add_argument("--plan", required=True, type=Path, help="folder with plan.json")
    args = parser.parse_args()
    plan = read_object(args.plan / "plan.json")
    if not plan.get("rows"):
        raise UserError(f"{args.plan / 'plan.json'}: rows: found none, expected one or more; run apex.estimate again")
    for name, content in all_formats(table(plan)).items():
        write_atomic(args.plan / name, content)
    with plotting.drawing():
        write_atomic(args.plan / "plan.png", plotting.png(draw(plan)))
    print(f"{args.plan}: plan.md, plan.html, plan.png")


if __name__ == "__main__":
    sys.exit(run_command(main))
