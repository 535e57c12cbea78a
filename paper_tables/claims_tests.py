"""The tests of `claims.yaml`: from records to an effect with its interval, and from that to a verdict.

| kind | reads | the claim holds where |
| --- | --- | --- |
| theory | theory.json | the check's error is within its bound |
| alignment | alignment.csv | the mean cosine over training, an interval over seeds, is above `at_least` |
| gradient | alignment.csv | the smallest over the largest gradient norm, while samples are far from the data, is above (below) a limit |
| difference | records | row minus `versus` is above 0; with `lower`, below 0 |
| ratio | records | row over `versus` is above `at_least` |
| speedup | speed records | seconds of `versus` over the row's are above `at_least`, with quartiles for an interval |
| system_speedup | records of `snakemake speed` | the same of two systems of Table 1 at their published sizes, on a GPU |
| passes | the profile | network evaluations of `versus`, guidance counted, over the row's |
| training | records | a cost of training of row over that of `versus` is above `at_least` |
| diverged | records | how many runs of `rows` diverged or made images that are not finite |
| reported | records, published/ | the row's number minus the one that the paper prints as `printed` is above `at_least` |
| hours | records of making | hours of training of row are at most `at_most` |
| ablation | ablations/ | cell minus `versus`, or the pair of `elsewhere` that the profile's grid has, paired over prompts, is above 0 |
| audit | published/ | the check of the paper's own tables finds nothing; else the paper contradicts it |
| printed_difference | published/ | the difference of two printed GenEval scores is above 0, its error that of the benchmark's prompts |

A test of records names rows of the world. Of a profile that has them by other names it is asked in that one's: `Evidence.own`. With
`scale: full`, nothing measured on a world is shown for it.

Rows are compared by `View.difference` and `View.ratio`, as in every table: where a row or a cell has one seed, the interval holds the
training noise of the rows, or of the grid's cells, that have three. An interval on one side of the limit decides; one that holds the limit
leaves the claim undecided. Numbers that are exact decide alone. `judge` in claims.py says what a number of the world decides: a claim of
kind `scale` gets no verdict from it.
"""

from __future__ import annotations

import csv
import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from apex.ablations import Plan
from apex.config import MATRIX
from apex.errors import UserError
from paper_tables import ablations, checks, checks_outside, checks_text, stats, systems
from paper_tables.claims_model import OF_RECORDS
from paper_tables.published import Published, label
from paper_tables.stats import Summary
from paper_tables.view import View

HOLDS, FAILS, UNDECIDED, FULL, NOT_RUN = "holds here", "does not hold here", "undecided", "needs full scale", "not run"
CONTRADICTED, ANALOGY, PART = "contradicted by the paper", "analogy", "holds in part here"
VERDICTS = (HOLDS, PART, FAILS, CONTRADICTED, UNDECIDED, ANALOGY, NOT_RUN, FULL)  # PART: of a claim whose tests differ
FAR = 0.5  # sliced W1 of one-step samples on the mixture that is far from the data; the class mean has 1.28


@dataclass(frozen=True)
class Outcome:
    """What a test found.

    Attributes:
        effect: in words with its unit. value, low, high: the number and its 95% interval, None where there is none.
        seeds, n: what it is a mean over. source: what was read, or what would make it. command: what decides the test, or what makes what
            is missing. remarks: why the number does not stand unmarked, as `remarks` returns it.
    """

    verdict: str
    effect: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int | None = None
    n: int | None = None
    source: str = ""
    command: str = ""
    remarks: dict[str, str] = field(default_factory=dict)


