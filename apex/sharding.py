"""A run whose weights are split over its processes: torch's FSDP2. Each holds a share of every weight, gradient, moment and running mean.

    accelerate launch --config_file workflows/accelerate/fsdp2.yaml -m apex.train ...

A block's weights are gathered for its own pass and let go behind it. The mean is queried with its shares in the weights' place, and what is
saved is every process's own shares, so a run continues on as many processes as it was begun on.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from apex.backbones.base import Backbone
from apex.errors import UserError


def asked() -> bool:
    """Whether the launcher asks for it; `distributed_type: FSDP` of accelerate's configuration sets this variable."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def shard(network: Backbone, mesh: DeviceMesh) -> None:
    """Splits a network in place, block by block; each share moves to the mesh's device, the whole never does."""
    for part in (*network.blocks, network):
        # What is around the blocks is let go behind every pass too: the next may be under other weights (the running mean).
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


def local(tensor: Tensor) -> Tensor:
    """This process's share, which shares its memory with the tensor; a tensor that is not split as it is."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def whole(tensor: Tensor) -> Tensor:
    """The full tensor, on every process; all of them must ask."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def like(share: Tensor, parameter: Tensor) -> Tensor:
    """A share as the split tensor that `parameter` is."""
    if not isinstance(parameter, DTensor):
        return share
    spec = {"run_check": False, "shape": parameter.shape, "stride": parameter.stride()}
    return DTensor.from_local(share, parameter.device_mesh, parameter.placements, **spec)


def groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """An optimiser's parameter groups: what is split and what is not step apart, since torch fuses only tensors of one kind."""
    found = list(parameters)
    split = [[p for p in found if isinstance(p, DTensor) == kind] for kind in (True, False)]
    return [{"params": part} for part in split if part]


def parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All that it trains."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def clip_grad_norm(optimizer: torch.optim.Optimizer, limit: float) -> Tensor:
    """Clips the global norm of an optimiser's gradients to `limit` (inf: not at all) and returns the norm before."""
    parts = [group["params"] for group in optimizer.param_groups]
    norms = [whole(nn.utils.get_total_norm([p.grad for p in part if p.grad is not None])) for part in parts]
    total = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))
    if limit < math.inf:
        for part in parts:
            nn.utils.clip_grads_with_norm_(part, limit, total)
    return total


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state with this process's shares in the place of split tensors."""
    return tree_map(lambda v: local(v) if isinstance(v, DTensor) else v, optimizer.state_dict())


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The counterpart of `optimizer_state`."""
    of = dict(enumerate(parameters(optimizer)))
    states = {
        at: {k: like(v, of[at]) if isinstance(v, Tensor) and v.ndim and isinstance(of[at], DTensor) else v for k, v in found.items()}
        for at, found in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": states})


def refuse(row: str, what: str) -> NoReturn:
    raise UserError(
        f"row {row}: its method needs {what}, which a run whose weights are split over processes (FSDP) has not; "
        "start it with workflows/accelerate/ddp.yaml or in one process"
    )


def refusing(row: str, what: str) -> Callable[..., NoReturn]:
    """A function that refuses."""

    def no(*_: Any, **__: Any) -> NoReturn:
        refuse(row, what)

    return no
