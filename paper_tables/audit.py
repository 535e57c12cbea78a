"""The audit of the paper's own tables: every check, what it looked at, what it found and how sure.

    python -m paper_tables.audit --out results/world/tables

Writes audit.md, audit.csv and audit.html. Nothing is asserted by hand: the findings follow from the cells in `published/` and
the sayings in `text_claims.yaml`; change a cell and they change.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from apex.errors import run_command
from apex.files import write_atomic
from paper_tables import checks, checks_outside, checks_text, published
from paper_tables.checks import CERTAINTY, Checked
from paper_tables.render import Cell, Column, Line, Table, html_fragment, page, to_csv, to_markdown

CAPTION = (
    "Findings computed from the paper's printed digits (arXiv 2604.12322v1). Certain: arithmetic on the digits with rounding allowed for, or equality digit by digit. "
    "Likely: needs one outside fact or a statistical judgement. Note: worth knowing, may have an innocent reason. A finding says what the tables show, not why."
)


def run(data: published.Published) -> list[Checked]:
    """Every check, in a fixed order."""
    return [check(data) for module in (checks, checks_outside, checks_text) for check in module.CHECKS]


def findings_table(done: list[Checked]) -> Table:
    """All findings, the surest first, then by table and row."""
    columns = [Column(key, head, numeric=False) for key, head in (("certainty", "how sure"), ("table", "table"), ("row", "row"), ("column", "column"), ("what", "what"), ("computed", "computed"), ("check", "check"))]
    found = sorted((finding for one in done for finding in one.findings), key=lambda f: (CERTAINTY.index(f.certainty), f.table))
    lines = [Line({column.key: Cell(getattr(finding, column.key)) for column in columns}) for finding in found]
    return Table("audit", "Audit of the paper's tables", CAPTION, columns, lines)


def checks_table(done: list[Checked]) -> Table:
    """Every check with the number of things that it looked at, those without a finding included."""
    columns = [Column("name", "check", numeric=False), Column("about", "what it compares", numeric=False), Column("examined", "looked at"), Column("found", "findings"), Column("note", "what agrees", numeric=False)]
    lines = [Line({"name": Cell(one.name), "about": Cell(one.about), "examined": Cell(str(one.examined)), "found": Cell(str(len(one.findings))), "note": Cell(one.note)}) for one in done]
    return Table("checks", "What was checked", "A check without a finding is a result too.", columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for audit.md, audit.csv, audit.html")
    parser.add_argument("--published", type=Path, default=published.PUBLISHED, help="folder of the published tables")
    parser.add_argument("--claims", type=Path, default=None, help="the text's sayings (default: text_claims.yaml beside this file)")
    args = parser.parse_args()
    done = run(published.load(args.published, args.claims))
    found, looked = findings_table(done), checks_table(done)
    write_atomic(args.out / "audit.md", to_markdown(found) + "\n" + to_markdown(looked))
    write_atomic(args.out / "audit.csv", to_csv(found))
    write_atomic(args.out / "audit.html", page(found.title, html_fragment(found, "h1") + "\n" + html_fragment(looked)))
    counts = ", ".join(f"{sum(line.cells['certainty'].text == level for line in found.lines)} {level}" for level in CERTAINTY)
    print(f"{args.out}/audit.md: {len(found.lines)} findings ({counts}) of {len(done)} checks")


if __name__ == "__main__":
    sys.exit(run_command(main))
