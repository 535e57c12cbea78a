"""`ctm`: consistency trajectory model. The student jumps from any time to any earlier one; all jumps lead to one end.

psi(x, t -> r) = x - (t - r) F(x, t, r). For r <= u < t on a grid, what psi(x_t, t -> r) leads to at time 0 is drawn to
what psi-(Solver_T(x_t, t -> u), u -> r) leads to, both by the outer map psi-(., r -> 0) of the EMA network F-. The
student's side passes gradient through that map to its own point at r, none to the map's parameters; the target's side
has no gradient. Beside it flow matching at r = t, weighted by the ratio of the two gradients' norms at the student's
last matrix.

From arXiv 2310.02279 and its public code. Not as published: distances are on latents rather than LPIPS on pixels,
there is no GAN term, the grid is uniform in flow time, the solver is Euler's with a fixed number of steps (there:
Heun's, a random number), and flow matching, towards z - x with the teacher's guidance added, is at the consistency
term's points x_t.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from apex import losses
from apex.conditioning import concatenate
from apex.errors import UserError
from apex.flow import guide, interpolate
from apex.methods._consistency import both_branches, teacher_velocity
from apex.methods.base import Batch, Method, Networks, Params, Step


class CtmParams(Params):
    steps: int = Field(40, ge=1, description="grid of t, u and r, 1/steps ... 1; published: 18 (CIFAR-10), 40 (ImageNet 64)")
    solver_steps: int = Field(1, ge=1, description="grid steps from t to u, fewer where r is nearer; published: Heun's, random, up to 17")
    guidance: float = Field(2.5, ge=0, description="guidance of the teacher and of the flow-matching target; 1 is none; published: none")
    distance: losses.Distance = Field("mse", description="d: mean square, or pseudo-Huber; published: LPIPS")
    huber_scale: float = Field(1e-3, gt=0, description="c of the pseudo-Huber distance")
    flow_matching: float = Field(1.0, ge=0, description="factor on the adaptive weight of flow matching; published: 1")


class ConsistencyTrajectory(Method):
    name = "ctm"
    family = "consistency"
    citation = "Kim et al. 2023, arXiv 2310.02279"
    target_time = "embedding"
    sample_mode = "any"
    needs = frozenset({"ema", "teacher"})
    tunings = ("full",)
    no_lora = "it teaches the network to depend on r, which a student with LoRA does not see"
    Params = CtmParams

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        p, count = self.params, len(batch)
        start = (batch.uniform(count) * p.steps).long().clamp_max(p.steps - 1) + 1
        end = torch.minimum((batch.uniform(count) * start).long(), start - 1)  # 0 ... start - 1
        between = torch.maximum(start - p.solver_steps, end)
        t, r, u = (k.to(batch.x0) / p.steps for k in (start, end, between))
        zero = torch.zeros_like(t)
        noise = batch.normal_like(batch.x0)
        x_t = interpolate(batch.x0, noise, t)

        with torch.no_grad():
            velocity = noise - batch.x0
            if p.guidance == 1.0:
                first = teacher_velocity(nets, x_t, t, batch, 1.0)
            else:
                with_c, without_c = both_branches(nets, x_t, t, batch.cond, batch.null)
                first = guide(with_c, without_c, p.guidance)
                velocity = losses.guided_velocity(velocity, with_c, without_c, p.guidance - 1)
            x_u, now = x_t, t
            for leg in range(p.solver_steps):
                following = torch.maximum(now - 1 / p.steps, u) if leg + 1 < p.solver_steps else u
                moved = first if leg == 0 else teacher_velocity(nets, x_u, now, batch, p.guidance)
                x_u, now = losses.jump(moved, x_u, now, following), following
            x_r = losses.jump(nets.ema(x_u, u, batch.cond, r), x_u, u, r)
            target = losses.jump(nets.ema(x_r, r, batch.cond, zero), x_r, r, zero)

        # One call of the student for both terms: the jump to r, and r = t.
        matched = p.flow_matching > 0
        if matched:
            both = nets.student(torch.cat([x_t, x_t]), torch.cat([t, t]), concatenate([batch.cond, batch.cond]), torch.cat([r, t]))
            own, instant = both.to(x_t).chunk(2)
        else:
            own = nets.student(x_t, t, batch.cond, r).to(x_t)

        # In two stages, so that the outer map is differentiated once though its gradient is used twice.
        point = own.detach().requires_grad_(True)
        x_r = losses.jump(point, x_t, t, r)
        landed = losses.jump(nets.ema.through(x_r, r, batch.cond, zero), x_r, r, zero)
        consistent = losses.endpoint_distance(landed, target, p.distance, p.huber_scale).mean()
        (slope,) = torch.autograd.grad(consistent, point)
        pull = (slope * own).sum()
        loss = consistent.detach() + (pull - pull.detach())
        logs: dict[str, Tensor | float] = {"consistency": consistent.detach()}
        if matched:
            matching = losses.mean_square(instant - velocity).mean()
            if nets.last_parameter is None:
                raise UserError("ctm: Networks.last_parameter is not set; it gives the matrix at which the two gradients are compared")
            weight = p.flow_matching * losses.adaptive_ratio(pull, matching, nets.last_parameter())
            loss = loss + weight * matching
            logs |= {"flow_matching": matching.detach(), "flow_matching_weight": weight}
        return Step({"student": loss}, logs)


METHOD = ConsistencyTrajectory
