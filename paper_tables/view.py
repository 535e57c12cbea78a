"""Result records as tables and figures ask for them: by row, NFE and metric, seeds summed up; rows in families."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from apex.busy import is_busy
from apex.provenance import OF_THE_RUN
from evaluators.result import Metric, Record
from paper_tables import drawn, evidence, records, stats
from paper_tables.expected import Expected, described
from paper_tables.logs import Log, read_logs
from paper_tables.shared import shared
from paper_tables.stats import PerPrompt, Summary, over_seeds

# Lines that every table shows, measured or not: what is possible (real), what is trivial (noise, the prompt's mean image), what
# ignores the prompt (shuffled), the teacher with its full and its cut number of steps.
Key = tuple[str, int]
REFERENCES: tuple[Key, ...] = (("real", 0), ("mean", 0), ("shuffled", 0), ("noise", 0))
TEACHERS: tuple[Key, ...] = (("teacher", 50), ("teacher", 25), ("teacher", 1))
TEACHER: Key = ("teacher", 25)
REFERENCE_NAMES = frozenset(row for row, _ in REFERENCES)
TASK_NAMES = {
    "single_object": "single object", "two_object": "two objects", "counting": "counting",
    "colors": "colours", "position": "position", "color_attr": "attribute binding",
}  # fmt: skip
TASKS = tuple(TASK_NAMES)
# Groups of the tables, in their order; a family of another name stands before the control.
FAMILIES = ("consistency", "adversarial", "self-adversarial", "regression")
CONTROL, EXTERNAL = "control", "external"


def family_name(text: str) -> str:
    """One of the groups for what a record says: of "adversarial + consistency" the first; "reference" is the control.

    A row without a family is a folder of images made elsewhere.
    """
    first = text.partition("+")[0].partition(",")[0].strip()
    return {"": EXTERNAL, "reference": CONTROL}.get(first, first)


def family_rank(family: str) -> tuple[int, str]:
    order = (*FAMILIES, "", CONTROL, EXTERNAL)
    return (order.index(family) if family in order else len(FAMILIES), family)


Method = TypeVar("Method", bound=Callable[..., Any])


def once(method: Method) -> Method:
    """For a view's methods of which tables, figures and claims ask the same: each answer is worked out once, for records do not change."""

    @wraps(method)
    def kept(self: View, *args: Any, **settings: Any) -> Any:
        asked = (method.__name__, args, *settings.items())
        if asked not in self._answers:
            self._answers[asked] = method(self, *args, **settings)
        return self._answers[asked]

    return kept


WORLD_SIZE = 1e8  # parameters: the networks of the embedded worlds have a hundredth of it, the smallest of the paper six times as many


