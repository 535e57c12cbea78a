"""The training loop that the three evaluator networks share: AdamW, one warm-up and a linear decay, progress lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from apex.errors import UserError
from apex.provenance import git_commit, hardware, versions


def fit_network(
    name: str, parameters: Iterable[nn.Parameter], step_loss: Callable[[int], Tensor], *, steps: int, lr: float, log_every: int = 50
) -> float:
    """Runs `steps` updates on `step_loss(step)`; returns the CPU time in seconds (all threads).

    Raises:
        UserError: the loss is not a number.
    """
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, min(100, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / warmup, (steps - k) / max(1, steps - warmup)))
    started, cpu, mean = time.time(), time.process_time(), 0.0
    for step in range(steps):
        loss = step_loss(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
        mean += (loss.item() - mean) / min(step + 1, log_every)
        if not torch.isfinite(loss):
            raise UserError(f"{name}: the loss is {loss.item()} at step {step}; lower --lr (now {lr})")
        if step % log_every == 0 or step == steps - 1:
            each = (time.time() - started) / (step + 1)
            print(
                f"{name} step {step + 1}/{steps} loss {mean:.4f}, {each:.3f} s a step, {(steps - step - 1) * each / 60:.1f} min left",
                flush=True,
            )
    return time.process_time() - cpu


def write_made(folder: Path, arguments: dict, measured: dict, seconds: float) -> None:
    """`made.json`: what was asked, what came out, and on what."""
    made = {
        "arguments": {k: v for k, v in arguments.items() if k != "out"},
        "held_out": measured,
        "training_cpu_seconds": round(seconds, 1),
        "git_commit": git_commit(),
        "hardware": hardware(),
        "versions": versions(),
    }
    (folder / "made.json").write_text(json.dumps(made, indent=1) + "\n")
