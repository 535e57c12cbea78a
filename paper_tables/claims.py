"""The claims ledger: every claim of the paper with a verdict from what was measured.

    python -m paper_tables.claims --config workflows/config/world.yaml --results results/world --theory results/theory --out DIR

Reads claims.yaml, result records, ablations, theory.json and alignment.csv; writes claims.md, .tex, .csv and .html, verdicts.png, and the
report's first page, front.rst. No verdict is written by hand: `claims_tests.py` computes it, so another result gives another verdict.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import yaml
from matplotlib.figure import Figure
from pydantic import Field, ValidationError

from apex.ablations import Plan
from apex.config import load
from apex.errors import UserError, run_command
from apex.files import write_atomic
from apex.strict import Strict, explain
from paper_tables import expected, plotting, published
from paper_tables.cells import significant
from paper_tables.claims_tests import FAILS, FULL, HOLDS, NOT_RUN, TESTS, UNDECIDED, VERDICTS, Evidence, Outcome
from paper_tables.render import Cell, Column, Line, Table, all_formats
from paper_tables.stats import Summary
from paper_tables.view import View

FILE = Path(__file__).resolve().parent / "claims.yaml"
GROUPS = ("theory", "quality", "efficiency", "compatibility", "ablation")
COLORS = {HOLDS: "#2E7D32", FAILS: "#B3382C", UNDECIDED: "#8A6D3B", NOT_RUN: "#9aa1a9", FULL: "#d5d9dd"}


class Claim(Strict):
    """One claim of the paper and how it is tested."""

    id: str = Field(pattern=r"^[a-z0-9_]+$", description="its name")
    group: Literal[GROUPS] = Field(description="what it is about")
    location: str = Field(min_length=3, description="where the paper says it")
    verbatim: bool = Field(description="whether `says` gives the words as printed")
    says: str = Field(min_length=10, description="the claim")
    confirm: str = Field(min_length=5, description="what would confirm it")
    refute: str = Field(min_length=5, description="what would refute it")
    full: str = Field("", pattern=r"^(\w+ \w+)?$", description="profile and target that decide it at the paper's scale")
    tests: list[dict[str, Any]] = Field(min_length=1, description="what decides it here; see claims_tests.py")

    @property
    def command(self) -> str:
        """What decides it at the paper's scale."""
        if not self.full:
            return ""
        profile, target = self.full.split()
        file = Path("workflows", "config", f"{profile}.yaml")
        return f"snakemake {target} --configfile {file}" + ("" if (FILE.parent.parent / file).is_file() else " (a profile to come)")


@dataclass(frozen=True)
class Judged:
    claim: Claim
    reading: str
    outcome: Outcome


