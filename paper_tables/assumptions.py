"""The assumptions log: what the paper leaves open, what was chosen and why, and how much it matters where an ablation varies it.

    python -m paper_tables.assumptions --config workflows/config/world.yaml --results results/world/ablations --out DIR

Reads assumptions.yaml and the ablations' records; writes assumptions.md, .tex, .csv and .html.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import Field, ValidationError

from apex.ablations import Plan
from apex.command import Parser
from apex.errors import UserError, run_command
from apex.files import write_atomic
from apex.strict import Strict, explain, parse_yaml
from paper_tables import expected, records
from paper_tables.ablations import OVERALL, label, load_grid, plan_of
from paper_tables.cells import missing
from paper_tables.render import Cell, Column, Line, Table, all_formats

FILE = Path(__file__).resolve().parent / "assumptions.yaml"
COLUMNS = (("open", "left open"), ("chosen", "chosen"), ("why", "why"), ("setting", "setting"), ("matters", "GenEval over its ablation"))


class Assumption(Strict):
    """One thing that the paper leaves open."""

    id: str = Field(pattern=r"^[a-z0-9_]+$", description="its name")
    open: str = Field(min_length=5, description="what is left open")
    chosen: str = Field(min_length=1, description="what this suite does")
    why: str = Field(min_length=5, description="the reason, and what is known of the public code")
    setting: str = Field("", description="where to change it; empty: it cannot be changed")
    grid: str = Field("", description="the ablation that varies it; empty: none does")


def read(path: Path = FILE) -> list[Assumption]:
    """The log. A fault is one `UserError` that names the file and the entry."""
    found = []
    for at, value in enumerate(parse_yaml(path.read_text(encoding="utf-8"), str(path))):
        try:
            found.append(Assumption.model_validate(value))
        except ValidationError as error:
            name = value.get("id", f"number {at + 1}") if isinstance(value, dict) else f"number {at + 1}"
            raise UserError(explain(error, Assumption, f"{path}: entry {name}")) from None
    return found


def sensitivity(plan: Plan, name: str, results: Path) -> Cell:
    """From the least to the most that a cell of the ablation scores, and which cells these are."""
    if name not in plan.found.grids:
        return missing(f"The profile has no ablation {name}; workflows/config/matrix.yaml has.")
    grid = load_grid(plan, name, results)
    known = {cell.name: score for cell in grid.cells if (score := cell.score(OVERALL))}
    if len(known) < 2:
        return missing(f"Not run yet: snakemake ablation_{name} makes it.")
    names = {cell.name: label(grid, cell) for cell in grid.cells}
    least, most = (pick(known, key=lambda one: known[one].value) for pick in (min, max))
    part = "" if len(known) == len(grid.cells) else f"; {len(known)} of {len(grid.cells)} cells were run"
    words = f"{known[least].value:.2f} ({names[least]}) to {known[most].value:.2f} ({names[most]}){part}"
    return Cell(words)


def table(log: list[Assumption], plan: Plan, results: Path) -> Table:
    """A line per entry."""
    caption = (
        "What arXiv 2604.12322v1 leaves open and this suite had to choose. The last column: GenEval at one step over the cells of the "
        "ablation that varies it; an ablation of several settings varies the others too."
    )
    out = Table("assumptions", "Assumptions", caption, [Column(key, head, numeric=False) for key, head in COLUMNS])
    for one in log:
        line = {key: Cell(getattr(one, key)) for key in ("open", "chosen", "why", "setting")}
        line["matters"] = sensitivity(plan, one.grid, results) if one.grid else missing("Does not apply: no ablation varies it.")
        out.lines.append(Line(line))
    return out


def main() -> None:
    parser = Parser("paper_tables.assumptions", __doc__)
    expected.add_arguments(parser)
    parser.add_argument("--results", type=Path, required=True, help="results/<profile>/ablations")
    parser.add_argument("--out", type=Path, required=True, help="folder for the log")
    args = parser.parse_args()
    if not args.config:
        parser.error("give --config")
    made = table(read(), plan_of(args.config, *args.set), args.results)
    made.remark = records.reference_words(args.results)
    for name, content in all_formats(made).items():
        write_atomic(args.out / name, content)
    print(f"{args.out}: {len(made.lines)} assumptions")


if __name__ == "__main__":
    sys.exit(run_command(main))
