"""FID and KID against closed forms, and the path through clean-fid."""

from __future__ import annotations

import numpy as np
import pytest

from apex.errors import UserError
from evaluators.command import fresh_renders
from evaluators.fid import array_features, check_count, fid, file_features, kernel, kid, kid_interval, metrics
from evaluators.images import open_images
from evaluators.networks import BUNDLED, FeatureNet, load_network


@pytest.fixture(scope="module")
def net() -> FeatureNet:
    return load_network(BUNDLED / "fid", FeatureNet)


def with_moments(mean: np.ndarray, root: np.ndarray, n: int = 400, seed: int = 0) -> np.ndarray:
    """Samples (n, d) whose sample mean is `mean` and sample covariance `root @ root.T` exactly."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ root.T + mean


def test_frechet_distance_of_commuting_gaussians():
    # |m1 - m2|^2 + sum (s1 - s2)^2 for diagonal covariances
    x = with_moments(np.zeros(3), np.diag([1.0, 2.0, 3.0]))
    y = with_moments(np.array([1.0, -2.0, 0.5]), np.diag([2.0, 2.0, 0.5]), seed=1)
    assert fid(x, y) == pytest.approx(5.25 + 1.0 + 0.0 + 6.25, rel=1e-6)


def test_frechet_distance_of_rotated_gaussians():
    # In two dimensions Tr (A B)^1/2 = sqrt(Tr AB + 2 sqrt(det AB))
    turn = np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    root = turn @ np.diag([3.0, 0.5])
    a, b = np.diag([4.0, 1.0]), root @ root.T
    expected = np.trace(a) + np.trace(b) - 2 * np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    assert fid(with_moments(np.zeros(2), np.diag([2.0, 1.0])), with_moments(np.zeros(2), root, seed=1)) == pytest.approx(expected, rel=1e-6)
    assert fid(with_moments(np.zeros(2), root), with_moments(np.zeros(2), root, seed=1)) == pytest.approx(0, abs=1e-6)


def test_fid_of_two_real_samples_falls_as_one_over_n():
    rng = np.random.default_rng(0)

    def mean(n: int) -> float:
        return float(np.mean([fid(rng.standard_normal((n, 8)), rng.standard_normal((n, 8))) for _ in range(30)]))

    assert mean(200) / mean(800) == pytest.approx(4, rel=0.15)


def test_kid_is_unbiased_and_the_naive_estimate_is_not():
    rng = np.random.default_rng(0)
    same, naive, apart = [], [], []
    for _ in range(400):
        x, y = rng.standard_normal((30, 4)), rng.standard_normal((40, 4))
        same.append(kid(x, y))
        naive.append(kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean())
        apart.append(kid(x, y + np.array([0.5, 0, 0, 0])))
    error = np.std(same) / np.sqrt(400)
    assert abs(np.mean(same)) < 3 * error
    assert np.mean(naive) > 10 * error
    # The mean of the kernel is analytic: E (x.y/d + 1)^3 = 1 + 3 m2 + m3, m2 = E (x.y)^2 / d^2, odd moments vanish when centred.
    a, d = 0.5, 4
    truth = (1 + 3 * (d + 0) / d**2) + (1 + 3 * a**2 / d + 3 * (d + 2 * a**2 + a**4) / d**2 + _third(a, d)) - 2 * (1 + 3 * (d + a**2) / d**2)
    assert np.mean(apart) == pytest.approx(truth, abs=4 * np.std(apart) / np.sqrt(400))


def _third(a: float, d: int) -> float:
    """E (u.v)^3 / d^3 for u, v ~ N(a e1, I): u1 v1 carries the mean, the other d - 1 products are centred."""
    first = 1 + a**2  # E u1^2
    cubed = (a**3 + 3 * a) ** 2  # E u1^3 E v1^3
    return (cubed + 3 * a**2 * (d - 1)) / d**3 + 0 * first


def test_kid_interval_holds_the_truth():
    rng, hits = np.random.default_rng(1), 0
    prompts = np.repeat(np.arange(40), 3)
    for _ in range(100):
        x, y = rng.standard_normal((120, 4)), rng.standard_normal((120, 4))
        value, low, high = kid_interval(x, prompts, y, prompts)
        assert value == pytest.approx(kid(x, y), abs=1e-12)
        hits += low <= 0 <= high
    assert hits >= 88


def test_features_through_clean_fid_equal_those_of_arrays(make_folder, few_rows, net):
    renders = fresh_renders(few_rows, [2] * len(few_rows), 32, seed=0)
    images = open_images(make_folder(few_rows, renders, per_prompt=2))
    from_files, from_arrays = file_features(images.paths, net, "cpu"), array_features(renders, net, "cpu")
    assert np.allclose(from_files, from_arrays, atol=1e-4)
    assert np.allclose(from_arrays, array_features(renders, net, "cpu", batch=7), atol=1e-4)


def test_real_renders_are_near_the_floor_and_spoiled_ones_far(test_rows, net):
    rows = test_rows[::2]
    sets = [array_features(fresh_renders(rows, [2] * len(rows), 32, seed=s), net, "cpu") for s in (1, 2, 3)]
    prompts = np.repeat(np.arange(len(rows)), 2)
    real = {m.metric: m for m in metrics(sets[0], sets[1], sets[2], prompts)}
    assert 0.6 < real["fid"].value / real["fid/floor"].value < 1.6
    assert real["kid"].ci_low < 0.01 and real["kid"].n == len(prompts)
    noise = np.random.default_rng(0).integers(0, 256, (len(prompts), 32, 32, 3), dtype=np.uint8)
    bad = {m.metric: m for m in metrics(array_features(noise, net, "cpu"), sets[1], sets[2], prompts)}
    assert bad["fid"].value > 20 * bad["fid/floor"].value
    assert bad["kid"].ci_low > 10 * max(real["kid"].ci_high, 0)


def test_too_few_images_are_refused(make_folder, few_rows, net):
    with pytest.raises(UserError, match="needs more than 64 images"):
        check_count(open_images(make_folder(few_rows[:4])), net.config["features"])
