"""`pcm`: phased consistency model. `lcm` inside phases of the path, with a discriminator between prediction and target.

Within phase k of K the student takes x_t to the phase's edge s, not to 0, so K deterministic Euler steps sample it; with
one phase s = 0. What the student gives and what the target gives, re-noised from s to a time s' of the same phase, are
the fake and the real side of hinge heads on the frozen teacher's features.

From arXiv 2405.18407 and its public code for SD3, a flow model. Where that differs from here: student and heads take
turns, here both move in each step; its re-noising has a standard deviation of (s' - s)/(1 - s), the path's for s = 0
alone, here it is the path's throughout; its target is the online network, here the EMA as in `lcm`.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from apex import losses
from apex.discriminators import Heads
from apex.methods._adversarial import check_blocks
from apex.methods._consistency import GridParams, solver_pair
from apex.methods.base import Batch, Method, Networks, Setup, Step, frozen


class PcmParams(GridParams):
    phases: int = Field(1, ge=1, description="K; a student of K phases is sampled in K steps; published: 1 to 16, 4 by default")
    adversarial: float = Field(0.1, ge=0, description="weight of the adversarial term; published: 0.1")
    blocks: list[int] | None = Field(None, description="the teacher's blocks that have a head; null: four, evenly spaced")
    head_width: int = Field(64, ge=1, description="width of a head's hidden layers")
    discriminator_rate: float = Field(1.0, gt=0, description="learning rate of the heads over the student's; published: 2")

    @model_validator(mode="after")
    def _divides(self) -> PcmParams:
        if self.steps % self.phases:
            raise ValueError(f"phases: found {self.phases}, expected a divisor of steps, {self.steps}")
        return self


class PhasedConsistency(Method):
    name = "pcm"
    family = "consistency"
    citation = "Wang et al. 2024, arXiv 2405.18407"
    needs = frozenset({"ema", "teacher"})
    Params = PcmParams

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        super().__init__(params)
        # Between phases nothing is re-noised: Euler's step from edge to edge.
        self.sample_mode = "few" if self.params.phases == 1 else "multi"

    def extra_networks(self, setup: Setup) -> dict[str, nn.Module]:
        p = self.params
        if p.adversarial == 0:
            return {}
        self.blocks = check_blocks(p.blocks, setup.blocks)
        return {"heads": Heads([shape[-1] for shape in setup.feature_shapes(self.blocks)], p.head_width)}

    def roles(self) -> dict[str, str]:
        return {"heads": "discriminator"} if self.params.adversarial else {}

    def rates(self) -> dict[str, float]:
        return {"discriminator": self.params.discriminator_rate} if self.params.adversarial else {}

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        p = self.params
        predicted, target, s = solver_pair(p, batch, nets, p.phases)
        consistent = losses.endpoint_distance(predicted, target, p.distance, p.huber_scale).mean()
        logs: dict[str, Tensor | float] = {"residual": losses.mean_square(predicted.detach() - target).mean()}
        if p.adversarial == 0:
            return Step({"student": consistent}, logs)

        heads, until = nets.extra["heads"], s + batch.uniform(len(batch)) / p.phases
        fake = nets.teacher.features(losses.renoised(predicted, batch.normal_like(target), s, until), until, batch.cond, self.blocks)
        with torch.no_grad():
            real = nets.teacher.features(losses.renoised(target, batch.normal_like(target), s, until), until, batch.cond, self.blocks)
        with frozen(heads):
            fooled = losses.fooling(heads(fake)).mean()
        on_real, on_fake = heads(real), heads([f.detach() for f in fake])
        judged = losses.called_real(on_real).mean() + losses.called_fake(on_fake).mean()
        logs |= {"consistency": consistent.detach(), "d_real": _mean(on_real), "d_fake": _mean(on_fake)}
        return Step({"student": consistent + p.adversarial * fooled, "discriminator": judged}, logs)


def _mean(logits: list[Tensor]) -> Tensor:
    return torch.stack([d.detach().mean() for d in logits]).mean()


METHOD = PhasedConsistency
