"""Copies the small files of a finished run to where reference results are committed.

    python -m workflows.reference --results results/world --out results/reference/world

Copied: metrics.csv, records, tables, audit, figures, calibration, and every run's log and record of making; no weights, no images.
The folder `--out` is replaced as a whole.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from apex.errors import UserError, run_command
from apex.files import atomic_folder

WANTED = (
    "metrics.csv",
    "records/**/*.json",
    "tables/*",
    "audit/*",
    "figures/*",
    "calibration/*.json",
    "runs/*/*/log.csv",
    "runs/*/*/*.json",
)


def copy(results: Path, out: Path) -> int:
    """Copies the wanted files; returns their number."""
    if not (results / "metrics.csv").is_file():
        raise UserError(f"{results}: found no metrics.csv; make the results first: snakemake all")
    files = sorted({f for pattern in WANTED for f in results.glob(pattern) if f.is_file() and not f.name.startswith(".")})
    with atomic_folder(out) as folder:
        for file in files:
            target = folder / file.relative_to(results)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    return len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", required=True, type=Path, help="results/<profile>")
    parser.add_argument("--out", required=True, type=Path, help="results/reference/<profile>")
    args = parser.parse_args()
    print(f"{args.out}: {copy(args.results, args.out)} files")


if __name__ == "__main__":
    sys.exit(run_command(main))
