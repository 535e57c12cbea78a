"""Intervals: of one record, over seeds, of a ratio of two rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluators.result import Metric
from evaluators.statistics import bootstrap_weights, interval, mean_of_tasks

# 97.5% quantile of Student's t for 1, 2, ... degrees of freedom.
T_QUANTILE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
              2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip
NORMAL_QUANTILE = 1.960
OVER_SEEDS, PAIRED, DELTA = "t over seeds 95%", "paired bootstrap 95%", "delta method 95%"


@dataclass(frozen=True)
class Summary:
    """A number for a table.

    Attributes:
        low, high: its interval, None where none is known.
        n: what it is a mean over (images, repeats), the least of its seeds.
        interval: what the bounds are: the record's own word, or one of the words above.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    seeds: int = 1
    interval: str = ""

    @property
    def error(self) -> float | None:
        """Standard error that a 95% interval stands for; None where there is no such interval."""
        if self.low is None or self.high is None or "95%" not in self.interval:
            return None
        return (self.high - self.low) / (2 * NORMAL_QUANTILE)


@dataclass(frozen=True)
class PerPrompt:
    """GenEval by prompt: correct images and images, (seeds, prompts); one task and one text per prompt."""

    tasks: tuple[str, ...]
    texts: tuple[str, ...]
    correct: np.ndarray
    images: np.ndarray


def t_quantile(degrees: int) -> float:
    """97.5% quantile of Student's t; beyond 30 degrees of freedom the value at 30, which is the wider."""
    return T_QUANTILE[min(degrees, len(T_QUANTILE)) - 1]


def over_seeds(metrics: Sequence[Metric]) -> Summary:
    """One seed: the record's own interval. Several: the mean and Student's t-interval over seeds, a fraction's cut at 0 and 1."""
    first, n = metrics[0], min(metric.n for metric in metrics)
    if len(metrics) == 1:
        return Summary(first.value, first.ci_low, first.ci_high, n, 1, first.interval or "")
    values = [metric.value for metric in metrics]
    mean = statistics.fmean(values)
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    least, most = (0.0, 1.0) if first.unit == "fraction" else (-math.inf, math.inf)
    return Summary(mean, max(least, mean - half), min(most, mean + half), n, len(values), OVER_SEEDS)


def ratio(top: Summary, bottom: Summary) -> Summary | None:
    """top/bottom, its interval by the delta method with the two taken as independent; None where the denominator is zero.

    Both are scored on the same prompts, so their errors agree in part and the true interval is narrower.
    """
    if bottom.value == 0:
        return None
    value = top.value / bottom.value
    n = min((count for count in (top.n, bottom.n) if count is not None), default=None)
    if top.error is None or bottom.error is None:
        return Summary(value, None, None, n, top.seeds)
    half = NORMAL_QUANTILE * math.hypot(top.error / bottom.value, value * bottom.error / bottom.value)
    return Summary(value, value - half, value + half, n, top.seeds, DELTA)


def paired_ratio(top: PerPrompt, bottom: PerPrompt) -> Summary | None:
    """Ratio of two rows' GenEval overall with prompts drawn once for both, within task, and each row's seeds drawn beside them.

    None where the prompts are not the same or the denominator is zero.
    """
    if top.texts != bottom.texts or top.tasks != bottom.tasks:
        return None
    weights = bootstrap_weights(top.tasks)
    rng = np.random.default_rng(0)

    def scores(row: PerPrompt) -> tuple[float, np.ndarray]:
        """The value, and its resamples: the mean over drawn seeds of each seed's resampled score."""
        value = np.mean([mean_of_tasks(row.correct[s], row.images[s], row.tasks) for s in range(len(row.correct))])
        each = np.stack([mean_of_tasks(row.correct[s], row.images[s], row.tasks, weights) for s in range(len(row.correct))])
        drawn = rng.multinomial(len(each), np.full(len(each), 1 / len(each)), size=each.shape[1]).T
        return float(value), (drawn * each).sum(0) / len(each)

    (above, above_all), (below, below_all) = scores(top), scores(bottom)
    usable = below_all > 0
    if below == 0 or not usable.any():
        return None
    low, high = interval(above_all[usable] / below_all[usable])
    return Summary(above / below, low, high, int(min(top.images.sum(1).min(), bottom.images.sum(1).min())), len(top.correct), PAIRED)
