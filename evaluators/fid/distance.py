"""The distances of the published protocols, from features alone: Frechet, its interval, its bias at n, and KID. Arrays in, numbers out.

A set of features is (n, d). "Prompts" are the units that were drawn: the images of one prompt are one cluster. Intervals are about the
generated set; the reference is taken as it is, as every published FID takes it.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from apex.errors import UserError
from evaluators.statistics import error_of

# Chong & Forsyth 2020 (arXiv 1911.07023) fit FID against 1/n at 15 sizes from 5,000 on, with 2,048 features.
POINTS = 15
LEAST = 5_000 / 2_048  # images a feature
ROUNDING = 1e-5  # of the largest value: how far statistics in float32 are off from symmetric and not negative
BLOCK = 2_048  # images a side of a block of the kernel matrix: 34 MB


def check_features(features: np.ndarray, where: object, width: int | None = None) -> None:
    """Checks features (n, d): two or more, all finite, of `width` where one is given.

    Raises:
        UserError: they are not, in one line that begins with `where`, a file or what the features are of.
    """
    if features.ndim != 2 or len(features) < 2 or width not in (None, features.shape[1]):
        wanted = "d" if width is None else width
        raise UserError(f"{where}: found features of shape {features.shape}, expected (n, {wanted}) with n of 2 or more; make them again")
    bad = np.flatnonzero(~np.isfinite(features).all(1))
    if len(bad):
        raise UserError(
            f"{where}: found features that are not finite (of image {bad[0]}, {len(bad)} of {len(features)} images), expected numbers; "
            "make them again"
        )


def check_moments(mean: np.ndarray, covariance: np.ndarray, where: object) -> None:
    """Checks mean (d,) and covariance (d, d): finite, the covariance symmetric. Raises `UserError` as `check_features`."""
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"{where}: found a mean of shape {mean.shape} and a covariance of {covariance.shape}, expected (d,) and (d, d)")
    for name, values in (("mean", mean), ("covariance", covariance)):
        if not np.isfinite(values).all():
            count = np.count_nonzero(~np.isfinite(values))
            raise UserError(f"{where}: found a {name} with {count} values that are not finite, expected numbers; make the statistics again")
    apart = float(np.abs(covariance - covariance.T).max(initial=0.0))
    if apart > ROUNDING * np.abs(covariance).max(initial=0.0):
        raise UserError(
            f"{where}: found a covariance that is not symmetric (by up to {apart:.3g}), expected one; make the statistics again"
        )


def _check_eigenvalues(values: np.ndarray, scale: float, where: object) -> None:
    """Checks ascending eigenvalues of what must not be negative, beyond the rounding of numbers of that scale."""
    if len(values) and values[0] < -ROUNDING * scale:
        raise UserError(
            f"{where}: found a covariance with a negative eigenvalue ({values[0]:.3g}; the largest is {values[-1]:.3g}), expected none; "
            "make the statistics again"
        )


def moments(features: np.ndarray, where: object = "features") -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and covariance (d, d) with n - 1, float64, as `np.mean` and `np.cov` give them; no copy of all features is made.

    Raises:
        UserError: the features are fewer than two or not finite; `where` says whose they are.
    """
    check_features(features, where)
    mean, covariance = features.mean(0, dtype=np.float64), np.zeros((features.shape[1],) * 2)
    for start in range(0, len(features), BLOCK):
        centred = features[start : start + BLOCK] - mean
        covariance += centred.T @ centred
    return mean, covariance / (len(features) - 1)


