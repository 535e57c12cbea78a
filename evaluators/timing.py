"""Timing of a generator: seconds of its text encoder, its network and its decoder, and the record of `python -m evaluators.speed`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import ValidationError

from apex import busy
from apex.errors import NotFinite, UserError
from apex.files import read_object
from apex.provenance import git_commit, hardware, peak_memory_mb, versions
from apex.stock import StockGenerator, per_prompt
from evaluators import BATCH
from evaluators.result import Identity, Metric, Record, first_fault

VERSION = "1"
STAGES = ("text", "denoise", "decode")
FEWEST = 3  # calls that a median and its quartiles take


class Generator(Protocol):
    """What is timed: `apex.generator.Generator`."""

    latent_shape: tuple[int, int, int]
    parameters: int
    trainable_parameters: int

    def encode(self, prompts: list[str]) -> Any: ...
    def denoise(self, cond: Any, noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor: ...
    def decode(self, latents: torch.Tensor) -> torch.Tensor: ...


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


@torch.no_grad()
def time_stages(
    generator: Generator,
    prompts: Sequence[str],
    batch: int,
    *,
    repeats: int,
    warmup: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> np.ndarray:
    """Seconds per stage (text, denoise, decode) of each counted repeat, (repeats, 3); their sum is end to end.

    Noise is drawn before the clock starts: it is an input. The random draws between few steps are inside.
    """
    random = torch.Generator().manual_seed(0)  # on the CPU, as sampling draws its noise
    seconds = np.zeros((repeats, len(STAGES)))
    for index in range(-warmup, repeats):
        texts = [prompts[((index + warmup) * batch + i) % len(prompts)] for i in range(batch)]
        noise = torch.randn(batch, *generator.latent_shape, generator=random).to(device)
        value: Any = texts
        for stage, call in enumerate(
            (generator.encode, lambda cond, noise=noise: generator.denoise(cond, noise, random), generator.decode)
        ):
            synchronise(device)
            started = clock()
            value = call(value)
            synchronise(device)
            if index >= 0:
                seconds[index, stage] = clock() - started
    return seconds


class Marks:
    """Times of a pipeline's stages, by the moments at which its `encode_prompt` returns and its codec's `decode` is called."""

    def __init__(self, pipe: Any, device: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.clock = device, clock
        self.encoded = self.decoding = 0.0
        encode, decode = pipe.encode_prompt, pipe.vae.decode

        def encoded(*args: Any, **kwargs: Any) -> Any:
            out = encode(*args, **kwargs)
            self.encoded = self.now()  # of several calls the last counts
            return out

        def decoding(*args: Any, **kwargs: Any) -> Any:
            self.decoding = self.now()
            return decode(*args, **kwargs)

        pipe.encode_prompt, pipe.vae.decode = encoded, decoding

    def now(self) -> float:
        synchronise(self.device)
        return self.clock()

    def stages(self, call: Callable[[], object]) -> list[float]:
        """Seconds of text, denoise and decode of one call of the pipeline; their sum is the call's."""
        started = self.now()
        call()
        ended = self.now()
        return [self.encoded - started, self.decoding - self.encoded, ended - self.decoding]


@torch.no_grad()
def time_calls(
    pipe: Any,
    marks: Marks,
    prompts: Sequence[str],
    batch: int,
    *,
    repeats: int,
    warmup: int,
    call: Mapping[str, Any],
    limit: float | None = None,
) -> np.ndarray:
    """Seconds per stage of each counted call, (repeats, 3). call: what the pipeline is called with beside the prompts. limit: seconds
    of counted calls, after which there is none beyond the third."""
    seconds, told = [], per_prompt(call, batch)
    for index in range(warmup + repeats):
        texts = [prompts[(index * batch + i) % len(prompts)] for i in range(batch)]
        seconds.append(marks.stages(lambda texts=texts: pipe(texts, **told)))
        counted = seconds[warmup:]
        if limit is not None and len(counted) >= FEWEST and sum(map(sum, counted)) >= limit:
            break
    return np.array(seconds[warmup:])


