"""FID and KID of a folder of images against fresh real renders of the same prompts.

    python -m evaluators.fid --images results/world/images/apex/nfe1/seed0/test --out fid.json

Features: the world's own network (`evaluators.networks.FeatureNet`, a classifier of scene attributes), so these
numbers compare with each other alone, never with a published FID. Images reach it through clean-fid's reader with
an identity resize (Parmar et al. 2022; float32 in [0, 255]); the distance is clean-fid's `frechet_distance`.

The reference is as large as the set (FID's bias is about 1/n), and `fid/floor` is the FID of a second set of real
renders of that size against the same reference: what a perfect generator gets. KID (Binkowski et al. 2018, Eq. 4)
is the unbiased estimate over all pairs of images, with the kernel (x.y/d + 1)^3; its interval is the jackknife over
prompts. It has no subsets to draw, hence no seed of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from cleanfid.fid import frechet_distance, get_batch_features, get_files_features

from apex.errors import UserError, run_command
from evaluators.command import begin, check_world, fresh_renders, image_parser, square_side, write_record
from evaluators.images import Images
from evaluators.networks import BUNDLED, FeatureNet, load_network
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
    names = [str(path) for path in paths]
    found = get_files_features(names, Extractor(net), num_workers=0, device=torch.device(device), custom_fn_resize=lambda x: x, verbose=False)
    return found.astype(np.float64)


def array_features(images: np.ndarray, net: FeatureNet, device: str, batch: int = 128) -> np.ndarray:
    """Features of uint8 images (n, H, W, 3), as `file_features` gives them for the same images on disk."""
    extractor, parts = Extractor(net), []
    for start in range(0, len(images), batch):
        pixels = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float()
        parts.append(get_batch_features(pixels, extractor, torch.device(device)))
    return np.concatenate(parts).astype(np.float64)


def fid(x: np.ndarray, y: np.ndarray) -> float:
    """Frechet distance of two sets of features (n, D): |mean difference|^2 + Tr(Cx + Cy - 2 (Cx Cy)^1/2)."""
    distance = frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    return max(0.0, float(distance))  # rounding of the matrix root can leave -1e-12


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """KID's cubic polynomial kernel (x.y/d + 1)^3, (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared MMD over all pairs (Gretton et al. 2012, Eq. 3): may be negative."""
    return _weighted_mmd(*_blocks(x, np.arange(len(x)), y, np.arange(len(y))))(np.ones(max(len(x), len(y))))


def kid_interval(x: np.ndarray, prompts_x: np.ndarray, y: np.ndarray, prompts_y: np.ndarray) -> tuple[float, float, float]:
    """KID with its jackknife interval over prompts; `prompts_*` number the prompt of each image from 0."""
    return jackknife(_weighted_mmd(*_blocks(x, prompts_x, y, prompts_y)), int(max(prompts_x.max(), prompts_y.max())) + 1)


def _blocks(x: np.ndarray, prompts_x: np.ndarray, y: np.ndarray, prompts_y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Kernel sums between prompts, (P, P) each, self-pairs left out of the first two; images per prompt (P,) of both."""
    count = int(max(prompts_x.max(), prompts_y.max())) + 1

    def total(matrix: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        sums = np.zeros((count, matrix.shape[1]))
        np.add.at(sums, rows, matrix)
        both = np.zeros((count, count))
        np.add.at(both.T, columns, sums.T)
        return both

    xx, yy = kernel(x, x), kernel(y, y)
    np.fill_diagonal(xx, 0)
    np.fill_diagonal(yy, 0)
    sizes = (np.bincount(prompts_x, minlength=count), np.bincount(prompts_y, minlength=count))
    return total(xx, prompts_x, prompts_x), total(yy, prompts_y, prompts_y), total(kernel(x, y), prompts_x, prompts_y), *sizes


def _weighted_mmd(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray, nx: np.ndarray, ny: np.ndarray):
    """The unbiased squared MMD as a function of prompt weights in {0, 1}, (P,)."""

    def value(w: np.ndarray) -> float:
        w = w[: len(nx)]
        n, m = w @ nx, w @ ny
        return float(w @ xx @ w / (n * (n - 1)) + w @ yy @ w / (m * (m - 1)) - 2 * (w @ xy @ w) / (n * m))

    return value


def metrics(generated: np.ndarray, reference: np.ndarray, second: np.ndarray, prompts: np.ndarray) -> list[Metric]:
    """FID, its floor, and KID with interval, from features (n, D) of three sets with the same prompts in the same order."""
    value, low, high = kid_interval(generated, prompts, reference, prompts)
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


def main(argv: list[str] | None = None) -> None:
    parser = image_parser(__doc__)
    parser.add_argument("--weights", type=Path, default=BUNDLED / "fid", help="folder of the feature network (default: bundled)")
    run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    started = time.time()
    images, device = begin(args)
    check_world(images)
    net = load_network(args.weights, FeatureNet, device)
    check_count(images, net.config["features"])
    side, per_prompt = square_side(images), [len(f) for f in images.files]
    print(f"fid: {len(images)} images against {len(images)} fresh renders", file=sys.stderr, flush=True)
    generated = file_features(images.paths, net, device)
    print("fid: images done, rendering the references", file=sys.stderr, flush=True)
    real = [array_features(fresh_renders(images.rows, per_prompt, side, seed + args.seed), net, device) for seed in (REFERENCE, SECOND)]
    details = {"code": "clean-fid", "resize": "identity", "features": net.config["features"], "reference": "fresh renders of the same prompts"}
    write_record(args, images, "fid", VERSION, metrics(generated, *real, images.prompt_of), details, started)


if __name__ == "__main__":
    sys.exit(run_command(main))
