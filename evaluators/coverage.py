"""Coverage of a folder of images: does the generator vary what the prompt leaves open, as the renderer does?

    python -m evaluators.coverage --images results/world/images/apex/nfe1/seed0/test --out coverage.json

Spread, per attribute: the objects' size and place, the background's grey, and the colour of objects whose colour the
prompt does not name. Within each prompt the variance over its images is the unbiased one (n - 1), so four images a prompt
are enough: the single variances are rough, their sum over hundreds of prompts is not. The value is

    sqrt( sum_p (n_p - 1) s2_p(generated) / sum_p (n_p - 1) s2_p(renders) ),      n_p = images of p where it is measured

with 8 renders a prompt measured by the same detector: 1 is the renderer's spread, 0 a single picture per prompt.
An attribute is measured on images where the detector finds the prompt's objects; prompts with fewer than two such images
drop out, and an attribute that is measured on less than a tenth of the images counts as 0 (nothing is covered).
`coverage/spread` is the mean over attributes of min(value, 1): too much of one does not pay for too little of another.

Precision and recall (Kynkaanniemi et al. 2019, k = 3) are on the FID network's features, against as many fresh renders
of the same prompts, over all prompts together. Intervals: bootstrap over prompts within task.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apex.errors import UserError, run_command
from evaluators.assets import BUNDLED
from evaluators.command import begin, check_world, fresh_renders, image_parser, progress, prompt_weights, square_side, write_record
from evaluators.geneval.logic import Detection, keep
from evaluators.references import Arrays, Renders, add_argument, kept, key_of
from evaluators.result import Metric
from evaluators.statistics import bootstrapped, interval, mean_of_prompts

if TYPE_CHECKING:
    from evaluators.geneval.world_detector import WorldDetector

VERSION = "1"
ATTRIBUTES = ("size", "place", "background", "color")
RENDERS, NEIGHBOURS, ENOUGH = 8, 3, 0.1
REFERENCE = 4_000_037  # seed of the renders


def measure(image: np.ndarray, found: dict[str, list[Detection]], row: dict) -> dict[str, np.ndarray | None]:
    """What one image shows of its prompt's open attributes; None where it cannot be measured, no key where nothing is open.

    Several objects of one class (counting) are one slot: their mean size, mean place and mean colour.

    Args:
        image: uint8 (H, W, 3). found: its detections. row: the prompt line.

    Returns:
        size (slots,), place (2 slots,) as fractions of the side, background (1,), color (3 per unnamed colour,) in [0, 1].
    """
    kept = keep(found, row["tag"])
    side = len(image)
    pixels = image / 255.0
    slots = [(kept.get(e["class"], [])[: e["count"]], e) for e in row["include"]]
    covered = np.zeros(image.shape[:2], bool)
    for detections in found.values():
        for d in detections:
            covered |= _grown(d.mask)
    ground = np.array([np.median(pixels[~covered])]) if (~covered).any() else None
    open_color = any("color" not in entry for _, entry in slots)
    if any(len(objects) < entry["count"] for objects, entry in slots):
        return {"size": None, "place": None, "background": ground} | ({"color": None} if open_color else {})
    size, place, color = [], [], []
    for objects, entry in slots:
        boxes = np.array([d.box for d in objects]) / side
        size.append(np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).mean() / 2)
        place += [*((boxes[:, :2] + boxes[:, 2:]) / 2).mean(0)]
        if "color" not in entry:
            color += [*np.mean([np.median(pixels[d.mask], axis=0) for d in objects], axis=0)]
    return {"size": np.array(size), "place": np.array(place), "background": ground} | ({"color": np.array(color)} if open_color else {})


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask widened by one pixel each way, so that soft edges stay out of the background."""
    wide = mask.copy()
    wide[1:] |= mask[:-1]
    wide[:-1] |= mask[1:]
    wide[:, 1:] |= wide[:, :-1].copy()
    wide[:, :-1] |= wide[:, 1:].copy()
    return wide


