"""Copies the small files of a run to where reference results are committed, beside what is there of other rows.

    python -m workflows.reference --config workflows/config/world.yaml --results results/world --out results/reference/world

Copied: records, calibration, every run's log and record of making, the images that grids show (pictures/), what tuning tried, the
ablations; no weights, no other images. A matrix takes several sittings: points that these results lack stay as they were, as long as
the profile trains their row with the settings that they were trained with, and these results do not hold another run of the same row and
seed. Tables and figures are made again from the whole; `snakemake reference` does both, and only the second where these results hold no
record.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from apex.command import Parser
from apex.config import RESERVED_ROWS, Config, load
from apex.errors import UserError, run_command
from apex.files import Kind, atomic_folder
from paper_tables import evidence, pictures
from paper_tables.records import read_made, runs

POINTS = ("records/**/*.json", "runs/*/*/log.csv", "runs/*/*/*.json")
WHOLE = (
    "calibration/*.json",
    "ablations/*/*/records/*.json",
    "ablations/*/*/pictures.zip",
    "ablations/*/*/run/*.json",
    "ablations/*/*/run/log.csv",
)
TUNING = ("tune/tuning.*", "tune/*/*/records/*.json", "tune/*/*/run/log.csv")
MADE_AGAIN = tuple(
    f"{folder}/*.{end}"
    for folder in ("tables", "audit", "figures", "claims", "ablations/tables")
    for end in ("md", "tex", "csv", "html", "png", "rst")
)
REFERENCE = Kind("what `snakemake reference` writes", (*POINTS, *WHOLE, *TUNING, *MADE_AGAIN, f"{pictures.FOLDER}/*.zip", "metrics.csv"))
THEORY = Kind("what `snakemake theory` writes", ("theory.json", "alignment.csv"))


def found(root: Path, patterns: tuple[str, ...]) -> dict[Path, Path]:
    """Path below `root` -> file, of what matches; hidden files and folders are left out."""
    files = {file.relative_to(root): file for pattern in patterns for file in root.glob(pattern) if file.is_file()}
    return {name: file for name, file in files.items() if not any(part.startswith(".") for part in name.parts)}


def outdated(config: Config, reference: Path, row: str) -> str:
    """Why a row of the reference cannot stay; empty where it can."""
    if row in RESERVED_ROWS or row in {one.row for one in (*config.external, *config.checkpoints)}:
        return ""
    wanted = evidence.Wanted(config).run(row)
    if wanted is None:
        return "the profile has no such row"
    for _, seed, path in (one for one in runs(reference, "made.json") if one[0] == row):
        if changed := sorted(key for key, _, _ in evidence.differences(read_made(path, row, seed), wanted)):
            return f"it was trained with another {', '.join(changed)}"
    return ""


def trained_again(new: dict[Path, Path], old: dict[Path, Path]) -> set[tuple[str, str]]:
    """(row, seed's folder) of runs that the new results and the reference both have and that are not the same run."""
    both = {name for name in new.keys() & old.keys() if name.parts[0] == "runs" and name.name == "made.json"}
    return {(name.parts[1], name.parts[2]) for name in both if new[name].read_bytes() != old[name].read_bytes()}


def of_run(name: Path) -> tuple[str, str]:
    """(row, seed's folder) of a file of records/<row>/nfe<K>/seed<S>/... or runs/<row>/seed<S>/..."""
    return name.parts[1], name.parts[3 if name.parts[0] == "records" else 2]


def row_of(name: Path) -> str:
    """The row that a file of records/ or runs/ belongs to."""
    return name.parts[1]


def copy(config: Config, results: Path, out: Path) -> tuple[int, dict[str, str]]:
    """Copies and merges; returns the number of files, and why rows that were there did not stay.

    Raises:
        UserError: neither the results nor the reference hold a record.
    """
    if not found(results, (POINTS[0], WHOLE[1])):
        if not found(out, (POINTS[0], WHOLE[1])):
            raise UserError(f"{results}: found no records; make the results first: snakemake all")
        return 0, {}
    new, old = found(results, (*POINTS, *WHOLE)), found(out, (*POINTS, *WHOLE))
    pointed = {name: file for name, file in old.items() if name.parts[0] in ("records", "runs")}
    dropped = {row: why for row in sorted(set(map(row_of, pointed))) if (why := outdated(config, out, row))}
    replaced = trained_again(new, pointed)  # none of their old numbers is of the weights that there are now
    gone = {name for name in pointed if row_of(name) in dropped or of_run(name) in replaced}
    old = {name: file for name, file in old.items() if name not in gone}
    tuned = results if (results / "tune" / "tuning.json").is_file() else out
    wanted = old | new | found(tuned, TUNING)
    rows = {row_of(name) for name in wanted if name.parts[0] == "records"}
    with atomic_folder(out, REFERENCE) as folder:
        for name, file in sorted(wanted.items()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
        kept = pictures.keep([out, results], folder / pictures.FOLDER, rows)
    return len(wanted) + len(kept), dropped


def main() -> None:
    parser = Parser("workflows.reference", __doc__)
    parser.add_argument("--config", required=True, type=Path, help="the profile")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", required=True, type=Path, help="results/<profile>")
    parser.add_argument("--out", required=True, type=Path, help="results/reference/<profile>")
    parser.add_argument("--theory", type=Path, help="results/theory, copied beside --out where it is there")
    args = parser.parse_args()
    count, dropped = copy(load(args.config, args.set), args.results, args.out)
    for row, why in dropped.items():
        print(f"{args.out}: row {row} is gone: {why}")
    if args.theory and (args.theory / "theory.json").is_file():
        with atomic_folder(args.out.parent / "theory", THEORY) as folder:
            for name in THEORY.holds:
                if (args.theory / name).is_file():
                    shutil.copyfile(args.theory / name, folder / name)
    print(f"{args.out}: {count} files" if count else f"{args.results}: no records; {args.out} stays, and only its pages are made again")


if __name__ == "__main__":
    sys.exit(run_command(main))
