"""Intervals: of one record, over seeds, of a ratio or a difference of two rows.

With several seeds a number is the mean over them, and its interval has two parts, joined as the root of the sum of squares:

    seeds     Student's t-interval of the mean over seeds
    prompts   the mean over seeds of the record's own interval; not divided by the number of seeds, whose prompts are the same

Each record's interval already has a little of the noise that tells seeds apart, so the joint one is rather too wide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from evaluators.result import Metric
from evaluators.statistics import bootstrap_weights, interval, mean_of_tasks

# 97.5% quantile of Student's t for 1, 2, ... degrees of freedom.
T_QUANTILE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
              2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip
# Of a comparison, in every table, figure and sentence. They speak of the number: where the metric's arrow points down, below is better.
ABOVE, BELOW, APART = "above", "below", "not told apart"
SEEDS_AND_PROMPTS, SEEDS, PAIRED, DELTA = "seeds and prompts 95%", "seeds 95%", "paired bootstrap 95%", "delta method 95%"
INDEPENDENT = "independent 95%"


@dataclass(frozen=True)
class Summary:
    """A number for a table.

    Attributes:
        low, high: its interval, None where none is known.
        n: what it is a mean over (images, repeats), the least of its seeds.
        interval: what the bounds are: the record's own word, or one of the words above.
        noise: of a comparison, the training noise in its interval that rows of one seed borrowed, a standard deviation; 0 where none had
            to; None where one had to and no row shows it.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    seeds: int = 1
    interval: str = ""
    noise: float | None = 0.0

    @property
    def half(self) -> float | None:
        """Half the width of a 95% interval; None where there is no such interval."""
        return None if self.low is None or self.high is None or "95%" not in self.interval else (self.high - self.low) / 2


@dataclass(frozen=True)
class PerPrompt:
    """GenEval by prompt: correct images and images, (seeds, prompts); one task and one text per prompt."""

    tasks: tuple[str, ...]
    texts: tuple[str, ...]
    correct: np.ndarray
    images: np.ndarray

    def only(self, task: str) -> PerPrompt | None:
        """The prompts of one task; None where there are none."""
        mine = [index for index, name in enumerate(self.tasks) if name == task]
        chosen = (tuple(found[index] for index in mine) for found in (self.tasks, self.texts))
        return PerPrompt(*chosen, self.correct[:, mine], self.images[:, mine]) if mine else None

    @cached_property
    def seeds(self) -> list[float]:
        """The mean over tasks of each seed."""
        return [float(mean_of_tasks(right, of, self.tasks)) for right, of in zip(self.correct, self.images, strict=True)]

    @cached_property
    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """Correct images and images of all seeds, (prompts,) each."""
        return self.correct.sum(0), self.images.sum(0)

    @cached_property
    def value(self) -> np.ndarray:
        """The mean over tasks of all seeds, ()."""
        return mean_of_tasks(*self.pooled, self.tasks)

    @cached_property
    def resampled(self) -> np.ndarray:
        """The same of each draw of the bootstrap, which draws the same prompts for every row, (resamples,)."""
        return mean_of_tasks(*self.pooled, self.tasks, _weights(self.tasks))


def t_quantile(count: int) -> float:
    """Student's 97.5% quantile for a deviation of so many values, 2 or more. Beyond 30 degrees of freedom that at 30, the larger."""
    return T_QUANTILE[min(count - 1, len(T_QUANTILE)) - 1]


def t_half(values: Sequence[float]) -> float:
    """Half of Student's 95% t-interval of the mean; 0 for one value."""
    return t_quantile(len(values)) * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def over_seeds(metrics: Sequence[Metric]) -> Summary:
    """One seed: the record's own interval. Several: the mean and the joint interval (see the module's text)."""
    first, n = metrics[0], min(metric.n for metric in metrics)
    if len(metrics) == 1:
        return Summary(first.value, first.ci_low, first.ci_high, n, 1, first.interval or "")
    mean = statistics.fmean(metric.value for metric in metrics)
    ranged = all(metric.ci_low is not None for metric in metrics)
    below = statistics.fmean(metric.value - metric.ci_low for metric in metrics) if ranged else 0.0
    above = statistics.fmean(metric.ci_high - metric.value for metric in metrics) if ranged else 0.0
    if ranged and "95%" not in first.interval:  # quartiles describe the repeats: there is nothing to join
        return Summary(mean, mean - below, mean + above, n, len(metrics), first.interval)
    seeds = t_half([metric.value for metric in metrics])
    least, most = (0.0, 1.0) if first.unit == "fraction" else (-math.inf, math.inf)
    low, high = max(least, mean - math.hypot(seeds, below)), min(most, mean + math.hypot(seeds, above))
    return Summary(mean, low, high, n, len(metrics), SEEDS_AND_PROMPTS if ranged else SEEDS)


