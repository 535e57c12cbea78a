"""What the adversarial methods share: the student's sample and its time. No method."""

from __future__ import annotations

import torch
from pydantic import Field, field_validator
from torch import Tensor

from apex.discriminators import spaced
from apex.errors import UserError
from apex.flow import endpoint, interpolate, time_grid
from apex.methods.base import Batch, Networks, Params


class StudentTimes(Params):
    times: list[float] = Field(
        [1.0, 0.85, 0.6, 0.3], min_length=1, description="times at which the student is trained: those at which it is sampled"
    )
    one_step_share: float = Field(0.5, ge=0, le=1, description="share of samples at the first of `times`, the rest at the others")

    @field_validator("times")
    @classmethod
    def _falling(cls, times: list[float]) -> list[float]:
        time_grid(times)
        return times


def draw_times(p: StudentTimes, batch: Batch) -> Tensor:
    """Student times, (B,)."""
    first, which = batch.uniform(len(batch)), batch.uniform(len(batch))
    times = torch.tensor(p.times, device=batch.x0.device, dtype=batch.time_dtype)
    if len(times) == 1:
        return times.expand(len(batch))
    others = times[1:][(which * (len(times) - 1)).long().clamp_max(len(times) - 2)]
    return torch.where(first < p.one_step_share, times[0], others)


def generate(p: StudentTimes, batch: Batch, nets: Networks) -> Tensor:
    """The student's clean estimates f(x_t, t) of noised data, (B, C, H, W); at t = 1 they are its one-step samples."""
    t = draw_times(p, batch)
    x_t = interpolate(batch.x0, batch.normal_like(batch.x0), t)
    return endpoint(nets.student(x_t, t, batch.cond), x_t, t)


def check_blocks(chosen: list[int] | None, count: int) -> list[int]:
    """The blocks to judge, four evenly spaced where none are chosen, or one line on what is wrong with them."""
    if chosen is None:
        return spaced(count)
    if not chosen or any(not 0 <= k < count for k in chosen) or len(set(chosen)) != len(chosen):
        raise UserError(f"params.blocks: found {chosen}, expected different numbers from 0 to {count - 1}, the network's blocks")
    return chosen