@dataclass
class Evidence:
    """Everything that tests read. `views`: by profile; `plan`, `cells`: the ablations of the first profile.

    speed: folder of `snakemake speed`, None where nothing was timed.
    """

    views: dict[str, View]
    data: Published
    plan: Plan
    cells: Path
    theory: Path
    guidance: dict[str, float] = field(default_factory=dict)  # by profile, of the teacher
    speed: Path | None = None
    _grids: dict[str, ablations.Grid] = field(default_factory=dict)

    @property
    def first(self) -> str:
        return next(iter(self.views))

    def view(self, test: dict[str, Any]) -> View | None:
        return self.views.get(test.get("profile", self.first))

    def of_a_world(self, test: dict[str, Any]) -> bool:
        """Whether what the test reads was measured on an embedded world: its profile's results, else the judged profile's."""
        return (self.view(test) or self.views[self.first]).of_a_world

    def own(self, test: dict[str, Any]) -> dict[str, Any]:
        """The test in the words of the profile that is judged.

        A test of another profile's `backbone` is one of this profile where its networks are of that class and it has the rows. `apex` is
        its LoRA where nothing else trains that method and the two are not compared. Where a row has not the NFE that is asked for, its
        most stands in; for the teacher's only if that is more, for a claim is not tested against a weaker teacher.
        """
        if test["kind"] not in OF_RECORDS:
            return test
        out, ours = {key: value for key, value in test.items() if key != "backbone"}, self.views[self.first]
        names = dict.fromkeys([test[key] for key in ("row", "versus") if key in test] + test.get("rows", []))

        def called(view: View) -> dict[str, str]:
            """The names that the view has of these rows; none where two would be one."""
            found = {name: own for name in names if (own := "teacher" if name == "teacher" else view.variant(name))}
            return found if len({*found.values()}) == len(found) else {}

        if test.get("backbone") in ours.backbones and called(ours).keys() == names.keys():
            out.pop("profile", None)
        view = self.view(out)
        if view is None:
            return out
        renamed = dict(zip(names, names, strict=True)) | called(view)
        for key in {"row", "versus"} & out.keys():
            out[key] = renamed[out[key]]
        if "rows" in out:
            out["rows"] = [renamed[row] for row in out["rows"]]
        for row, nfe in (("row", "nfe"), ("versus", "versus_nfe")):
            most = max((key[1] for key in view.keys if key[0] == out.get(row)), default=0)
            lacks = out.get(nfe, 1) > 1 and most and (out[row], out[nfe]) not in view.keys
            if lacks and (out[row] != "teacher" or most > out[nfe]):
                out[nfe] = most
        for old, new in renamed.items():
            out["reading"] = re.sub(rf"(?<![\w-]){re.escape(old)}(?![\w-])", new, out.get("reading", ""))
        return out

    @cached_property
    def checks(self) -> dict[str, dict[str, Any]]:
        """theory.json's checks by id; none where it was not run."""
        path = self.theory / "theory.json"
        if not path.is_file():
            return {}
        try:
            return {one["id"]: one for one in json.loads(path.read_text())["checks"]}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not what apex.theory writes ({type(error).__name__}); run `snakemake theory` again") from None

    @cached_property
    def alignment(self) -> list[dict[str, str]]:
        """alignment.csv's lines; none where it was not run."""
        path = self.theory / "alignment.csv"
        return list(csv.DictReader(path.open(newline=""))) if path.is_file() else []

    def grid(self, name: str) -> ablations.Grid:
        """An ablation of the plan with its records, which are read once."""
        if name not in self._grids:
            self._grids[name] = ablations.load_grid(self.plan, name, self.cells)
        return self._grids[name]

    @cached_property
    def audits(self) -> dict[str, Callable[[Published], checks.Checked]]:
        own = {check.__name__: check for check in (*checks.CHECKS, *checks_outside.CHECKS)}
        return own | dict(zip((claim["id"] for claim in self.data.claims), checks_text.checks(self.data), strict=True))


def judged(found: Summary, test: dict[str, Any], effect: str, source: str) -> Outcome:
    """The verdict on a number with an interval: `at_least` (default: 0) or `at_most`; with `lower`, below it."""
    above = "at_most" not in test and not test.get("lower")
    bound = float(test.get("at_most", test.get("at_least", 0.0)))
    low, high = (found.value if end is None else end for end in (found.low, found.high))
    if not above:
        low, high, bound = -high, -low, -bound
    exact = found.low is None
    verdict = HOLDS if low > bound or (exact and low >= bound) else FAILS if high < bound else UNDECIDED
    return Outcome(verdict, effect, found.value, found.low, found.high, found.seeds, found.n, source)


