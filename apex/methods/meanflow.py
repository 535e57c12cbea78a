"""`meanflow`: the network learns average velocities over [r, t] from the identity that they satisfy.

F(x_t, t, r) is drawn to sg[v_hat - (t - r) dF/dt], dF/dt along (v_hat, 1) with r fixed. From arXiv 2505.13447, which trains
from scratch on data with guidance inside v_hat. Distilling, v_hat is the guided teacher's velocity unless `velocity` says
"data". Samples with r = t need no derivative, so none is paid for there.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from apex import losses
from apex.flow import interpolate
from apex.methods._consistency import ContinuousParams, target_velocity, time_derivative
from apex.methods.base import Batch, Method, Networks, Step


class MeanFlowParams(ContinuousParams):
    equal_share: float = Field(0.75, ge=0, le=1, description="share of samples with r = t; published: 0.75")
    time_mean: float = Field(-0.4, description="mean of the logit-normal that t and r are drawn from; published: -0.4")
    time_std: float = Field(1.0, gt=0, description="its standard deviation; published: 1")
    power: float = Field(1.0, ge=0, le=2, description="p of the adaptive weight; published: 1")
    eps: float = Field(0.01, gt=0, description="eps of the adaptive weight, beside a sum over elements; published: 0.01")


class MeanFlow(Method):
    name = "meanflow"
    family = "consistency"
    citation = "Geng et al. 2025, arXiv 2505.13447"
    target_time = "embedding"
    sample_mode = "any"
    needs = frozenset({"teacher"})
    tunings = ("full",)
    no_lora = "it teaches the network to depend on r, which a student with LoRA does not see"
    Params = MeanFlowParams

    def times(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """t and r <= t, (B,) each."""
        p, count = self.params, len(batch)
        a, b = (losses.logit_normal(batch.normal(count), p.time_mean, p.time_std) for _ in range(2))
        t = torch.maximum(a, b)
        return t, torch.where(batch.uniform(count) < p.equal_share, t, torch.minimum(a, b))

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        p = self.params
        t, r = self.times(batch)
        noise = batch.normal_like(batch.x0)
        x_t = interpolate(batch.x0, noise, t)
        predicted = nets.student(x_t, t, batch.cond, r)
        with torch.no_grad():
            own = predicted.detach().to(x_t)
            guided = target_velocity(p, nets, x_t, t, noise, batch)
            derivative = torch.zeros_like(x_t)
            rows = torch.nonzero(r < t).flatten()
            if len(rows):
                derivative[rows] = time_derivative(p, nets, own[rows], x_t[rows], t[rows], batch.cond[rows], r[rows], guided[rows])
            target = losses.average_velocity_target(guided, derivative, t, r)
        errors = losses.mean_square(own - target)
        logs: dict[str, Tensor | float] = {"residual": errors.mean()}
        for name, part in (("equal", r == t), ("interval", r < t)):
            if bool(part.any()):
                logs[f"residual/{name}"] = errors[part].mean()
        return Step({"student": losses.self_weighted(predicted - target, p.power, p.eps).mean()}, logs)


METHOD = MeanFlow
