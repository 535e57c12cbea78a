"""The claims ledger: every claim of the paper with what was measured of it: a verdict, or where only full scale decides an analogy.

    python -m paper_tables.claims --config workflows/config/world.yaml --results results/world --theory results/theory --out DIR

Reads claims.yaml, result records, ablations, theory.json and alignment.csv; writes claims.md, .tex, .csv and .html, verdicts.png, and the
report's first page, front.rst. No verdict is written by hand: `claims_tests.py` computes it, so another result gives another verdict.
Verdicts are counted by objective, so that one that collapsed does not weigh on another.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apex.command import Parser
from apex.errors import UserError, run_command
from apex.escape import rst
from apex.files import write_atomic
from paper_tables import expected, plotting, published, records
from paper_tables.ablations import plan_of
from paper_tables.cells import significant
from paper_tables.claims_model import KINDS, OBJECTIVES, PAPER, SCALE, WORLD, Claim, command, read
from paper_tables.claims_tests import (
    ANALOGY,
    CONTRADICTED,
    FAILS,
    FULL,
    HOLDS,
    NOT_RUN,
    PART,
    TESTS,
    UNDECIDED,
    VERDICTS,
    Evidence,
    Outcome,
    remarks,
)
from paper_tables.render import Cell, Column, Line, Table, all_formats
from paper_tables.stats import Summary
from paper_tables.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {
    HOLDS: "#2E7D32", PART: "#8DA63A", FAILS: "#B3382C", CONTRADICTED: "#6D1F52", UNDECIDED: "#8A6D3B", ANALOGY: "#5B7FA6",
    NOT_RUN: "#9aa1a9", FULL: "#d5d9dd",
}  # fmt: skip
DARK = (HOLDS, FAILS, CONTRADICTED, UNDECIDED, ANALOGY)
KIND_WORDS = {WORLD: "the world", SCALE: "full scale alone", PAPER: "the paper's tables"}
OBJECTIVE_WORDS = {
    "apex": "apex, tuned",
    "apex-public": "apex-public, the public code's settings",
    "apex-eq25": "apex-eq25, the paper's Eq. 25",
    "other": "other: closed forms, other methods, the paper's tables",
}


@dataclass(frozen=True)
class Judged:
    claim: Claim
    reading: str
    outcome: Outcome
    objective: str
    test: str


def judge(claims: list[Claim], evidence: Evidence) -> list[Judged]:
    """What was found for every claim and reading: a verdict, or of a claim that only full scale decides what a world saw, as an analogy."""
    found = []
    for claim in claims:
        asked: list[dict[str, Any]] = []
        for test in map(evidence.own, claim.tests):
            what = {key: value for key, value in test.items() if key not in ("reading", "next", "settings")}
            if what in asked:  # two profiles' tests that are one on this one
                continue
            asked.append(what)
            outcome = _outcome(claim, test, evidence)
            makes = outcome.source if claim.kind == WORLD and outcome.verdict == NOT_RUN else ""
            outcome = replace(outcome, command=makes if makes.startswith("snakemake ") else command(test))
            found.append(Judged(claim, test.get("reading", ""), outcome, test["objective"], test["kind"]))
    return found


def _outcome(claim: Claim, test: dict[str, Any], evidence: Evidence) -> Outcome:
    small = claim.kind == SCALE and test["kind"] != "system_speedup" and evidence.of_a_world(test)  # `speed` times whole systems
    if small and test.get("scale") == "full":
        return Outcome(FULL)
    outcome = TESTS[test["kind"]](test, evidence)
    if outcome.value is not None:
        outcome = replace(outcome, remarks=remarks(test, evidence))
    return replace(outcome, verdict=ANALOGY) if small and outcome.verdict in (HOLDS, FAILS, UNDECIDED) else outcome


def standing(verdicts: Iterable[str]) -> str:
    """What a claim comes to, of the verdicts of its tests of one objective.

    One that fails refutes the claim, though one that holds beside it leaves it a part; it holds only where all tests were run and hold.
    """
    found = set(verdicts)
    if {HOLDS, FAILS} <= found:
        return PART
    return next(one for one in (CONTRADICTED, FAILS, UNDECIDED, ANALOGY, NOT_RUN, FULL, HOLDS) if one in found)


def by_objective(found: list[Judged]) -> dict[str, dict[str, str]]:
    """Objective -> claim -> what it comes to; objectives that have tests."""
    out: dict[str, dict[str, list[str]]] = {}
    for one in found:
        out.setdefault(one.objective, {}).setdefault(one.claim.id, []).append(one.outcome.verdict)
    return {name: {claim: standing(its) for claim, its in out[name].items()} for name in OBJECTIVES if name in out}


def counts(found: list[Judged]) -> dict[str, dict[str, int]]:
    """Objective -> verdict -> number of claims; a claim counts once for each objective that it is tested of."""
    return {name: {verdict: [*its.values()].count(verdict) for verdict in VERDICTS} for name, its in by_objective(found).items()}


# --------------------------------------------------------------------------------------------------------- the table

COLUMNS = (
    Column("claim", "claim", numeric=False),
    Column("location", "where", numeric=False),
    Column("kind", "what can decide it", numeric=False),
    Column("objective", "objective", numeric=False),
    Column("reading", "tested as", numeric=False),
    Column("verdict", "verdict", numeric=False),
    Column("value", "effect"),
    Column("what", "of what", numeric=False),
    Column("seeds", "seeds"),
    Column("n", "n"),
    Column("confirm", "would confirm it", numeric=False),
    Column("refute", "would refute it", numeric=False),
    Column("command", "next command", numeric=False),
)
PANELS = ("claim", "location", "kind", "reading", "verdict", "value", "what", "seeds", "n", "command")


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
    if view.of_a_world:
        here = "Here means the embedded world (networks of 1.2 and 1.4M parameters on rendered shapes), a 2-D mixture and closed forms. "
    else:
        here = f"Here means the rows of {profiles(view)}, networks of up to {view.largest / 1e9:.3g}B parameters; and, where a test is of "
        here += "them, small networks on rendered shapes, a 2-D mixture and closed forms. "
    caption = (
        "What the paper claims, and what was found here. "
        f"{HOLDS}: the interval, or an exact number, is on the claim's side; {FAILS}: on the other; {UNDECIDED}: the interval includes "
        f"both, or there is none; {CONTRADICTED}: its own printed tables say otherwise; {ANALOGY}: what a world saw of a claim that only "
        f"full scale decides, which neither confirms nor refutes it; {NOT_RUN}: the records are not there yet, the command makes them; "
        f"{FULL}: nothing small is like it. Words after a verdict are remarks on its numbers; the footnotes explain them. "
        f"{here}Quotation marks: the words as printed. {counted(found)}"
    )
    out = Table("claims", "Claims of the paper and verdicts", caption.strip(), list(COLUMNS), panels=[("", list(PANELS))])
    last, group = "", ""
    for one in found:
        claim, outcome = one.claim, one.outcome
        first = claim.id != last
        line = {
            "claim": Cell(says(claim) if first else ""),
            "location": Cell(claim.location if first else ""),
            "kind": Cell(KIND_WORDS[claim.kind] if first else ""),
            "objective": Cell(one.objective),
            "reading": Cell(one.reading),
            "verdict": _verdict(outcome),
            "value": Cell(words(outcome), summary(outcome)),
            "what": Cell(outcome.effect or (f"{outcome.source} makes it" if outcome.verdict == NOT_RUN else "")),
            "seeds": Cell(str(outcome.seeds or "")),
            "n": Cell(f"{outcome.n:,}" if outcome.n else ""),
            "confirm": Cell(claim.confirm if first else ""),
            "refute": Cell(claim.refute if first else ""),
            "command": Cell(outcome.command),
        }
        out.lines.append(Line(line, claim.group if claim.group != group else ""))
        last, group = claim.id, claim.group
    return out


def _verdict(outcome: Outcome) -> Cell:
    """The verdict with the short remarks on its numbers; their sentences are the footnote."""
    words = ", ".join([outcome.verdict, *outcome.remarks])
    return Cell(words, None, " ".join(outcome.remarks.values()), strong=outcome.verdict in (HOLDS, FAILS, CONTRADICTED))


def says(claim: Claim) -> str:
    return f"“{claim.says}”" if claim.verbatim else claim.says


def counted(found: list[Judged]) -> str:
    """The verdicts in a sentence per objective."""
    told = []
    for name, its in counts(found).items():
        told.append(f"{OBJECTIVE_WORDS[name]}: {', '.join(f'{verdict} {count}' for verdict, count in its.items() if count)}.")
    return "Claims by objective, each counted once for it. " + " ".join(told) if told else ""


CSV = (
    "id", "says", "kind", "group", "location", "verbatim", "objective", "claim_verdict", "reading", "test", "verdict", "value", "ci_low",
    "ci_high", "effect", "seeds", "n", "confirm", "refute", "command", "remarks",
)  # fmt: skip


def to_csv(found: list[Judged]) -> str:
    """A line per test with every column of its claim. `claim_verdict`: what the claim comes to for that objective. Numbers and seeds are
    empty where a test has none."""
    text, standings = io.StringIO(), by_objective(found)
    writer = csv.DictWriter(text, CSV, lineterminator="\n")
    writer.writeheader()
    for one in found:
        claim, outcome, its = one.claim, one.outcome, summary(one.outcome)
        line = claim.model_dump(include={"id", "says", "kind", "group", "location", "confirm", "refute"})
        line |= {"verbatim": "yes" if claim.verbatim else "no", "objective": one.objective, "reading": one.reading or "as the claim says"}
        line |= {"claim_verdict": standings[one.objective][claim.id], "test": one.test, "verdict": outcome.verdict}
        ends = (its.value, its.low, its.high) if its else (None, None, None)
        line |= {key: "" if end is None else f"{end:.6g}" for key, end in zip(("value", "ci_low", "ci_high"), ends, strict=True)}
        line |= {"effect": outcome.effect or f"{outcome.verdict}: {outcome.source or outcome.command}", "seeds": outcome.seeds or ""}
        writer.writerow(line | {"n": outcome.n or "", "command": outcome.command, "remarks": " ".join(outcome.remarks.values())})
    return text.getvalue()


def summary(outcome: Outcome) -> Summary | None:
    """The number for the CSV file; an end at infinity is none."""
    if outcome.value is None:
        return None
    return Summary(outcome.value, *(end if end is not None and math.isfinite(end) else None for end in (outcome.low, outcome.high)))


def draw(found: list[Judged]) -> Figure:
    """A bar per objective, a part per verdict, with the numbers of claims."""
    numbers = counts(found)
    shown = {verdict for its in numbers.values() for verdict, count in its.items() if count}
    figure = plotting.blank((8.6, 1.7 + 0.42 * len(numbers)))
    axes = figure.add_axes((0.14, 0.32, 0.84, 0.56))
    for level, its in enumerate(numbers.values()):
        start = 0
        for verdict in VERDICTS:
            if its[verdict]:
                axes.barh(level, its[verdict], left=start, color=COLORS[verdict], height=0.66)
                color = "white" if verdict in DARK else plotting.INK
                axes.text(start + its[verdict] / 2, level, str(its[verdict]), ha="center", va="center", color=color)
                start += its[verdict]
    axes.set_yticks(range(len(numbers)), list(numbers))
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlabel("claims: each once for an objective that it is tested of")
    axes.set_title(f"{len({one.claim.id for one in found})} claims, {len(found)} tests")
    plotting.legend(figure, {verdict: {"color": COLORS[verdict], "linewidth": 6} for verdict in VERDICTS if verdict in shown})
    return figure


FRONT = """\
Does one-step generation by condition shifting hold?
=====================================================