def not_run(source: str) -> Outcome:
    return Outcome(NOT_RUN, source=source)


def remarks(test: dict[str, Any], evidence: Evidence) -> dict[str, str]:
    """Why the numbers that a test reads do not stand unmarked: short remark -> sentences; empty if nothing is known against them.

    The remarks are those of the tables: `View.remarks` of each row, `Trial.remarks` of each cell, and the machine's load while a time was
    taken. A sentence that is not true of every row or cell of the test begins with the names of those that it is true of.
    """
    its: dict[str, dict[str, list[str]]] = {}  # row or cell -> short remark -> sentences
    if test["kind"] == "ablation" and test["grid"] in evidence.plan.found.grids:
        grid = evidence.grid(test["grid"])
        names = pair_of(test, grid) or ()
        its = {cell.name: {remark: [words] for remark, words in cell.remarks.items()} for cell in grid.cells if cell.name in names}
    if test["kind"] in OF_RECORDS and (view := evidence.view(test)):
        nfe = test.get("nfe")
        points = [(test[name], at) for name, at in (("row", nfe), ("versus", test.get("versus_nfe", nfe))) if name in test]
        for row, at in [*points, *((row, None) for row in test.get("rows", []))]:
            words = ""
            if test["kind"] == "speedup":
                words = view.timing((row, at or 1))
            elif test["kind"] == "hours" or "wall_seconds" in test.get("quantity", ()):
                words = view.training_timing(row)
            said = view.remarks(row, at) | ({f"t{words.partition(':')[0][1:]}": [words]} if words else {})
            its[row] = its.get(row, {}) | said  # one row may stand at two NFEs
    found: dict[str, dict[str, list[str]]] = {}  # short remark -> sentence -> rows or cells
    for name, own in its.items():
        for remark, sentences in own.items():
            for sentence in sentences:
                found.setdefault(remark, {}).setdefault(sentence, []).append(name)
    return {
        remark: " ".join(words if len(names) == len(its) else f"{', '.join(names)}: {words}" for words, names in of.items())
        for remark, of in found.items()
    }


# ------------------------------------------------------------------------------------------------------- closed forms


def theory(test: dict[str, Any], evidence: Evidence) -> Outcome:
    if test["check"] not in evidence.checks:
        return not_run("snakemake theory")
    one = evidence.checks[test["check"]]
    effect = f"{one['value']:.2g} where {one['bound']:g} is allowed: {one['says']}"
    return Outcome(HOLDS if one["holds"] else FAILS, effect, one["value"], n=one["n"], source="theory.json")


def _by_seed(test: dict[str, Any], evidence: Evidence) -> dict[str, list[dict[str, str]]]:
    found = defaultdict(list)
    for line in evidence.alignment:
        if line["row"] == test["row"] and line["part"] == test.get("part", "whole"):
            found[line["seed"]].append(line)
    return found


def _over_seeds(values: list[float], n: int) -> Summary:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(mean, -math.inf, math.inf, n, 1, stats.SEEDS)
    half = stats.t_half(values)
    return Summary(mean, mean - half, mean + half, n, len(values), stats.SEEDS)


def alignment(test: dict[str, Any], evidence: Evidence) -> Outcome:
    found = _by_seed(test, evidence)
    if not found:
        return not_run("snakemake theory")
    means = [statistics.fmean(float(line["cosine"]) for line in lines) for lines in found.values()]
    moments = len(next(iter(found.values())))
    effect = f"mean cosine with the KL gradient over {moments} moments of training"
    return judged(_over_seeds(means, moments), test, effect, "alignment.csv")


