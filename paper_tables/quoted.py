"""Text that quotes results, such as the README, with every number filled in from the committed records.

    python -m paper_tables.quoted README.md            fills the blocks of a Markdown file
    python -m paper_tables.quoted README.md --check    exits with 2 if a block differs from what the records say

A block of the file lies between `<!-- quoted: NAME -->` and `<!-- end quoted -->`. Its text comes from
paper_tables/templates/NAME.md, in which braces hold quotations:

| quotation | number |
| --- | --- |
| `{bench}` | the table of `make bench` |
| `{value METRIC ROW@NFE}` | mean over seeds; `{interval ...}` adds its 95% interval |
| `{seeds ROW@NFE}` | number of seeds behind GenEval |
| `{difference METRIC ROW@NFE ROW@NFE}` | first minus second with its interval; `{ratio ...}` likewise, without one |
| `{stands METRIC ROW@NFE ROW@NFE}` | "above", "below" or "not told apart from", by the interval of that difference |
| `{cost ROW ROW KEY...}` | first over second in what `training` records under these keys |
| `{cell GRID CELL}` | GenEval of an ablation's cell; `{cells GRID CELL CELL}` the difference of two, with its interval |
| `{printed TABLE LABEL@NFE COLUMN}` | a number as the paper prints it |

`:3` after the first word sets the decimals (two if absent); `world_qwen/` before a row names its profile (`matrix` if absent). A name that
holds spaces stands in double quotes.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from apex.ablations import Plan
from apex.command import Parser
from apex.config import load
from apex.errors import UserError, run_command
from apex.files import write_atomic
from paper_tables import ablations, published, stats
from paper_tables.cells import number
from paper_tables.expected import Expected
from paper_tables.stats import Summary
from paper_tables.view import View

ROOT = Path(__file__).resolve().parent.parent
TEMPLATES = Path(__file__).resolve().parent / "templates"
REFERENCE = ROOT / "results" / "reference"
BLOCK = re.compile(r"(<!-- quoted: (?P<name>\w+) -->\n).*?(<!-- end quoted -->)", re.DOTALL)
DEFAULT = "matrix"


class Quotes:
    """The committed results, opened when they are first asked for. `reference`: the folder of all profiles."""

    def __init__(self, reference: Path = REFERENCE) -> None:
        self.reference = reference
        self.view = cache(self._view)
        self.grid = cache(self._grid)

    def _view(self, profile: str) -> View:
        config = load(ROOT / "workflows" / "config" / f"{profile}.yaml")
        return View.load(self.reference / profile, Expected.of(config))

    def _grid(self, name: str) -> ablations.Grid:
        plan = Plan(load(ROOT / "workflows" / "config" / f"{DEFAULT}.yaml"))
        if name not in plan.found.grids:
            raise UserError(f"unknown grid {name!r}; known: {', '.join(plan.found.grids)}")
        return ablations.load_grid(plan, name, self.reference / DEFAULT / "ablations")

    def key(self, text: str) -> tuple[View, tuple[str, int]]:
        """`[profile/]row@NFE`."""
        match = re.fullmatch(r"(?:(\w+)/)?([^@]+)@(\d+)", text)
        if not match:
            raise UserError(f"found {text!r}, expected ROW@NFE, such as apex@1")
        return self.view(match[1] or DEFAULT), (match[2], int(match[3]))

    def measured(self, metric: str, at: str) -> Summary:
        view, key = self.key(at)
        found = view.get(key, metric)
        if found is None:
            raise UserError(f"no record of {metric} of {key[0]} at NFE {key[1]}")
        return found

    # One method a quotation; the first word names it.
    def bench(self) -> str:
        path = self.reference / "bench" / "bench.md"
        if not path.is_file():
            raise UserError(f"{path}: not found; `make bench` writes one to results/bench")
        return path.read_text(encoding="utf-8").strip()

    def value(self, metric: str, at: str) -> Summary:
        found = self.measured(metric, at)
        return Summary(found.value)

    def interval(self, metric: str, at: str) -> Summary:
        return self.measured(metric, at)

    def seeds(self, at: str) -> str:
        return str(self.measured("geneval/overall", at).seeds)

    def difference(self, metric: str, first: str, second: str) -> Summary:
        self.measured(metric, first), self.measured(metric, second)
        (view, key), (_, other) = self.key(first), self.key(second)
        return view.difference(key, other, metric)

    def stands(self, metric: str, first: str, second: str) -> str:
        read = stats.reading(self.difference(metric, first, second))
        if not read:
            raise UserError(f"{metric} of {first} minus {second} has no interval")
        return f"{read} from" if read == stats.APART else read

    def ratio(self, metric: str, first: str, second: str) -> Summary:
        self.measured(metric, first), self.measured(metric, second)
        (view, key), (_, other) = self.key(first), self.key(second)
        found = view.ratio(key, other, metric)
        if found is None:
            raise UserError(f"{metric} of {second} is 0: there is no ratio")
        return Summary(found.value)

    def cost(self, first: str, second: str, *keys: str) -> Summary:
        above, below = (self.view(DEFAULT).cost(row, *keys) for row in (first, second))
        if above is None or not below:
            raise UserError(f"no record of {' '.join(keys)} of {first} or {second}")
        return Summary(above / below)

    def _trial(self, grid: str, cell: str) -> ablations.Trial:
        found = {one.name: one for one in self.grid(grid).cells}
        if cell not in found or found[cell].per_prompt is None:
            raise UserError(f"no record of cell {cell!r} of {grid}; cells: {', '.join(found)}")
        return found[cell]

    def cell(self, grid: str, cell: str) -> Summary:
        return Summary(self._trial(grid, cell).score(ablations.OVERALL).value)

    def cells(self, grid: str, first: str, second: str) -> Summary:
        return self.grid(grid).difference(self._trial(grid, first), self._trial(grid, second))

    def printed(self, table: str, at: str, column: str) -> str:
        label, _, nfe = at.partition("@")
        rows = [row for row in published.load()[table] if published.label(row) == label and row.get("nfe", nfe) == nfe]
        if len(rows) != 1:
            raise UserError(f"{table} has {len(rows)} rows {at!r}, expected one")
        return rows[0][column]


QUOTATIONS = ("value", "interval", "seeds", "difference", "stands", "ratio", "cost", "cell", "cells", "printed", "bench")


def filled(template: str, quotes: Quotes, where: str) -> str:
    """The template's text with every quotation replaced.

    Raises:
        UserError: a quotation that is unknown or that no record answers; names `where` and the quotation.
    """

    def replace(match: re.Match[str]) -> str:
        words = shlex.split(match[1])
        name, _, decimals = words[0].partition(":")
        if name not in QUOTATIONS:
            raise UserError(f"{where}: {match[0]}: found {name!r}, expected one of {', '.join(QUOTATIONS)}")
        try:
            quotation: Callable[..., Summary | str] = getattr(quotes, name)
            found = quotation(*words[1:])
        except UserError as error:
            raise UserError(f"{where}: {match[0]}: {error}") from None
        except TypeError as error:  # too many words, or too few
            raise UserError(f"{where}: {match[0]}: {error}") from None
        return found if isinstance(found, str) else number(found, int(decimals or 2)).text

    return re.sub(r"\{([^{}\n]+)\}", replace, template)


def written(text: str, quotes: Quotes, templates: Path = TEMPLATES) -> str:
    """A Markdown text with its blocks filled in."""

    def block(match: re.Match[str]) -> str:
        path = templates / f"{match['name']}.md"
        if not path.is_file():
            raise UserError(f"{path}: not found; a block `<!-- quoted: {match['name']} -->` takes its text from there")
        return match[1] + filled(path.read_text(encoding="utf-8"), quotes, path.name) + match[3]

    return BLOCK.sub(block, text)


def main() -> None:
    parser = Parser("paper_tables.quoted", __doc__)
    parser.add_argument("files", nargs="+", type=Path, help="Markdown files with blocks")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 2 if a file would change")
    args = parser.parse_args()
    quotes = Quotes()
    for path in args.files:
        before = path.read_text(encoding="utf-8")
        after = written(before, quotes)
        if args.check and after != before:
            raise UserError(f"{path}: found numbers other than the committed records'; python -m paper_tables.quoted {path} writes them")
        if not args.check and after != before:
            write_atomic(path, after)


if __name__ == "__main__":
    sys.exit(run_command(main))
