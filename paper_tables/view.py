"""Result records as tables and figures ask for them: by row, NFE and metric, seeds summed up."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.result import Metric
from paper_tables import records
from paper_tables.stats import PerPrompt, Summary, over_seeds

# Rows that every table shows: what is possible (real), what is trivial (noise, the prompt's mean image), what ignores the prompt
# (shuffled), and the teacher with its full and its cut number of steps.
REFERENCES = (("real", 0), ("mean", 0), ("shuffled", 0), ("noise", 0))
TEACHERS = (("teacher", 50), ("teacher", 25), ("teacher", 1))
REFERENCE_NAMES = frozenset(row for row, _ in REFERENCES)
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
TASK_NAMES = {
    "single_object": "single object", "two_object": "two objects", "counting": "counting",
    "colors": "colours", "position": "position", "color_attr": "attribute binding",
}  # fmt: skip
Key = tuple[str, int]


class View:
    """All numbers of one results folder.

    Attributes:
        split: the prompt set that tables speak of: test, or the first there is.
        keys: every (row, NFE) of the tables: references and teacher, with or without a record, then methods by name and NFE.
        methods: those of `keys` that are neither.
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
        self.methods: list[Key] = sorted(key for key in self._by_key if key not in teachers and key not in REFERENCES)
        self.keys: list[Key] = [*REFERENCES, *sorted(teachers, key=lambda key: -key[1]), *self.methods]

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
        """GenEval on combinations that training never showed: the prompts of the `unseen` split, or that part of the main one."""
        return self.get(key, "geneval/overall", "unseen") or self.get(key, "geneval/unseen")

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

    def per_prompt(self, key: Key) -> PerPrompt | None:
        """GenEval by prompt over the row's seeds, where its records hold it for the same prompts."""
        rows = [one.record.details.get("per_prompt") for one in self._by_key.get(key, []) if one.record.evaluator == "geneval" and one.split == self.split]
        if not rows or not all(rows) or any([item["prompt"] for item in row] != [item["prompt"] for item in rows[0]] for row in rows):
            return None
        correct, images = (np.array([[item[name] for item in row] for row in rows], float) for name in ("correct", "images"))
        return PerPrompt(tuple(item["tag"] for item in rows[0]), tuple(item["prompt"] for item in rows[0]), correct, images)

    def all_values(self, name: str) -> list[Any]:
        """Every distinct value of a record's field, in order of appearance."""
        return list(dict.fromkeys(value for one in self.found if (value := getattr(one.record, name)) not in (None, "")))