def read(path: Path = FILE) -> list[Claim]:
    """The claims. A fault is one `UserError` that names the file and the claim."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, list):
        raise UserError(f"{path}: found {type(values).__name__}, expected a list of claims")
    claims = []
    for at, value in enumerate(values):
        name = value.get("id", f"number {at + 1}") if isinstance(value, dict) else f"number {at + 1}"
        try:
            claims.append(Claim.model_validate(value))
        except ValidationError as error:
            raise UserError(explain(error, Claim, f"{path}: claim {name}")) from None
        for test in claims[-1].tests:
            if test.get("kind") not in TESTS:
                raise UserError(f"{path}: claim {name}: unknown kind of test {test.get('kind')!r}; known: {', '.join(TESTS)}")
    twice = sorted({one.id for one in claims if sum(other.id == one.id for other in claims) > 1})
    if twice:
        raise UserError(f"{path}: found claim {twice[0]} twice, expected different ids")
    return claims


def judge(claims: list[Claim], evidence: Evidence) -> list[Judged]:
    """A verdict for every claim and reading.

    Raises:
        UserError: a test lacks a key that its kind needs.
    """
    found, small = [], evidence.views[evidence.first].of_a_world
    for claim in claims:
        asked: list[dict[str, Any]] = []
        for test in map(evidence.own, claim.tests):
            what = {key: value for key, value in test.items() if key != "reading"}
            if what in asked:  # two profiles' tests that are one on this one
                continue
            asked.append(what)
            try:
                outcome = Outcome(FULL) if small and test.get("scale") == "full" else TESTS[test["kind"]](test, evidence)
            except KeyError as error:
                raise UserError(f"claims.yaml: claim {claim.id}: the test of kind {test['kind']} lacks {error}") from None
            found.append(Judged(claim, test.get("reading", ""), outcome))
    return found


# --------------------------------------------------------------------------------------------------------- the table

COLUMNS = (
    Column("claim", "claim", numeric=False),
    Column("location", "where", numeric=False),
    Column("reading", "tested as", numeric=False),
    Column("verdict", "verdict", numeric=False),
    Column("value", "effect"),
    Column("what", "of what", numeric=False),
    Column("seeds", "seeds"),
    Column("n", "n"),
    Column("confirm", "would confirm it", numeric=False),
    Column("refute", "would refute it", numeric=False),
    Column("full", "at full scale", numeric=False),
)
PANELS = ("claim", "location", "reading", "verdict", "value", "what", "seeds", "n", "full")


def words(outcome: Outcome) -> str:
    """The effect with its interval, three significant digits."""
    if outcome.value is None:
        return ""
    ends = [end for end in (outcome.low, outcome.high) if end is not None and math.isfinite(end)]
    if len(ends) == 2:
        return f"{_text(outcome.value)} [{', '.join(map(_text, ends))}]"
    return _text(outcome.value)


def _text(value: float) -> str:
    return significant(value).replace("-", "−", 1) if value < 0 else significant(value)


def table(found: list[Judged], view: View) -> Table:
    """A line per claim and reading, by group. view: the profile whose results are judged."""
    small = "a 2-D mixture, closed forms, and the paper's own printed tables: none of them confirms or refutes a claim about 20B "
    small += "parameters on photographs; the last column says what would. "
    if view.of_a_world:
        here = f"Here means the embedded world (networks of 1.2 and 1.4M parameters on rendered shapes), {small}"
    else:
        here = f"Here means the rows of {profiles(view)}, networks of up to {view.largest / 1e9:.3g}B parameters; and, where a test is of "
        here += f"them, small networks on rendered shapes, {small}"
    caption = (
        "What the paper claims, and what was found here. "
        f"{HOLDS}: the interval, or an exact number, is on the claim's side; {FAILS}: on the other; {UNDECIDED}: the interval includes "
        f"both, or there is none; {NOT_RUN}: the records are not there yet, the command makes them; {FULL}: nothing small can tell. "
        f"{here}Quotation marks: the words as printed."
    )
    out = Table("claims", "Claims of the paper and verdicts", caption, list(COLUMNS), panels=[("", list(PANELS))])
    last, group = "", ""
    for one in found:
        claim, outcome = one.claim, one.outcome
        first = claim.id != last
        says = f"“{claim.says}”" if claim.verbatim else claim.says
        line = {
            "claim": Cell(says if first else ""),
            "location": Cell(claim.location if first else ""),
            "reading": Cell(one.reading),
            "verdict": Cell(outcome.verdict, strong=outcome.verdict in (HOLDS, FAILS)),
            "value": Cell(words(outcome), summary(outcome)),
            "what": Cell(outcome.effect or (f"{outcome.source} makes it" if outcome.verdict == NOT_RUN else "")),
            "seeds": Cell(str(outcome.seeds or "")),
            "n": Cell(f"{outcome.n:,}" if outcome.n else ""),
            "confirm": Cell(claim.confirm if first else ""),
            "refute": Cell(claim.refute if first else ""),
            "full": Cell(claim.command if first else ""),
        }
        out.lines.append(Line(line, claim.group if claim.group != group else ""))
        last, group = claim.id, claim.group
    return out


def summary(outcome: Outcome) -> Summary | None:
    """The number for the CSV file; an end at infinity is none."""
    if outcome.value is None:
        return None
    return Summary(outcome.value, *(end if end is not None and math.isfinite(end) else None for end in (outcome.low, outcome.high)))


def counts(found: list[Judged]) -> dict[str, dict[str, int]]:
    """Group -> verdict -> number of tests."""
    out = {group: dict.fromkeys(VERDICTS, 0) for group in GROUPS}
    for one in found:
        out[one.claim.group][one.outcome.verdict] += 1
    return out


def draw(found: list[Judged]) -> Figure:
    """A bar per group, a part per verdict, with the numbers of tests."""
    figure = Figure(figsize=(8.6, 3.2))
    axes = figure.add_axes((0.14, 0.27, 0.84, 0.63))
    for level, its in enumerate(counts(found).values()):
        start = 0
        for verdict in VERDICTS:
            if its[verdict]:
                axes.barh(level, its[verdict], left=start, color=COLORS[verdict], height=0.66)
                color = "white" if verdict in (HOLDS, FAILS, UNDECIDED) else plotting.INK
                axes.text(start + its[verdict] / 2, level, str(its[verdict]), ha="center", va="center", color=color)
                start += its[verdict]
    axes.set_yticks(range(len(GROUPS)), GROUPS)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlabel("tests: a claim counts once for each reading")
    axes.set_title(f"{len({one.claim.id for one in found})} claims, {len(found)} tests")
    plotting.legend(figure, {verdict: {"color": COLORS[verdict], "linewidth": 6} for verdict in VERDICTS})
    return figure


FRONT = """\
Does one-step generation by condition shifting hold?
=====================================================

