"""WISE's two versions: their prompts, judge and scores; and the prompts read and checked.

2025: arXiv 2503.07265, gpt_eval.py and Calculate.py of PKU-YuanGroup/WISE (since April 2026 in its folder WISE_legacy).
2026: WISE_Verified, the repository's default since April 2026: about 200 prompts changed, an open judge, one score of 0 or 1, other sizes
and weights of the categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apex.errors import UserError
from apex.files import read_json
from apex.provenance import file_sha256
from evaluators import assets


@dataclass(frozen=True)
class Version:
    """One version of the benchmark.

    `parts`: the judge's scores and their shares, each from 0 to `best`; `last`: the last prompt_id of each category, in the ids' order;
    `weights`: of the categories in the overall; `zero`: whether a score that cannot be read counts as 0, else its image is left out;
    `attempts`: how often the official script asks for an answer that lacks a score.
    """

    name: str
    prefix: str
    files: Mapping[str, str]
    parts: Mapping[str, float]
    best: int
    last: Mapping[str, int]
    weights: Mapping[str, float]
    zero: bool
    attempts: int
    model: str
    endpoint: str
    tokens: int
    request: Mapping[str, Any]

    def category(self, prompt_id: int) -> str:
        return next(name for name, last in self.last.items() if prompt_id <= last)

    def score(self, parts: Mapping[str, float]) -> float:
        """The score of an image, 0 to 1, from its parts (0 to `best`); one that is not there counts as 0.

        2025: WiScore = (0.7 Consistency + 0.2 Realism + 0.1 Aesthetic Quality) / 2.
        """
        return sum(share * parts.get(name, 0) for name, share in self.parts.items()) / self.best

    def overall(self, categories: Mapping[str, float | np.ndarray]) -> float | np.ndarray:
        """The weighted sum of the six categories."""
        return sum(weight * categories[name] for name, weight in self.weights.items())


VERSIONS = {
    "2025": Version(
        name="2025",
        prefix="wise",
        files={
            "wise-cultural": "cultural_common_sense.json",
            "wise-spatio-temporal": "spatio-temporal_reasoning.json",
            "wise-natural-science": "natural_science.json",
        },
        parts={"consistency": 0.7, "realism": 0.2, "aesthetic quality": 0.1},
        best=2,
        last={"cultural": 400, "time": 567, "space": 700, "biology": 800, "physics": 900, "chemistry": 1000},
        weights={"cultural": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1},
        zero=True,
        attempts=1,
        model="gpt-4o-2024-05-13",
        endpoint="https://api.openai.com/v1",
        tokens=2000,
        request={},
    ),
    "2026": Version(
        name="2026",
        prefix="wise2026",
        files={
            "wise2026-cultural": "cultural_common_sense_verified.json",
            "wise2026-spatio-temporal": "spatio-temporal_reasoning_verified.json",
            "wise2026-natural-science": "natural_science_verified.json",
        },
        parts={"score": 1.0},
        best=1,
        last={"cultural": 400, "time": 520, "space": 640, "biology": 760, "physics": 880, "chemistry": 1000},
        weights={"cultural": 0.4, "time": 0.12, "space": 0.12, "biology": 0.12, "physics": 0.12, "chemistry": 0.12},
        zero=False,
        attempts=3,
        model="Qwen3.5-35B-A3B",
        endpoint="http://127.0.0.1:8000/v1",
        tokens=500,
        request={"chat_template_kwargs": {"enable_thinking": False}},
    ),
}


@dataclass(frozen=True)
class Prompt:
    """A prompt, with the explanation that the judge is given."""

    number: int
    text: str
    explanation: str
    category: str


def load(version: Version, folder: Path | None = None) -> tuple[dict[str, Prompt], dict[str, str]]:
    """The 1,000 prompts by prompt_id (as text), and the SHA-256 of each file.

    Args:
        folder: where the three files lie under their own names; without it the fetched ones.

    Raises:
        UserError: a file is missing or is no such list, or an id is missing, unknown, or given twice.
    """
    paths = [assets.find(name, folder and folder / file, "--prompts, its file") for name, file in version.files.items()]
    found: dict[int, Prompt] = {}
    for path in paths:
        for prompt in _read(version, path):
            if prompt.number in found:
                raise UserError(f"{path}: prompt_id {prompt.number} is given twice")
            found[prompt.number] = prompt
    last = max(version.last.values())
    if missing := sorted(set(range(1, last + 1)) - set(found)):
        raise UserError(f"{paths[0].parent}: {len(missing)} of {last} prompts are missing, the first is prompt_id {missing[0]}")
    return {str(n): found[n] for n in sorted(found)}, {path.name: file_sha256(path) for path in paths}


def _read(version: Version, path: Path) -> Sequence[Prompt]:
    rows = read_json(path, "give WISE's list of prompts")
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of prompts, found {type(rows).__name__}")
    prompts = []
    for place, row in enumerate(rows):
        number = row.get("prompt_id") if isinstance(row, dict) else None
        texts = [row.get(key) for key in ("Prompt", "Explanation")] if isinstance(row, dict) else []
        good = isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= max(version.last.values())
        if not good or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{path}: entry {place} needs a Prompt, an Explanation and a prompt_id from 1 to 1000; found {str(row)[:80]}")
        prompts.append(Prompt(number, *texts, version.category(number)))
    return prompts
