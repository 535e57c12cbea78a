"""FID and KID of what is no set of numbers: one line with the file or the set, never a distance (of a NaN in `mu` it was 0.0)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from apex.errors import UserError
from evaluators.fid import reference, world
from evaluators.fid.distance import Gaussian, check_features, fid, kid, moments
from evaluators.fid.inception import Feed

D = 4


def good(seed: int = 0, n: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, D))


def line(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_known_statistics_have_their_distance() -> None:
    """N(0, I) and N(m, 4 I) in d = 4: |m|^2 + d (2 - 1)^2."""
    ours, theirs = Gaussian(np.zeros(D), np.eye(D)), (np.full(D, 0.5), 4 * np.eye(D))
    assert ours.distance(*theirs) == pytest.approx(D * 0.25 + D)
    # The rounding of float32 is no fault, neither in symmetry nor in the sign of an eigenvalue.
    nearly = 4 * np.eye(D)
    nearly[0, 1] += 1e-7
    assert ours.distance(theirs[0], nearly) == pytest.approx(D * 0.25 + D, abs=1e-5)
    Gaussian(np.zeros(D), np.diag([1.0, 1.0, 1.0, -1e-9])).distance(*theirs)


def crooked() -> np.ndarray:
    covariance = np.eye(D)
    covariance[0, 1] = 0.5
    return covariance


def with_nan(values: np.ndarray, bad: float = np.nan) -> np.ndarray:
    values = values.copy()
    values.flat[-1] = bad
    return values


# statistics -> what is said of them
STATISTICS = {
    "nan in mu": (with_nan(np.zeros(D)), np.eye(D), "found a mean with 1 values that are not finite, expected numbers"),
    "infinite sigma": (np.zeros(D), with_nan(np.eye(D), np.inf), "found a covariance with 1 values that are not finite"),
    "crooked": (np.zeros(D), crooked(), "found a covariance that is not symmetric (by up to 0.5)"),
    "negative": (np.zeros(D), np.diag([1.0, 1.0, 1.0, -0.1]), "found a covariance with a negative eigenvalue (-0.1; the largest is 1)"),
    "other shape": (np.zeros(D + 1), np.eye(D), "found a mean of shape (5,) and a covariance of (4, 4), expected (d,) and (d, d)"),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_that_are_none_are_refused_on_either_side(name: str) -> None:
    mean, covariance, said = STATISTICS[name]
    whole = Gaussian(np.zeros(D), np.eye(D), "good.npz")
    assert line(lambda: Gaussian(mean, covariance, "bad.npz").distance(np.zeros(D), np.eye(D))).startswith(f"bad.npz: {said}")
    assert line(lambda: whole.distance(mean, covariance, "bad set")).startswith(f"bad set: {said}")


@pytest.mark.parametrize("name", STATISTICS)
def test_a_published_file_of_statistics_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    mean, covariance, said = STATISTICS[name]
    np.savez(tmp_path / "published.npz", mu=mean, sigma=covariance)

    def score() -> None:
        found = reference.read(tmp_path / "published.npz", Feed("pytorch-fid"), "")
        fid(good(), found.gaussian, np.arange(50), [""] * 50)

    assert line(score).startswith(f"{tmp_path / 'published.npz'}: {said}")


def test_two_networks_features_have_no_distance() -> None:
    told = line(lambda: Gaussian(np.zeros(D), np.eye(D), "theirs.npz").distance(np.zeros(3), np.eye(3), "ours"))
    assert told.startswith("ours: found 3 features, expected the 4 of theirs.npz")


def test_a_reference_file_with_bad_features_is_refused_by_its_name(tmp_path: Path) -> None:
    path, values = tmp_path / "reference.safetensors", good()
    mean, covariance = moments(values)

    def read(**changes: np.ndarray) -> str:
        tensors = {"mean": mean, "covariance": covariance, "features": values, "category": np.zeros(len(values), np.int32)} | changes
        tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        about = {"protocol": "pytorch-fid", "resolution": None, "jpeg": None, "weights": "w", "n": len(values)}
        metadata = {"identity": json.dumps(about), "categories": '[""]', "checksum": reference._checksum(tensors)}
        save_file(tensors, path, metadata=metadata)
        return line(lambda: reference.read(path, Feed("pytorch-fid"), "w"))

    assert read(features=with_nan(values)).startswith(f"{path}: found features that are not finite (of image 49, 1 of 50 images)")
    assert read(features=values[:, :3]).startswith(f"{path}: found features of shape (50, 3), expected (n, 4)")
    assert read(mean=with_nan(mean)).startswith(f"{path}: found a mean with 1 values that are not finite")
    assert read(category=np.full(50, 3, np.int32)).startswith(f"{path}: category: found numbers that fit neither 50 images nor 1 names")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("score", ["fid", "kid", "world fid", "world kid"])
def test_features_that_are_not_finite_have_neither_fid_nor_kid(score: str, bad: float) -> None:
    prompts, groups = np.arange(50), [""] * 50

    def of(x: np.ndarray, y: np.ndarray) -> object:
        return {
            "fid": lambda: fid(x, Gaussian(*moments(y, "reference")), prompts, groups),
            "kid": lambda: kid(x, y, prompts, groups),
            "world fid": lambda: world.fid(x, y),
            "world kid": lambda: world.kid(x, y, prompts),
        }[score]()

    of(good(), good(1))
    ours = "features" if score == "fid" else "generated images"
    assert line(lambda: of(with_nan(good(), bad), good(1))).startswith(f"{ours}: found features that are not finite (of image 49")
    assert line(lambda: of(good(), with_nan(good(1), bad))).startswith("reference: found features that are not finite (of image 49")


def test_features_of_another_number_or_of_one_image() -> None:
    assert line(lambda: kid(good(), good(1)[:, :2], np.arange(50), [""] * 50)).startswith("reference: found features of shape (50, 2)")
    assert line(lambda: check_features(good()[:1], "set")).startswith("set: found features of shape (1, 4), expected (n, d) with n of 2 or")


def test_the_image_whose_features_are_not_finite_is_named(tmp_path: Path, monkeypatch) -> None:
    import cleanfid.fid

    monkeypatch.setattr(cleanfid.fid, "get_files_features", lambda files, *_, **__: with_nan(good(n=len(files))))
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    assert line(lambda: world.file_features(paths, None, "cpu")).startswith(f"{paths[1]}: found features that are not finite")