`arXiv 2604.12322 <https://arxiv.org/abs/2604.12322>`_ claims that a flow model becomes a one-step generator without a discriminator. This
report sets {claims} of its claims against what was measured here: profile *{profile}*, {commits}, {hardware}.

{origin}{kinds}

{verdicts}

{limits}

On the left: claims and verdicts, tables, figures, the audit of the paper's own tables. Every page opens offline.
"""

KINDS_SAID = f"""\
{{world}} claims are about the objective, its stability, its parts and closed forms: a small world can decide them, at equal budget.
{{scale}} claims only full scale can decide: there a world's numbers are an {ANALOGY} without a verdict, and the ledger names the command
that decides. {{paper}} claims hold the paper's text against its own tables. A claim counts once for each objective that it is tested of."""


WORLD_SHOWS = """\
**What this can show.** {description} Training is real, the data's truth is known exactly, every method has the same budget, and each number
has its seeds and interval. So it shows how an objective behaves.

**What it cannot show.** A network of a million parameters that draws small scenes of coloured shapes neither confirms nor refutes a claim
about 20 billion parameters and photographs. Where only that would decide, there is no verdict, and the ledger names the command."""
LARGE_SHOWS = """\
**What this can show.** {description} Every method has the same budget, and each number has its seeds and interval.

**What it cannot show.** Verdicts on rows of this profile hold for its teacher, data, resolution and evaluators; those that read another
profile, a mixture or closed forms say so beside the number. Where another profile would decide, the ledger names its command."""


