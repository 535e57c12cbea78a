"""Intervals: bootstrap over prompts within tasks, and the jackknife over prompts. The images of a prompt are one cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from evaluators.result import Metric

RESAMPLES = 2000


def bootstrap_weights(groups: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each prompt is drawn in each resample, (resamples, prompts), whole numbers.

    Prompts are drawn with replacement within their group (task), as many as the group has, so each row
    sums to the number of prompts and every group keeps its size.
    """
    rng = np.random.default_rng(seed)
    groups = np.asarray(groups)
    weights = np.zeros((resamples, len(groups)))
    for group in dict.fromkeys(groups.tolist()):
        mine = np.flatnonzero(groups == group)
        weights[:, mine] = rng.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=resamples)
    return weights


def interval(values: np.ndarray) -> tuple[float, float]:
    """The central 95% of resampled values (percentile bootstrap)."""
    low, high = np.quantile(np.asarray(values), [0.025, 0.975])
    return float(low), float(high)


def bootstrapped(name: str, value: float, resampled: np.ndarray, unit: str, n: int) -> Metric:
    """A metric, higher being better, with the interval of its resampled values, (resamples,)."""
    low, high = interval(resampled)
    return Metric(
        metric=name, value=float(value), unit=unit, n=n, ci_low=low, ci_high=high, higher_is_better=True, interval="bootstrap 95%"
    )


def mean_of_prompts(sums: np.ndarray, counts: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean over images from per-prompt sums and counts; with `weights` (resamples, prompts) one mean per resample."""
    if weights is None:
        return np.asarray(sums.sum() / counts.sum())
    return (weights @ sums) / (weights @ counts)


def mean_of_tasks(sums: np.ndarray, counts: np.ndarray, tasks: Sequence[str], weights: np.ndarray | None = None) -> np.ndarray:
    """The unweighted mean over tasks of each task's mean over images, once or per resample (see `mean_of_prompts`)."""
    tasks = np.asarray(tasks)
    each = []
    for task in dict.fromkeys(tasks.tolist()):
        mine = tasks == task
        each.append(mean_of_prompts(sums[mine], counts[mine], None if weights is None else weights[:, mine]))
    return np.mean(each, axis=0)


def jackknife(statistic: Callable[[np.ndarray], float], prompts: int) -> tuple[float, float, float]:
    """A statistic of prompt weights (1 keeps a prompt, 0 leaves it out), its delete-one-prompt 95% interval.

    Returns:
        (value, low, high): value +- 1.96 standard errors. For U-statistics such as KID, where the bootstrap's
        repeated images would be compared with themselves.
    """
    everything = np.ones(prompts)
    value = statistic(everything)
    left_out = []
    for index in range(prompts):
        everything[index] = 0
        left_out.append(statistic(everything))
        everything[index] = 1
    deviations = np.array(left_out) - np.mean(left_out)
    error = float(np.sqrt((prompts - 1) / prompts * (deviations**2).sum()))
    return float(value), float(value - 1.96 * error), float(value + 1.96 * error)


def error_of(shares: np.ndarray, groups: Sequence[str]) -> float:
    """The standard error of a statistic that is, to first order, a sum of shares of independent prompts.

    Prompts vary within their group alone (its size is part of the design, not drawn): the sum over groups of k/(k-1) times the
    squared deviations from the group's mean. A prompt that is alone in its group says nothing of its spread: such prompts are one group.

    Args:
        shares: each prompt's share, (prompts,). groups: what each prompt belongs to.
    """
    _, member, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    lonely = sizes[member] == 1
    if lonely.any():
        member = np.where(lonely, len(sizes), member)
    sizes = np.bincount(member)
    means = np.bincount(member, shares) / np.maximum(sizes, 1)
    squares = np.bincount(member, (shares - means[member]) ** 2)
    several = sizes > 1
    return float(np.sqrt((squares[several] * sizes[several] / (sizes[several] - 1)).sum()))