class View:
    """All numbers of one results folder.

    Attributes:
        split: the prompt set that tables speak of: test, or the first there is.
        keys: every (row, NFE) of the tables, with or without a record: references, teacher, methods.
        teacher: what rows are set beside: the guided teacher at 25 steps, else at the most steps that it has.
        methods: those of `keys` that are neither reference nor teacher, by family, name and NFE: the recorded and the expected ones.
        rows: their names, in that order.
        unseen_tasks: the tasks that the unseen prompts have; `seen` is a mean over the same.
        baseline: what every other row is compared with: `apex`, or its LoRA where a profile trains nothing else.
        made: the records of making (made.json) of every trained row that has one.
        logs: their training logs, by row and seed.
        tuning: tuning.json of these results, or the committed one that the profile's settings are from.
        committed: what is committed of the same profile, to be set beside these results; None where there is nothing.
        origin: the folder of the records where they are the committed reference's; else empty. origin_words: a sentence that says so.
    """

    committed: View | None = None
    origin: str = ""
    origin_words: str = ""

    def __init__(
        self,
        found: list[records.Found],
        expected: Expected | None = None,
        made: dict[str, list[dict[str, Any]]] | None = None,
        logs: dict[str, dict[int, Log]] | None = None,
        tuning: Path | None = None,
    ) -> None:
        self.found, self.expected, self.made, self.logs, self.tuning = found, expected, made or {}, logs or {}, tuning
        self._answers: dict[tuple[Any, ...], Any] = {}  # of `once`
        splits = {one.split for one in found}
        self.split = next(name for name in (*records.SPLITS, "", *sorted(splits)) if name in splits)
        self._metrics: dict[tuple[str, int, str, str], dict[int | None, Metric]] = defaultdict(dict)  # by seed
        self._by_key: dict[Key, list[records.Found]] = defaultdict(list)
        for one in found:
            self._by_key[one.key].append(one)
            for metric in one.record.metrics:
                self._metrics[*one.key, one.split, metric.metric][one.record.seed] = metric
        homes = sorted({(metric, split) for _, _, split, metric in self._metrics if split == self.split or split not in records.SPLITS})
        self._homes = dict(reversed(homes)) | {metric: split for metric, split in homes if split == self.split}
        wanted = {(row.row, nfe) for row in expected.rows.values() for nfe in row.seeds} if expected else set()
        wanted |= {(external.row, external.nfe) for external in expected.external.values()} if expected else set()
        wanted |= {(one.row, nfe) for one in expected.checkpoints.values() for nfe in one.nfe} if expected else set()
        teachers = {("teacher", nfe) for nfe in expected.teacher_nfe} if expected else {*TEACHERS}
        teachers |= {key for key in self._by_key if key[0] == "teacher"}
        references = [key for key in REFERENCES if not expected or key[0] in expected.references or key in self._by_key]
        self._by_row: dict[str, list[records.Found]] = defaultdict(list)
        for one in found:
            self._by_row[one.record.row].append(one)
        keys = {*wanted, *self._by_key} - teachers - {*REFERENCES}
        self.families = {row: self._family(row) for row in sorted({row for row, _ in keys})}
        self.methods: list[Key] = sorted(keys, key=lambda key: (family_rank(self.families[key[0]]), key))
        self.teacher: Key = TEACHER if TEACHER in teachers or not teachers else max(teachers)
        self.rows = list(dict.fromkeys(row for row, _ in self.methods))
        self.baseline = self.variant("apex") or "apex"
        self.keys: list[Key] = [*references, *sorted(teachers, key=lambda key: -key[1]), *self.methods]
        unseen = {name for _, _, split, name in self._metrics if split == "unseen"}
        self.unseen_tasks = tuple(task for task in TASKS if f"geneval/{task}" in unseen)

    @classmethod
    def load(cls, results: Path, expected: Expected | None = None, committed: Path | None = None) -> View:
        """Reads records/, and where there are any runs/*/seed*/made.json and log.csv; the same of the folder `committed`."""
        view = _load(results, expected)
        if committed:
            view = copy(view)  # with the same answers
            view.committed = _load(committed, None)
        return view

    # ------------------------------------------------------------------------------------------- what a row is
    @once
    def about(self, row: str, name: str) -> str:
        """`method`, `family`, `citation` or `tuning` of a row: of its records, else of the profile and the method's file; '' if unknown."""
        sources = [one.record.model_dump(include={name}) for one in self._by_row.get(row, [])]
        sources += [*self.made.get(row, []), *((one.record.details.get("made") or {}) for one in self._by_row.get(row, []))]
        told = next((str(value) for source in sources if (value := source.get(name))), "")
        declared = self.expected.rows.get(row) if self.expected else None
        if not told and declared:
            told = {"method": declared.method, "tuning": declared.tuning}.get(name, "")
        if not told and name in ("family", "citation"):
            told = described(self.about(row, "method"), self.expected.files if self.expected else ()).get(name, "")
        return told

    def variant(self, method: str) -> str | None:
        """A row's name, or where there is no row of that name the one that trains the method of that name with LoRA."""
        if method in self.rows:
            return method
        return next((row for row in self.rows if self.about(row, "method") == method and self.about(row, "tuning") == "lora"), None)

    def _family(self, row: str) -> str:
        return EXTERNAL if self.images_only(row) else family_name(self.about(row, "family"))

    @once
    def images_only(self, row: str) -> bool:
        """Whether the row's images, or the weights that drew them, are from elsewhere: no training of it is known here."""
        if self.expected and (row in self.expected.rows or row in self.expected.external or row in self.expected.checkpoints):
            return row not in self.expected.rows
        records = [one.record for one in self._by_row.get(row, [])]
        known = any(record.family or record.tuning or record.training for record in records)
        return bool(records) and not known and row not in self.made and row not in REFERENCE_NAMES

    @property
    def stock_teachers(self) -> list[Key]:
        """The teacher as its users call it, at steps of its own: rows of `pipeline: teacher` at NFEs that are not compared."""
        rows = self.expected.stock_teachers if self.expected else ()
        return [key for key in self.methods if key[0] in rows and key[1] not in self.compared]

    def source(self, row: str) -> str:
        """Where a row's images are from, of its records or the profile; '' if unknown."""
        told = ((one.record.details.get("made") or {}).get("source") for one in self._by_row.get(row, []))
        declared = self.expected.external.get(row) if self.expected else None
        checkpoint = self.expected.checkpoints.get(row) if self.expected else None
        return next((str(text) for text in told if text), declared.source if declared else checkpoint.words if checkpoint else "")

    def grouped(self, nfe: int) -> list[tuple[str, list[Key]]]:
        """(family, its rows at that NFE), in the tables' order."""
        groups: dict[str, list[Key]] = {}
        for key in self.methods:
            if key[1] == nfe:
                groups.setdefault(self.families[key[0]], []).append(key)
        return list(groups.items())

    def by_family(self, rows: Iterable[str]) -> dict[str, list[str]]:
        """Family -> those of `rows` that are of it, in the tables' order."""
        chosen, groups = set(rows), {}
        for row in self.rows:
            if row in chosen:
                groups.setdefault(self.families[row], []).append(row)
        return groups

    @property
    def compared(self) -> list[int]:
        """The NFEs at which rows are compared: the profile's, or those that half of the rows have."""
        if self.expected:
            return list(self.expected.nfe)
        ours = [row for row in self.rows if self.families[row] != EXTERNAL] or self.rows
        nfes = [nfe for row, nfe in self.methods if row in ours]
        return sorted({nfe for nfe in nfes if nfe and 2 * nfes.count(nfe) >= len(ours)})

    def measures(self, evaluator: str, split: str = "") -> bool:
        """Whether a record is of that evaluator, on that prompt set where one is named, or the profile asks for it."""
        if any(one.record.evaluator == evaluator and split in ("", one.split) for one in self.found):
            return True
        asked = self.expected
        return not asked or (evaluator in asked.evaluators and (not split or split in asked.splits))

    def recorded(self, row: str) -> bool:
        """Whether the row has any record."""
        return row in self._by_row

    @property
    def not_run(self) -> list[str]:
        """The rows that the profile names and that have no record."""
        return [row for row in self.rows if row not in self._by_row]

    def stopped(self, row: str) -> dict[int, str]:
        """Seed -> why and when its training diverged; empty where none did."""
        found = {one.record.seed: (one.record.training or {}).get("stopped") for one in self._by_row.get(row, [])}
        found |= {made.get("seed"): (made.get("training") or {}).get("stopped") for made in self.made.get(row, [])}
        return {seed: str(text) for seed, text in sorted(found.items(), key=lambda item: str(item[0])) if text}

    def failed(self, row: str, nfe: int | None = None) -> dict[Key, str]:
        """(NFE, seed) -> why it has no images, at one NFE or at all; empty where all could be made. A record without a number says it."""
        found = [one for one in self._by_row.get(row, []) if one.record.failed and nfe in (None, one.record.nfe)]
        found.sort(key=lambda one: one.record.evaluator != "speed")  # the others say of which prompt
        return {(one.record.nfe, one.record.seed): one.record.failed for one in found}

    # ------------------------------------------------------------------------------------------- its evidence
    def _making(self, one: records.Found) -> dict[str, Any]:
        """The training behind a record: what its images say of it, else the run of its row and seed."""
        images = {key: value for key, value in (one.record.details.get("made") or {}).items() if key in OF_THE_RUN}
        runs = (made for made in self.made.get(one.record.row, []) if made.get("seed") == one.record.seed)
        return next(runs, {}) | {key: value for key, value in images.items() if value is not None}

    @cached_property
    def _remarks(self) -> dict[Key, dict[str, dict[str, set[int | None]]]]:
        """(row, NFE) -> short remark -> sentence -> seeds. A row's runs have the NFE -1."""
        wanted = evidence.Wanted(self.expected.config) if self.expected and self.expected.config else None
        found: dict[Key, dict[str, dict[str, set[int | None]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(set)))

        def add(key: Key, seed: int | None, method: str, made: dict[str, Any], sentences: Iterable[str]) -> None:
            for sentence in sentences:
                found[key][evidence.OTHER][sentence].add(seed)
            if one := evidence.correction(method, made):
                found[key][one.remark][one.sentence].add(seed)

        for row, runs in self.made.items():
            for made in runs:
                add((row, -1), made.get("seed"), made.get("method") or row, made, wanted.of_making(row, made) if wanted else ())
        for one in self.found:
            record, made = one.record, self._making(one)
            trained = made if made.get("run") or record.training else {}
            sentences = wanted.of_record(record, one.split, made) if wanted else []
            if wanted and trained:
                sentences += wanted.of_making(record.row, made)
            run = next((made for made in self.made.get(record.row, []) if made.get("seed") == record.seed), {})
            if run.get("run_hash") and record.run and record.run != run["run_hash"]:
                sentences.append(f"Images of another run ({record.run}) than runs/ holds ({run['run_hash']}).")
            add(one.key, record.seed, record.method if trained else "", made, sentences)
        return found

    @once
    def remarks(self, row: str, nfe: int | None = None) -> dict[str, list[str]]:
        """Why numbers of a row, at one NFE or at all, do not stand unmarked: short remark -> whole sentences; empty where nothing is known.

        That is: a record's settings, budget, prompt file or teacher are not those of the profile that the tables are made for, or its
        objective was corrected since. Every table, figure and claim marks its rows by this.
        """
        joined: dict[str, dict[str, set[int | None]]] = {}
        for key, by_remark in self._remarks.items():
            if key[0] == row and (nfe is None or key[1] in (nfe, -1)):
                for remark, sentences in by_remark.items():
                    for sentence, seeds in sentences.items():
                        joined.setdefault(remark, {}).setdefault(sentence, set()).update(seeds)
        every = {one.record.seed for one in self._by_row.get(row, [])} | {made.get("seed") for made in self.made.get(row, [])}
        return {remark: [_of_seeds(*one, every) for one in sentences.items()] for remark, sentences in joined.items()}

    def note(self, row: str, nfe: int | None = None) -> str:
        """`remarks` as one footnote; '' where there is none."""
        return " ".join(sentence for sentences in self.remarks(row, nfe).values() for sentence in sentences)

    def timing(self, key: Key) -> str:
        """What the row's timing is worth: that the machine was busy, or that no record says whether it was; '' where it was not, or
        nothing was timed."""
        found = [one.record.details for one in self._by_key.get(key, []) if one.record.evaluator == "speed"]
        return next((words for details in found if (words := load_words(details.get("load"), bool(details.get("busy"))))), "")

    def training_timing(self, row: str) -> str:
        """As `timing`, of the row's trainings."""
        trainings = [one for found in self._trainings(row) for one in found.values() if one.get("wall_seconds")]
        return next((words for one in trainings if (words := load_words(one.get("load"), is_busy(one.get("load"))))), "")

    @cached_property
    def stamp(self) -> str:
        """Of all that tables and figures take from here: what was read of results and profile, and what both say of its rows."""
        asked = self.expected
        parts: list[object] = [self.origin, self.origin_words, self.made, self.families, replace(asked, config=None) if asked else ""]
        parts += [asked.config.as_profile()] if asked and asked.config else []
        parts += [path.read_bytes() for path in [*map(Path, asked.files if asked else ()), *([self.tuning] if self.tuning else [])]]
        for one in self.found:
            parts += [one.split, one.path.read_bytes()]
        for row, logs in self.logs.items():
            for seed, log in logs.items():
                parts += [row, seed, log.bad, *(part for name, values in log.columns.items() for part in (name, values.tobytes()))]
        for key, by_remark in self._remarks.items():
            sentences = (one for its in by_remark.values() for one in its.items())
            parts += [(key, by_remark.keys(), sentence, sorted(map(str, seeds))) for sentence, seeds in sentences]
        return drawn.stamp(*parts, self.committed.stamp if self.committed else "")

    @cached_property
    def remarked(self) -> dict[str, list[str]]:
        """Short remark -> the rows that carry it, in the tables' order."""
        found: dict[str, list[str]] = {}
        for row in dict.fromkeys([*(row for row, _ in self.keys), *self.made]):
            for remark in self.remarks(row):
                found.setdefault(remark, []).append(row)
        return found

    @property
    def remarked_words(self) -> str:
        """`remarked` as a sentence for a caption; '' where nothing is marked."""
        return " ".join(f"{remark[0].upper()}{remark[1:]}: {', '.join(rows)}." for remark, rows in self.remarked.items())

    def trained(self, row: str) -> bool:
        """Whether a training of this suite is behind the row's records or runs."""
        return row in self.made or any(one.record.training for one in self._by_row.get(row, []))

    def prompts_seen(self, row: str) -> list[dict[str, Any]]:
        """Of each record and run of the row: what of each prompt set was a training caption, by its name; {} where it does not say."""
        images = [self._making(one).get("prompts_seen") or {} for one in self._by_row.get(row, []) if one.record.training]
        return images + [made.get("prompts_seen") or {} for made in self.made.get(row, [])]

    @property
    def budgets(self) -> list[float]:
        """Forward-equivalents that the trained rows spent, by their records, in rising order; runs that diverged are left out."""
        found = [training for row in self.rows for runs in self._trainings(row) for training in runs.values()]
        return sorted({float(spent) for one in found if not one.get("stopped") and (spent := one.get("forward_equivalents"))})

    # ------------------------------------------------------------------------------------------- its numbers

    @once
    def not_as_published(self, key: Key, metric: str) -> str:
        """Why a number does not compare with the published ones, by its record: who judged, or what differs; '' where it does compare, or
        the record says nothing."""
        for one in self._by_key.get(key, []):
            details = one.record.details
            if details.get("comparable") is False and any(m.metric == metric for m in one.record.metrics):
                judge = details.get("judge") or {}
                name = judge.get("model") or judge.get("judge")
                return f"here by {name}" if name else "; ".join(details.get("differs") or ["here by another judge"])
        return ""

    def home(self, metric: str) -> str:
        """The prompt set that tables report a metric on: the main one, or, of a metric that it has not, the benchmark's own."""
        return self._homes.get(metric, self.split)

    @once
    def get(self, key: Key, metric: str, split: str | None = None, seed: int | None = None) -> Summary | None:
        """Seeds summed up, or that of one `seed`; None where no record has it. Speed has no prompt set, so any split will do."""
        splits = [self.home(metric) if split is None else split]
        if metric.startswith("speed/"):
            splits += [name for name in ("", *records.SPLITS) if name not in splits]
        by_seed = next((found for name in splits if (found := self._metrics.get((*key, name, metric)))), {})
        chosen = [number for its, number in by_seed.items() if seed is None or its == seed]
        return over_seeds(chosen) if chosen else None

    @once
    def training_noise(self, metric: str, nfe: int, split: str | None = None) -> float | None:
        """The largest standard deviation over seeds of a trained row with three or more at that NFE; None where no row has so many."""
        found = [self.by_seed(key, metric, split) for key in self.methods if key[1] == nfe]
        return max((statistics.stdev(values) for values in found if len(values) >= 3), default=None)

    def noise_of(self, key: Key, metric: str, split: str | None = None) -> float | None:
        """The training noise that the row's number does not show: that of `training_noise` where it has one seed, else 0.

        0 too of what is not trained here: references, the teacher, other people's weights and images. None where no row shows it.
        """
        trained = key in self.methods and not self.images_only(key[0])
        return self.training_noise(metric, key[1], split) if trained and len(self.by_seed(key, metric, split)) == 1 else 0.0

    def by_seed(self, key: Key, metric: str, split: str | None = None) -> list[float]:
        """The number of each seed."""
        home = self.home(metric) if split is None else split
        return [one.value for one in self._metrics.get((*key, home, metric), {}).values()]

    def common_seed(self, row: str, metric: str) -> int | None:
        """The seed at which the row has the number at most of its NFEs, the lowest of equals; None where no record names a seed.

        A curve over NFEs that are not all measured with the same seeds compares like with like only at one of them.
        """
        seeds = [seed for key in self.keys if key[0] == row for seed in self._metrics.get((*key, self.home(metric), metric), {})]
        return min((seed for seed in set(seeds) if seed is not None), key=lambda seed: (-seeds.count(seed), seed), default=None)

    def unseen(self, key: Key) -> Summary | None:
        """GenEval on combinations that training never showed."""
        return self.get(key, "geneval/overall", "unseen")

    def seen(self, key: Key) -> Summary | None:
        """GenEval on the main prompts, the mean over `unseen_tasks`, so that it compares with `unseen`; None where one is missing."""
        by_task = [self._metrics.get((*key, self.split, f"geneval/{task}")) for task in self.unseen_tasks]
        if not by_task or not all(by_task) or len({tuple(found) for found in by_task}) > 1:
            return None
        return over_seeds([_mean_of(metrics) for metrics in zip(*(found.values() for found in by_task), strict=True)])

    def relative(self, key: Key, metric: str, split: str | None = None) -> Summary | None:
        """The number over that of `teacher`."""
        return self.ratio(key, self.teacher, metric, split)

    @once
    def ratio(self, key: Key, other: Key, metric: str, split: str | None = None) -> Summary | None:
        """`key` over `other`, by the rule of `difference`. Of GenEval its overall alone is compared prompt by prompt."""
        ours, theirs = self.get(key, metric, split), self.get(other, metric, split)
        if ours is None or theirs is None:
            return None
        found = None
        if metric == "geneval/overall":
            top, bottom = (self._per_prompt(k, split or self.split) for k in (key, other))
            found = stats.paired_ratio(top, bottom) if top and bottom else None
        found = found or stats.ratio(ours, theirs)
        noises = [self.noise_of(k, metric, split) for k in (key, other)]
        return found and stats.with_noise(found, noises, (1 / theirs.value, ours.value / theirs.value**2))

    @once
    def difference(self, key: Key, other: Key, metric: str, split: str | None = None) -> Summary | None:
        """`key` minus `other`: the one rule by which tables, figures, sentences and claims compare two rows; `stats.reading` says it.

        GenEval, overall or of a task, is compared prompt by prompt where the records allow; the rest takes the two as independent. The
        interval holds seeds where there are several, and the training noise (`noise_of`) of a trained row that has one.
        """
        found = self.bare_difference(key, other, metric, split)
        return found and stats.with_noise(found, [self.noise_of(k, metric, split) for k in (key, other)])

    @once
    def bare_difference(self, key: Key, other: Key, metric: str, split: str | None = None, of: View | None = None) -> Summary | None:
        """As `difference`, without the training noise of rows of one seed; `other` may be `of` other results."""
        of = of or self
        ours, theirs = self.get(key, metric, split), of.get(other, metric, split)
        if ours is None or theirs is None:
            return None
        if metric.startswith("geneval/"):
            task = metric.removeprefix("geneval/")
            rows = [view._per_prompt(k, split or view.split, task) for view, k in ((self, key), (of, other))]
            if all(rows) and (found := stats.paired_difference(*rows)):
                return found
        return stats.difference(ours, theirs)

    @once
    def _per_prompt(self, key: Key, split: str, task: str = "overall") -> PerPrompt | None:
        """GenEval by prompt over the row's seeds, of all tasks or of one, where its records hold it for the same prompts."""
        if task != "overall":
            return (whole := self._per_prompt(key, split)) and whole.only(task)
        mine = [one for one in self._by_key.get(key, []) if one.record.evaluator == "geneval" and one.split == split]
        return per_prompt([one.record for one in mine if not one.record.failed])

    def evaluators(self, key: Key) -> set[str]:
        return {one.record.evaluator for one in self._by_key.get(key, [])}

    def info(self, key: Key, name: str, evaluator: str = "") -> Any:
        """A field of the row's records (the first that has it), those of `evaluator` first; None where none has it."""
        found = sorted(self._by_key.get(key, []), key=lambda one: one.record.evaluator != evaluator)
        return next((value for one in found if (value := getattr(one.record, name)) not in (None, "")), None)

    def training(self, key: Key, *names: str) -> float | None:
        """A training cost of the row, averaged over seeds; None for rows that no training made. `names` lead into nested records."""
        found = [one.record for one in self._by_key.get(key, []) if one.record.training]
        return _mean({record.seed: record.training for record in found}, names)

    def _trainings(self, row: str) -> list[dict[Any, dict[str, Any]]]:
        """What the row's result records say of its training, by seed, and what its records of making say."""
        recorded = {one.record.seed: one.record.training for one in self._by_row.get(row, []) if one.record.training}
        return [recorded, {made.get("seed"): made.get("training") or {} for made in self.made.get(row, [])}]

    def cost(self, row: str, *names: str) -> float | None:
        """As `training`, over all NFEs of the row, and its records of making where the result records have no such number."""
        means = [_mean(found, names) for found in self._trainings(row)]
        return next((value for value in means if value is not None), None)

    def setting(self, row: str, *names: str) -> float | None:
        """A number of the settings that the row was trained with, the mean over seeds; `names` lead into made.json's `run`."""
        return _mean({made.get("seed"): made.get("run") or {} for made in self.made.get(row, [])}, names)

    def networks(self, row: str) -> dict[str, float]:
        """Training FLOPs by network, averaged over seeds; empty where the records do not say."""
        books = [one.get("flops_by_network") or {} for found in self._trainings(row) for one in found.values()]
        names = dict.fromkeys(name for book in books for name in book)
        return {name: found for name in names if (found := self.cost(row, "flops_by_network", name)) is not None}

    def all_values(self, name: str) -> list[Any]:
        """Every distinct value of a record's field, in order of appearance."""
        return list(dict.fromkeys(value for one in self.found if (value := getattr(one.record, name)) not in (None, "")))

    @property
    def backbones(self) -> set[str]:
        """The classes of network that were trained."""
        return {one.record.backbone for one in self.found if one.record.training and one.record.backbone}

    @property
    def largest(self) -> int:
        """Parameters of the largest measured network; 0 where no record tells."""
        return max((int(value) for value in self.all_values("parameters") if value), default=0)

    @property
    def of_a_world(self) -> bool:
        """Whether what was measured are small networks that draw an embedded world, as far as the records tell."""
        return self.largest < WORLD_SIZE


@shared
def _load(results: Path, expected: Expected | None) -> View:
    made: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row, seed, path in records.runs(results, "made.json"):
        made[row].append(records.read_made(path, row, seed))
    tuned = [results / "tune" / "tuning.json", *([expected.tuning] if expected and expected.tuning else [])]
    view = View(records.load(results), expected, dict(made), read_logs(results), next(filter(Path.is_file, tuned), None))
    view.origin, view.origin_words = records.of_reference(results), records.reference_words(results)
    return view


def load_words(load: dict[str, Any] | None, busy: bool) -> str:
    """A footnote on a timing; '' where it was taken on a machine that had nothing else to do."""
    if not load:
        return "Timed without a record of the machine's load: other work may have slowed it down."
    words = f"Timed on a busy machine: other processes used {load['others']:.2g} of {load['cores']} cores meanwhile."
    return words if busy else ""


def _of_seeds(sentence: str, seeds: set[int | None], every: set[int | None]) -> str:
    """The sentence with the seeds that it is true of, where it is not true of all."""
    if seeds >= every or None in seeds:
        return sentence
    return f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}: {sentence[0].lower()}{sentence[1:]}"


