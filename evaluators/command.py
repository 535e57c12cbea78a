"""What the evaluators' command lines share: arguments, progress lines, fresh renders, and the record's frame."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from apex.command import SEED, THREADS, Parser, whole_number
from apex.data import world
from apex.errors import UserError
from apex.gpu import pick_device
from apex.provenance import git_commit, hardware, peak_memory_mb, versions
from evaluators.geneval.logic import check_known
from evaluators.images import Images, open_images
from evaluators.progress import progress as progress  # evaluators find it here
from evaluators.result import Identity, Metric, Record, first_fault
from evaluators.statistics import RESAMPLES, bootstrap_weights


def image_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The arguments of every evaluator that scores a folder of images."""
    parser = Parser(module, description)
    parser.add_argument("--images", required=True, type=Path, help="folder in GenEval's layout")
    parser.add_argument("--out", required=True, type=Path, help="the result record (JSON) to write")
    parser.add_argument("--row", help="name of the row, for folders without made.json")
    parser.add_argument("--nfe", type=whole_number(0, 1000), help="function evaluations per image, for folders without made.json")
    parser.add_argument("--incomplete", action="store_true", help="score a folder that lacks prompts of its set; the record counts them")
    parser.add_argument("--source", help="where an external folder comes from; kept in the record")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--threads", type=THREADS, default=1, help="CPU threads of this process (default: 1)")
    parser.add_argument("--seed", type=SEED, default=0, help="of the bootstrap and of fresh renders (default: 0)")
    return parser


def begin(args: argparse.Namespace, opener: Callable[..., Images] = open_images) -> tuple[Images, str]:
    """Checks the output's place, sets threads and device, opens the images (all errors before any work)."""
    check_out(args.out)
    args.device = pick_device(args.device)
    set_threads(args.threads)
    who = {"row": args.row, "nfe": args.nfe, "source": args.source}
    if opener is open_images:
        who["incomplete"] = args.incomplete
    return opener(args.images, **who), args.device


def check_out(path: Path) -> None:
    """Checks that the record's file can be written, before minutes of work are spent on it."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; --out names the record's file")
    above = next(p for p in path.absolute().parents if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{path}: cannot be written, for {above} is not a folder that you may write to; give another --out")


def set_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def check_world(images: Images) -> None:
    """Checks that every prompt asks only for what the embedded world can render and its evaluators can judge."""
    for index, row in enumerate(images.rows):
        check_known(row, f"{images.folder}: prompt {index}", world.SHAPES, tuple(world.COLORS))
        world.check_drawable(row, f"{images.folder}: prompt {index}")


def is_unseen(row: dict) -> bool:
    """Whether a prompt asks for a pair that the world holds out of training; prompts of other benchmarks do not."""
    wanted = row.get("include", [])
    subjects = [e for e in wanted if "position" in e]
    shows = [(e.get("color"), e["class"]) for e in wanted]
    return any(pair in world.HELD_OUT_COLORS for pair in shows) or any(
        world.is_held_out_relation(e["class"], e["position"][0], wanted[e["position"][1]]["class"]) for e in subjects
    )


def fresh_renders(rows: list[dict], per_prompt: list[int], resolution: int, seed: int) -> np.ndarray:
    """Real images of the prompts, `per_prompt[p]` of prompt p, in order: uint8 (sum, R, R, 3). Seeded per prompt."""
    pictures = []
    for index, (row, count) in enumerate(zip(rows, per_prompt, strict=True)):
        rng = np.random.default_rng([seed, index])
        pictures += [world.render(world.scene_for(row, rng, allow_held_out=is_unseen(row)), resolution) for _ in range(count)]
    return np.stack(pictures)


def square_side(images: Images) -> int:
    """The side of the images; UserError where they are not square (the world renders squares)."""
    if images.size[0] != images.size[1]:
        raise UserError(f"{images.folder}: images of {images.size[0]}x{images.size[1]}; the world's references are square")
    return images.size[0]


def prompt_weights(images: Images, seed: int) -> np.ndarray:
    """Bootstrap weights over prompts within their `tag` (the task), seen and unseen ones apart, (resamples, prompts)."""
    return bootstrap_weights([f"{row.get('tag', '')} {is_unseen(row)}" for row in images.rows], resamples=RESAMPLES, seed=seed)


def write_record(
    args: argparse.Namespace, images: Images, evaluator: str, version: str, metrics: list[Metric], details: dict, started: float
) -> Record:
    """Frames the metrics with the images' identity and this run's provenance, writes the record, prints the numbers."""
    record = Record(
        **images.identity.model_dump(),
        evaluator=evaluator,
        evaluator_version=version,
        git_commit=git_commit(),
        hardware=hardware(args.device),
        versions=versions(),
        wall_seconds=round(time.time() - started, 2),
        peak_memory_mb=peak_memory_mb(),
        metrics=metrics,
        details={
            "images": len(images),
            "prompts": len(images.rows),
            "size": list(images.size),
            "seed": args.seed,
            "made": images.made,
            "departures": images.departures,
            **details,
        },
    )
    record.write(args.out)
    print_metrics(record)
    return record


def write_failed(made: dict[str, Any], evaluator: str, version: str, out: Path) -> None:
    """The record of images that could not be made, without a number: `details.failed` says why, and the other rows go on."""
    try:
        who = Identity(**made)
    except ValidationError as error:
        raise UserError(f"made.json of the images of {out}: {first_fault(error)}; sample again") from error
    record = Record(
        **who.model_dump(),
        evaluator=evaluator,
        evaluator_version=version,
        git_commit=git_commit(),
        hardware=hardware("cpu"),
        versions=versions(),
        wall_seconds=0.0,
        peak_memory_mb=peak_memory_mb(),
        metrics=[],
        details={"failed": str(made["failed"]), "made": made},
    )
    record.write(out)
    print(f"warning: {out}: {record.row} at NFE {record.nfe}: {record.failed}; nothing was scored", file=sys.stderr, flush=True)


def print_metrics(record: Record) -> None:
    for m in record.metrics:
        bounds = f"  [{m.ci_low:.4g}, {m.ci_high:.4g}] {m.interval}" if m.interval else ""
        print(f"{m.metric:32s} {m.value:.4g} {m.unit}{bounds}  n={m.n}")
