"""The distances of the published protocols: closed forms, symmetries, intervals that hold, and the bias that is shown."""

from __future__ import annotations

import numpy as np
import pytest
from cleanfid.fid import frechet_distance, kernel_distance
from hypothesis import given
from hypothesis import strategies as st

from evaluators.fid.distance import Gaussian, extrapolation, fid, halves, kernel_rows, kid, moments
from evaluators.statistics import error_of


def orthogonal(d: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((d, d)))[0]


def covariance(d: int, rng: np.random.Generator, rank: int | None = None) -> np.ndarray:
    root = rng.standard_normal((d, rank or 2 * d))
    return root @ root.T / d


def distance(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    return Gaussian(*one).distance(*other)


# ---------------------------------------------------------------------------------- Frechet's closed forms


@given(st.integers(1, 12), st.integers(0, 10**6))
def test_equal_covariances_leave_the_means(d, seed):
    rng = np.random.default_rng(seed)
    m, n, s = rng.standard_normal(d), rng.standard_normal(d), covariance(d, rng)
    assert distance((m, s), (n, s)) == pytest.approx(((m - n) ** 2).sum(), rel=1e-7)


@given(st.integers(1, 12), st.integers(0, 10**6))
def test_commuting_covariances_have_the_squares_of_the_roots_difference(d, seed):
    """In a common eigenbasis the trace term is sum (sqrt a - sqrt b)^2; the diagonal case is that of the identity basis."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0, 3, (2, d))
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    for q in (np.eye(d), orthogonal(d, rng)):
        assert distance((np.zeros(d), (q * a) @ q.T), (np.zeros(d), (q * b) @ q.T)) == pytest.approx(expected, abs=1e-6)


def test_scaled_identities():
    zero = np.zeros(7)
    assert distance((zero, 4 * np.eye(7)), (zero + 1, 9 * np.eye(7))) == pytest.approx(7 + 7 * 1)


@given(st.integers(2, 10), st.integers(0, 10**6))
def test_it_is_symmetric_zero_on_itself_and_the_same_in_every_basis(d, seed):
    rng = np.random.default_rng(seed)
    one, other = ((rng.standard_normal(d), covariance(d, rng)) for _ in range(2))
    there = distance(one, other)
    assert distance(other, one) == pytest.approx(there, rel=1e-8)
    assert distance(one, one) == pytest.approx(0, abs=1e-7)
    q = orthogonal(d, rng)
    turned = [(q @ m, q @ s @ q.T) for m, s in (one, other)]
    assert distance(*turned) == pytest.approx(there, rel=1e-8)


@pytest.mark.parametrize(("d", "n"), [(5, 400), (40, 300), (120, 1000)])
def test_it_is_clean_fids_and_pytorch_fids_where_the_ranks_are_full(d, n):
    from pytorch_fid.fid_score import calculate_frechet_distance

    rng = np.random.default_rng(d)
    x, y = rng.standard_normal((n, d)) @ covariance(d, rng), rng.standard_normal((n, d)) @ covariance(d, rng) + 0.3
    one, other = ((v.mean(0), np.cov(v, rowvar=False)) for v in (x, y))
    for theirs in (frechet_distance, calculate_frechet_distance):
        assert distance(one, other) == pytest.approx(theirs(*one, *other), rel=1e-6)


@pytest.mark.parametrize("rank", [1, 3])
def test_without_full_rank_it_is_the_exact_distance_of_the_subspaces(rank):
    """Orthogonal ranges: nothing crosses, the traces add up. The same range: the closed form of commuting matrices."""
    rng = np.random.default_rng(rank)
    q, zero = orthogonal(10, rng), np.zeros(10)
    a, b = q[:, :rank] @ q[:, :rank].T, 4 * q[:, 5 : 5 + rank] @ q[:, 5 : 5 + rank].T
    assert distance((zero, a), (zero, b)) == pytest.approx(5 * rank, abs=1e-6)
    assert distance((zero, a), (zero, 4 * a)) == pytest.approx(rank, abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_fewer_images_than_features(n):
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((n, 20)), rng.standard_normal((200, 20))
    one, other = moments(x), moments(y)
    found = distance(one, other)
    assert np.isfinite(found) and found == pytest.approx(distance(other, one), rel=1e-6)
    assert distance(one, one) == pytest.approx(0, abs=1e-6)
    value, low, high = fid(x, Gaussian(*other), np.arange(n), [""] * n)
    assert value == pytest.approx(found) and 0 <= low <= value <= high


def test_moments_are_numpys_over_several_blocks(monkeypatch):
    monkeypatch.setattr("evaluators.fid.distance.BLOCK", 7)
    x = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float32)
    mean, cov = moments(x)
    assert np.allclose(mean, np.mean(x.astype(float), 0)) and np.allclose(cov, np.cov(x.astype(float), rowvar=False))
    assert mean.dtype == cov.dtype == np.float64


# ---------------------------------------------------------------------------------- intervals


def test_the_influence_is_the_derivative_by_each_images_weight():
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((30, 4)) @ covariance(4, rng), Gaussian(rng.standard_normal(4), covariance(4, rng))

    def weighted(weights: np.ndarray) -> float:
        p = weights / weights.sum()
        mean = p @ x
        return target.distance(mean, ((x - mean).T * p) @ (x - mean) * 30 / 29)

    step, even = 1e-5, np.ones(30)
    slopes = [(weighted(even + step * row) - weighted(even - step * row)) / (2 * step) * 30 for row in np.eye(30)]
    assert np.allclose(target.influence(x), slopes, rtol=1e-4, atol=1e-4)


def draws(d: int, per: int, rng: np.random.Generator, mix: np.ndarray, prompts: int, shift: float) -> np.ndarray:
    """Images (prompts * per, d) of which those of one prompt are alike."""
    return (rng.standard_normal((prompts, 1, d)) + 0.5 * rng.standard_normal((prompts, per, d))).reshape(-1, d) @ mix + shift


@pytest.mark.parametrize(("d", "prompts", "per", "shift"), [(8, 200, 1, 0.5), (8, 60, 4, 0.3), (24, 36, 1, 0.3), (6, 150, 1, 0.0)])
def test_the_fids_interval_holds_what_other_draws_give_on_average(d, prompts, per, shift):
    """Coverage over 150 draws. Too wide rather than too narrow: with hardly more images than features, and near a distance of nothing."""
    rng = np.random.default_rng(1)
    mix = np.diag(np.linspace(0.3, 2, d)) + 0.2 * rng.standard_normal((d, d))
    target = Gaussian(np.zeros(d), covariance(d, rng) if shift else 1.25 * mix.T @ mix)
    which, found = np.repeat(np.arange(prompts), per), []
    for _ in range(150):
        found.append(fid(draws(d, per, rng, mix, prompts, shift), target, which, [""] * prompts))
    values, lows, highs = np.array(found).T
    held = ((lows <= values.mean()) & (values.mean() <= highs)).mean()
    assert 0.88 <= held <= 1
    ratio = np.mean(highs - values) / 1.96 / values.std()
    assert 0.8 < ratio < (1.25 if prompts > 5 * d and shift else 2)


def test_a_bootstrap_of_images_would_lie_above_the_value():
    rng = np.random.default_rng(2)
    x, target = rng.standard_normal((100, 10)), Gaussian(np.zeros(10), np.eye(10))
    value, low, high = fid(x, target, np.arange(100), [""] * 100)
    resampled = [target.distance(*moments(x[rng.integers(0, 100, 100)])) for _ in range(200)]
    assert np.quantile(resampled, 0.025) > value and low <= value <= high


def test_images_of_one_prompt_are_one_unit():
    rng = np.random.default_rng(4)
    x, target = rng.standard_normal((50, 3)), Gaussian(np.zeros(3), np.eye(3))
    four = np.repeat(x, 4, axis=0)
    _, low, high = fid(x, target, np.arange(50), [""] * 50)
    _, low_4, high_4 = fid(four, target, np.repeat(np.arange(50), 4), [""] * 50)
    assert high_4 - low_4 == pytest.approx(high - low, rel=0.1)


def test_prompts_vary_within_their_group_alone():
    shares, groups = np.array([1.0, 2.0, 3.0, 11.0, 12.0, 13.0]), list("aaabbb")
    assert error_of(shares, groups) == pytest.approx(np.sqrt(2 * 3 * 1.0))
    assert error_of(shares, ["a"] * 6) == pytest.approx(np.sqrt(6 * shares.var(ddof=1)))
    assert error_of(shares, list("abcdef")) == error_of(shares, ["a"] * 6), "one prompt alone tells no spread"


# ---------------------------------------------------------------------------------- the bias at n


def test_the_line_through_fid_against_1_over_n_meets_the_truth_at_infinity():
    rng = np.random.default_rng(5)
    d, n = 12, 1500
    mix = np.diag(np.linspace(0.5, 1.5, d))
    target = Gaussian(np.zeros(d), np.eye(d))
    truth = target.distance(np.full(d, 0.2), mix @ mix)
    at_n, at_infinity = [], []
    for seed in range(30):
        x = rng.standard_normal((n, d)) @ mix + 0.2
        found = extrapolation(x, target, np.arange(n), seed)
        assert len(found["n"]) == 15 and found["n"][0] == 30 and found["n"][-1] == n and found["slope"] > 0
        assert found["fid"][-1] == pytest.approx(target.distance(*moments(x)))
        at_n.append(found["fid"][0])
        at_infinity.append(found["infinity"])
    assert np.mean(at_n) > truth + 5 * np.std(at_n) / np.sqrt(30), "biased upward at small n"
    assert abs(np.mean(at_infinity) - truth) < 0.1 * (np.mean(at_n) - truth)
    assert extrapolation(x, target, np.arange(n), 3) == extrapolation(x, target, np.arange(n), 3)
    assert "1500 images" in extrapolation(np.repeat(x, 60, 1), target, np.arange(n), 0)["not_given"]


def test_the_floor_is_what_two_draws_of_one_law_have():
    x = np.random.default_rng(6).standard_normal((401, 6))
    value, half = halves(x, 0)
    assert half == 200 and 0 < value < 1
    assert halves(x, 0) == (value, half)
    two = Gaussian(*moments(np.random.default_rng(7).standard_normal((200, 6)))).distance(*moments(x[:200]))
    assert 0.3 < value / two < 3


# ---------------------------------------------------------------------------------- KID


@pytest.mark.parametrize("block", [4, 7, 1000])
def test_blocks_of_the_kernel_do_not_matter(block):
    x, y = (np.random.default_rng(s).standard_normal((n, 3)) for s, n in ((0, 17), (1, 11)))
    k = (x @ x.T / 3 + 1) ** 3
    assert np.allclose(kernel_rows(x, block=block), k.sum(1) - np.diag(k))
    assert np.allclose(kernel_rows(x, y, block), ((x @ y.T / 3 + 1) ** 3).sum(1))


def test_kid_is_clean_fids_when_its_subset_is_everything():
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((40, 5)), 0.3 + rng.standard_normal((40, 5))
    assert kid(x, y, np.arange(40), [""] * 40)[0] == pytest.approx(kernel_distance(x, y, num_subsets=1, max_subset_size=40))


def test_kids_interval_is_the_jackknife_over_prompts():
    rng = np.random.default_rng(9)
    x, y, prompts = rng.standard_normal((9, 3)), rng.standard_normal((7, 3)), np.array([0, 0, 1, 2, 2, 2, 3, 4, 4])
    value, low, high = kid(x, y, prompts, [""] * 5)
    left_out = np.array([kid(x[prompts != p], y, np.arange((prompts != p).sum()), [""] * int((prompts != p).sum()))[0] for p in range(5)])
    error = np.sqrt(4 / 5 * ((left_out - left_out.mean()) ** 2).sum())
    assert (value - low, high - value) == (pytest.approx(1.96 * error), pytest.approx(1.96 * error))


def test_kid_is_zero_on_average_between_draws_of_one_law_and_its_interval_holds_the_mean():
    rng = np.random.default_rng(10)
    y = rng.standard_normal((60, 4))
    found = np.array([kid(rng.standard_normal((80, 4)), y, np.arange(80), [""] * 80) for _ in range(200)])
    values = found[:, 0]
    assert 0.88 <= ((found[:, 1] <= values.mean()) & (values.mean() <= found[:, 2])).mean() <= 0.99
    fresh = [kid(*rng.standard_normal((2, 50, 4)), np.arange(50), [""] * 50)[0] for _ in range(200)]
    assert abs(np.mean(fresh)) < 3 * np.std(fresh) / np.sqrt(200)
