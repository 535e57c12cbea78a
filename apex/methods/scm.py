"""`scm`: continuous-time consistency model. The student's clean estimate must not change along the guided ODE, in the limit.

g = (v_hat - sg F) - warm t dF/dt along (v_hat, 1), g <- g / (||g|| + c), and the loss ||F - sg(F + g)||^2, whose gradient
-2 g is what counts. From sCM (arXiv 2410.11081) as Sana-Sprint (arXiv 2503.09641) and FastGen train it, in this suite's
flow time rather than TrigFlow's. The student has no r, so F moves with t alone. Not here: the learned log-variance
weight of sCM, and the guidance scale that Sana-Sprint gives the student as an input.

Both papers first make F smooth in t: the embedding gets t where the teacher's gets 1000 t, and the network is trained on until it
is used to that. `time_scale` and `adapt` do so here. By default F keeps the teacher's embedding, whose fine waves in t make
the exact derivative large, and another objective than a difference over 0.005.
"""

from __future__ import annotations

import torch
from pydantic import Field

from apex import losses
from apex.flow import interpolate
from apex.methods._consistency import ContinuousParams, target_velocity, time_derivative
from apex.methods.base import Batch, Method, Networks, Step


class ScmParams(ContinuousParams):
    time_scale: float = Field(
        1.0, gt=0, description="factor on the time in the student's embedding; published: 0.001 (t, not 1000 t). Not with LoRA"
    )
    adapt: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the budget before the warm-up, in which the student follows v_hat; published: 5,000 steps of flow matching",
    )
    warmup: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of the budget in which the derivative's part then grows to 1; published: 4,000 or 10,000 steps",
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

    @property
    def time_scale(self) -> float:
        return self.params.time_scale

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        loss, logs = consistency(self.params, batch, nets)
        return Step({"student": loss}, logs)


def warm_up(p: ScmParams, progress: float) -> float:
    """Weight of the derivative after this share of the budget: 0 in the adaptation, then a line from 0 to 1."""
    if p.warmup == 0:
        return float(progress >= p.adapt)
    return min(max(progress - p.adapt, 0.0) / p.warmup, 1.0)


def consistency(p: ScmParams, batch: Batch, nets: Networks) -> tuple[torch.Tensor, dict[str, torch.Tensor | float]]:
    """The loss and what to log."""
    t = losses.logit_normal(batch.normal(len(batch)), p.time_mean, p.time_std)
    noise = batch.normal_like(batch.x0)
    x_t = interpolate(batch.x0, noise, t)
    predicted = nets.student(x_t, t, batch.cond)
    warm = warm_up(p, batch.progress)
    with torch.no_grad():
        own = predicted.detach().to(x_t)
        guided = target_velocity(p, nets, x_t, t, noise, batch)
        adapting = batch.progress < p.adapt  # the derivative does not count yet, and is not paid for
        derivative = torch.zeros_like(own) if adapting else time_derivative(p, nets, own, x_t, t, batch.cond, None, guided)
        tangent = losses.consistency_tangent(own, guided, derivative, t, warm)
        target = own + losses.normalised(tangent, p.tangent_c, p.tangent_norm)
    loss = losses.mean_square(predicted - target).mean()
    return loss, {"residual": losses.mean_square(tangent).mean(), "derivative": derivative.square().mean().sqrt(), "warm": warm}


METHOD = ContinuousConsistency
