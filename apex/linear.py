"""Linear layers in fp32 through oneDNN, where torch's own matrix products are slower and come to the same bits.

On AMD processors the MKL inside torch takes its AVX2 path. oneDNN, in the same process, takes AVX-512 and is about twice as fast. Both add
the terms of a product in order, so they agree to the last bit up to MKL's block of 192 terms, in products of 64 rows and 16 columns or
more. Output and input gradient go through oneDNN; the weight's gradient, whose terms are the rows, stays with torch.

`through_onednn(network)` switches a network's linear layers over. Names, parameters and state dict stay. A layer falls back to torch,
call by call, wherever the two are not known to agree or oneDNN has no formula: see `_fits`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

ROWS, TERMS, COLUMNS = 64, 192, 16  # fewest rows, most terms, fewest columns of a product whose bits agree, with nothing to gain below
CPUINFO = Path("/proc/cpuinfo")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def suited() -> bool:
    """Whether this machine gains: an AMD processor with AVX-512 on which both libraries agree, which is tried once on random matrices."""
    try:
        amd = "AuthenticAMD" in CPUINFO.read_text()
    except OSError:
        return False
    if not (amd and torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"):
        return False
    generator = torch.Generator().manual_seed(0)
    for rows, terms, columns in ((ROWS, TERMS, COLUMNS), (1024, 128, 128), (80, 100, 640)):
        x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((rows, terms), (columns, terms), (columns,)))
        if not torch.equal(F.linear(x, weight, bias), _product(x, weight, bias)):
            return False
    return True


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether this call may go through oneDNN: plain fp32 matrices in one thread, no autocast, no forward-mode or functional transform,
    and nothing that watches operations (the FLOP counter, the peak of memory)."""
    parts = [x, weight] if bias is None else [x, weight, bias]
    return (
        x.numel() >= ROWS * x.shape[-1]
        and weight.shape[1] <= TERMS
        and weight.shape[0] >= COLUMNS
        and all(type(p) in (Tensor, nn.Parameter) and p.dtype == torch.float32 and p.device.type == "cpu" for p in parts)
        and all(p.is_contiguous() for p in parts)
        and torch.get_num_threads() == 1
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
    )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        flat, found = grad.reshape(-1, grad.shape[-1]), [None, None, None]
        if ctx.needs_input_grad[0]:
            # A gradient that will be differentiated again is of torch's operations, which have derivatives.
            ours = not torch.is_grad_enabled() and weight.shape[0] <= TERMS and weight.shape[1] >= COLUMNS and grad.is_contiguous()
            into = _product(flat, weight.t().contiguous()) if ours else flat @ weight
            found[0] = into.view_as(x)
        if ctx.needs_input_grad[1]:
            found[1] = flat.t() @ x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[2]:
            found[2] = flat.sum(0)
        return tuple(found)


class Linear(nn.Linear):
    """torch's linear layer, through oneDNN where the call fits."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if not _fits(input, weight, bias):
            return F.linear(input, weight, bias)
        if torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
            return _Product.apply(input, weight, bias)
        return _product(input, weight, bias)


def through_onednn(*networks: nn.Module) -> None:
    """Switches the plain linear layers of these networks over, in place; nothing where the machine does not gain."""
    if not suited():
        return
    for network in networks:
        for module in network.modules():
            if type(module) is nn.Linear:
                module.__class__ = Linear
