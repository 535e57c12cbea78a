"""The audit of the paper's own tables: every check, what it found, and the verdict.

    python -m paper_tables.audit --out results/world/audit

Writes audit.md, audit.csv and audit.html. Nothing is asserted by hand: the findings follow from the cells in `published/` and
the sayings in `text_claims.yaml`; change a cell and they change.
"""

from __future__ import annotations

import sys
from pathlib import Path

from apex.command import Parser
from apex.errors import run_command
from apex.files import write_atomic
from paper_tables import checks, checks_outside, checks_text, published
from paper_tables.checks import VERDICTS, Checked, Finding
from paper_tables.render import Cell, Column, Line, Table, html_fragment, page, to_csv, to_markdown

COLUMNS = ("verdict", "table", "row", "what", "computed")


def run(data: published.Published) -> list[Checked]:
    """Every check, in a fixed order."""
    return [check(data) for check in (*checks.CHECKS, *checks_outside.CHECKS, *checks_text.checks(data))]


def findings_table(done: list[Checked]) -> Table:
    """All findings by verdict, then by table; last the checks that found nothing."""
    found = [finding for one in done for finding in one.findings]
    found += [Finding("adds up", "", "", one.about, f"{one.examined} looked at") for one in done if not one.findings]
    found.sort(key=lambda finding: (list(VERDICTS).index(finding.verdict), finding.table))
    lines = [Line({key: Cell(getattr(finding, key)) for key in COLUMNS}) for finding in found]
    caption = "Computed from the printed digits of arXiv 2604.12322v1. A finding says what the tables show, not why. Verdicts: "
    caption += "; ".join(f"{verdict}: {meaning}" for verdict, meaning in VERDICTS.items()) + "."
    return Table("audit", "Audit of the paper's tables", caption, [Column(key, key, numeric=False) for key in COLUMNS], lines=lines)


def main() -> None:
    parser = Parser("paper_tables.audit", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for audit.md, audit.csv, audit.html")
    parser.add_argument("--published", type=Path, default=published.PUBLISHED, help="folder of the published tables")
    args = parser.parse_args()
    table = findings_table(run(published.load(args.published)))
    write_atomic(args.out / "audit.md", to_markdown(table))
    write_atomic(args.out / "audit.csv", to_csv(table))
    write_atomic(args.out / "audit.html", page(table.title, html_fragment(table, "h1")))
    counts = ", ".join(f"{sum(line.cells['verdict'].text == verdict for line in table.lines)} {verdict}" for verdict in VERDICTS)
    print(f"{args.out}/audit.md: {counts}")


if __name__ == "__main__":
    sys.exit(run_command(main))
