"""The training loop's optimiser: AdamW with fp32 moments (torch), or with moments of 8 bits (`train.optimizer: adamw8bit`, torchao).

Block-wise quantisation as in Dettmers et al., arXiv 2110.02861: a value of a moment is one byte, its place in a table of 256 values that
are denser towards 0, and 256 neighbours share one fp32 scale. Weights, gradients and the step's arithmetic stay fp32. Parameters of less
than 4,096 values, or of a number that 256 does not divide, keep fp32 moments; where weights are split over processes, a share counts.

torchao compiles the step. On a GPU that is left so: once for every shape of a parameter, at the first step, which needs a C compiler. On a
CPU the same operations run uncompiled.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from apex import sharding
from apex.config import Train
from apex.errors import UserError

BLOCK, SMALLEST = 256, 4096  # values that share a scale; values of the smallest parameter whose moments have 8 bits (torchao.optim.adam)
TABLE = 256  # fp32 values that the bytes stand for; every moment has a copy


def check(name: str, device: torch.device) -> None:
    """Raises `UserError` where an optimiser cannot run on the device: in one line, before any work."""
    if name == "adamw":
        return
    if find_spec("torchao") is None:
        raise UserError(f"train.optimizer: {name} needs torchao, which is not installed: pip install '.[adamw8bit]', or take adamw")
    named = os.environ.get("CC")
    if device.type == "cuda" and not any(map(shutil.which, [named] if named else ["gcc", "clang"])):
        raise UserError(
            f"train.optimizer: {name} is compiled on a GPU, and found no C compiler ({named or 'gcc, clang'}): install gcc, name one in "
            "the variable CC, or take adamw"
        )


def make(train: Train, parameters: list[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
    """The optimiser that `train` asks for; parameters are fp32, whole or split over processes. See `check`."""
    groups, rate = sharding.groups(parameters), train.learning_rate
    settings = {"betas": tuple(train.betas), "weight_decay": train.weight_decay}
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, rate, foreach=True, **settings)
    from torchao.optim import AdamW8bit

    optimizer = AdamW8bit(groups, rate, block_size=BLOCK, **settings)
    if device.type != "cuda":  # C++ for every shape would take longer to build than a small run lasts
        optimizer.step = torch.compiler.set_stance("force_eager")(optimizer.step)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Of all its groups."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # a number would be compiled in
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def moment_bytes(name: str, values: float) -> float:
    """Bytes of both moments of one parameter with so many values."""
    if name == "adamw" or values < SMALLEST or values % BLOCK:
        return 2 * 4 * values
    return 2 * (values + 4 * values / BLOCK + 4 * TABLE)
