"""FID and KID by the published protocols: one folder of generated images against one reference, with intervals, bias at n, and floor."""

from __future__ import annotations

import argparse
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from apex.errors import UserError
from apex.files import atomic_file
from evaluators.assets import find, registry
from evaluators.command import begin, write_record
from evaluators.fid import VERSION
from evaluators.fid.distance import Gaussian, extrapolation, fid, halves, kid, moments
from evaluators.fid.inception import Feed, file_features, load_network
from evaluators.fid.reference import Reference, kept_folder, listed, make, read
from evaluators.images import Images
from evaluators.result import Metric, compared

MJHQ = 30_000  # images, generated and real, of the published numbers (SANA's, tools/metrics/pytorch-fid)
LEAST_PROMPTS = 3  # a jackknife that leaves one out needs two more


def run(args: argparse.Namespace) -> None:
    started = time.time()
    if args.reference is None:
        raise UserError("--reference: missing; give statistics of `python -m evaluators.fid.reference`, a .npz, or a folder of real images")
    if not args.reference.exists():
        raise UserError(f"--reference {args.reference}: not found; `python -m evaluators.fid.reference` makes it from real images")
    weights = find("inception", args.weights, "--weights")
    Feed(args.protocol, args.resolution, args.jpeg)  # what is wrong with these is said before the images are opened
    images, device = begin(args)
    if len(images.rows) < LEAST_PROMPTS:
        raise UserError(f"{images.folder}: {len(images.rows)} prompts; FID with its interval needs at least {LEAST_PROMPTS}")
    resolution = args.resolution or (min(images.size) if args.protocol == "pytorch-fid" else None)
    feed = Feed(args.protocol, resolution, args.jpeg)
    network = load_network(weights, device)
    how = {"batch": args.batch, "threads": args.threads}
    if args.reference.is_dir():
        listed(args.reference)
        reference = make(args.reference, feed, network, kept_folder(args), limit=None, **how)
    else:
        reference = read(args.reference, feed, network.sha256)
    generated = file_features(images.paths, feed, network, kept_folder(args), name="fid", **how)
    if generated.values.shape[1] != len(reference.gaussian.mean):
        raise UserError(f"{args.reference}: {len(reference.gaussian.mean)} features; the network gives {generated.values.shape[1]}")
    found, details = score(generated.values, images, reference, args.seed)
    picture = draw(details["fid_at_n"], args.out.with_name(args.out.stem + ".fid_at_n.png"))
    about = {
        **compared(differing(args.protocol, network.sha256, len(generated.values), reference.identity.get("n"))),
        "protocol": args.protocol,
        "code": f"{args.protocol} {metadata.version(args.protocol)}",
        "resize": feed.described,
        "resolution": resolution,
        "jpeg": args.jpeg,
        "weights_sha256": network.sha256,
        "files": generated.files,
        "reference": reference.identity,
        "departures": generated.departures,
        "picture": picture,
    }
    write_record(args, images, "fid", VERSION, found, about | details, started)


def differing(protocol: str, weights: str, n: int, reference: int | None) -> dict[str, bool]:
    """What may differ from how the numbers on MJHQ-30K are published, and whether it does. `reference`: None where it does not say."""
    return {
        f"{protocol}'s resize": protocol != "pytorch-fid",
        "other weights than FID's": not weights.startswith(registry()["inception"].sha256),
        f"{n:,} images": n != MJHQ,
        f"against {reference:,} images" if reference else "against a reference that does not say its n": reference != MJHQ,
    }


def score(features: np.ndarray, images: Images, reference: Reference, seed: int) -> tuple[list[Metric], dict[str, Any]]:
    """The record's metrics and the part of its details that comes with them, from the images' features (n, d) in order."""
    groups = [row.get("category") or row.get("tag", "") for row in images.rows]
    prompts, n = images.prompt_of, len(features)
    at_n = extrapolation(features, reference.gaussian, prompts, seed)
    found = [_metric("fid", fid(features, reference.gaussian, prompts, groups), n)]
    if "infinity" in at_n:
        found.append(_metric("fid/infinity", (at_n["infinity"],), n))
    if reference.features is not None:
        if len(reference.features) >= 4:
            value, half = halves(reference.features, seed)
            found.append(_metric("fid/floor", (value,), half))
        found.append(_metric("kid", kid(features, reference.features, prompts, groups), n))
    sizes = {"all": [n, reference.identity.get("n")]}
    parts, skipped = reference.parts, {}
    for name in sorted(set(groups) - {""}) if parts else ():
        chosen = np.array([group == name for group in groups])
        of_part = chosen[prompts]
        own, size = np.unique(prompts[of_part], return_inverse=True)[1], int(of_part.sum())
        sizes[name] = [size, len(parts.get(name, ()))]
        if chosen.sum() < LEAST_PROMPTS or sizes[name][1] < 2:
            skipped[name] = f"{chosen.sum()} prompts, {sizes[name][1]} reference images: too few"
            continue
        given = (features[of_part], own, [name] * int(chosen.sum()))
        found.append(_metric(f"fid/category/{name}", fid(given[0], Gaussian(*moments(parts[name])), *given[1:]), size))
        found.append(_metric(f"kid/category/{name}", kid(given[0], parts[name], *given[1:]), size))
    width = features.shape[1]
    short = sorted(name for name, counts in sizes.items() if any(c is not None and c <= width for c in counts))
    if short:
        print(
            f"fid: {', '.join(short)}: {width} images or fewer, so the covariance of {width} features has not full rank: "
            "compare it only at the same n",
            file=sys.stderr,
            flush=True,
        )
    details = {
        "features": width,
        "images_and_reference": sizes,
        "covariance_not_of_full_rank": short,
        "categories_left_out": skipped,
        "kid": "unbiased, all pairs, kernel (x.y/d + 1)^3",
        "interval": "over the generated prompts within category; the reference is taken as it is; the bias at n is not in it",
        "fid_at_n": at_n,
    }
    return found, details


def _metric(name: str, given: tuple[float, ...], n: int) -> Metric:
    bounds = {}
    if len(given) == 3:
        bounds = {"ci_low": given[1], "ci_high": given[2], "interval": "jackknife 95%" if name.startswith("kid") else "delta method 95%"}
    unit = "squared MMD" if name.startswith("kid") else "squared feature distance"
    return Metric(metric=name, value=given[0], unit=unit, n=n, higher_is_better=False, **bounds)


def draw(at_n: dict[str, Any], path: Path) -> str:
    """FID against 1/n with its line, as a PNG. Returns its name, or why there is none."""
    if "n" not in at_n:
        return f"none: {at_n['not_given']}"
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "none: matplotlib is not installed"
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    inverse = 1 / np.array(at_n["n"])
    axes.plot(inverse, at_n["fid"], "o", color="black", markersize=4)
    line = np.array([0, inverse.max()])
    axes.plot(line, at_n["infinity"] + at_n["slope"] * line, "-", color="tab:blue", linewidth=1)
    axes.annotate(f"{at_n['infinity']:.2f} at infinity", (0, at_n["infinity"]), xytext=(6, -4), textcoords="offset points", va="top")
    axes.set_xlim(left=0)
    axes.set_xlabel("1 / number of images")
    axes.set_ylabel("FID")
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    return path.name
