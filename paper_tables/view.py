"""Result records as tables and figures ask for them: by row, NFE and metric, seeds summed up."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.result import Metric
from paper_tables import records, stats
from paper_tables.stats import PerPrompt, Summary, over_seeds

# Lines that every table shows, measured or not: what is possible (real), what is trivial (noise, the prompt's mean image), what
# ignores the prompt (shuffled), the teacher with its full and its cut number of steps, and the suite's three rows.
Key = tuple[str, int]
REFERENCES: tuple[Key, ...] = (("real", 0), ("mean", 0), ("shuffled", 0), ("noise", 0))
TEACHERS: tuple[Key, ...] = (("teacher", 50), ("teacher", 25), ("teacher", 1))
TEACHER: Key = ("teacher", 25)
METHODS: tuple[Key, ...] = tuple((row, nfe) for row in ("apex", "apex-eq25", "fm") for nfe in (1, 2, 4))
REFERENCE_NAMES = frozenset(row for row, _ in REFERENCES)
TASK_NAMES = {
    "single_object": "single object", "two_object": "two objects", "counting": "counting",
    "colors": "colours", "position": "position", "color_attr": "attribute binding",
}  # fmt: skip
TASKS = tuple(TASK_NAMES)


class View:
    """All numbers of one results folder.

    Attributes:
        split: the prompt set that tables speak of: test, or the first there is.
        keys: every (row, NFE) of the tables, with or without a record: references, teacher, methods by name and NFE.
        methods: those of `keys` that are neither reference nor teacher.
        unseen_tasks: the tasks that the unseen prompts have; `seen` is a mean over the same.
    """

    def __init__(self, found: list[records.Found]) -> None:
        self.found = found
        splits = {one.split for one in found}
        self.split = next(name for name in (*records.SPLITS, "") if name in splits)
        self._metrics: dict[tuple[str, int, str, str], list[Metric]] = defaultdict(list)
        self._by_key: dict[Key, list[records.Found]] = defaultdict(list)
        for one in found:
            self._by_key[one.key].append(one)
            for metric in one.record.metrics:
                self._metrics[*one.key, one.split, metric.metric].append(metric)
        teachers = {*TEACHERS, *(key for key in self._by_key if key[0] == "teacher")}
        self.methods: list[Key] = sorted({*METHODS, *self._by_key} - teachers - {*REFERENCES})
        self.keys: list[Key] = [*REFERENCES, *sorted(teachers, key=lambda key: -key[1]), *self.methods]
        unseen = {name for _, _, split, name in self._metrics if split == "unseen"}
        self.unseen_tasks = tuple(task for task in TASKS if f"geneval/{task}" in unseen)

    @classmethod
    def load(cls, results: Path) -> View:
        return cls(records.load(results))

    def get(self, key: Key, metric: str, split: str | None = None) -> Summary | None:
        """Seeds summed up, or None where no record has the number. Speed has no prompt set, so any split will do."""
        splits = [self.split if split is None else split]
        if metric.startswith("speed/"):
            splits += [name for name in ("", *records.SPLITS) if name not in splits]
        return next((over_seeds(found) for name in splits if (found := self._metrics.get((*key, name, metric)))), None)

    def unseen(self, key: Key) -> Summary | None:
        """GenEval on combinations that training never showed."""
        return self.get(key, "geneval/overall", "unseen")

    def seen(self, key: Key) -> Summary | None:
        """GenEval on the main prompts, the mean over `unseen_tasks`, so that it compares with `unseen`; None where one is missing."""
        by_task = [self._metrics.get((*key, self.split, f"geneval/{task}")) for task in self.unseen_tasks]
        if not by_task or not all(by_task) or len({len(metrics) for metrics in by_task}) > 1:
            return None
        return over_seeds([_mean_of(metrics) for metrics in zip(*by_task, strict=True)])

    def relative(self, key: Key, metric: str, split: str | None = None) -> Summary | None:
        """The number over the guided 25-step teacher's. GenEval's overall is compared prompt by prompt where the records allow."""
        ours, theirs = self.get(key, metric, split), self.get(TEACHER, metric, split)
        if ours is None or theirs is None:
            return None
        if metric == "geneval/overall":
            top, bottom = (self._per_prompt(k, split or self.split) for k in (key, TEACHER))
            if top and bottom and (found := stats.paired_ratio(top, bottom)):
                return found
        return stats.ratio(ours, theirs)

    def _per_prompt(self, key: Key, split: str) -> PerPrompt | None:
        """GenEval by prompt over the row's seeds, where its records hold it for the same prompts."""
        chosen = [one.record for one in self._by_key.get(key, []) if one.record.evaluator == "geneval" and one.split == split]
        rows = [record.details.get("per_prompt") for record in chosen]
        if not rows or not all(rows):
            return None
        texts, tasks = (tuple(item[name] for item in rows[0]) for name in ("prompt", "tag"))
        if any(tuple(item["prompt"] for item in row) != texts for row in rows):
            return None
        correct, images = (np.array([[item[name] for item in row] for row in rows], float) for name in ("correct", "images"))
        return PerPrompt(tasks, texts, correct, images)

    def evaluators(self, key: Key) -> set[str]:
        return {one.record.evaluator for one in self._by_key.get(key, [])}

    def info(self, key: Key, name: str, evaluator: str = "") -> Any:
        """A field of the row's records (the first that has it), those of `evaluator` first; None where none has it."""
        found = sorted(self._by_key.get(key, []), key=lambda one: one.record.evaluator != evaluator)
        return next((value for one in found if (value := getattr(one.record, name)) not in (None, "")), None)

    def training(self, key: Key, name: str) -> float | None:
        """A training cost of the row, averaged over seeds; None for rows that no training made."""
        by_seed = {one.record.seed: one.record.training.get(name) for one in self._by_key.get(key, []) if one.record.training}
        values = [float(value) for value in by_seed.values() if value is not None]
        return sum(values) / len(values) if values else None

    def all_values(self, name: str) -> list[Any]:
        """Every distinct value of a record's field, in order of appearance."""
        return list(dict.fromkeys(value for one in self.found if (value := getattr(one.record, name)) not in (None, "")))


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