def gradient(test: dict[str, Any], evidence: Evidence) -> Outcome:
    ratios, moments = [], 0
    found = _by_seed(test, evidence)
    if not found:
        return not_run("snakemake theory")
    for lines in found.values():
        far = [float(line["gradient"]) for line in lines if float(line["sw1"]) > FAR and int(line["step"]) > 0]
        if len(far) > 1:
            ratios.append(min(far) / max(far))
            moments = max(moments, len(far))
    if not ratios:
        told = "its samples are far from the data at no two moments of training that were looked at"
        return Outcome(UNDECIDED, told, seeds=len(found), source="alignment.csv")
    effect = f"smallest over largest gradient norm while the samples are far from the data, up to {moments} moments"
    return judged(_over_seeds(ratios, moments), test, effect, "alignment.csv")


# ------------------------------------------------------------------------------------------------------ result records


def _keys(test: dict[str, Any]) -> tuple[tuple[str, int], tuple[str, int]]:
    return (test["row"], test["nfe"]), (test["versus"], test.get("versus_nfe", test["nfe"]))


def _missing(view: View | None, rows: Iterable[str], test: dict[str, Any], evidence: Evidence) -> Outcome:
    """What would make the records of the first of these rows that has none."""
    profile = test.get("profile", evidence.first)
    absent = next((row for row in rows if view is None or not view.recorded(row)), next(iter(rows)))
    if view and view.recorded(absent) and (failed := next((row for row in rows if view.failed(row)), None)):
        nfes = ", ".join(map(str, sorted({nfe for nfe, _ in view.failed(failed)})))
        return Outcome(UNDECIDED, f"the images of {failed} are not finite at NFE {nfes}, so nothing was scored", source="records")
    declared = view.expected.rows.get(absent) if view and view.expected else None
    if view and view.expected and not declared and absent != "teacher" and absent not in view.expected.checkpoints:
        return not_run("snakemake full" if profile == "world" else f"a profile with the row {absent}")
    command = declared.command if declared else f"snakemake {'full' if profile == MATRIX else 'all'}"
    return not_run(command if profile == evidence.first else f"{command} --configfile workflows/config/{profile}.yaml")


def _noise_words(found: Summary, what: str = "rows") -> str:
    """What to say of the training noise in a comparison's interval (`stats.with_noise`); `what` lent it."""
    if found.noise is None:
        return f"; one seed, and none of the {what} has three to tell training noise"
    return f"; one seed, training noise of {found.noise:.2g} from {what} with three" if found.noise else ""


def difference(test: dict[str, Any], evidence: Evidence) -> Outcome:
    view, (key, other) = evidence.view(test), _keys(test)
    found = view.difference(key, other, test["metric"]) if view else None
    if found is None:
        return _missing(view, (test["row"], test["versus"]), test, evidence)
    if found.low is None:
        return Outcome(UNDECIDED, f"{test['metric']}: difference without an interval (one seed)", found.value, seeds=found.seeds, n=found.n)
    return judged(found, test, f"{test['metric']}, {key[0]} at {key[1]} minus {other[0]} at {other[1]}{_noise_words(found)}", "records")


def ratio(test: dict[str, Any], evidence: Evidence) -> Outcome:
    view, (key, other) = evidence.view(test), _keys(test)
    found = view.ratio(key, other, test["metric"]) if view else None
    if found is None:
        ours, theirs = (view.get(one, test["metric"]) if view else None for one in (key, other))
        if not ours or not theirs:
            return _missing(view, (test["row"], test["versus"]), test, evidence)
        effect = f"{other[0]} at {other[1]} has {theirs.value:g}, {key[0]} at {key[1]} {ours.value:.3g}: there is no ratio"
        return Outcome(UNDECIDED, f"{test['metric']}: {effect}", seeds=min(ours.seeds, theirs.seeds), n=ours.n, source="records")
    if found.low is None:
        return Outcome(UNDECIDED, f"{test['metric']}: ratio without an interval", found.value, seeds=found.seeds, n=found.n)
    return judged(found, test, f"{test['metric']}, {key[0]} at {key[1]} over {other[0]} at {other[1]}{_noise_words(found)}", "records")


