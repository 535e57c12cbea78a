"""The contract of a distillation method. One file in this folder is one method; see `fm.py` for the smallest.

A file defines `METHOD`, a subclass of `Method`. Its `Params` (pydantic) name every setting with range, default
and source; its `losses` turns one batch into one scalar per role. The loop (`apex.train`) owns optimisers, EMA,
checkpoints, precision and the budget; a method owns none of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from apex.conditioning import Condition

Role = str  # "student", "discriminator", "fake_score", ...


class Params(BaseModel):
    """Settings of a method; an unknown key, a wrong type and nan are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass
class Batch:
    """One (micro-)batch of clean latents with their conditions.

    x0: (B, C, H, W); cond: B captions; null: B empty captions; generator: the batch's own source of randomness
    on the CPU, derived from seed and step, so a resumed run draws what an uninterrupted one would.
    """

    x0: Tensor
    cond: Condition
    null: Condition
    generator: torch.Generator
    micro_step: int = 0

    def __len__(self) -> int:
        return len(self.x0)

    def uniform(self, size: int) -> Tensor:
        return torch.rand(size, generator=self.generator).to(self.x0.device)

    def normal_like(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator).to(x.device, x.dtype)


class Network(Protocol):
    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor: ...


@dataclass
class Networks:
    """What a method may query. Only `student` and `extra` can receive gradient.

    student: the network in training. ema: its running mean, without gradient. teacher: the frozen pretrained
    network (r = t only), without gradient; with LoRA it is the student with its adapter switched off, not a copy.
    extra: modules that the method asked for (`Method.extra_networks`), by name.
    """

    student: Network
    ema: Network
    teacher: Network
    extra: dict[str, nn.Module] = field(default_factory=dict)

    def named(self, name: Literal["online", "ema", "teacher"]) -> Network:
        return {"online": self.student, "ema": self.ema, "teacher": self.teacher}[name]


@dataclass
class Step:
    """Losses to differentiate, by role, and numbers to log (detached scalars)."""

    losses: dict[Role, Tensor]
    logs: dict[str, Tensor | float] = field(default_factory=dict)


class Method:
    """A distillation method. Subclasses set the class attributes and write `losses`.

    Attributes:
        name: as in configurations and tables. family: its group in the tables. citation: where it is from.
        target_time: whether the student sees r under full tuning ("embedding") or never ("none").
        sample_mode: how its student is sampled ("few", "any", "multi"; see `flow.sample`).
        needs: of "ema", "teacher": the networks that it queries; what is not needed is not kept or run.
        tunings: which of "full", "lora" it supports.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    citation: ClassVar[str]
    target_time: ClassVar[Literal["none", "embedding"]] = "none"
    sample_mode: ClassVar[Literal["few", "any", "multi"]] = "few"
    needs: ClassVar[frozenset[str]] = frozenset()
    tunings: ClassVar[tuple[str, ...]] = ("full", "lora")
    Params: ClassVar[type[Params]] = Params

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = self.Params(**(params or {}))

    def extra_networks(self) -> dict[str, nn.Module]:
        """Modules besides the student, by name; parameters that require grad are trained with role `roles()[name]`."""
        return {}

    def roles(self) -> dict[str, Role]:
        """Which role's optimiser trains each extra network; by default the student's."""
        return {name: "student" for name in self.extra_networks()}

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        """One batch to one scalar per role. Network calls that need no gradient are made under `torch.no_grad()`."""
        raise NotImplementedError
