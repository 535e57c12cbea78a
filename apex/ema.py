"""The running mean of the trained parameters, kept without a second copy of the network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from apex.sharding import local


def ramp(previous: float, target: float) -> float:
    """The public code's warm-up of the decay: d + (1 - d) (target - d) / 2, from 0: 0, .495, .620, ... to `target`."""
    return previous + (1 - previous) * (target - previous) / 2


class Ema:
    """Shadows of the parameters that are trained; `applied()` swaps them in for a moment.

    decay 0: none is kept and `applied()` does nothing (the online network). decay 1: the shadows never move.
    Of a parameter that is split over processes (apex.sharding) the shadow is of this process's share.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.target = decay
        self.decay = 1.0 if decay == 1.0 else 0.0
        self.active = decay > 0
        self.shadow: list[Tensor] = [local(p).clone() for p in self.parameters] if self.active else []

    @torch.no_grad()
    def update(self) -> None:
        """Called before a step's targets are made, as in the public code: the first call copies the parameters."""
        if not self.active or self.target == 1.0:
            return
        torch._foreach_lerp_(self.shadow, [local(p) for p in self.parameters], 1 - self.decay)
        self.decay = ramp(self.decay, self.target)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network holds its running mean inside this block. Must not enclose a backward pass."""
        if not self.active:
            yield
            return
        online = [p.data for p in self.parameters]
        self._put(self.shadow)
        try:
            yield
        finally:
            self._put(online)

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for p, shadow, value in zip(self.parameters, self.shadow, values, strict=True):
            if isinstance(p, DTensor):  # gathered from the memory of its share, so the two change places there
                share = local(p)
                kept = share.clone()
                share.copy_(shadow)
                shadow.copy_(kept)
            else:
                p.data = value

    def state(self) -> dict:
        return {"decay": self.decay, "shadow": self.shadow}

    def restore(self, state: dict) -> None:
        self.decay = state["decay"]
        for mine, saved in zip(self.shadow, state["shadow"], strict=True):
            mine.copy_(saved)