def speedup(test: dict[str, Any], evidence: Evidence) -> Outcome:
    view, (key, other) = evidence.view(test), _keys(test)
    ours, theirs = (view.get(one, "speed/latency_b1_s") if view else None for one in (key, other))
    if not ours or not theirs:
        return _missing(view, (test["row"], test["versus"]), test, evidence)
    found = stats.times_faster(theirs, ours)
    effect = f"seconds of {other[0]} at {other[1]} over {key[0]} at {key[1]}, batch 1, quartiles; {view.info(key, 'hardware', 'speed')}"
    return judged(found, test, effect, "records")


def system_speedup(test: dict[str, Any], evidence: Evidence) -> Outcome:
    timed = systems.Timed.load(evidence.speed) if evidence.speed else systems.Timed({})
    found = timed.speedup()
    if found is None or not timed.full((systems.TEACHER, systems.STUDENT)):
        return not_run("snakemake speed on a GPU of 80 GB")
    machine = timed.records[systems.STUDENT].hardware
    effect = (
        f"seconds of {systems.TEACHER[0]}, {systems.TEACHER[2]} guided steps, over one of {systems.STUDENT[0]}, 512 px, batch 1; {machine}"
    )
    return judged(found, test, effect, "records")


def passes(test: dict[str, Any], evidence: Evidence) -> Outcome:
    """A guided step of the teacher is two evaluations; the row is not guided."""
    guidance = evidence.guidance.get(test.get("profile", evidence.first), 1.0)
    value = test["versus_nfe"] * (2 if guidance != 1.0 else 1) / test["nfe"]
    effect = f"network evaluations of {test['versus']} at {test['versus_nfe']} steps and guidance {guidance:g} over the row's"
    return judged(Summary(value), test, effect, "the profile")


def training(test: dict[str, Any], evidence: Evidence) -> Outcome:
    view = evidence.view(test)
    ours, theirs = (view.cost(test[name], *test["quantity"]) if view else None for name in ("row", "versus"))
    if ours is None or not theirs:
        return _missing(view, (test["row"], test["versus"]), test, evidence)
    effect = f"{' '.join(test['quantity'])}: {ours:,.1f} of {test['row']} over {theirs:,.1f} of {test['versus']}"
    return judged(Summary(ours / theirs), test, effect, "records")


def reported(test: dict[str, Any], evidence: Evidence) -> Outcome:
    view, key, metric = evidence.view(test), (test["row"], test["nfe"]), test["metric"]
    rows = [row for row in evidence.data["table1"] if label(row) == test["printed"] and row["nfe"] == str(test["nfe"])]
    if len(rows) != 1:
        raise UserError(f"claims.yaml: table1 has {len(rows)} rows {test['printed']!r} at NFE {test['nfe']}, expected one")
    printed = rows[0][metric.partition("/")[0]]
    found = view.get(key, metric) if view else None
    if found is None:
        return _missing(view, (test["row"],), test, evidence)
    effect = f"{metric}: {key[0]} at {key[1]}, {found.value:.3g}, minus the printed {printed}"
    if how := view.not_as_published(key, metric):
        return Outcome(UNDECIDED, f"{effect}; not measured alike: {how}", seeds=found.seeds, n=found.n, source="records")
    away = replace(found, value=found.value - float(printed), low=_less(found.low, printed), high=_less(found.high, printed))
    away = stats.with_noise(away, [view.noise_of(key, metric), 0.0])
    return judged(away, test, effect + _noise_words(away), "records")


def _less(end: float | None, printed: str) -> float | None:
    return None if end is None else end - float(printed)


def hours(test: dict[str, Any], evidence: Evidence) -> Outcome:
    view = evidence.view(test)
    seconds = view.cost(test["row"], "wall_seconds") if view else None
    if seconds is None:
        return _missing(view, (test["row"],), test, evidence)
    machines = dict.fromkeys(
        f"{one.get('processes', 1)} x {one['hardware']}" for one in view.made.get(test["row"], []) if "hardware" in one
    )
    return judged(Summary(seconds / 3600), test, f"hours of training of {test['row']}; {'; '.join(machines)}", "records of making")


