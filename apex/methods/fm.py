"""`fm`: more flow matching for the same budget, no distillation. The control of every comparison."""

from __future__ import annotations

import torch
from pydantic import Field

from apex import losses
from apex.flow import interpolate
from apex.methods.base import Batch, Method, Networks, Params, Step


class FMParams(Params):
    time_mean: float = Field(0.0, description="mean of the logit-normal time distribution")
    time_std: float = Field(1.0, gt=0, description="its standard deviation")


class FlowMatching(Method):
    name = "fm"
    family = "control"
    citation = "Lipman et al. 2023, arXiv 2210.02747"
    sample_mode = "multi"
    one_step = False
    Params = FMParams

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        p = self.params
        t = torch.sigmoid(torch.randn(len(batch), generator=batch.generator) * p.time_std + p.time_mean).to(batch.x0)
        noise = batch.normal_like(batch.x0)
        predicted = nets.student(interpolate(batch.x0, noise, t), t, batch.cond)
        return Step({"student": losses.flow_matching(predicted, batch.x0, noise).mean()})


METHOD = FlowMatching
