"""What came out, in a few lines: GenEval of the main rows, whether it agrees with the committed run, and where to look.

    python -m paper_tables.summary --config workflows/config/world.yaml --results results/world --committed results/reference/world

It reads the tables that `snakemake all` or `snakemake tables` have made and computes nothing.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path

from apex.command import Parser
from apex.config import load
from apex.errors import run_command
from paper_tables.stats import ABOVE, APART, BELOW
from paper_tables.tables_repeat import OTHER, SAME

NUMBER = "geneval/overall"
OURS = "apex"
Line = dict[str, str]


def table(file: Path) -> list[Line]:
    """The lines of a table's CSV; none if there is no such file."""
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def number(line: Line) -> str:
    """`0.69 [0.66, 0.73]`."""
    low, high = line["overall_ci_low"], line["overall_ci_high"]
    return f"{float(line['overall']):.2f}" + (f" [{float(low):.2f}, {float(high):.2f}]" if low and high else "")


def scores(lines: list[Line]) -> str:
    """GenEval of `apex`, of the best other row and of the teacher, at the fewest steps that were measured."""
    measured = [line for line in lines if _is_number(line.get("overall", "")) and line["nfe"].isdigit()]
    students = [line for line in measured if not _of_teacher(line)]
    teacher = max(filter(_of_teacher, measured), key=lambda line: float(line["overall"]), default=None)
    found = []
    if students:
        fewest = min(int(line["nfe"]) for line in students)
        at = sorted((line for line in students if int(line["nfe"]) == fewest), key=lambda line: -float(line["overall"]))
        ours = next((line for line in at if line["row"] == OURS), None) or next((line for line in at if line["row"].startswith(OURS)), None)
        best = next((line for line in at if line is not ours), None)
        found += [f"{ours['row']} {number(ours)}"] if ours else []
        found += [f"the best other of {len(at) - bool(ours)} rows, {best['row']}, {number(best)}"] if best else []
        steps = f" at {fewest} step{'s' if fewest > 1 else ''}"
    if teacher:
        found.append(f"the teacher at {teacher['nfe']} steps {number(teacher)}")
    return f"GenEval{steps if students else ''}: {'; '.join(found)}" if found else "GenEval: no row has a number"


def agreement(lines: list[Line]) -> str:
    """How the run agrees with the committed one: of the cells that both have, how many are the same, and which are not."""
    read = [(f"{line['row']} at NFE {line['nfe']}" if line["nfe"].isdigit() else line["row"], line[f"{NUMBER} reading"]) for line in lines]
    counts = Counter(words for _, words in read if words)
    judged = sum(counts[words] for words in (SAME, APART, ABOVE, BELOW))
    other = f"; {counts[OTHER]} of other settings are not compared" if counts[OTHER] else ""
    if not judged:
        return f"no number is of the committed run's settings{other}"
    if counts[SAME] == judged:
        return f"agrees: GenEval of all {judged} rows and steps is the same to the last digit{other}"
    said = f"of {judged} rows and steps {counts[SAME]} are the same to the last digit, {counts[APART]} within the noise"
    if off := [f"{where} is {words}" for where, words in read if words in (ABOVE, BELOW)]:
        return f"differs: {said}, {len(off)} beyond it ({', '.join(off)}), where one in twenty is beyond it by chance{other}"
    return f"agrees within the noise: {said}{other}"


def summary(results: Path, committed: Path, description: str, profile: str) -> list[str]:
    """The lines. results: the folder whose tables are read; committed: results/reference/<profile>."""
    tables = results / "tables"
    own = any((results / "records").rglob("*.json"))
    page = next((file for file in (results / "figures" / "index.html", tables / "comparison.html") if file.is_file()), tables)
    said = [f"Profile {profile}: {description}" if description else f"Profile {profile}"]
    said.append(f"{scores(table(tables / 'world.csv'))}.")
    if not own:
        said.append(f"These are the committed results ({committed}): nothing was run here yet.")
    elif repeated := [line for line in table(tables / "repeated.csv") if line.get(f"{NUMBER} reading")]:
        said.append(f"Compared with the committed run ({committed}), it {agreement(repeated)}.")
    else:
        said.append(f"No run of this profile is committed in {committed}, so there is nothing to compare it with.")
    return [*said, f"Look at {page}; all tables: {tables}; one file with everything: snakemake report"]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _of_teacher(line: Line) -> bool:
    return line["row"].split(" ")[0] == "teacher"


def main() -> None:
    parser = Parser("paper_tables.summary", __doc__)
    parser.add_argument("--config", required=True, type=Path, help="the profile")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of the profile")
    parser.add_argument("--results", required=True, type=Path, help="results/<profile>")
    parser.add_argument("--committed", required=True, type=Path, metavar="DIR", help="what is committed of the profile")
    args = parser.parse_args()
    config = load(args.config, args.set)
    print("\n".join(summary(args.results, args.committed, config.description, config.profile)))


if __name__ == "__main__":
    sys.exit(run_command(main))
