"""`lcm`: latent consistency model. One guided step of the teacher's solver must not change the student's clean estimate.

f(x_t, t) = x_t - t F(x_t, t) is drawn to f-(x_u, u) with x_u = x_t - (t - u) v_hat, t and u neighbours on a grid. From arXiv
2310.04378; as published for Stable Diffusion the solver is DDIM, whose step on the straight path is Euler's, and the
boundary condition f(x, 0) = x, which needs scalings there, holds by itself. Not as published: the guidance scale is one
number and no input of the student (a range can be set; the student is not told which).
"""

from __future__ import annotations

from apex import losses
from apex.methods._consistency import GridParams, solver_pair
from apex.methods.base import Batch, Method, Networks, Step


class LatentConsistency(Method):
    name = "lcm"
    family = "consistency"
    citation = "Luo et al. 2023, arXiv 2310.04378"
    needs = frozenset({"ema", "teacher"})
    Params = GridParams

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        p = self.params
        predicted, target, _ = solver_pair(p, batch, nets)
        loss = losses.endpoint_distance(predicted, target, p.distance, p.huber_scale).mean()
        return Step({"student": loss}, {"residual": losses.mean_square(predicted.detach() - target).mean()})


METHOD = LatentConsistency
