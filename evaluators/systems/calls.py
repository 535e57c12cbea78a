"""Times the calls of one system's stock pipeline, and writes the records. `python -m evaluators.systems` says what a time is of."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from apex import busy
from apex.command import filled
from apex.errors import UserError
from apex.gpu import pick_device
from apex.provenance import git_commit, hardware, peak_memory_mb, versions
from evaluators.command import check_out, print_metrics, set_threads
from evaluators.result import Metric, Record
from evaluators.systems.build import build
from evaluators.systems.known import PROMPTS, SMALL_SCALE, system
from evaluators.timing import STAGES, Marks, quartiles, time_calls

EVALUATOR, VERSION = "systems", "1"


def measure(pipe: Any, marks: Marks, args: argparse.Namespace, device: str, side: int, nfe: int, batch: int) -> list[Metric]:
    """The metrics of one number of steps at one batch."""
    call = {"num_inference_steps": nfe, "height": side, "width": side, **system(args.system).call}
    repeats = args.repeats or max(5, 30 // nfe)
    print(f"{args.system}: {side} px, {nfe} steps, batch {batch}: {args.warmup} + {repeats} calls", file=sys.stderr, flush=True)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    seconds = time_calls(pipe, marks, PROMPTS, batch, repeats=repeats, warmup=args.warmup, call=call, limit=args.limit)
    whole = seconds.sum(1)
    found = [
        Metric(metric=f"speed/latency_b{batch}_s", unit="s", higher_is_better=False, **quartiles(whole)),
        Metric(metric=f"speed/throughput_b{batch}_sps", unit="samples/s", higher_is_better=True, **quartiles(batch / whole)),
    ]
    for stage, name in enumerate(STAGES):
        found.append(Metric(metric=f"speed/stage/{name}_b{batch}_s", unit="s", higher_is_better=False, **quartiles(seconds[:, stage])))
    found.append(Metric(metric=f"speed/peak_memory_b{batch}_mb", value=peak_memory_mb(device), unit="MB", n=1, higher_is_better=False))
    return found


def run(args: argparse.Namespace) -> None:
    what = system(args.system)
    steps: Sequence[int] = sorted(args.nfe or what.nfe)
    sides: Sequence[int] = sorted(args.resolution or what.resolutions)
    if wrong := [side for side in sides if side < 512 or side % 256]:
        raise UserError(f"--resolution {wrong[0]}: expected 512 or more, in steps of 256")
    points = [(side, nfe) for side in sides for nfe in steps]
    outs = [Path(filled(args.out, resolution=side, nfe=nfe)) for side, nfe in points]
    if len(set(outs)) < len(points):
        raise UserError(
            f"--out {args.out}: expected {{resolution}} and {{nfe}} in it, for {len(points)} records, and each of them asked once"
        )
    for out in outs:
        check_out(out)
    set_threads(args.threads)
    device = pick_device(args.device)
    small = args.scale == "small" or (args.scale == "auto" and not device.startswith("cuda"))
    dtype = torch.float32 if small else torch.bfloat16
    started, pipe = time.time(), None
    memory, failed = f"the memory of {hardware(device)}", {}  # of a batch and a resolution: more steps do not fit either
    try:
        pipe = build(args.system, small=small, device=device, dtype=dtype)
        marks = Marks(pipe, device)
    except torch.OutOfMemoryError:
        failed = {(batch, side): f"its weights do not fit {memory}" for batch in args.batch for side in sides}
    for (resolution, nfe), out in zip(points, outs, strict=True):
        side = resolution // SMALL_SCALE if small else resolution
        metrics: list[Metric] = []
        before = busy.read()
        for batch in sorted(set(args.batch)):
            if (batch, resolution) not in failed:
                try:
                    metrics += measure(pipe, marks, args, device, side, nfe, batch)
                except torch.OutOfMemoryError:
                    failed[batch, resolution] = f"{side} px at batch {batch} do not fit {memory}"
                    if device.startswith("cuda"):
                        torch.cuda.empty_cache()
        why = "; ".join(dict.fromkeys(failed[batch, resolution] for batch in args.batch if (batch, resolution) in failed))
        load = busy.between(before, busy.read())
        record = describe(args, pipe, device, small, resolution, nfe, metrics, why, time.time() - started)
        record.details.update(load=load, busy=busy.is_busy(load))
        record.write(out)
        print_metrics(record)
        started = time.time()


def describe(
    args: argparse.Namespace,
    pipe: Any,
    device: str,
    small: bool,
    resolution: int,
    nfe: int,
    metrics: list[Metric],
    failed: str,
    wall: float,
) -> Record:
    what = system(args.system)
    counts = {role: sum(p.numel() for p in getattr(pipe, role).parameters()) for role in what.parts} if pipe is not None else {}
    about: dict[str, Any] = {
        "scale": "small" if small else "full", "precision": "fp32" if small else "bf16",
        "resolution": resolution, "pixels": resolution // SMALL_SCALE if small else resolution,
        "compiled": what.compiled, "lora": what.lora, "network_evaluations": nfe * (1 + what.guided), "pipeline": what.pipeline,
        "published": what.published, "parameters": counts, "sources": {role: part.source for role, part in what.networks.items()},
        "threads": args.threads, "warmup": args.warmup, "failed": failed,
    }  # fmt: skip
    return Record(
        row=args.system,
        method=args.system,
        profile=f"speed-{resolution}px",
        nfe=nfe,
        guidance=what.call.get("true_cfg_scale"),
        parameters=counts.get(what.denoiser),
        config_hash=what.content,
        evaluator=EVALUATOR,
        evaluator_version=VERSION,
        git_commit=git_commit(),
        hardware=hardware(device),
        versions=versions(),
        wall_seconds=round(wall, 2),
        peak_memory_mb=peak_memory_mb(device),
        metrics=metrics,
        details=about,
    )