def scatter(values: list[dict[str, np.ndarray | None]], attribute: str) -> tuple[float, int]:
    """Within one prompt: the unbiased variance (summed over components) of an attribute, and on how many images it was measured."""
    there = [v[attribute] for v in values if v.get(attribute) is not None]
    return (float(np.var(np.stack(there), axis=0, ddof=1).sum()) if len(there) > 1 else 0.0), len(there)


def spread(generated: np.ndarray, measured: np.ndarray, real: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The pooled ratio of standard deviations (see the module's formula), once or per row of `weights` (resamples, prompts).

    Args:
        generated, real: variances per prompt (P,). measured: images per prompt behind `generated` (P,).
    """
    freedom = np.maximum(measured - 1, 0)
    weights = np.ones((1, len(real))) if weights is None else weights
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.sqrt((weights @ (freedom * generated)) / (weights @ (freedom * real)))
    return np.nan_to_num(ratio, nan=0.0, posinf=0.0)


def inside_manifold(points: np.ndarray, manifold: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Whether each point lies in the k-nearest-neighbour manifold of a set (Kynkaanniemi et al. 2019, Eq. 1-2), boolean (n,).

    A point is inside when it is no further from some member than that member is from its k-th neighbour in the set.
    """
    radius = np.sort(_distances(manifold, manifold), axis=1)[:, k]  # column 0 is the point itself
    return (_distances(points, manifold) <= radius).any(1)


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    if x is y:
        np.fill_diagonal(squared, 0)
    return np.sqrt(np.maximum(squared, 0))


def of_renders(measures: list[list[dict]]) -> Arrays:
    """What the spread needs of the renders' measures, by attribute: where it is open, bool (P,), and its variances (P,)."""
    found = {}
    for name in ATTRIBUTES:
        found[f"{name}/open"] = np.array([any(name in m for m in each) for each in measures])
        found[f"{name}/variance"] = np.array([scatter(each, name)[0] for each in measures])
    return found


def spread_metrics(generated: list[list[dict]], real: Arrays, weights: np.ndarray) -> tuple[list[Metric], dict[str, float]]:
    """The spread of every attribute and their mean, from measures per prompt and image and `of_renders`; and the share of images
    measured."""
    values, resampled, counts, shares = {}, {}, {}, {}
    for name in ATTRIBUTES:
        open_here = real[f"{name}/open"]
        if not open_here.any():
            continue
        ours = np.array([scatter(each, name) for each in generated])
        total = sum(len(each) for each, here in zip(generated, open_here, strict=True) if here)
        shares[name] = float(ours[open_here, 1].sum() / total)
        counts[name] = int(ours[open_here, 1].sum())
        if shares[name] < ENOUGH:
            values[name], resampled[name] = 0.0, np.zeros(len(weights))
        else:
            chosen = (ours[open_here, 0], ours[open_here, 1], real[f"{name}/variance"][open_here])
            values[name], resampled[name] = float(spread(*chosen)[0]), spread(*chosen, weights[:, open_here])
    mean = float(np.mean([min(v, 1.0) for v in values.values()]))
    low, high = interval(np.mean([np.minimum(r, 1.0) for r in resampled.values()], axis=0))
    unit, images = "share of the renderer's standard deviation", sum(len(each) for each in generated)
    common = {"unit": unit, "n": images, "higher_is_better": True, "interval": "bootstrap 95%"}
    found = [Metric(metric="coverage/spread", value=mean, ci_low=min(low, mean), ci_high=max(high, mean), **common)]
    found += [bootstrapped(f"coverage/{name}", value, resampled[name], unit, counts[name]) for name, value in values.items()]
    return found, shares


def manifold_metrics(generated: np.ndarray, real: np.ndarray, prompts: np.ndarray, weights: np.ndarray) -> list[Metric]:
    """Precision (generated inside the renders' manifold) and recall (renders inside the generated one), features (n, D) each."""
    found = []
    for name, hits in (("precision", inside_manifold(generated, real)), ("recall", inside_manifold(real, generated))):
        sums, counts = np.bincount(prompts, hits), np.bincount(prompts).astype(float)
        found.append(bootstrapped(f"coverage/{name}", hits.mean(), mean_of_prompts(sums, counts, weights), "fraction", len(hits)))
    return found


def measure_all(batches: Iterable[np.ndarray], rows: list[dict], counts: list[int], detector: WorldDetector, name: str) -> list[list[dict]]:
    """Measures per prompt and image. `batches` hold the images of all prompts in order, `counts[p]` of prompt p."""
    owner = np.repeat(np.arange(len(rows)), counts)
    found: list[list[dict]] = [[] for _ in rows]
    done = 0
    for batch in progress(batches, (len(owner) + 63) // 64, name):
        for image, seen in zip(batch, detector(batch), strict=True):
            found[owner[done]].append(measure(image, seen, rows[owner[done]]))
            done += 1
    return found


def references(
    renders: Renders, device: str, detector: Path = BUNDLED / "detector", weights: Path = BUNDLED / "fid"
) -> tuple[str, Callable[[], Arrays]]:
    """The key of what is measured on fresh renders, and how it is: `of_renders`, and the features (n, D) of as many renders as images."""

    from evaluators.fid.world import array_features, in_batches
    from evaluators.geneval.world_detector import WorldDetector
    from evaluators.networks import FeatureNet, load_network

    def measure() -> Arrays:
        rows, counts = renders.rows, renders.counts
        drawn = [max(RENDERS, n) for n in counts]
        pictures = fresh_renders(rows, drawn, renders.side, REFERENCE + renders.seed)
        found = measure_all(in_batches(pictures, 64), rows, drawn, WorldDetector.load(detector, device), "coverage, batches of 64 renders")
        same_number = np.concatenate([np.arange(n) + first for n, first in zip(counts, np.cumsum(drawn) - drawn, strict=True)])
        net = load_network(weights, FeatureNet, device)
        return of_renders(found) | {"features": array_features(in_batches(pictures[same_number]), net, device)}

    return key_of("coverage", VERSION, renders, [detector, weights], device), measure


def main(argv: list[str] | None = None) -> None:
    parser = image_parser("evaluators.coverage", __doc__)
    parser.add_argument("--detector-weights", type=Path, default=BUNDLED / "detector", help="folder of the detector (default: bundled)")
    parser.add_argument("--weights", type=Path, default=BUNDLED / "fid", help="folder of the feature network (default: bundled)")
    add_argument(parser)
    run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    from evaluators.fid.world import array_features
    from evaluators.geneval.world_detector import WorldDetector
    from evaluators.networks import FeatureNet, load_network

    started = time.time()
    images, device = begin(args)
    check_world(images)
    detector, net = WorldDetector.load(args.detector_weights, device), load_network(args.weights, FeatureNet, device)
    counts = [len(f) for f in images.files]
    if max(counts) < 2 or len(images) <= NEIGHBOURS:
        raise UserError(f"{images.folder}: {max(counts)} image a prompt; coverage needs at least 2 (the protocol has 4): sample more")
    renders = Renders(images.rows, counts, square_side(images), args.seed)
    generated = measure_all(images.batches(64), images.rows, counts, detector, "coverage, batches of 64 images")
    real = kept(args.references, *references(renders, device, args.detector_weights, args.weights))
    weights = prompt_weights(images, args.seed)
    found, shares = spread_metrics(generated, real, weights)
    features = array_features(images.batches(128), net, device)
    found += manifold_metrics(features, real["features"], images.prompt_of, weights)
    details = {"renders_per_prompt": RENDERS, "neighbours": NEIGHBOURS, "measured_share": shares, "images_per_prompt": sorted(set(counts))}
    write_record(args, images, "coverage", VERSION, found, details, started)


if __name__ == "__main__":
    sys.exit(run_command(main))
