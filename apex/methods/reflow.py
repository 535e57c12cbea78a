"""`reflow`: rectified flow's second round on teacher-made pairs, then distillation of its first step.

Pairs (z, x_T(z)) of the guided teacher's ODE are made once, paid from the budget. First the flow of the pairs is learnt,
||F((1-t) x_T + t z, t) - (z - x_T)||^2 (Liu et al., arXiv 2209.03003), with the U-shaped times of Lee, Lin and Fanti
(arXiv 2405.20320); it is straighter than the teacher's, for the pairs' paths cross less. Then, in the last part of
the budget, t = 1 alone is trained on the same pairs (InstaFlow, arXiv 2309.06380, distils pairs of the straightened flow
instead, for which a second set would have to be paid).
"""

from __future__ import annotations

import torch
from pydantic import Field

from apex import losses
from apex.methods.base import Batch, Method, Networks, PairPlan, Params, Step


class ReflowParams(Params):
    guidance: float = Field(2.5, ge=0, description="guidance of the teacher's ODE; 1 is none")
    teacher_steps: int = Field(25, ge=1, description="Euler steps of the teacher's ODE; InstaFlow: 25 (DPM-Solver)")
    pair_share: float = Field(0.4, gt=0, lt=1, description="share of the budget that makes pairs; published: all made beforehand, unpaid")
    sharpness: float = Field(4.0, ge=0, description="a of the U-shaped time distribution; arXiv 2405.20320: 4; 0 is uniform")
    distil_share: float = Field(0.25, ge=0, le=1, description="last share of the budget that distils at t = 1; 0 is reflow alone")
    distil_mix: float = Field(1.0, gt=0, le=1, description="share of samples at t = 1 in that part; published: 1")


class Reflow(Method):
    name = "reflow"
    family = "regression"
    citation = "Liu et al. 2022, arXiv 2209.03003; times of arXiv 2405.20320"
    sample_mode = "multi"
    needs = frozenset({"teacher"})
    Params = ReflowParams

    def pairs(self) -> PairPlan:
        p = self.params
        return PairPlan(p.pair_share, p.teacher_steps, p.guidance)

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        p, pairs = self.params, batch.pairs
        count = len(pairs.noise)
        t, chance = losses.u_shaped(batch.uniform(count), p.sharpness), batch.uniform(count)
        if batch.progress >= 1 - p.distil_share:
            t = torch.where(chance < p.distil_mix, torch.ones_like(t), t)
        x_t, velocity = losses.velocity_along(pairs.noise, pairs.x, t)
        errors = losses.mean_square(nets.student(x_t, t, pairs.cond) - velocity)
        at_one = errors.detach()[t == 1]
        return Step({"student": errors.mean()}, {"error/one_step": at_one.mean()} if len(at_one) else {})


METHOD = Reflow
