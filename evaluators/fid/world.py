"""The world's FID and KID: a folder of images against fresh real renders of the same prompts.

Features: the world's own network (`evaluators.networks.FeatureNet`, a classifier of scene attributes), so these
numbers compare with each other alone, never with a published FID. Images reach it through clean-fid's reader with
an identity resize (Parmar et al. 2022; float32 in [0, 255]); the distance is clean-fid's `frechet_distance`.

The reference is as large as the set (FID's bias is about 1/n), and `fid/floor` is the FID of a second set of real
renders of that size against the same reference: what a perfect generator gets. KID (Binkowski et al. 2018, Eq. 4)
is the unbiased estimate over all pairs of images of different prompts, with the kernel (x.y/d + 1)^3; its interval is
the jackknife over prompts. It has no subsets to draw, hence no seed of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from apex.errors import UserError
from evaluators.assets import BUNDLED
from evaluators.command import begin, check_world, fresh_renders, square_side, write_record
from evaluators.fid.distance import check_features, kernel
from evaluators.fid.inception import check_rows
from evaluators.images import Images
from evaluators.networks import FeatureNet, load_network
from evaluators.references import Arrays, Renders, kept, key_of
from evaluators.result import Metric
from evaluators.statistics import jackknife

VERSION = "1"
REFERENCE, SECOND = 1_000_003, 2_000_003  # seeds of the two sets of renders, apart from any sampling seed


class Extractor:
    """clean-fid's feature extractor: float32 (B, 3, H, W) in [0, 255] -> features (B, D)."""

    def __init__(self, net: FeatureNet) -> None:
        self._net = net

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self._net.features(images / 255)


def file_features(paths: list[Path], net: FeatureNet, device: str) -> np.ndarray:
    """Features of image files in the given order, float64 (n, D), through clean-fid with an identity resize."""
    from cleanfid.fid import get_files_features  # seconds: only once it is needed

    names = [str(path) for path in paths]
    found = get_files_features(
        names, Extractor(net), num_workers=0, device=torch.device(device), custom_fn_resize=lambda x: x, verbose=False
    )
    check_rows(found, paths, "check the feature network")
    return found.astype(np.float64)


def array_features(batches: Iterable[np.ndarray], net: FeatureNet, device: str) -> np.ndarray:
    """Features of batches of uint8 images (B, H, W, 3), float64 (n, D), as `file_features` gives them for the same images on disk."""
    extractor = Extractor(net)
    parts = [extractor(torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float()).cpu().numpy() for batch in batches]
    return np.concatenate(parts).astype(np.float64)


def in_batches(images: np.ndarray, size: int = 128) -> Iterable[np.ndarray]:
    return (images[start : start + size] for start in range(0, len(images), size))


def fid(x: np.ndarray, y: np.ndarray) -> float:
    """Frechet distance of two sets of features (n, D): |mean difference|^2 + Tr(Cx + Cy - 2 (Cx Cy)^1/2)."""
    from cleanfid.fid import frechet_distance

    check_features(x, "generated images")
    check_features(y, "reference", x.shape[1])
    distance = float(frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False)))
    if not np.isfinite(distance):  # max(0, NaN) is 0
        raise UserError(f"FID of {len(x)} images: found {distance}, expected a number; check the images and the feature network")
    return max(0.0, distance)  # rounding of the matrix root can leave -1e-12


def kid(x: np.ndarray, y: np.ndarray, prompts: np.ndarray) -> tuple[float, float, float]:
    """The unbiased squared MMD (Gretton et al. 2012, Eq. 4, with prompts as the units) and its jackknife interval over prompts.

    The mean of k(x, x') + k(y, y') - k(x, y') - k(x', y) over all pairs of images of different prompts. Images of one
    prompt are alike in both sets; with those pairs in, two sets of real renders would differ by less than nothing.

    Args:
        x, y: features (n, D) of two sets with the same prompts. prompts: the prompt of every image, numbered from 0, (n,).

    Returns:
        (value, low, high); the value may be negative.
    """
    check_features(x, "generated images")
    check_features(y, "reference", x.shape[1])
    member = np.eye(prompts.max() + 1)[prompts]
    sizes = member.sum(0)

    def total(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        sums = member.T @ kernel(a, b) @ member
        np.fill_diagonal(sums, 0)
        return sums

    difference = total(x, x) + total(y, y) - 2 * total(x, y)

    def value(kept: np.ndarray) -> float:
        pairs = (kept @ sizes) ** 2 - kept @ sizes**2
        return float(kept @ difference @ kept / pairs)

    return jackknife(value, len(sizes))


def metrics(generated: np.ndarray, reference: np.ndarray, second: np.ndarray, prompts: np.ndarray) -> list[Metric]:
    """FID, its floor, and KID with interval, from features (n, D) of three sets with the same prompts in the same order."""
    value, low, high = kid(generated, reference, prompts)
    common = {"unit": "squared feature distance", "n": len(generated), "higher_is_better": False}
    return [
        Metric(metric="fid", value=fid(generated, reference), **common),
        Metric(metric="fid/floor", value=fid(second, reference), **common),
        Metric(metric="kid", value=value, ci_low=low, ci_high=high, interval="jackknife 95%", **common | {"unit": "squared MMD"}),
    ]


def check_count(images: Images, features: int) -> None:
    """A covariance needs more images than features, and the jackknife more than one prompt."""
    if len(images) <= features or len(images.rows) < 2:
        raise UserError(
            f"{images.folder}: {len(images)} images of {len(images.rows)} prompts; FID on {features} features needs more than "
            f"{features} images of at least 2 prompts: use a larger prompt set or more images a prompt"
        )


def references(renders: Renders, device: str, weights: Path | None = None) -> tuple[str, Callable[[], Arrays]]:
    """The key of what is measured on two sets of fresh renders, and how it is: features, float64 (n, D) each."""
    folder = weights or BUNDLED / "fid"

    def measure() -> Arrays:
        net = load_network(folder, FeatureNet, device)
        found = {}
        for name, seed in (("reference", REFERENCE), ("second", SECOND)):
            pictures = fresh_renders(renders.rows, renders.counts, renders.side, seed + renders.seed)
            found[name] = array_features(in_batches(pictures), net, device)
        return found

    return key_of("fid", VERSION, renders, [folder], device), measure


def run(args: argparse.Namespace) -> None:
    started = time.time()
    images, device = begin(args)
    check_world(images)
    net = load_network(args.weights or BUNDLED / "fid", FeatureNet, device)
    check_count(images, net.config["features"])
    renders = Renders(images.rows, [len(f) for f in images.files], square_side(images), args.seed)
    print(f"fid: {len(images)} images against {len(images)} fresh renders", file=sys.stderr, flush=True)
    generated = file_features(images.paths, net, device)
    real = kept(args.references, *references(renders, device, args.weights))
    details = {
        "protocol": "world",
        "code": "clean-fid",
        "resize": "identity",
        "features": net.config["features"],
        "reference": "fresh renders of the same prompts",
    }
    write_record(args, images, "fid", VERSION, metrics(generated, real["reference"], real["second"], images.prompt_of), details, started)
