"""`regression`: the student's one step is regressed on where the teacher's many steps take the same noise.

The plainest distillation (Luhman and Luhman 2021, arXiv 2101.02388): pairs (z, x_T(z)) of the guided teacher's ODE are
made once, paid from the budget, and d(z - F(z, 1), x_T(z)) is the whole loss. At scale d is a perceptual distance
(LPIPS); here it is the mean square on latents, or Huber's.
"""

from __future__ import annotations

import torch
from pydantic import Field

from apex import losses
from apex.flow import endpoint
from apex.methods.base import Batch, Method, Networks, PairPlan, Params, Step


class RegressionParams(Params):
    guidance: float = Field(2.5, ge=0, description="guidance of the teacher's ODE; 1 is none")
    teacher_steps: int = Field(25, ge=1, description="Euler steps of the teacher's ODE")
    pair_share: float = Field(0.4, gt=0, lt=1, description="share of the budget that makes pairs; published: all made beforehand, unpaid")
    distance: losses.Distance = Field("mse", description="d: mean square, or pseudo-Huber (LCM's)")
    huber_scale: float = Field(1e-3, gt=0, description="c of the pseudo-Huber distance; LCM: 1e-3")


class Regression(Method):
    name = "regression"
    family = "regression"
    citation = "Luhman and Luhman 2021, arXiv 2101.02388"
    sample_mode = "few"
    needs = frozenset({"teacher"})
    Params = RegressionParams

    def pairs(self) -> PairPlan:
        p = self.params
        return PairPlan(p.pair_share, p.teacher_steps, p.guidance)

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        p, pairs = self.params, batch.pairs
        one = torch.ones(len(pairs.noise), device=pairs.noise.device, dtype=batch.time_dtype)
        generated = endpoint(nets.student(pairs.noise, one, pairs.cond), pairs.noise, one)
        loss = losses.endpoint_distance(generated, pairs.x, p.distance, p.huber_scale).mean()
        return Step({"student": loss}, {"error": losses.mean_square(generated.detach() - pairs.x).mean()})


METHOD = Regression