class Gaussian:
    """A mean and a covariance to measure distances to; the root of the covariance is taken once."""

    def __init__(self, mean: np.ndarray, covariance: np.ndarray, where: object = "statistics") -> None:
        """Raises `UserError`, which begins with `where`, unless both are finite and the covariance is symmetric."""
        check_moments(mean, covariance, where)
        self.mean, self.covariance, self.where = mean, covariance, where

    @cached_property
    def root(self) -> np.ndarray:
        """The symmetric square root of the covariance, (d, d). Raises `UserError` where an eigenvalue is clearly negative."""
        values, vectors = np.linalg.eigh(self.covariance)
        _check_eigenvalues(values, np.abs(self.covariance).max(), self.where)
        return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T

    def middle(self, covariance: np.ndarray) -> np.ndarray:
        """S^1/2 C S^1/2, symmetric and not negative: its eigenvalues are those of S C."""
        product = self.root @ covariance @ self.root
        return (product + product.T) / 2

    def distance(self, mean: np.ndarray, covariance: np.ndarray, where: object = "statistics") -> float:
        """The squared Frechet distance |m - m'|^2 + Tr(S + C - 2 (S^1/2 C S^1/2)^1/2) (Dowson & Landau 1982).

        By the eigenvalues of a symmetric matrix: real whatever the rank, and without the matrix root of an unsymmetric product, which
        leaves imaginary parts and is then helped by 1e-6 on the diagonal in the published code. The two agree to 1e-6 where both ranks are
        full (tests/evaluators/test_fid_protocols.py).

        Raises:
            UserError: the other mean or covariance has another size, is not finite, not symmetric, or clearly negative somewhere.
        """
        check_moments(mean, covariance, where)
        if len(mean) != len(self.mean):
            raise UserError(f"{where}: found {len(mean)} features, expected the {len(self.mean)} of {self.where}; make them of one network")
        values = np.linalg.eigvalsh(self.middle(covariance))
        _check_eigenvalues(values, np.abs(self.covariance).max() * np.abs(covariance).max(), where)
        crossed = np.sqrt(np.clip(values, 0, None)).sum()
        found = ((mean - self.mean) ** 2).sum() + np.trace(covariance) + np.trace(self.covariance) - 2 * crossed
        return max(0.0, float(found))

    def influence(self, features: np.ndarray) -> np.ndarray:
        """What each image adds to the distance of its set: the derivative by its weight, centred, (n,).

        2 (m - m')(x - m) + n/(n - 1) (x - m)^T (I - T) (x - m), where T = S^1/2 (S^1/2 C S^1/2)^-1/2 S^1/2 is the optimal map from the
        features' Gaussian to this one (the gradient of the Bures distance; Bhatia, Jain & Lim 2019). Where the middle is singular its
        inverse is that of its range.
        """
        mean, covariance = moments(features)
        values, vectors = np.linalg.eigh(self.middle(covariance))
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        inverse = np.zeros_like(values)
        inverse[kept] = values[kept] ** -0.5
        transport = self.root @ (vectors * inverse) @ vectors.T @ self.root
        shares = np.empty(len(features))
        for start in range(0, len(features), BLOCK):
            centred = features[start : start + BLOCK] - mean
            bent = (centred * (centred - centred @ transport)).sum(1) * len(features) / (len(features) - 1)
            shares[start : start + BLOCK] = 2 * centred @ (mean - self.mean) + bent
        return shares - shares.mean()


def fid(features: np.ndarray, target: Gaussian, prompts: np.ndarray, groups: list[str]) -> tuple[float, float, float]:
    """The FID of a set at its own n, and where another draw of as many prompts would put it (delta method, 95%).

    The interval is value +- 1.96 standard errors of the linearised distance, over prompts within their group. A bootstrap would not
    do: a resample holds 0.63 n images that differ, FID is biased by about 1/n, so every resample lies above the value. The bias at n is
    not in the interval: `extrapolation` shows it.

    Args:
        features: (n, d). prompts: the prompt of every image, numbered from 0, (n,). groups: what each prompt belongs to.

    Returns:
        (value, low, high); low is not below 0.
    """
    value = target.distance(*moments(features))
    shares = np.bincount(prompts, target.influence(features), minlength=len(groups)) / len(features)
    error = error_of(shares, groups)
    return value, max(0.0, value - 1.96 * error), value + 1.96 * error


