"""All result records of a results folder as one tidy table, one row per number.

    python -m paper_tables.collect --results results/world --out results/world/metrics.csv
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path

from apex.errors import run_command
from apex.files import write_atomic
from paper_tables import records

COLUMNS = (
    "profile", "backbone", "method", "variant", "seed", "nfe", "metric", "value", "ci_low", "ci_high", "n",
    "higher_is_better", "hardware", "git_commit", "config_hash", "row", "split", "unit",
)  # fmt: skip


def tidy(found: list[records.Record]) -> list[dict[str, object]]:
    """One dictionary per number, keys `COLUMNS`, ordered by row, NFE, seed, split, metric; unknown values are ''."""
    rows = []
    for record in found:
        data = record.data
        common = {key: data.get(key) for key in ("profile", "backbone", "method", "variant", "hardware", "git_commit", "config_hash")}
        for metric in record.metrics():
            own = {"metric": metric.name, "value": metric.value, "ci_low": metric.low, "ci_high": metric.high, "n": metric.n}
            own |= {"higher_is_better": metric.higher_is_better, "unit": metric.unit}
            own |= {"row": record.row, "nfe": record.nfe, "seed": record.seed, "split": record.split}
            rows.append({key: "" if (value := (common | own)[key]) is None else value for key in COLUMNS})
    return sorted(rows, key=lambda row: (row["row"], row["nfe"], -1 if row["seed"] == "" else row["seed"], row["split"], row["metric"]))


def to_csv(rows: list[dict[str, object]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder that holds records/")
    parser.add_argument("--out", type=Path, required=True, help="the CSV file to write")
    args = parser.parse_args()
    rows = tidy(records.load(args.results))
    write_atomic(args.out, to_csv(rows))
    print(f"{args.out}: {len(rows)} numbers of {len({row['row'] for row in rows})} rows")


if __name__ == "__main__":
    sys.exit(run_command(main))