def diverged(test: dict[str, Any], evidence: Evidence) -> Outcome:
    view = evidence.view(test)
    rows = test["rows"]
    if not view or not all(map(view.recorded, rows)):
        return _missing(view, rows, test, evidence)
    runs = {(one.record.row, one.record.seed) for one in view.found if one.record.row in rows}
    lost = {(row, seed) for row in rows for seed in view.stopped(row)} | {(row, seed) for row in rows for _, seed in view.failed(row)}
    effect = f"{len(lost)} of {len(runs)} runs diverged or made images that are not finite"
    return judged(Summary(float(len(lost)), seeds=len(runs)), test, effect, "records")


def pair_of(test: dict[str, Any], grid: ablations.Grid) -> list[str] | None:
    """The two cells that the test compares. Profiles vary the same thing by settings of their own: the first pair that the grid has."""
    own = {cell.name for cell in grid.cells}
    pairs = ([grid.ablation.name(one[which]) for which in ("cell", "versus")] for one in (test, *test.get("elsewhere", [])))
    return next((pair for pair in pairs if own.issuperset(pair)), None)


def ablation(test: dict[str, Any], evidence: Evidence) -> Outcome:
    if test["grid"] not in evidence.plan.found.grids:
        return not_run(f"a profile with the ablation {test['grid']}, such as workflows/config/matrix.yaml,")
    grid = evidence.grid(test["grid"])
    cells, names = {cell.name: cell for cell in grid.cells}, pair_of(test, grid)
    if names is None:
        wanted = " and ".join(grid.ablation.name(test[which]) for which in ("cell", "versus"))
        return not_run(f"a profile whose ablation {test['grid']} has {wanted}, such as workflows/config/matrix.yaml,")
    if not all(cells[name].per_prompt for name in names):
        return not_run(f"snakemake ablation_{test['grid']}")
    found = grid.difference(*(cells[name] for name in names))
    if found is None:
        raise UserError(f"{evidence.cells}: {names[0]} and {names[1]} were not scored on the same prompts; run the cells again")
    effect = f"GenEval of {names[0]} minus {names[1]}, at {grid.budget:g} forward-equivalents{_noise_words(found, 'cells')}"
    return judged(found, test, effect, "ablations")


# -------------------------------------------------------------------------------------------------- the paper's own tables


PAPER_TABLES = "the paper's own tables"


def audit(test: dict[str, Any], evidence: Evidence) -> Outcome:
    if test["check"] not in evidence.audits:
        raise UserError(f"claims.yaml: unknown check {test['check']!r} of the audit; known: {', '.join(evidence.audits)}")
    done = evidence.audits[test["check"]](evidence.data)
    effect = "; ".join(f"{one.row}: {one.computed}" for one in done.findings) or f"{done.about}: {done.examined} looked at, nothing found"
    return Outcome(CONTRADICTED if done.findings else HOLDS, effect, n=done.examined, source=PAPER_TABLES)


def printed_difference(test: dict[str, Any], evidence: Evidence) -> Outcome:
    rows = {label(row): row for row in evidence.data[test["table"]]}
    for name in (test["row"], test["versus"]):
        if name not in rows:
            raise UserError(f"claims.yaml: {test['table']} has no row {name!r}")
    ours, theirs = rows[test["row"]], rows[test["versus"]]
    value = float(ours["overall"]) - float(theirs["overall"])
    half = 1.96 * math.hypot(*(checks_outside.geneval_error(row, clustered=True) for row in (ours, theirs)))
    found = Summary(value, value - half, value + half, sum(checks_outside.GENEVAL_PROMPTS.values()))
    outcome = judged(found, test, f"printed {ours['overall']} minus {theirs['overall']}", PAPER_TABLES)
    return replace(outcome, verdict=CONTRADICTED) if outcome.verdict == FAILS else outcome


TESTS: dict[str, Callable[[dict[str, Any], Evidence], Outcome]] = {
    function.__name__: function
    for function in (
        theory,
        alignment,
        gradient,
        difference,
        ratio,
        speedup,
        system_speedup,
        passes,
        training,
        diverged,
        reported,
        hours,
        ablation,
        audit,
        printed_difference,
    )
}
