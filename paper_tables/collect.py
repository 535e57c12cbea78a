"""All result records of a results folder as one tidy table, one row per number.

python -m paper_tables.collect --results results/world --out results/world/metrics.csv
"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

from apex.command import Parser
from apex.errors import run_command
from apex.files import write_atomic
from paper_tables import records

OF_RECORD = ("profile", "backbone", "method", "variant", "seed", "nfe", "hardware", "git_commit", "config_hash", "row")
OF_METRIC = ("metric", "value", "ci_low", "ci_high", "n", "higher_is_better", "unit", "interval")
COLUMNS = (
    "profile", "backbone", "method", "variant", "seed", "nfe", "metric", "value", "ci_low", "ci_high", "n",
    "higher_is_better", "hardware", "git_commit", "config_hash", "row", "split", "unit", "interval", "run_hash",
)  # fmt: skip


def tidy(found: list[records.Found]) -> list[dict[str, object]]:
    """One dictionary per number, keys `COLUMNS`, ordered by row, NFE, seed, split, metric; unknown values are ''."""
    rows = []
    for one in found:
        for metric in one.record.metrics:
            values = (
                {key: getattr(one.record, key) for key in OF_RECORD}
                | {key: getattr(metric, key) for key in OF_METRIC}
                | {"split": one.split, "run_hash": one.record.run}
            )
            rows.append({key: "" if values[key] is None else values[key] for key in COLUMNS})
    return sorted(rows, key=lambda row: (row["row"], row["nfe"], -1 if row["seed"] == "" else row["seed"], row["split"], row["metric"]))


def to_csv(rows: list[dict[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main() -> None:
    parser = Parser("paper_tables.collect", __doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder that holds records/")
    parser.add_argument("--out", type=Path, required=True, help="the CSV file to write")
    args = parser.parse_args()
    rows = tidy(records.load(args.results))
    write_atomic(args.out, to_csv(rows))
    print(f"{args.out}: {len(rows)} numbers of {len({row['row'] for row in rows})} rows")


if __name__ == "__main__":
    sys.exit(run_command(main))
