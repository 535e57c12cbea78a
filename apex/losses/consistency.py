"""Loss terms of the consistency methods. Times, signs and guidance as in `apex.flow`.

They all learn parts of the flow map psi(x_t, t -> r) = x_t - (t - r) F(x_t, t, r): where the ODE of a velocity v_hat takes
x_t. Every target here is without gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from apex.flow import expand

TangentNorm = Literal["rms", "l2"]


def jump(velocity: Tensor, x_t: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """psi = x_t - (t - r) F, (B, C, H, W): Euler's step and the flow map in one. r = 0 gives the clean estimate."""
    return x_t - expand(t - r, x_t) * velocity


def renoised(x_s: Tensor, noise: Tensor, s: Tensor, until: Tensor) -> Tensor:
    """A point at time s with noise added up to a later time, (B, C, H, W): distributed as the path there. s < 1.

    a x_s + b z with a = (1 - s') / (1 - s) and b^2 = s'^2 - a^2 s^2. From s = 0 it is the path's own interpolation.
    """
    a = (1 - until) / (1 - s)
    b = (until.square() - (a * s).square()).clamp_min(0).sqrt()
    return expand(a, x_s) * x_s + expand(b, x_s) * noise


def logit_normal(normal: Tensor, mean: float, std: float) -> Tensor:
    """Times in (0, 1) from standard normal numbers. TrigFlow's log-normal(m, s) of tan is the same as (m + log 2, s) here
    where its data have standard deviation 1/2, and as (m, s) where they have 1: tan = t / (1 - t) times it."""
    return torch.sigmoid(normal * std + mean)


def backward_difference(
    network: Callable[[Tensor, Tensor], Tensor], own: Tensor, x_t: Tensor, t: Tensor, r: Tensor, velocity: Tensor, step: float
) -> Tensor:
    """dF/dt along (v, 1) with r fixed, as [F(x_t, t) - F(x_t - h v, t - h)] / h, (B, C, H, W); no gradient.

    h = min(step, t - r), so that t - h stays in the interval. The error is h/2 of the second derivative, and twice the
    rounding of F over h. Where t = r the derivative is 0: nothing multiplies it there.

    Args:
        network: (x, t) -> F without gradient. own: F(x_t, t), detached here.
    """
    h = (t - r).clamp(max=step)
    earlier = network(jump(velocity, x_t, t, t - h), t - h)
    slope = (own.detach() - earlier) / expand(h.clamp_min(1e-12), x_t)
    return torch.where(expand(h, x_t) > 0, slope, torch.zeros_like(slope))


def consistency_tangent(own: Tensor, guided: Tensor, derivative: Tensor, t: Tensor, warm: float = 1.0) -> Tensor:
    """g = (v_hat - F) - warm t dF/dt, (B, C, H, W): what is left of d/dt of the clean estimate x_t - t F along the ODE.

    sCM (arXiv 2410.11081) in flow time: its target is F + g, and g = 0 at the exact flow map to 0 when warm = 1. The
    warm-up multiplies the derivative alone (Sana-Sprint, FastGen): at warm = 0 the target is v_hat.
    """
    return (guided - own.detach()) - warm * expand(t, own) * derivative


def normalised(tangent: Tensor, c: float = 0.1, norm: TangentNorm = "rms") -> Tensor:
    """g / (||g|| + c), per sample. The norm is L2 (Sana-Sprint) or its value per element, RMS (FastGen).

    With L2, c is the smaller the more elements there are: c = 0.1 is 0.1 / sqrt(elements) of RMS.
    """
    size = tangent.flatten(1).square().sum(1).sqrt() if norm == "l2" else tangent.flatten(1).square().mean(1).sqrt()
    return tangent / expand(size + c, tangent)


def average_velocity_target(guided: Tensor, derivative: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """v_hat - (t - r) dF/dt, (B, C, H, W): MeanFlow's identity (arXiv 2505.13447, Eq. 6), dF/dt along (v_hat, 1) with r fixed."""
    return guided - expand(t - r, guided) * derivative


def self_weighted(difference: Tensor, power: float = 1.0, eps: float = 0.01) -> Tensor:
    """||d||^2 / sg(||d||^2 + eps)^p, (B,), the squared norm a *sum* over elements: MeanFlow's adaptive weight (code).

    p = 1: every sample pulls with 1/||d||; p = 0: the squared norm itself.
    """
    square = difference.square().flatten(1).sum(1)
    return square / (square.detach() + eps) ** power


def adaptive_ratio(leading: Tensor, following: Tensor, weight: Tensor) -> Tensor:
    """||d leading / d weight|| / (||d following / d weight|| + 1e-4), at most 1e4: CTM's lambda (arXiv 2310.02279; code, after VQGAN).

    Args:
        leading, following: scalars with a graph, kept. weight: the network's last trained matrix, so the passes back are short.
    """
    norms = [torch.autograd.grad(loss, weight, retain_graph=True)[0].detach().float().norm() for loss in (leading, following)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)
