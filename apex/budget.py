"""The budget: training FLOPs, every network counted, shown as teacher forward-equivalents.

One forward-equivalent is the FLOPs of one forward pass of one sample through the teacher. Every network call
of a method is counted by the samples in it; FLOPs per sample are measured once per network and kind of pass with
`torch.utils.flop_counter`, velocity networks at the longest caption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from apex.conditioning import Condition
from apex.methods.base import frozen

aten = torch.ops.aten

# forward: without gradient. training: forward and backward. through: forward, and backward to the input alone.
# jvp: value and directional derivative.
Pass = Literal["forward", "training", "through", "jvp"]


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


class _NoModules:
    """In the place of torch's module tracker: its hooks fail where a parameter gets no gradient, or inside `autograd.grad`."""

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


def counter() -> FlopCounterMode:
    """torch's FLOP counter with the corrections above, of totals alone."""
    counted = FlopCounterMode(display=False, custom_mapping=MAPPING)
    counted.mod_tracker = _NoModules()
    return counted


PLAIN = F.scaled_dot_product_attention


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    if forward_ad._current_level >= 0:  # directional derivatives are taken through the plain one
        return PLAIN(query, key, value, attn_mask)
    if attn_mask is not None and not attn_mask.is_floating_point():
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, False, attn_mask=attn_mask)[0]


@contextmanager
def fused_attention() -> Iterator[None]:
    """Inside, attention keeps nothing of the size of tokens x tokens, as a fused kernel; on meta tensors torch takes the plain one."""
    F.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = PLAIN