def quartiles(values: np.ndarray) -> dict[str, Any]:
    low, median, high = (float(v) for v in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"value": median, "ci_low": low, "ci_high": high, "n": len(values), "interval": "interquartile range"}


def metrics(single: np.ndarray, many: np.ndarray, batch: int, memory_mb: float) -> list[Metric]:
    """The record's metrics from seconds per stage at batch 1 and at `batch`, (repeats, 3) each."""
    found = [
        Metric(metric="speed/latency_b1_s", unit="s", higher_is_better=False, **quartiles(single.sum(1))),
        Metric(metric=f"speed/throughput_b{batch}_sps", unit="samples/s", higher_is_better=True, **quartiles(batch / many.sum(1))),
    ]
    for stage, name in enumerate(STAGES):
        found.append(Metric(metric=f"speed/stage/{name}_b1_s", unit="s", higher_is_better=False, **quartiles(single[:, stage])))
    return [*found, Metric(metric="speed/peak_memory_mb", value=memory_mb, unit="MB", n=1, higher_is_better=False)]


def identity(run: Path | None, row: str, nfe: int, config: Any) -> Identity:
    """Who is timed, from the run's `made.json` where it has one (a pipeline folder of the teacher may have none)."""
    path = (run or Path()) / "made.json"
    known = {"method": row, "profile": config.profile, "config_hash": config.hash(), "row": row}
    try:
        if run and path.is_file():
            known |= read_object(path, "export the run again")
        if known["row"] != row:
            raise UserError(f"{path}: holds row {known['row']!r}, but --row says {row!r}; give the run of that row")
        return Identity(**known | {"nfe": nfe})
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}; export the run again") from error


def timed(args: argparse.Namespace, config: Any, nfe: int, device: str, prompts: Sequence[str]) -> Record:
    """Times the row at one NFE."""
    from apex.generator import load_generator

    started = time.time()
    who = identity(args.run, args.row, nfe, config)
    sampler = load_generator(config, args.row, args.run, nfe, device)
    repeats = args.repeats or max(10, 30 // nfe)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    stock = isinstance(sampler, StockGenerator)
    guidance = sampler.guidance if stock else config.guidance if args.row == "teacher" else 1.0
    marks = Marks(sampler.pipe, device) if stock else None
    often = {"repeats": repeats, "warmup": args.warmup}

    def measure() -> list[np.ndarray]:
        seconds = []
        for batch in (1, BATCH):
            print(f"speed: NFE {nfe}, batch {batch}, {args.warmup} + {repeats} repeats", file=sys.stderr, flush=True)
            if stock:
                seconds.append(time_calls(sampler.pipe, marks, prompts, batch, call=sampler.call, **often))
            else:
                seconds.append(time_stages(sampler, prompts, batch, device=device, **often))
        return seconds

    failed, quiet, seconds = {}, {}, []
    try:
        seconds, quiet = busy.timed(measure)
    except NotFinite as error:  # as sampling with --keep-failed: a record that says so, and the other rows go on
        print(f"warning: {args.row}, NFE {nfe}: {error}; it is not timed", file=sys.stderr, flush=True)
        failed = {"failed": str(error)}
    if quiet.get("busy"):
        others = f"{quiet['load']['others']:.2g} of {quiet['load']['cores']} cores"
        print(f"warning: speed: other processes used {others} in each of {busy.ATTEMPTS} timings; the record says so", file=sys.stderr)
    memory = peak_memory_mb(device)
    return Record(
        **who.model_dump() | {"guidance": guidance, "parameters": sampler.parameters, "trainable_parameters": sampler.trainable_parameters},
        evaluator="speed",
        evaluator_version=VERSION,
        git_commit=git_commit(),
        hardware=hardware(device),
        versions=versions(),
        wall_seconds=round(time.time() - started, 2),
        peak_memory_mb=memory,
        metrics=[] if failed else metrics(*seconds, BATCH, memory),
        details={"threads": args.threads, "device": device, "warmup": args.warmup, "latent_shape": list(sampler.latent_shape)}
        | quiet
        | failed,
    )
