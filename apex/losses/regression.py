"""Loss terms of the regression methods. Times, signs and guidance as in `apex.flow`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from apex.flow import expand
from apex.losses.self_adversarial import mean_square

Distance = Literal["mse", "huber"]


def endpoint_distance(predicted: Tensor, target: Tensor, kind: Distance = "mse", scale: float = 1e-3) -> Tensor:
    """d(x, x_T): the mean square, or the mean over elements of the pseudo-Huber sqrt(e^2 + scale^2) - scale.

    `huber` and its scale of 1e-3 are those of latent consistency models (arXiv 2310.04378, code).
    """
    if kind == "mse":
        return mean_square(predicted - target)
    return ((predicted - target).square() + scale**2).sqrt().sub(scale).flatten(1).mean(1)


def u_shaped(uniform: Tensor, sharpness: float = 4.0) -> Tensor:
    """Times in [0, 1] of density ~ exp(a t) + exp(a (1 - t)) from uniform numbers, by the inverse of its distribution function.

    Lee, Lin and Fanti 2024 (arXiv 2405.20320, 2-rectified flow++), a = 4: a straight flow is hardest to learn at
    both ends. Sharpness 0 is uniform.
    """
    if sharpness == 0:
        return uniform
    return 0.5 + torch.asinh((2 * uniform - 1) * math.sinh(sharpness / 2)) / sharpness


def two_half_steps(velocity: Callable[[Tensor, Tensor], Tensor], x_t: Tensor, t: Tensor, width: float) -> Tensor:
    """The velocity that goes in one Euler step of `width` where `velocity(x, t)` goes in two of half of it.

    1/2 [F_T(x_t, t) + F_T(x_t - h F_T(x_t, t), t - h)] with h = width / 2: the target of progressive distillation
    (Salimans and Ho, arXiv 2202.00512) on the straight path, where DDIM's step is Euler's.
    """
    half = width / 2
    first = velocity(x_t, t)
    second = velocity(x_t - half * first, (t - half).clamp_min(0))
    return (first + second) / 2


def velocity_along(pair_noise: Tensor, pair_x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and the velocity z - x of the straight path between the two ends of a pair (rectified flow, arXiv 2209.03003)."""
    s = expand(t, pair_x)
    return s * pair_noise + (1 - s) * pair_x, pair_noise - pair_x
