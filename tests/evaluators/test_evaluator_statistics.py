"""Bootstrap and jackknife: their laws, and that their intervals hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.statistics import bootstrap_weights, interval, jackknife, mean_of_prompts, mean_of_tasks


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(0, 100))
def test_every_group_keeps_its_size(groups, seed):
    weights = bootstrap_weights(groups, resamples=5, seed=seed)
    assert np.array_equal(weights, bootstrap_weights(groups, resamples=5, seed=seed))
    for group in set(groups):
        mine = [i for i, g in enumerate(groups) if g == group]
        assert (weights[:, mine].sum(1) == len(mine)).all()


def test_resampled_means_have_the_clusters_variance():
    rng = np.random.default_rng(0)
    sums = rng.integers(0, 5, 200).astype(float)  # correct images of 4 per prompt
    counts = np.full(200, 4.0)
    means = mean_of_prompts(sums, counts, bootstrap_weights(["t"] * 200, resamples=20_000))
    assert means.mean() == pytest.approx(sums.sum() / 800, abs=5e-4)
    assert means.std() == pytest.approx((sums / 4).std() / np.sqrt(200), rel=0.03)


def test_the_interval_holds_the_truth_19_times_in_20():
    rng, hits = np.random.default_rng(1), 0
    for trial in range(300):
        chance = rng.beta(2, 2, 60)  # prompts differ; their images share the chance: clusters matter
        low, high = interval(
            mean_of_prompts(
                rng.binomial(4, chance).astype(float), np.full(60, 4.0), bootstrap_weights(["t"] * 60, seed=trial, resamples=400)
            )
        )
        hits += low <= 0.5 <= high
    assert 0.91 <= hits / 300 <= 0.98


def test_mean_of_tasks_is_unweighted():
    sums, counts, tasks = np.array([4.0, 0.0, 2.0]), np.array([4.0, 4.0, 4.0]), ["a", "b", "b"]
    assert mean_of_tasks(sums, counts, tasks) == pytest.approx((1.0 + 0.25) / 2)
    assert mean_of_tasks(sums, counts, tasks, np.array([[1.0, 2.0, 0.0]])) == pytest.approx([0.5])


def test_jackknife_of_a_mean_is_the_textbook_error():
    x = np.random.default_rng(2).normal(3, 2, 50)
    value, low, high = jackknife(lambda w: float(w @ x / w.sum()), 50)
    assert value == pytest.approx(x.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * x.std(ddof=1) / np.sqrt(50))