def ratio(top: Summary, bottom: Summary) -> Summary | None:
    """top/bottom, its interval by the delta method with the two taken as independent; None where the denominator is zero."""
    if bottom.value == 0:
        return None
    value = top.value / bottom.value
    if top.half is None or bottom.half is None:
        return Summary(value, None, None, top.n, top.seeds)
    half = math.hypot(top.half / bottom.value, value * bottom.half / bottom.value)
    return Summary(value, value - half, value + half, top.n, top.seeds, DELTA)


def times_faster(slow: Summary, fast: Summary) -> Summary:
    """How many times `fast` is faster, of two times with quartiles; for an interval the quartiles farthest apart."""
    return Summary(slow.value / fast.value, slow.low / fast.high, slow.high / fast.low, fast.n, 1, "quartiles")


def difference(first: Summary, second: Summary) -> Summary:
    """first - second; its interval takes the two as independent, which is too wide where they share prompts."""
    value, seeds = first.value - second.value, min(first.seeds, second.seeds)
    if first.half is None or second.half is None:
        return Summary(value, None, None, first.n, seeds)
    half = math.hypot(first.half, second.half)
    return Summary(value, value - half, value + half, first.n, seeds, INDEPENDENT)


def with_noise(found: Summary, noises: Sequence[float | None], scales: Sequence[float] = (1.0, 1.0), quantile: float = 1.96) -> Summary:
    """A comparison whose interval also holds training noise that the numbers of the two do not show.

    noises: of each of the two, the standard deviation over seeds that it lacks: 0 where it has several seeds or was not trained, None where
    nothing shows it. scales: what a change of either by one changes the number by. quantile: `t_quantile` where the noise is of few seeds
    of the row itself. Without an interval nothing is added.
    """
    if found.low is None or found.high is None:
        return found
    extra = math.hypot(*(quantile * noise * scale for noise, scale in zip(noises, scales, strict=True) if noise))
    low, high = found.value - math.hypot(found.value - found.low, extra), found.value + math.hypot(found.high - found.value, extra)
    return replace(found, low=low, high=high, noise=None if None in noises else max(noises))


def reading(found: Summary | None) -> str:
    """Of a difference, by its interval: ABOVE zero, BELOW it, or APART where it holds zero; "" without an interval."""
    if found is None or found.low is None or found.high is None:
        return ""
    return ABOVE if found.low > 0 else BELOW if found.high < 0 else APART


@lru_cache(maxsize=16)
def _weights(tasks: tuple[str, ...]) -> np.ndarray:
    """The bootstrap's draws, which are the same for every pair of rows on one prompt set."""
    return bootstrap_weights(tasks)


def paired_ratio(top: PerPrompt, bottom: PerPrompt) -> Summary | None:
    """Ratio of two rows' GenEval overall. Prompts are drawn once for both, within task; the seeds' part is joined as in `over_seeds`.

    None where the prompts are not the same or the denominator is zero.
    """
    if top.texts != bottom.texts or top.tasks != bottom.tasks:
        return None
    above, below = top.resampled, bottom.resampled
    above_value, below_value = float(top.value), float(bottom.value)
    if below_value == 0 or not (below > 0).any():
        return None
    value = above_value / below_value
    low, high = interval(above[below > 0] / below[below > 0])
    seeds = math.hypot(t_half(top.seeds) / below_value, value * t_half(bottom.seeds) / below_value)
    n = int(min(top.images.sum(1).min(), bottom.images.sum(1).min()))
    return Summary(value, value - math.hypot(seeds, value - low), value + math.hypot(seeds, high - value), n, len(top.correct), PAIRED)


def paired_difference(first: PerPrompt, second: PerPrompt) -> Summary | None:
    """first - second in GenEval (the mean over tasks); prompts and seeds as in `paired_ratio`. None where the prompts differ."""
    if first.texts != second.texts or first.tasks != second.tasks:
        return None
    value = float(np.subtract(first.value, second.value))
    low, high = interval(np.subtract(first.resampled, second.resampled))
    seeds = math.hypot(t_half(first.seeds), t_half(second.seeds))
    n = int(min(first.images.sum(1).min(), second.images.sum(1).min()))
    low, high = value - math.hypot(seeds, value - low), value + math.hypot(seeds, high - value)
    return Summary(value, low, high, n, min(len(first.correct), len(second.correct)), PAIRED)