def profiles(view: View) -> str:
    return ", ".join(map(str, view.all_values("profile")))


def front(found: list[Judged], view: View, description: str, origin: str = "") -> str:
    """The report's first page, reStructuredText. origin: says which records are the committed reference's."""
    lines = []
    for objective, its in by_objective(found).items():
        lines += [f"**{OBJECTIVE_WORDS[objective]}** ({len(its)} claims)", ""]
        for verdict in VERDICTS:
            if about := [claim for claim, its_verdict in its.items() if its_verdict == verdict]:
                lines.append(f"- {verdict}: {len(about)}. {', '.join(about)}")
        lines.append("")
    commits, hardware = ([str(value) for value in view.all_values(name)] for name in ("git_commit", "hardware"))
    kinds = [*{one.claim.id: one.claim.kind for one in found}.values()]
    return FRONT.format(
        claims=len(kinds),
        profile=rst(profiles(view)),
        commits=("commit " if len(commits) == 1 else "commits ") + ", ".join(map(rst, commits)),
        hardware="; ".join(map(rst, hardware)),
        origin=f"**{rst(origin)}**\n\n" if origin else "",
        kinds=KINDS_SAID.format(**{kind: kinds.count(kind) for kind in KINDS}),
        verdicts="\n".join(lines).strip(),
        limits=(WORLD_SHOWS if view.of_a_world else LARGE_SHOWS).format(description=rst(description)),
    )


