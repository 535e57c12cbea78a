"""The contract of a distillation method. One file in this folder is one method; see `fm.py` for the smallest.

A file defines `METHOD`, a subclass of `Method`. Its `Params` (pydantic) name every setting with range, default
and source; its `losses` turns one batch into one scalar per role. The loop (`apex.loop`) owns optimisers, EMA,
checkpoints, precision and the budget; a method owns none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from apex.conditioning import Condition

Role = str  # "student", "discriminator", "fake_score", ...
STUDENT: Role = "student"


class Params(BaseModel):
    """Settings of a method; an unknown key, a wrong type and nan are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass
class Pairs:
    """Noise and where the teacher's guided ODE takes it. noise, x: (B, C, H, W); cond: B captions."""

    noise: Tensor
    x: Tensor
    cond: Condition


@dataclass(frozen=True)
class PairPlan:
    """Teacher-made pairs that a method asks for. Making them is paid from the run's budget.

    share: of the budget, in (0, 1). steps: Euler steps of the teacher's ODE from 1 to 0. guidance: uncond + w (cond - uncond).
    """

    share: float
    steps: int
    guidance: float

    @property
    def passes(self) -> int:
        """Teacher passes of one pair."""
        return self.steps * (2 if self.guidance != 1.0 else 1)


@dataclass
class Batch:
    """One (micro-)batch of clean latents with their conditions.

    x0: (B, C, H, W); cond: B captions; null: B empty captions; generator: the batch's own source of randomness
    on the CPU, derived from seed and step, so a resumed run draws what an uninterrupted one would.
    progress: share of the budget that is spent, in [0, 1). pairs: B teacher-made pairs where the method asked for them.
    """

    x0: Tensor
    cond: Condition
    null: Condition
    generator: torch.Generator
    micro_step: int = 0
    progress: float = 0.0
    pairs: Pairs | None = None

    def __len__(self) -> int:
        return len(self.x0)

    @property
    def time_dtype(self) -> torch.dtype:
        """Times and their differences are never coarser than float32, and float64 where the latents are."""
        return torch.promote_types(self.x0.dtype, torch.float32)

    def uniform(self, size: int) -> Tensor:
        return torch.rand(size, generator=self.generator).to(self.x0.device, self.time_dtype)

    def normal(self, size: int) -> Tensor:
        """Standard normal numbers, (size,): for log-normal and logit-normal times."""
        return torch.randn(size, generator=self.generator).to(self.x0.device, self.time_dtype)

    def normal_like(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator).to(x.device, x.dtype)


