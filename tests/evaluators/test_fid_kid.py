"""FID and KID against closed forms, and the path through clean-fid."""

from __future__ import annotations

import cleanfid.fid
import numpy as np
import pytest
import torch
from PIL import Image

from apex.errors import UserError
from evaluators.assets import BUNDLED
from evaluators.command import fresh_renders
from evaluators.fid.world import Extractor, array_features, check_count, fid, file_features, in_batches, kernel, kid, metrics
from evaluators.images import open_images
from evaluators.networks import FeatureNet, load_network


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


def mean_kernel(m: float, n: float, d: int) -> float:
    """E (u.v/d + 1)^3 for u ~ N(m e1, I), v ~ N(n e1, I) in d dimensions, by expanding the cube."""
    first, rest = (1 + m**2) * (1 + n**2), d - 1  # second moments of u1 v1 and of the other products together
    cube = (m**3 + 3 * m) * (n**3 + 3 * n) + 3 * m * n * rest
    return 1 + 3 * m * n / d + 3 * (first + rest) / d**2 + cube / d**3


def test_kid_is_unbiased_and_the_naive_estimate_is_not():
    rng, each = np.random.default_rng(0), np.arange(30)
    same, naive, apart = [], [], []
    for _ in range(400):
        x, y = rng.standard_normal((2, 30, 4))
        same.append(kid(x, y, each)[0])
        naive.append(kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean())
        apart.append(kid(x, y + np.array([0.5, 0, 0, 0]), each)[0])
    error = np.std(same) / np.sqrt(400)
    assert abs(np.mean(same)) < 3 * error
    assert np.mean(naive) > 10 * error
    truth = mean_kernel(0, 0, 4) + mean_kernel(0.5, 0.5, 4) - 2 * mean_kernel(0, 0.5, 4)
    assert np.mean(apart) == pytest.approx(truth, abs=3 * np.std(apart) / np.sqrt(400))
    assert truth > 10 * error


def test_kid_is_unbiased_where_both_sets_have_the_same_prompts():
    rng, prompts = np.random.default_rng(0), np.repeat(np.arange(15), 4)
    ours, pooled = [], []
    for _ in range(300):
        prompt = 2 * rng.standard_normal((15, 4))[prompts]  # images of one prompt are alike, in both sets
        x, y = prompt + rng.standard_normal((2, 60, 4))
        ours.append(kid(x, y, prompts)[0])
        within = [(kernel(v, v).sum() - np.trace(kernel(v, v))) / (60 * 59) for v in (x, y)]
        pooled.append(sum(within) - 2 * kernel(x, y).mean())
    assert abs(np.mean(ours)) < 3 * np.std(ours) / np.sqrt(300)
    assert np.mean(pooled) < -10 * np.std(pooled) / np.sqrt(300), "the textbook estimate is below zero here"


def test_kid_is_the_mean_over_pairs_of_different_prompts():
    rng, prompts = np.random.default_rng(3), np.array([0, 0, 0, 1, 2, 2])
    x, y = rng.standard_normal((2, 6, 3))

    def k(u, v):
        return (u @ v / 3 + 1) ** 3

    pairs = [(i, j) for i in range(6) for j in range(6) if prompts[i] != prompts[j]]
    slow = np.mean([k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(y[i], x[j]) for i, j in pairs])
    assert kid(x, y, prompts)[0] == pytest.approx(slow)


def test_kid_interval_holds_the_truth():
    rng, hits = np.random.default_rng(1), 0
    prompts = np.repeat(np.arange(40), 3)
    for _ in range(100):
        x, y = rng.standard_normal((2, 120, 4))
        _, low, high = kid(x, y, prompts)
        hits += low <= 0 <= high
    assert 88 <= hits <= 99


def test_features_through_clean_fid_equal_those_of_arrays(make_folder, few_rows, net):
    renders = fresh_renders(few_rows, [2] * len(few_rows), 32, seed=0)
    images = open_images(make_folder(few_rows, renders, per_prompt=2))
    from_files, from_arrays = file_features(images.paths, net, "cpu"), array_features([renders], net, "cpu")
    assert np.allclose(from_files, from_arrays, atol=1e-4)
    assert np.allclose(from_arrays, array_features(in_batches(renders, 7), net, "cpu"), atol=1e-4)


def test_fid_is_clean_fids_own(tmp_path, few_rows, net):
    """The same two sets through clean-fid's `compute_fid` on folders."""
    sets = [fresh_renders(few_rows, [3] * len(few_rows), 32, seed=s) for s in (0, 1)]
    for name, pictures in zip("ab", sets, strict=True):
        (tmp_path / name).mkdir()
        for index, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / name / f"{index}.png")
    theirs = cleanfid.fid.compute_fid(
        str(tmp_path / "a"),
        str(tmp_path / "b"),
        custom_feat_extractor=Extractor(net),
        custom_fn_resize=lambda x: x,
        device=torch.device("cpu"),
        num_workers=0,
        use_dataparallel=False,
        verbose=False,
    )
    assert fid(*(array_features([pictures], net, "cpu") for pictures in sets)) == pytest.approx(theirs, rel=1e-3)


def test_real_renders_are_near_the_floor_and_spoiled_ones_far(test_rows, net):
    rows = test_rows[::2]
    sets = [array_features([fresh_renders(rows, [2] * len(rows), 32, seed=s)], net, "cpu") for s in (1, 2, 3)]
    prompts = np.repeat(np.arange(len(rows)), 2)
    real = {m.metric: m for m in metrics(sets[0], sets[1], sets[2], prompts)}
    assert 0.6 < real["fid"].value / real["fid/floor"].value < 1.6
    assert real["kid"].ci_low < 0.01 and real["kid"].n == len(prompts)
    noise = np.random.default_rng(0).integers(0, 256, (len(prompts), 32, 32, 3), dtype=np.uint8)
    bad = {m.metric: m for m in metrics(array_features([noise], net, "cpu"), sets[1], sets[2], prompts)}
    assert bad["fid"].value > 20 * bad["fid/floor"].value
    assert bad["kid"].ci_low > 10 * max(real["kid"].ci_high, 0)


def test_too_few_images_are_refused(make_folder, few_rows, net):
    with pytest.raises(UserError, match="needs more than 64 images"):
        check_count(open_images(make_folder(few_rows[:4])), net.config["features"])
