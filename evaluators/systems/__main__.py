"""Speed of one system of Table 1, through its stock diffusers pipeline, with random weights.

    python -m evaluators.systems --list
    python -m evaluators.systems --system flux-schnell --out 'results/speed/flux-schnell/{resolution}px/nfe{nfe}.json'
    python -m evaluators.systems --system qwen-image-teacher --batch 1 --limit 30 --out ...        (where a card's time is short)

A time is of the pipeline's whole call: prompts in, 8-bit images out, noise drawn inside. text: until the captions are encoded; denoise:
until the codec is called; decode: the rest. The device is synchronised there, warm-up is left out, every repeat has other prompts; values
are medians with the interquartile range. A record a number of steps, written as soon as it is measured, at batch 1 and 10. A system
that does not fit the device is a record without numbers that says so.

Without a GPU the same classes are timed built small, in fp32, on images an eighth as wide: the record says so, and its seconds say
nothing of the published ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from apex import busy
from apex.command import BATCH_SIZE, COUNT, NFE, POSITIVE, RESOLUTION, THREADS, Parser, whole_number
from apex.errors import UserError, run_command
from apex.gpu import pick_device
from apex.provenance import git_commit, hardware, peak_memory_mb, versions
from evaluators.command import check_out, print_metrics, set_threads
from evaluators.result import Metric, Record
from evaluators.systems.build import build
from evaluators.systems.known import PROMPTS, SMALL_SCALE, system, systems
from evaluators.timing import BATCH, STAGES, Marks, quartiles, time_calls

EVALUATOR, VERSION = "systems", "1"
BATCHES = (1, BATCH)


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


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("evaluators.systems", __doc__)
    parser.add_argument("--list", action="store_true", help="print the systems and end")
    parser.add_argument("--system", help="one of --list")
    parser.add_argument("--resolution", type=RESOLUTION, nargs="+", help="pixels a side (default: the system's own, 512 and 1024)")
    parser.add_argument("--nfe", type=NFE, nargs="+", help="steps (default: the system's own)")
    parser.add_argument("--scale", choices=("auto", "full", "small"), default="auto", help="auto: full on a GPU (default)")
    parser.add_argument("--out", help="the result records (JSON) to write, with `{resolution}` and `{nfe}` in it")
    parser.add_argument("--repeats", type=COUNT, help="counted calls (default: 30 / steps, at least 5)")
    parser.add_argument("--warmup", type=whole_number(0, 10**6), default=3, help="calls before the clock counts (default: 3)")
    parser.add_argument(
        "--batch", type=BATCH_SIZE, nargs="+", choices=BATCHES, default=list(BATCHES), help="images at once (default: 1 10)"
    )
    parser.add_argument("--limit", type=POSITIVE, help="seconds after which no call is counted beyond the third (default: none)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--threads", type=THREADS, default=1, help="CPU threads of this process (default: 1)")
    args = parser.parse_args(argv)
    if args.list:
        for name, what in systems().items():
            print(f"{name:24} {what.pipeline:24} {', '.join(what.published)}")
        return
    if not args.system or not args.out:
        raise UserError("--system and --out: expected both, or --list alone")
    run(args)


def run(args: argparse.Namespace) -> None:
    what = system(args.system)
    steps: Sequence[int] = sorted(args.nfe or what.nfe)
    sides: Sequence[int] = sorted(args.resolution or what.resolutions)
    if wrong := [side for side in sides if side < 512 or side % 256]:
        raise UserError(f"--resolution {wrong[0]}: expected 512 or more, in steps of 256")
    points = [(side, nfe) for side in sides for nfe in steps]
    outs = [Path(args.out.replace("{resolution}", str(side)).replace("{nfe}", str(nfe))) for side, nfe in points]
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


if __name__ == "__main__":
    sys.exit(run_command(main))