def per_prompt(found: Sequence[Record]) -> PerPrompt | None:
    """GenEval by prompt of records of the same prompts, one a seed; None where they are not, or where one does not hold it."""
    rows = [record.details.get("per_prompt") for record in found]
    if not rows or not all(rows):
        return None
    texts, tasks = (tuple(item[name] for item in rows[0]) for name in ("prompt", "tag"))
    if any(tuple(item["prompt"] for item in row) != texts for row in rows):
        return None
    correct, images = (np.array([[item[name] for item in row] for row in rows], float) for name in ("correct", "images"))
    return PerPrompt(tasks, texts, correct, images)


def _mean(by_seed: dict[Any, dict[str, Any]], names: Sequence[str]) -> float | None:
    """The mean over seeds of the number that `names` lead to."""
    values = []
    for found in by_seed.values():
        value: Any = found
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            values.append(float(value))
    return sum(values) / len(values) if values else None


def _mean_of(metrics: tuple[Metric, ...]) -> Metric:
    """The mean of one seed's tasks. Their prompts are drawn apart, so the squares of their intervals add up."""
    value, count = sum(metric.value for metric in metrics) / len(metrics), len(metrics)
    bounds: dict[str, Any] = {"ci_low": None, "ci_high": None, "interval": None}
    if all(metric.interval for metric in metrics):
        bounds = {
            "ci_low": max(0.0, value - math.hypot(*(metric.value - metric.ci_low for metric in metrics)) / count),
            "ci_high": min(1.0, value + math.hypot(*(metric.ci_high - metric.value for metric in metrics)) / count),
            "interval": metrics[0].interval,
        }
    return metrics[0].model_copy(update={"metric": "geneval/seen", "value": value, "n": sum(metric.n for metric in metrics), **bounds})
