"""Copies the small files of a finished run to where reference results are committed.

    python -m workflows.reference --results results/world --out results/reference/world

Copied: metrics.csv, records, tables, audit, figures, calibration, what tuning tried, every run's log and record of making, and the
images that grids show (pictures/); no weights, no other images. The folder `--out` is replaced as a whole, but for its tuning where
these results have none.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from apex.errors import UserError, run_command
from apex.files import atomic_folder
from paper_tables import pictures

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
TUNING = ("tune/tuning*", "tune/*/*/records/*.json", "tune/*/*/run/log.csv")


def copy(results: Path, out: Path) -> int:
    """Copies the wanted files; returns their number."""
    if not (results / "metrics.csv").is_file():
        raise UserError(f"{results}: found no metrics.csv; make the results first: snakemake all")
    tuned = results if (results / "tune" / "tuning.json").is_file() else out
    files = {file: root for root, patterns in ((results, WANTED), (tuned, TUNING)) for pattern in patterns for file in root.glob(pattern)}
    wanted = {file: file.relative_to(root) for file, root in files.items() if file.is_file()}
    wanted = {file: name for file, name in wanted.items() if not any(part.startswith(".") for part in name.parts)}
    with atomic_folder(out) as folder:
        for file, name in sorted(wanted.items()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
        kept = pictures.keep(results, folder / pictures.FOLDER)
    return len(wanted) + len(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", required=True, type=Path, help="results/<profile>")
    parser.add_argument("--out", required=True, type=Path, help="results/reference/<profile>")
    args = parser.parse_args()
    print(f"{args.out}: {copy(args.results, args.out)} files")


if __name__ == "__main__":
    sys.exit(run_command(main))
