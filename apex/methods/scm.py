"""`scm`: continuous-time consistency model. The student's clean estimate must not change along the guided ODE, in the limit.

g = (v_hat - sg F) - warm t dF/dt along (v_hat, 1), g <- g / (||g|| + c), and the loss ||F - sg(F + g)||^2, whose gradient
-2 g is what counts. From sCM (arXiv 2410.11081) as Sana-Sprint (arXiv 2503.09641) and FastGen train it, in this suite's
flow time rather than TrigFlow's. The student has no r, so F moves with t alone. Not here: the learned log-variance
weight of sCM, the guidance scale that Sana-Sprint gives the student as an input, and the change of the network's time
embedding: sCM and Sana-Sprint make F smooth in t first, here it keeps the teacher's embedding of 1000 t. Where F has fine
waves in t the exact derivative and a difference over 0.005 disagree, so `derivative` chooses between two objectives.
"""

from __future__ import annotations

import torch
from pydantic import Field

from apex import losses
from apex.flow import interpolate
from apex.methods._consistency import ContinuousParams, target_velocity, time_derivative
from apex.methods.base import Batch, Method, Networks, Step


class ScmParams(ContinuousParams):
    warmup: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of the budget in which the derivative's part grows to 1; published: 4,000 or 10,000 steps",
    )
    tangent_c: float = Field(0.1, ge=0, description="c of the tangent's normalisation; published: 0.1")
    tangent_norm: losses.TangentNorm = Field("rms", description="its norm: RMS (FastGen) or L2 (Sana-Sprint)")
    time_mean: float = Field(0.89, description="mean of the logit-normal time; Sana-Sprint: 0.2 of TrigFlow, 0.89 here")
    time_std: float = Field(1.6, gt=0, description="its standard deviation; Sana-Sprint: 1.6")


class ContinuousConsistency(Method):
    name = "scm"
    family = "consistency"
    citation = "Lu and Song 2024, arXiv 2410.11081"
    needs = frozenset({"teacher"})
    Params = ScmParams

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        loss, logs = consistency(self.params, batch, nets)
        return Step({"student": loss}, logs)


def consistency(p: ScmParams, batch: Batch, nets: Networks) -> tuple[torch.Tensor, dict[str, torch.Tensor | float]]:
    """The loss and what to log."""
    t = losses.logit_normal(batch.normal(len(batch)), p.time_mean, p.time_std)
    noise = batch.normal_like(batch.x0)
    x_t = interpolate(batch.x0, noise, t)
    predicted = nets.student(x_t, t, batch.cond)
    warm = min(batch.progress / p.warmup, 1.0) if p.warmup > 0 else 1.0
    with torch.no_grad():
        own = predicted.detach().to(x_t)
        guided = target_velocity(p, nets, x_t, t, noise, batch)
        derivative = time_derivative(p, nets, own, x_t, t, batch.cond, None, guided)
        tangent = losses.consistency_tangent(own, guided, derivative, t, warm)
        target = own + losses.normalised(tangent, p.tangent_c, p.tangent_norm)
    loss = losses.mean_square(predicted - target).mean()
    return loss, {"residual": losses.mean_square(tangent).mean(), "derivative": derivative.square().mean().sqrt(), "warm": warm}


METHOD = ContinuousConsistency
