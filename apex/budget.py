"""The budget: training FLOPs, every network counted, shown as teacher forward-equivalents.

One forward-equivalent is the FLOPs of one forward pass of one sample through the teacher. Every network call
of a method is counted by the samples in it; FLOPs per sample are measured once per network with
`torch.utils.flop_counter`, forward alone and forward with backward, at the longest caption.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from apex.conditioning import Condition

aten = torch.ops.aten


def _conv_backward(grad_out: Any, x: Any, w: Any, *args: Any, **_: Any) -> int:
    """Two convolutions as large as the forward one. torch's own count ignores groups: many times too much for depthwise layers."""
    output_mask = args[7]
    forward = 2 * grad_out[0] * prod(grad_out[2:]) * prod(w)
    return forward * (int(output_mask[0]) + int(output_mask[1]))


# What torch 2.11's counter gets wrong (grouped convolutions, backward) or leaves out (attention on CPU).
MAPPING = {
    aten.convolution_backward: _conv_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v),
}


def counter() -> FlopCounterMode:
    """torch's FLOP counter with the corrections above."""
    return FlopCounterMode(display=False, custom_mapping=MAPPING)


@dataclass(frozen=True)
class Cost:
    """FLOPs per sample of one network call: without gradient, and with forward and backward."""

    forward: float
    training: float


def measure_cost(network: nn.Module, latent_shape: tuple[int, ...], cond: Condition) -> Cost:
    """Measures a velocity network on one sample; `cond` holds at least one caption at full length."""
    device = next(network.parameters()).device
    dtype = next(network.parameters()).dtype
    x = torch.zeros(1, *latent_shape, device=device, dtype=dtype)
    t = torch.full((1,), 0.5, device=device)
    with torch.no_grad(), counter() as counted:
        network(x, t, cond[:1], t)
    forward = counted.get_total_flops()
    kept = {p: p.grad for p in network.parameters()}
    with counter() as counted:
        network(x, t, cond[:1], t).square().mean().backward()
    for p, grad in kept.items():
        p.grad = grad
    return Cost(float(forward), float(counted.get_total_flops()))


@dataclass
class Ledger:
    """Counts the samples that went through each network, with and without gradient."""

    costs: dict[str, Cost]
    forward: dict[str, int] = field(default_factory=dict)
    training: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, samples: int, *, grad: bool) -> None:
        book = self.training if grad else self.forward
        book[name] = book.get(name, 0) + samples

    def flops(self) -> float:
        return sum(self.costs[k].forward * n for k, n in self.forward.items()) + sum(
            self.costs[k].training * n for k, n in self.training.items()
        )

    def state(self) -> dict[str, dict[str, int]]:
        return {"forward": dict(self.forward), "training": dict(self.training)}

    def restore(self, state: dict[str, dict[str, int]]) -> None:
        self.forward, self.training = dict(state["forward"]), dict(state["training"])


class Counted:
    """A network whose calls are entered in a ledger; optionally always run without gradient.

    A call to a student inside `torch.no_grad()` counts as a forward pass alone.
    """

    def __init__(self, network: nn.Module, name: str, ledger: Ledger, *, no_grad: bool = False) -> None:
        self.network, self.name, self.ledger, self.no_grad = network, name, ledger, no_grad

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        grad = torch.is_grad_enabled() and not self.no_grad
        self.ledger.count(self.name, len(x_t), grad=grad)
        if grad:
            return self.network(x_t, t, cond, r)
        with torch.no_grad():
            return self.network(x_t, t, cond, r)