def extrapolation(features: np.ndarray, target: Gaussian, prompts: np.ndarray, seed: int) -> dict:
    """FID against 1/n, and the straight line's value at 1/n = 0 (FID-infinity, Chong & Forsyth 2020). The reference's own bias stays.

    Sizes go evenly from 5,000/2,048 images a feature (their 5,000) to all; each is a fresh random choice of prompts with their images.

    Returns:
        {"n": [...], "fid": [...], "infinity": a, "slope": b} with fid = a + b/n by least squares; {"not_given": why} for fewer images
        than twice the smallest size.
    """
    count, width = features.shape
    least = int(np.ceil(LEAST * width))
    if count < 2 * least:
        return {"not_given": f"{count} images; a line through FID against 1/n needs {2 * least} for {width} features"}
    rng = np.random.default_rng(seed)
    sizes, found = [], []
    for size in np.linspace(least, count, POINTS).astype(int):
        turn = rng.permutation(prompts.max() + 1)[prompts]  # prompts in random order; the images of one stay together
        chosen = features[np.argsort(turn, kind="stable")[:size]]
        sizes.append(int(size))
        found.append(target.distance(*moments(chosen)))
    slope, at_zero = np.polyfit(1 / np.array(sizes), found, 1)
    return {"n": sizes, "fid": found, "infinity": float(at_zero), "slope": float(slope)}


def halves(features: np.ndarray, seed: int) -> tuple[float, int]:
    """The FID of one random half of a set against the other, and the size of a half: what real images get at that n."""
    half = len(features) // 2
    order = np.random.default_rng(seed).permutation(len(features))
    one, other = features[order[:half]], features[order[half : 2 * half]]
    return Gaussian(*moments(one)).distance(*moments(other)), half


# ---------------------------------------------------------------------------------- KID


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """KID's cubic polynomial kernel (x.y/d + 1)^3 in float64, (n, m)."""
    return (x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1) ** 3


def kernel_rows(x: np.ndarray, y: np.ndarray | None = None, block: int = BLOCK) -> np.ndarray:
    """For each row of x the sum of the kernel over the rows of y, or over the other rows of x; blockwise, (n,)."""
    sums = np.zeros(len(x))
    for i in range(0, len(x), block):
        rows = slice(i, i + block)
        if y is not None:
            for j in range(0, len(y), block):
                sums[rows] += kernel(x[rows], y[j : j + block]).sum(1)
            continue
        for j in range(i, len(x), block):
            columns = slice(j, j + block)
            values = kernel(x[rows], x[columns])
            if i == j:
                np.fill_diagonal(values, 0)
            else:
                sums[columns] += values.sum(0)
            sums[rows] += values.sum(1)
    return sums


def kid(x: np.ndarray, y: np.ndarray, prompts: np.ndarray, groups: list[str], block: int = BLOCK) -> tuple[float, float, float]:
    """The unbiased squared MMD over all pairs (Binkowski et al. 2018, arXiv 1801.01401, Eq. 4), kernel (x.y/d + 1)^3.

    The published code takes the mean over 100 random subsets of 1,000; its expectation is this number, which needs no seed. The interval
    is the jackknife over the prompts of x, within their group; y is taken as it is.

    Args:
        x: features of the generated images, (n, d). y: of the reference, (m, d). prompts, groups: as `fid`.

    Returns:
        (value, low, high); the value may be negative.

    Raises:
        UserError: features are not finite, or x and y have not as many.
    """
    check_features(x, "generated images")
    check_features(y, "reference", x.shape[1])
    n, m, count = len(x), len(y), len(groups)
    within, across = kernel_rows(x, block=block), kernel_rows(x, y, block)
    of_reference = kernel_rows(y, block=block).sum() / (m * (m - 1))

    def estimate(inner: np.ndarray, outer: np.ndarray, size: np.ndarray) -> np.ndarray:
        return inner / (size * (size - 1)) + of_reference - 2 * outer / (size * m)

    value = float(estimate(within.sum(), across.sum(), np.array(n)))
    sizes = np.bincount(prompts, minlength=count)
    own = np.zeros(count)  # pairs inside one prompt are in the sums of both their images: they leave once
    for prompt in np.flatnonzero(sizes > 1):
        own[prompt] = kernel_rows(x[prompts == prompt]).sum()
    inner = within.sum() - 2 * np.bincount(prompts, within, count) + own
    outer = across.sum() - np.bincount(prompts, across, count)
    if n - sizes.max() < 2:
        raise ValueError("an interval needs two images beside any one prompt's")
    left_out = estimate(inner, outer, n - sizes)
    error = error_of((left_out.mean() - left_out) * (count - 1) / count, groups)
    return value, value - 1.96 * error, value + 1.96 * error