def main() -> None:
    parser = Parser("paper_tables.claims", __doc__)
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
    profile = expected.read(args.config, *args.set)
    config, sources = profile.config, [(profile, args.results)]
    for text in args.also:
        file, equals, folder = text.partition("=")
        if not equals:
            parser.error(f"--also {text}: expected FILE=RESULTS")
        sources.append((expected.read(Path(file)), Path(folder)))
    views = {one.config.profile: View.load(folder, one) for one, folder in sources if any((folder / "records").rglob("*.json"))}
    if config.profile not in views:
        kept = f"results/reference/{config.profile}"
        raise UserError(f"{args.results}: found no records; run `snakemake all`, or give the committed ones, {kept}")
    guidance = {one.config.profile: one.config.guidance for one, _ in sources}
    evidence = Evidence(
        views, published.load(), plan_of(args.config, *args.set), args.results / "ablations", args.theory, guidance, args.speed
    )
    found = judge(read(), evidence)
    origin = records.reference_words(*(folder for _, folder in sources), args.theory, args.speed)
    shown = replace(table(found, views[config.profile]), remark=origin)
    for name, content in (all_formats(shown) | {f"{shown.name}.csv": to_csv(found)}).items():
        write_atomic(args.out / name, content)
    write_atomic(args.out / "front.rst", front(found, views[config.profile], config.description, origin))
    with plotting.drawing():
        write_atomic(args.out / "verdicts.png", plotting.png(draw(found)))
    print(f"{args.out}: {len({one.claim.id for one in found})} claims, {len(found)} tests. {counted(found)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
