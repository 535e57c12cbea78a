"""Result records and published numbers as tables: Markdown, LaTeX (booktabs), CSV and HTML.

    python -m paper_tables.build --results results/world --out results/world/tables

Writes comparison (all methods by family and NFE), paired (each against apex, prompt by prompt), cost (budget, memory and time of
training), stability (how each training went), sweep (from one step to many), relative (each row beside the guided teacher at 25 steps,
or at its most), world (all measurements), with `--committed DIR` repeated (these results beside those), and table1 to table4 (the
paper's shape, published and measured side by side), each as .md, .tex, .csv and .html, and all.tex, which inputs them. Records are
enough: no images, no weights, no torch. With `--config FILE`, rows that the profile names and that were not run stand there as "not
run", and a column of what the profile does not measure is left out.
"""

from __future__ import annotations

import sys
from pathlib import Path

from apex.command import Parser
from apex.errors import run_command
from apex.files import write_atomic
from paper_tables import expected, published
from paper_tables.cells import COVERAGE
from paper_tables.render import Column, Table, all_formats, latex_document
from paper_tables.shared import shared
from paper_tables.tables_cost import cost
from paper_tables.tables_methods import comparison, paired
from paper_tables.tables_paper import table1, table2, table3, table4
from paper_tables.tables_repeat import repeated
from paper_tables.tables_sweep import sweep
from paper_tables.tables_training import stability
from paper_tables.tables_world import relative, world
from paper_tables.view import View


@shared
def tables(view: View, data: published.Published) -> list[Table]:
    made = [comparison(view), paired(view), cost(view), stability(view), sweep(view), relative(view), world(view), repeated(view)]
    made += [make(view, data) for make in (table1, table2, table3, table4)]
    return [table.without([column.key for column in table.columns if _unasked(view, column)]) for table in made if table]


def _unasked(view: View, column: Column) -> bool:
    """Whether a column is of what this profile does not measure: coverage needs renders, `unseen` a prompt set of the world."""
    name = column.key.removeprefix("our_").partition("_")[0]
    if name in COVERAGE:
        return not view.measures("coverage")
    return name in ("seen", "unseen") and not view.measures("geneval", "unseen")


def main() -> None:
    parser = Parser("paper_tables.build", __doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder that holds records/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--published", type=Path, default=published.PUBLISHED, help="folder of the published tables")
    parser.add_argument("--committed", type=Path, metavar="DIR", help="what is committed of the profile, to be set beside these results")
    expected.add_arguments(parser)
    args = parser.parse_args()
    made = tables(View.load(args.results, expected.from_arguments(args), args.committed), published.load(args.published))
    for table in made:
        for name, content in all_formats(table).items():
            write_atomic(args.out / name, content)
    write_atomic(args.out / "all.tex", latex_document(table.name for table in made))
    print(f"{args.out}: {', '.join(table.name for table in made)} as md, tex, csv, html")


if __name__ == "__main__":
    sys.exit(run_command(main))
