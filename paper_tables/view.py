"""Result records as tables and figures ask for them: by row, NFE and metric, seeds summed up."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from paper_tables import records
from paper_tables.stats import Summary, over_seeds

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
        keys: every (row, NFE) with a record, references and teacher first, then methods by name and NFE.
    """

    def __init__(self, found: list[records.Record]) -> None:
        self.records = found
        splits = {record.split for record in found}
        self.split = next(name for name in (*records.SPLITS, "", *sorted(splits)) if name in splits)
        self._metrics: dict[tuple[str, int, str, str], list[records.Metric]] = defaultdict(list)
        self._records: dict[Key, list[records.Record]] = defaultdict(list)
        for record in found:
            self._records[record.row, record.nfe].append(record)
            for metric in record.metrics():
                self._metrics[record.row, record.nfe, record.split, metric.name].append(metric)
        fixed = (*REFERENCES, *TEACHERS)
        more = sorted((key for key in self._records if key[0] == "teacher" and key not in fixed), key=lambda key: -key[1])
        others = sorted(key for key in self._records if key[0] != "teacher" and key not in fixed)
        self.keys: list[Key] = [*REFERENCES, *sorted([*TEACHERS, *more], key=lambda key: -key[1]), *others]
        self.methods: list[Key] = others

    @classmethod
    def load(cls, results: Path) -> View:
        return cls(records.load(results))

    def get(self, key: Key, metric: str, split: str | None = None) -> Summary | None:
        """Seeds summed up, or None where no record has the number. Speed has no prompt set, so any split will do."""
        splits = [self.split if split is None else split]
        if metric.startswith("speed/"):
            splits += [name for name in ("", *records.SPLITS) if name not in splits]
        for name in splits:
            if found := self._metrics.get((*key, name, metric)):
                bounds = (0.0, 1.0) if found[0].unit == "fraction" else (-math.inf, math.inf)
                return over_seeds([m.value for m in found], [m.low for m in found], [m.high for m in found], [m.n for m in found], bounds)
        return None

    def unseen(self, key: Key) -> Summary | None:
        """GenEval on combinations that training never showed: the prompts of the `unseen` split, or the part of the main one."""
        return self.get(key, "geneval/overall", "unseen") or self.get(key, "geneval/unseen", "unseen") or self.get(key, "geneval/unseen")

    def seen(self, key: Key) -> Summary | None:
        """GenEval on the prompts whose combinations training showed."""
        return self.get(key, "geneval/seen")

    def evaluators(self, key: Key) -> set[str]:
        return {record.evaluator for record in self._records.get(key, [])}

    def info(self, key: Key, name: str, evaluator: str = "") -> Any:
        """A field of the row's records (the first that has it), those of `evaluator` first; None where none has it."""
        found = sorted(self._records.get(key, []), key=lambda record: record.evaluator != evaluator)
        return next((record.data[name] for record in found if record.data.get(name) not in (None, "")), None)

    def training(self, key: Key, name: str) -> float | None:
        """A training cost of the row, averaged over seeds; None for rows that no training made."""
        by_seed = {record.seed: record.data["training"].get(name) for record in self._records.get(key, []) if record.data.get("training")}
        values = [float(value) for value in by_seed.values() if value is not None]
        return sum(values) / len(values) if values else None

    def all_values(self, name: str) -> list[Any]:
        """Every distinct value of a record's field, in order of appearance."""
        return list(dict.fromkeys(record.data[name] for record in self.records if record.data.get(name) not in (None, "")))