`arXiv 2604.12322 <https://arxiv.org/abs/2604.12322>`_ claims that a flow model becomes a one-step generator without a discriminator. This
report sets {claims} of its claims against what was measured here: profile *{profile}*, {commits}, {hardware}.

{verdicts}

{limits}

On the left: claims and verdicts, tables, figures, the audit of the paper's own tables. Every page opens offline.
"""


WORLD = """\
**What this can show.** {description} Training is real, the data's truth is known exactly, every method has the same budget, and each number
has its seeds and interval. So it shows how an objective behaves.

**What it cannot show.** A network of a million parameters that draws small scenes of coloured shapes neither confirms nor refutes a claim
about 20 billion parameters and photographs. Where only that would decide, the verdict says so, with the command."""
LARGE = """\
**What this can show.** {description} Every method has the same budget, and each number has its seeds and interval.

**What it cannot show.** Verdicts on rows of this profile hold for its teacher, data, resolution and evaluators; those that read another
profile, a mixture or closed forms say so beside the number. Where another profile would decide, the verdict names its command."""


def profiles(view: View) -> str:
    return ", ".join(map(str, view.all_values("profile")))


def front(found: list[Judged], view: View, description: str) -> str:
    """The report's first page, reStructuredText."""
    total = {verdict: sum(its[verdict] for its in counts(found).values()) for verdict in VERDICTS}
    about = {verdict: ", ".join(dict.fromkeys(one.claim.id for one in found if one.outcome.verdict == verdict)) for verdict in VERDICTS}
    lines = [f"- **{verdict}: {count} test{'s' * (count != 1)}.** {about[verdict]}" for verdict, count in total.items() if count]
    commits, hardware = ([str(value) for value in view.all_values(name)] for name in ("git_commit", "hardware"))
    return FRONT.format(
        claims=len({one.claim.id for one in found}),
        profile=profiles(view),
        commits=("commit " if len(commits) == 1 else "commits ") + ", ".join(commits),
        hardware="; ".join(hardware),
        verdicts="\n".join(lines),
        limits=(WORLD if view.of_a_world else LARGE).format(description=description),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    expected.add_arguments(parser)
    parser.add_argument("--results", type=Path, required=True, help="results of that profile, with records/ and ablations/")
    parser.add_argument("--theory", type=Path, required=True, help="folder of theory.json and alignment.csv")
    parser.add_argument("--speed", type=Path, help="folder of what `snakemake speed` timed")
    about = "another profile and its results, such as workflows/config/world_qwen.yaml=results/world_qwen"
    parser.add_argument("--also", action="append", default=[], metavar="FILE=RESULTS", help=about)
    parser.add_argument("--out", type=Path, required=True, help="folder for the ledger")
    args = parser.parse_args()
    if not args.config:
        parser.error("give --config")
    config = load(args.config, args.set)
    sources = [(config, args.results)]
    for text in args.also:
        file, equals, folder = text.partition("=")
        if not equals:
            parser.error(f"--also {text}: expected FILE=RESULTS")
        sources.append((load(file), Path(folder)))
    views = {
        one.profile: View.load(folder, expected.Expected.of(one)) for one, folder in sources if any((folder / "records").rglob("*.json"))
    }
    if config.profile not in views:
        kept = f"results/reference/{config.profile}"
        raise UserError(f"{args.results}: found no records; run `snakemake all`, or give the committed ones, {kept}")
    guidance = {one.profile: one.guidance for one, _ in sources}
    evidence = Evidence(views, published.load(), Plan(config), args.results / "ablations", args.theory, guidance, args.speed)
    found = judge(read(), evidence)
    for name, content in all_formats(table(found, views[config.profile])).items():
        write_atomic(args.out / name, content)
    write_atomic(args.out / "front.rst", front(found, views[config.profile], config.description))
    with matplotlib.rc_context(plotting.STYLE):
        write_atomic(args.out / "verdicts.png", plotting.png(draw(found)))
    total = {verdict: sum(its[verdict] for its in counts(found).values()) for verdict in VERDICTS}
    tests = ", ".join(f"{count} {name}" for name, count in total.items())
    print(f"{args.out}: {len({one.claim.id for one in found})} claims; tests: {tests}")


if __name__ == "__main__":
    sys.exit(run_command(main))