class Network(Protocol):
    """A velocity network as a method sees it: F(x_t, t, r, c), (B, C, H, W); r = None means r = t."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        """The student: with gradient where it is enabled. EMA and teacher: never."""
        ...

    def through(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        """The same values, with gradient to x_t and none to the network's parameters."""
        ...

    def jvp(
        self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None, tangents: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """F and its exact derivative along (dx (B, C, H, W), dt (B,), dr (B,)), both without gradient."""
        ...

    def features(self, x_t: Tensor, t: Tensor, cond: Condition, blocks: Sequence[int]) -> list[Tensor]:
        """Outputs of the named blocks, (B, N, D) each, at r = t. Gradient to x_t where it is enabled; to no frozen parameter."""
        ...


@dataclass
class Networks:
    """What a method may query. Only `student` and `extra` can receive gradient.

    student: the network in training. ema: its running mean. teacher: the frozen pretrained network (r = t only);
    with LoRA it is the student with its adapter switched off, not a copy.
    extra: modules that the method asked for (`Method.extra_networks`), by name.
    weights: the student's weights under its running mean, by name, detached; for methods that train in stages.
    last_parameter: the student's last trained matrix; for methods that weigh terms by their gradients there.
    """

    student: Network
    ema: Network
    teacher: Network
    extra: dict[str, nn.Module] = field(default_factory=dict)
    weights: Callable[[], dict[str, Tensor]] | None = None
    last_parameter: Callable[[], Tensor] | None = None

    def named(self, name: Literal["online", "ema", "teacher"]) -> Network:
        return {"online": self.student, "ema": self.ema, "teacher": self.teacher}[name]


@dataclass
class Setup:
    """What a method may build its extra networks from.

    copy: a new copy of the pretrained network, parameters trainable (a Backbone; counts as a second network in memory).
    latent_shape: (C, H, W). blocks: number of its blocks. feature_shapes(blocks): shape (N, D) of what `features` gives.
    decoder: latents (B, C, H, W) to pixels (B, 3, H', W') in [-1, 1], frozen and differentiable; None where there is no codec.
    encoder: pixels to the codec encoder's feature maps [(B, C', h, w), ...], frozen and differentiable; None without one.
    caption_width: D of a condition's embeds (B, L, D); 0 where it is not known.
    """

    copy: Callable[[], nn.Module]
    latent_shape: tuple[int, ...]
    blocks: int
    feature_shapes: Callable[[Sequence[int]], list[tuple[int, int]]]
    decoder: nn.Module | None = None
    encoder: nn.Module | None = None
    caption_width: int = 0


@dataclass
class Step:
    """Losses to differentiate, by role, and numbers to log (detached scalars). A role without a loss is not updated in this step."""

    losses: dict[Role, Tensor]
    logs: dict[str, Tensor | float] = field(default_factory=dict)


class Method:
    """A distillation method. Subclasses set the class attributes and write `losses`.

    Attributes:
        name: as in configurations and tables. family: its group in the tables. citation: where it is from.
        target_time: whether the student sees r under full tuning ("embedding") or never ("none").
        sample_mode: how its student is sampled ("few", "any", "multi"; see `flow.sample`).
        needs: of "ema", "teacher": the networks that it queries; what is not needed is not kept or run.
        tunings: which of "full", "lora" it supports. no_lora: why not LoRA, for the refusal.
        revision: raised by every correction of the objective; runs of a lower one are marked in the tables
            (paper_tables/corrections.yaml says what was corrected).
        one_step: whether one step of its student is meant to follow the data's distribution (False for controls).
    """

    name: ClassVar[str]
    family: ClassVar[str]
    citation: ClassVar[str]
    target_time: ClassVar[Literal["none", "embedding"]] = "none"
    sample_mode: ClassVar[Literal["few", "any", "multi"]] = "few"
    needs: ClassVar[frozenset[str]] = frozenset()
    tunings: ClassVar[tuple[str, ...]] = ("full", "lora")
    no_lora: ClassVar[str] = ""
    one_step: ClassVar[bool] = True
    revision: ClassVar[int] = 1
    Params: ClassVar[type[Params]] = Params

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = self.Params(**(params or {}))

    @property
    def time_scale(self) -> float:
        """Factor on the time that the student's embedding sees; the teacher keeps its own. Not 1 with LoRA."""
        return 1.0

    def extra_networks(self, setup: Setup) -> dict[str, nn.Module]:
        """Modules besides the student, by name. Parameters that require grad are trained; all of their state is saved."""
        return {}

    def roles(self) -> Mapping[str, Role]:
        """Which role's optimiser trains an extra network; those not named here, the student's."""
        return {}

    def rates(self) -> Mapping[Role, float]:
        """Learning rate of a role as a multiple of the run's; those not named here, 1."""
        return {}

    def pairs(self) -> PairPlan | None:
        """The teacher-made pairs that `losses` finds in `batch.pairs`."""
        return None

    def cycle(self) -> int:
        """Steps until every role has been updated; the last of them updates all (`step % cycle == cycle - 1`)."""
        return 1

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        """One batch to one scalar per role. Network calls that need no gradient are made under `torch.no_grad()`.

        A role's loss sends gradient to that role's parameters alone; see `frozen`.
        """
        raise NotImplementedError


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Inside, calls of these modules pass gradient to their inputs and none to their parameters."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
