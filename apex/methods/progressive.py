"""`progressive`: progressive distillation. N steps learn what 2 N steps of the stage's teacher do, and N is halved.

Salimans and Ho (arXiv 2202.00512), on the straight path, where the two half steps amount to one velocity:
1/2 [F_T(x_t, t) + F_T(x_mid, t - 1/(2N))], t on the grid 1/N ... 1. The first stage's teacher is the pretrained network
under guidance (two passes a query; arXiv 2210.03142 distils it so), a later stage's is the student's running mean at the
end of the stage before (one pass). Not as published: one optimiser and one learning-rate schedule run through all
stages, the student goes on with its own weights rather than the new teacher's, and no SNR weight is needed for velocities.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from apex import losses
from apex.conditioning import Condition, concatenate
from apex.flow import guide, interpolate
from apex.methods.base import Batch, Method, Networks, Params, Setup, Step


class ProgressiveParams(Params):
    guidance: float = Field(2.5, ge=0, description="guidance of the first stage's teacher; 1 is none")
    start_steps: int = Field(16, ge=1, le=1024, description="N of the first stage, whose teacher makes twice as many; published: hundreds")
    final_steps: int = Field(1, ge=1, description="N of the last stage")
    late_share: float = Field(2.0, gt=0, description="budget of each stage with N <= 2 relative to an earlier one's; published: 2")

    @model_validator(mode="after")
    def _halves(self) -> ProgressiveParams:
        ratio = self.start_steps / self.final_steps
        if ratio < 1 or not math.log2(ratio).is_integer():
            raise ValueError(
                f"start_steps and final_steps: found {self.start_steps} and {self.final_steps}, expected final_steps times a power of 2"
            )
        return self

    def stages(self) -> list[int]:
        """N of every stage."""
        return [self.start_steps // 2**k for k in range(int(math.log2(self.start_steps // self.final_steps)) + 1)]


class StageTeacher(nn.Module):
    """The teacher of the stage `stage`; frozen, and part of the run's state since it changes. Stage 0: the pretrained network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("stage", torch.zeros((), dtype=torch.long))

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.network(x_t, t, cond)

    @torch.no_grad()
    def advance(self, stage: int, weights: dict[str, Tensor]) -> None:
        self.network.load_state_dict(weights)
        self.stage.fill_(stage)


class Progressive(Method):
    name = "progressive"
    family = "regression"
    citation = "Salimans and Ho 2022, arXiv 2202.00512"
    sample_mode = "multi"
    tunings = ("full",)
    no_lora = "each stage's teacher is a copy of the whole student"
    Params = ProgressiveParams

    def extra_networks(self, setup: Setup) -> dict[str, nn.Module]:
        return {"stage_teacher": StageTeacher(setup.copy())}

    def stage(self, progress: float) -> int:
        """Which stage this share of the budget belongs to."""
        stages = self.params.stages()
        weights = [self.params.late_share if n <= 2 else 1.0 for n in stages]
        reached = progress * sum(weights)
        for index, weight in enumerate(weights):
            if reached < weight:
                return index
            reached -= weight
        return len(stages) - 1

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        p, teacher = self.params, nets.extra["stage_teacher"]
        stage = self.stage(batch.progress)
        if stage != int(teacher.stage):
            teacher.advance(stage, nets.weights())
        count = p.stages()[stage]

        t = ((batch.uniform(len(batch)) * count).floor() + 1) / count
        x_t = interpolate(batch.x0, batch.normal_like(batch.x0), t)

        def velocity(x: Tensor, now: Tensor) -> Tensor:
            if stage > 0 or p.guidance == 1:
                return teacher(x, now, batch.cond)
            both = concatenate([batch.cond, batch.null])
            return guide(*teacher(torch.cat([x, x]), torch.cat([now, now]), both).chunk(2), p.guidance)

        with torch.no_grad():
            target = losses.two_half_steps(velocity, x_t, t, 1 / count)
        loss = losses.mean_square(nets.student(x_t, t, batch.cond) - target).mean()
        return Step({"student": loss}, {"student_steps": float(count)})


METHOD = Progressive
