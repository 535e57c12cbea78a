"""paper_tables.stats: means and intervals over seeds and prompts, ratios; every number worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evaluators.result import Metric
from paper_tables import stats
from paper_tables.stats import PerPrompt, Summary


def metric(value: float, half: float | None = 0.03, unit: str = "fraction", interval: str = "bootstrap 95%", n: int = 1200) -> Metric:
    bounds = {} if half is None else {"ci_low": value - half, "ci_high": value + half, "interval": interval}
    return Metric(metric="m", value=value, unit=unit, n=n, higher_is_better=True, **bounds)


def test_one_seed_keeps_the_records_own_interval() -> None:
    assert stats.over_seeds([metric(0.8)]) == Summary(0.8, 0.77, pytest.approx(0.83), 1200, 1, "bootstrap 95%")
    assert stats.over_seeds([metric(0.8, None)]) == Summary(0.8, None, None, 1200, 1, "")


def test_interval_joins_seeds_and_prompts() -> None:
    found = stats.over_seeds([metric(0.5, n=1200), metric(0.6, n=1000), metric(0.7, n=1200)])
    seeds = 4.303 * 0.1 / math.sqrt(3)  # standard deviation 0.1, two degrees of freedom
    assert found.value == pytest.approx(0.6)
    assert found.high - found.value == pytest.approx(math.hypot(seeds, 0.03))
    assert found.value - found.low == pytest.approx(math.hypot(seeds, 0.03))
    assert (found.n, found.seeds, found.interval) == (1000, 3, stats.SEEDS_AND_PROMPTS)


def test_equal_seeds_leave_the_prompts_part() -> None:
    found = stats.over_seeds([metric(0.6)] * 3)
    assert (found.low, found.high) == (pytest.approx(0.57), pytest.approx(0.63))


def test_a_number_without_interval_gets_one_over_seeds() -> None:
    found = stats.over_seeds([metric(value, None, "score") for value in (10.0, 12.0)])
    assert (found.low, found.high) == (pytest.approx(11 - 12.706), pytest.approx(11 + 12.706))  # stdev sqrt(2), / sqrt(2)
    assert found.interval == stats.SEEDS


def test_fractions_stay_fractions() -> None:
    found = stats.over_seeds([metric(0.02, 0.01), metric(0.98, 0.01)])
    assert (found.low, found.high) == (0.0, 1.0)


def test_quartiles_are_averaged_not_widened() -> None:
    found = stats.over_seeds([metric(value, 0.5, "s", "interquartile range") for value in (1.0, 3.0)])
    assert (found.value, found.low, found.high, found.interval) == (2.0, 1.5, 2.5, "interquartile range")
    assert found.half is None


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.706), (3, 4.303), (31, 2.042), (60, 2.042)])
def test_students_t(count: int, quantile: float) -> None:
    values = [float(index % 2) for index in range(count)]
    assert stats.t_half(values) == pytest.approx(quantile * np.std(values, ddof=1) / math.sqrt(count))


def test_ratio_by_the_delta_method() -> None:
    top, bottom = Summary(0.6, 0.57, 0.63, 1200, 3, "bootstrap 95%"), Summary(0.8, 0.76, 0.84, 1200, 1, "bootstrap 95%")
    found = stats.ratio(top, bottom)
    half = math.hypot(0.03 / 0.8, 0.75 * 0.04 / 0.8)
    assert (found.value, found.low, found.high) == (pytest.approx(0.75), pytest.approx(0.75 - half), pytest.approx(0.75 + half))
    assert found.seeds == 3


def test_ratio_without_an_interval_or_a_denominator() -> None:
    assert stats.ratio(Summary(1.0), Summary(2.0)) == Summary(0.5)
    assert stats.ratio(Summary(1.0), Summary(0.0)) is None
    quartiles = Summary(2.0, 1.0, 3.0, 30, 1, "interquartile range")
    assert stats.ratio(quartiles, quartiles).low is None


def per_prompt(rates: np.ndarray, tasks: tuple[str, ...], images: int = 4) -> PerPrompt:
    rates = np.atleast_2d(rates)
    return PerPrompt(
        tasks, tuple(f"prompt {index}" for index in range(rates.shape[1])), rates * images, np.full(rates.shape, float(images))
    )


def test_paired_ratio_sees_what_the_prompts_share() -> None:
    tasks = ("colors",) * 20 + ("counting",) * 20
    rates = np.tile([0.25, 0.5, 0.75, 1.0], 10)
    half = stats.paired_ratio(per_prompt(rates / 2, tasks, 8), per_prompt(rates, tasks, 8))
    assert (half.value, half.low, half.high) == (pytest.approx(0.5),) * 3  # half of it on every prompt: no uncertainty is left
    other = stats.paired_ratio(per_prompt(rates[::-1] / 2, tasks, 8), per_prompt(rates, tasks, 8))
    assert other.value == pytest.approx(0.5)
    assert other.low < 0.47 and other.high > 0.53


def test_paired_ratio_weighs_tasks_alike() -> None:
    tasks = ("colors",) * 30 + ("counting",) * 10
    top = per_prompt(np.repeat([0.5, 0.25], [30, 10]), tasks)
    bottom = per_prompt(np.repeat([1.0, 0.5], [30, 10]), tasks)
    assert stats.paired_ratio(top, bottom).value == pytest.approx(0.375 / 0.75)


def test_paired_ratio_widens_with_seeds_that_differ() -> None:
    tasks, ones = ("colors",) * 20, np.ones(20)
    top, bottom = per_prompt(np.stack([0.5 * ones, 0.75 * ones]), tasks), per_prompt(ones, tasks)
    found = stats.paired_ratio(top, bottom)
    assert found.value == pytest.approx(0.625)
    assert found.high - found.value == pytest.approx(12.706 * 0.125)  # stdev 0.1768 / sqrt(2)


def test_paired_ratio_needs_the_same_prompts_and_a_denominator() -> None:
    tasks = ("colors",) * 4
    one = per_prompt(np.ones(4), tasks)
    assert stats.paired_ratio(one, PerPrompt(tasks, ("a", "b", "c", "d"), one.correct, one.images)) is None
    assert stats.paired_ratio(one, per_prompt(np.zeros(4), tasks)) is None
