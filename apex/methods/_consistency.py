"""What the consistency methods share: guided velocities, solver steps on a grid, and the student's derivative in time. No method."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from apex import losses
from apex.conditioning import Condition, concatenate
from apex.flow import expand, guide, interpolate
from apex.methods.base import Batch, Networks, Params

# ------------------------------------------------------------------------------------------------- guided velocities


def both_branches(nets: Networks, x_t: Tensor, t: Tensor, cond: Condition, null: Condition) -> tuple[Tensor, Tensor]:
    """F_T(x_t, t, c) and F_T(x_t, t, null), (B, C, H, W) each, from one call of the teacher."""
    return nets.teacher(torch.cat([x_t, x_t]), torch.cat([t, t]), concatenate([cond, null])).to(x_t).chunk(2)


def teacher_velocity(nets: Networks, x_t: Tensor, t: Tensor, batch: Batch, scale: float | Tensor) -> Tensor:
    """The guided teacher's velocity, (B, C, H, W). scale: one for all, 1 being no guidance and one pass less, or (B,)."""
    if isinstance(scale, Tensor):
        return guide(*both_branches(nets, x_t, t, batch.cond, batch.null), expand(scale, x_t))
    if scale == 1.0:
        return nets.teacher(x_t, t, batch.cond).to(x_t)
    return guide(*both_branches(nets, x_t, t, batch.cond, batch.null), scale)


def data_velocity(nets: Networks, x_t: Tensor, t: Tensor, noise: Tensor, batch: Batch, scale: float) -> Tensor:
    """v + (w - 1) (F_T(c) - F_T(null)), (B, C, H, W): its mean given x_t is the guided velocity of the data, not of the teacher."""
    velocity = noise - batch.x0
    if scale == 1.0:
        return velocity
    return losses.guided_velocity(velocity, *both_branches(nets, x_t, t, batch.cond, batch.null), scale - 1)


# ------------------------------------------------------------------------------------------------ on a grid of times


class GridParams(Params):
    steps: int = Field(50, ge=1, description="grid of the teacher's solver, 1/steps ... 1; published: 50")
    guidance: float = Field(2.5, ge=0, description="guidance of the teacher; published: the range 6 to 16 for Stable Diffusion; 1 is none")
    guidance_max: float | None = Field(
        None, ge=0, description="with it guidance is uniform from `guidance` to this, per sample, unknown to the student"
    )
    target_network: Literal["ema", "online"] = Field("ema", description="F- of the target; LCM's code: EMA, PCM's: online")
    distance: losses.Distance = Field("huber", description="d: mean square, or pseudo-Huber; published: both")
    huber_scale: float = Field(1e-3, gt=0, description="c of the pseudo-Huber distance; published: 1e-3")

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.guidance_max is not None and self.guidance_max < self.guidance:
            raise ValueError(f"guidance_max: found {self.guidance_max}, expected at least guidance, {self.guidance}")
        return self


def scale_of(p: GridParams, batch: Batch) -> float | Tensor:
    """The guidance of this batch, or of each of its samples, (B,)."""
    if p.guidance_max is None:
        return p.guidance
    return p.guidance + (p.guidance_max - p.guidance) * batch.uniform(len(batch))


def solver_pair(p: GridParams, batch: Batch, nets: Networks, phases: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Where the student takes x_t, where F- takes the teacher's next point x_u, both (B, C, H, W), and the time s of both, (B,).

    t and u are neighbours on the grid; s is the edge of their phase, 0 with one phase. Where u = s the target is x_u itself.
    """
    index = (batch.uniform(len(batch)) * p.steps).long().clamp_max(p.steps - 1)
    each = p.steps // phases
    s, u, t = ((k / p.steps).to(batch.x0.device) for k in (index // each * each, index, index + 1))
    x_t = interpolate(batch.x0, batch.normal_like(batch.x0), t)
    scale = scale_of(p, batch)
    predicted = losses.jump(nets.student(x_t, t, batch.cond), x_t, t, s)
    with torch.no_grad():
        x_u = losses.jump(teacher_velocity(nets, x_t, t, batch, scale), x_t, t, u)
        target = losses.jump(nets.named(p.target_network)(x_u, u, batch.cond), x_u, u, s)
    return predicted, target, s


# ------------------------------------------------------------------------------------------------- in continuous time


class ContinuousParams(Params):
    velocity: Literal["teacher", "data"] = Field(
        "teacher", description="v_hat: the guided teacher's, or z - x plus its guidance; published: teacher when distilling, else data"
    )
    guidance: float = Field(2.5, ge=0, description="guidance in v_hat; 1 is none")
    derivative: Literal["jvp", "finite_difference"] = Field("jvp", description="dF/dt: exact, or a backward difference (one pass)")
    difference: float = Field(
        5e-3, gt=0, lt=0.5, description="its step h; published: 1e-4 to 5e-3. In bf16 F is too coarse for h below about 0.05"
    )


def target_velocity(p: ContinuousParams, nets: Networks, x_t: Tensor, t: Tensor, noise: Tensor, batch: Batch) -> Tensor:
    """v_hat, (B, C, H, W)."""
    if p.velocity == "data":
        return data_velocity(nets, x_t, t, noise, batch, p.guidance)
    return teacher_velocity(nets, x_t, t, batch, p.guidance)


def time_derivative(
    p: ContinuousParams, nets: Networks, own: Tensor, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None, velocity: Tensor
) -> Tensor:
    """dF/dt of the student along (v_hat, 1), r fixed, (B, C, H, W), without gradient. r = None: a student that has no r."""
    if p.derivative == "jvp":
        tangents = (velocity, torch.ones_like(t), torch.ones_like(t) if r is None else torch.zeros_like(t))
        return nets.student.jvp(x_t, t, cond, r, tangents)[1].to(x_t)
    with torch.no_grad():
        return losses.backward_difference(
            lambda x, now: nets.student(x, now, cond, r), own, x_t, t, torch.zeros_like(t) if r is None else r, velocity, p.difference
        )
