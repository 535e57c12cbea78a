"""Times optimiser steps of a row with random weights. `python -m apex.measure` is its command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apex import planning
from apex.backbones.base import Backbone
from apex.conditioning import Condition
from apex.config import Config
from apex.data.latents import Cache
from apex.errors import UserError
from apex.loop import Loop
from apex.pipeline import BACKBONES, DTYPES
from apex.provenance import peak_memory_mb
from apex.seeds import torch_generator

LATENTS, CAPTIONS = 64, 8  # how many different ones there are
WARM_UP = 1  # steps that are not timed: kernels are chosen, memory is asked for


class RandomCaptions:
    """Conditions of full length; the empty one is the last."""

    def __init__(self, shape: planning.Shape, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch_generator(0, "random captions")
        self.embeds = torch.randn(CAPTIONS + 1, shape.tokens, shape.width, generator=generator).to(device, dtype)
        self.mask = torch.ones(CAPTIONS + 1, shape.tokens, device=device, dtype=dtype)

    def __getitem__(self, index: Tensor) -> Condition:
        return Condition(self.embeds[index], self.mask[index])

    def longest(self) -> Condition:
        return self[torch.zeros(1, dtype=torch.long)]

    def null(self, count: int) -> Condition:
        return self[torch.full((count,), CAPTIONS)]


class RandomLoop(Loop):
    """The training loop of a row without a file: networks, latents and captions have random values."""

    def __init__(self, config: Config, row: str, shape: planning.Shape) -> None:
        """Raises UserError for a row that several devices train, or whose method learns from images that the teacher drew."""
        self.shape = shape
        if config.launched().processes > 1:
            raise UserError(f"row {row}: launch: found {config.launched().processes} processes, expected one: --set launch=''")
        latents = torch.randn(LATENTS, *shape.latent, generator=torch_generator(0, "random latents")).half()
        cache = Cache(latents, torch.arange(LATENTS) % CAPTIONS, [""] * CAPTIONS)
        super().__init__(config.run_config(row), config.run_hash(row, teacher=False), 0, cache, Path(), config)
        if self.method.pairs() is not None:
            raise UserError(f"row {row}: method {self.method.name} learns from pairs that the teacher draws first, which no step contains")

    def frozen_parts(self, cache: Cache, embeddings: Path | None) -> tuple[None, RandomCaptions]:
        return None, RandomCaptions(self.shape, DTYPES[self.run.train.frozen], self.accelerator.device)

    def make(self, dtype: torch.dtype) -> Backbone:
        """On the device and in its dtype from the start, so that a network of 20B needs no more than its own memory."""
        known = {k: v for k, v in self.shape.transformer.items() if not k.startswith("_")}
        kind = BACKBONES[self.shape.transformer["_class_name"]]
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with self.accelerator.device:
                return kind(kind.transformer_class(**known))
        finally:
            torch.set_default_dtype(before)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(config: Config, row: str, steps: int) -> dict[str, Any]:
    """Times `steps` optimiser steps of a row after a first one; the numbers that the record holds beside its provenance.

    Where a method does not train the same in every step, a step here is the mean of a cycle of them.
    """
    shape = planning.shape_of(config)
    loop = RandomLoop(config, row, shape)
    device = loop.accelerator.device
    rate = planning.measured_rate(str(device))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        loop.measure_memory()
    loop.settle()  # a run's steps take the same kernels
    cycle, seconds = loop.method.cycle(), []
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            before = loop.flops
        synchronise(device)
        started = time.perf_counter()
        for _ in range(cycle):
            loop.one_step()
        synchronise(device)
        seconds.append(round((time.perf_counter() - started) / cycle, 4))
        print(f"{row}: step {step + 1} of {WARM_UP + steps}, {seconds[-1]:.3g} s", flush=True)
    timed = seconds[WARM_UP:]
    low, middle, high = (float(v) for v in np.quantile(timed, (0.25, 0.5, 0.75)))
    flops = (loop.flops - before) / (steps * cycle)
    plan = planning.estimate(loop.run, shape, rate)
    train = loop.run.train
    # On a CPU the tensors alone are counted, as in a run's record: a process's own size is not the step's.
    memory = peak_memory_mb(str(device)) if device.type == "cuda" else loop.memory["total"]
    return {
        "parameters": loop.parameters["student"],
        "trainable": loop.parameters["trainable"],
        "samples_a_step": train.batch_size * train.gradient_accumulation,
        "seconds": timed,
        "seconds_median": middle,
        "seconds_quartiles": [low, high],
        "flops_a_step": flops,
        "tflops": flops / middle / 1e12,
        "matrix_tflops": rate,
        "share": flops / middle / 1e12 / rate,
        "memory_gb": memory / 1024,
        "steps": plan.steps,
        "hours": plan.flops / (flops / middle) / 3600,
        "planned_memory_gb": plan.total - plan.memory["frozen parts"],
        "device": str(device),
    }