def directional_derivative(
    network: Callable[..., Tensor], x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None, tangents: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """F and dF along (dx, dt, dr) by forward-mode differentiation, without gradient."""
    dx, dt, dr = tangents
    # Dual numbers rather than torch.func.jvp: inside the latter `frozen` may not be entered. Fused attention has no such derivative.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        x, now = forward_ad.make_dual(x_t, dx.to(x_t)), forward_ad.make_dual(t, dt.to(t))
        # r = None is r = t: the two times move together, so their tangents must agree.
        until = now if r is None else forward_ad.make_dual(r, dr.to(r))
        value, slope = forward_ad.unpack_dual(network(x, now, cond, until))
        return value, torch.zeros_like(value) if slope is None else slope


class Cost:
    """FLOPs per sample of one network's passes, by kind: given, or measured when first asked for."""

    def __init__(self, forward: float | None = None, training: float | None = None, *, measure: Callable[[Pass], float] | None = None):
        self.known: dict[str, float] = {k: v for k, v in (("forward", forward), ("training", training)) if v is not None}
        self._measure = measure

    def __getitem__(self, kind: Pass) -> float:
        if kind not in self.known:
            if self._measure is None:
                raise KeyError(kind)
            self.known[kind] = float(self._measure(kind))
        return self.known[kind]

    @property
    def forward(self) -> float:
        return self["forward"]

    @property
    def training(self) -> float:
        return self["training"]


@contextmanager
def _untouched(module: nn.Module):
    """What is measured inside leaves no gradient behind, and buffers (of a spectral norm) as they were."""
    kept, buffers = {p: p.grad for p in module.parameters()}, [(b, b.clone()) for b in module.buffers()]
    for p in kept:
        p.grad = None  # a backward pass adds in place to what is there
    try:
        yield
    finally:
        for p, grad in kept.items():
            p.grad = grad
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.data.copy_(before)  # not a change that autograd should see


def measure_cost(network: nn.Module, latent_shape: tuple[int, ...], cond: Condition) -> Cost:
    """The cost of a velocity network on one sample; `cond` holds at least one caption at full length. On the meta device nothing is run."""

    def measure(kind: Pass) -> float:
        first = next(network.parameters())
        x = torch.zeros(1, *latent_shape, device=first.device, dtype=first.dtype, requires_grad=kind == "through")
        t = torch.full((1,), 0.5, device=first.device)
        fused = fused_attention() if first.is_meta else nullcontext()  # as on a device, where a kernel is taken
        with _untouched(network), fused, counter() as counted:
            if kind == "forward":
                with torch.no_grad():
                    network(x, t, cond[:1], t)
            elif kind == "jvp":
                directional_derivative(network, x, t, cond[:1], t, (torch.ones_like(x), torch.ones_like(t), torch.zeros_like(t)))
            elif kind == "through":
                with frozen(network):
                    network(x, t, cond[:1], t).square().mean().backward()
            else:
                network(x, t, cond[:1], t).square().mean().backward()
        return counted.get_total_flops()

    return Cost(measure=measure)


@dataclass
class Ledger:
    """Counts the samples that went through each network, by kind of pass."""

    costs: dict[str, Cost]
    passes: dict[str, dict[str, int]] = field(default_factory=dict)

    def count(self, name: str, samples: int, kind: Pass) -> None:
        book = self.passes.setdefault(kind, {})
        book[name] = book.get(name, 0) + samples

    def flops(self) -> float:
        return sum(self.flops_of().values())

    def flops_of(self) -> dict[str, float]:
        """FLOPs by network."""
        found: dict[str, float] = {}
        for kind, book in self.passes.items():
            for name, samples in book.items():
                network = name.partition("[")[0]
                found[network] = found.get(network, 0.0) + self.costs[name][kind] * samples
        return found

    def state(self) -> dict[str, dict]:
        """What has been counted, and what it costs: a resumed run must not measure again."""
        costs = {name: dict(cost.known) for name, cost in self.costs.items()}
        return {"passes": {kind: dict(book) for kind, book in self.passes.items()}, "costs": costs}

    def restore(self, state: dict[str, dict]) -> None:
        self.passes = {kind: dict(book) for kind, book in state["passes"].items()}
        for name, known in state["costs"].items():
            self.costs.setdefault(name, Cost()).known.update(known)


class Counted:
    """A velocity network (`apex.methods.base.Network`) whose calls are entered in a ledger.

    network: what is called; the student's may be wrapped for several processes.
    fixed: the same network with frozen parameters, for `through`, `jvp` and `features`; None: `network` itself.
    no_grad: calls never have gradient (EMA, teacher). A call to a student inside `torch.no_grad()` counts as a forward pass alone.
    """

    def __init__(self, network: Callable[..., Tensor], name: str, ledger: Ledger, *, no_grad: bool = False, fixed: Any = None) -> None:
        self.network, self.name, self.ledger, self.no_grad = network, name, ledger, no_grad
        self.fixed = network if fixed is None else fixed

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        grad = torch.is_grad_enabled() and not self.no_grad
        self.ledger.count(self.name, len(x_t), "training" if grad else "forward")
        if grad:
            return self.network(x_t, t, cond, r)
        with torch.no_grad():
            return self.network(x_t, t, cond, r)

    def _differentiable(self, x_t: Tensor) -> Pass:
        return "through" if torch.is_grad_enabled() and x_t.requires_grad else "forward"

    def through(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        self.ledger.count(self.name, len(x_t), self._differentiable(x_t))
        return self.fixed(x_t, t, cond, r)

    def jvp(
        self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None, tangents: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        self.ledger.count(self.name, len(x_t), "jvp")
        value, derivative = directional_derivative(self.fixed, x_t, t, cond, r, tangents)
        return value.detach(), derivative.detach()

    def features(self, x_t: Tensor, t: Tensor, cond: Condition, blocks: Sequence[int]) -> list[Tensor]:
        self.ledger.count(self.name, len(x_t), self._differentiable(x_t))
        return self.fixed(x_t, t, cond, None, blocks=blocks)


def _first(value: Any, longest: Condition | None = None) -> Any:
    """One sample of a call's argument; a condition's is `longest`."""
    if isinstance(value, Tensor):
        return value[:1].detach().clone().requires_grad_(value.requires_grad) if value.ndim else value
    if isinstance(value, Condition):
        return value[:1] if longest is None else longest[:1].to(value.embeds.device)
    if isinstance(value, list | tuple):
        return type(value)(_first(item, longest) for item in value)
    return value


def _samples(value: Any) -> int:
    if isinstance(value, Tensor | Condition):
        return 0 if isinstance(value, Tensor) and not value.ndim else len(value)
    if isinstance(value, list | tuple):
        return next((n for item in value if (n := _samples(item))), 0)
    return 0


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []


def count_calls(module: nn.Module, name: str, ledger: Ledger, longest: Condition | None = None) -> None:
    """Enters every call of an extra network in the ledger; its cost per sample is measured at its first call of each kind.

    A call with a flag, such as `penalty=True`, is a pass of another cost, entered as `name[penalty=True]`. The largest batch among
    the arguments (tensors, Conditions, lists of them) tells the number of samples. Where a condition is an argument, the cost is
    that of the `longest` caption, as for velocity networks.
    """
    busy = False

    def hook(_module: nn.Module, args: tuple, kwargs: dict[str, Any], _output: Any) -> None:
        nonlocal busy
        if busy:
            return
        inputs = [t for t in _tensors([*args, *kwargs.values()]) if t.requires_grad]
        trained = any(p.requires_grad for p in module.parameters())
        kind: Pass = "forward" if not torch.is_grad_enabled() or not (trained or inputs) else "training" if trained else "through"

        def measure(kind: Pass) -> float:
            nonlocal busy
            busy = True
            try:
                with _untouched(module), counter() as counted, torch.set_grad_enabled(kind != "forward"):
                    out = _tensors(module(*(_first(a, longest) for a in args), **{k: _first(v, longest) for k, v in kwargs.items()}))
                    if differentiable := [o for o in out if o.requires_grad]:
                        sum(o.square().mean() for o in differentiable).backward()
                return counted.get_total_flops()
            finally:
                busy = False

        flags = ",".join(f"{k}={v}" for k, v in sorted(kwargs.items()) if v and isinstance(v, bool | str))
        entry = f"{name}[{flags}]" if flags else name
        cost = ledger.costs.setdefault(entry, Cost())
        if kind not in cost.known:
            cost.known[kind] = float(measure(kind))
        ledger.count(entry, max(map(_samples, (*args, *kwargs.values())), default=0), kind)

    module.register_forward_hook(hook, with_kwargs=True)
