"""DPG-Bench's arithmetic, as compute_dpg_bench.py of TencentQQGYLab/ELLA does it: verdicts to scores. Answers are yes (True) or not."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluators.dpg.questions import CATEGORIES, Item, Question
from evaluators.result import Metric
from evaluators.statistics import bootstrapped, mean_of_prompts


def gated(questions: Sequence[Question], yes: np.ndarray) -> np.ndarray:
    """Answers with those under a failed parent set to no.

    Questions are taken in the file's order and parents as they stand by then, so a failure goes down a chain only where parents come
    before their children. A parent that is not there does not count.

    Args:
        questions: of one prompt.
        yes: (images, questions), bool.

    Returns:
        (images, questions), bool.
    """
    place = {q.number: k for k, q in enumerate(questions)}
    out = np.array(yes, bool)
    for k, question in enumerate(questions):
        for parent in question.parents:
            if parent in place:
                out[:, k] &= out[:, place[parent]]
    return out


@dataclass(frozen=True)
class Tally:
    """One reading of the answers: per prompt its score in [0, 1], (prompts,); yeses and questions per prompt and category, (prompts, 5)."""

    ids: list[str]
    scores: np.ndarray
    yeses: np.ndarray
    asked: np.ndarray
    details: dict[str, float]


def tally(items: Mapping[str, Item], answers: Mapping[str, np.ndarray], last_image_only: bool) -> Tally:
    """Scores of the prompts that are in both.

    A prompt's score is the mean over its images of the mean over its questions, after `gated`. Categories count single answers before it,
    over all images, or over the last one alone, as the official code does (issue 60 of TencentQQGYLab/ELLA).

    Args:
        items: the prompts with the questions that count.
        answers: per item_id yes or not, (images, questions of `items`), bool.
        last_image_only: for the categories.
    """
    ids = [name for name in items if name in answers]
    scores = np.array([gated(items[name].questions, answers[name]).mean() for name in ids])
    yeses, asked = np.zeros((len(ids), len(CATEGORIES))), np.zeros((len(ids), len(CATEGORIES)))
    fine: dict[str, list[float]] = defaultdict(list)
    for p, name in enumerate(ids):
        counted = answers[name][-1:] if last_image_only else answers[name]
        for k, question in enumerate(items[name].questions):
            c = CATEGORIES.index(question.category)
            yeses[p, c] += counted[:, k].sum()
            asked[p, c] += len(counted)
            fine[question.detail] += counted[:, k].tolist()
    return Tally(ids, scores, yeses, asked, {name: 100 * float(np.mean(fine[name])) for name in sorted(fine)})


def metrics(found: Tally, prefix: str, weights: np.ndarray) -> list[Metric]:
    """The five categories and `overall`, 0 to 100, each with its bootstrap interval over prompts (`weights`: resamples, prompts)."""
    ones = np.ones(len(found.ids))
    columns = [(name, found.yeses[:, c], found.asked[:, c]) for c, name in enumerate(CATEGORIES)] + [("overall", found.scores, ones)]
    made = []
    for name, sums, counts in columns:
        if not counts.sum():
            continue
        with np.errstate(invalid="ignore"):  # of few prompts a resample may have none of the category
            resampled = mean_of_prompts(sums, counts, weights)
        value = 100 * float(mean_of_prompts(sums, counts))
        made.append(bootstrapped(f"{prefix}/{name}", value, 100 * resampled[np.isfinite(resampled)], "100 x share", int(counts.sum())))
    return made


def read_answer(text: str, exact: bool) -> bool | None:
    """yes (True), no (False) or neither (None). `exact`: the whole answer must be the word, as the official code asks of mPLUG."""
    word = text if exact else next(iter(text.strip().lower().replace(",", " ").split()), "").strip(".!:;*\"'`")
    return {"yes": True, "no": False}.get(word)


def malformed(texts: Sequence[str]) -> dict:
    """How many answers were neither yes nor no, and the most frequent of them."""
    return {"count": len(texts), "examples": [text[:80] for text, _ in Counter(texts).most_common(5)]}
