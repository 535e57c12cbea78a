"""Loss terms of `apex`, `apex-eq25`, `twinflow`, `rcgm` and `fm`.

Equation numbers are those of arXiv 2604.12322 (APEX); "public code" is LINs-lab/APEX, whose training objective equals
TwinFlow's (arXiv 2512.05150).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from apex.flow import endpoint, expand

MixWeight = Literal["t(1-t)", "t^3/(1-t)", "t^2"]


def mean_square(difference: Tensor) -> Tensor:
    """Mean over the elements of each sample: (B, ...) to (B,)."""
    return difference.square().flatten(1).mean(1)


def flow_matching(predicted: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """||F - (z - x)||^2, the flow-matching loss (Eq. 2 with the path of Eq. 1)."""
    return mean_square(predicted - (noise - x0))


# ------------------------------------------------------------------ the public code's objective, `apex`


def adaptive_distance(predicted: Tensor, target: Tensor, scale: float = 1e-3) -> Tensor:
    """mse * sg[(mse / (c^2 + 1e-8) + 1)^(-1/2)] / c: public code's loss, whose gradient is bounded in size.

    For mse >> c^2 it is sg-normalised, near sqrt(mse) in value; below it is mse / c.
    """
    mse = mean_square(predicted - target)
    return mse * (mse.detach() / (scale**2 + 1e-8) + 1).rsqrt() / scale


def interval_weight(t: Tensor, r: Tensor) -> Tensor:
    """tan((1 - (t - r)) pi / 2.5) + 1: short intervals count more (public code)."""
    return torch.tan((1 - (t - r)) * (math.pi / 2.5)) + 1


def guided_velocity(velocity: Tensor, conditional: Tensor, unconditional: Tensor, rho: float) -> Tensor:
    """v + rho (F_g(c) - F_g(null)). With F_g the frozen teacher, guidance `1 + rho` in the suite's convention;
    with the EMA or online network it compounds to 1 / (1 - rho)."""
    return velocity + rho * (conditional - unconditional)


def recursive_residual(
    own: Tensor,
    advance: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    x_t: Tensor,
    t: Tensor,
    r: Tensor,
    guided: Tensor,
    *,
    order: int = 1,
    step: float = 0.01,
) -> Tensor:
    """The residual R of the recursive consistency target (public code; RCGM), zero at the exact flow map as step -> 0.

    x_m = x_t - D v_hat at t_m = max(t - D, r); S is the flow map from (x_m, t_m) to r in `order` Euler legs of
    the network; R = ((t - r) sg F - S) / D - v_hat. Where t - r < D: R = sg F - v_hat, and no pass is spent.

    Args:
        own: F(x_t, t, r, c), (B, C, H, W); detached here.
        advance: (x, t, r, index) -> velocity without gradient, called only for the samples `index` that need it.
        guided: v_hat.
        order: number of legs N (1 or 2 in the public code).
        step: D.
    """
    own = own.detach()
    residual = own - guided
    needs = torch.nonzero(t - r >= step).flatten()
    if len(needs) == 0:
        return residual
    t_n, r_n, v_n = t[needs], r[needs], guided[needs]
    now = torch.maximum(t_n - step, r_n)
    x = x_t[needs] - step * v_n
    leg = (now - r_n) / order
    total = torch.zeros_like(x)
    for _ in range(order):
        following = torch.maximum(now - leg, r_n)
        moved = expand(now - following, x) * advance(x, now, following, needs)
        total = total + moved
        x = x - moved
        now = following
    long = (expand(t_n - r_n, x) * own[needs] - total) / step - v_n
    return residual.index_copy(0, needs, long)


def rectification(one_step_velocity: Tensor, fake: Tensor, real: Tensor, clip: float = 1.0) -> Tensor:
    """d(F, sg(F - g)), g = clip(F(x_s, s, c_fake) - F(x_s, s, c)): the self-adversarial force (public code).

    The gradient with respect to the one-step sample x = z - F points from the fake branch's score to the real
    branch's: distribution matching without a discriminator. x_s is the re-noised, detached one-step sample.
    """
    force = (fake - real).clamp(-clip, clip).detach()
    return adaptive_distance(one_step_velocity, one_step_velocity.detach() - force)


# --------------------------------------------------------------------- the paper's objective, `apex-eq25`


def mix_weight(t: Tensor, reading: MixWeight) -> Tensor:
    """The weight on a squared *velocity* error that L_mix's 1/w(t) on the endpoint error amounts to.

    Eq. 24 puts 1/w(t) on ||f - T_mix||^2 = t^2 ||F - ...||^2. w(t) = t/(1-t) gives t(1-t), the only reading
    consistent with Eq. 51 (the default); w(t) = (1-t)/t gives t^3/(1-t), which is not integrable; w = 1 gives t^2.
    """
    if reading == "t(1-t)":
        return t * (1 - t)
    if reading == "t^3/(1-t)":
        return t**3 / (1 - t)
    if reading == "t^2":
        return t**2
    raise ValueError(f"unknown reading of w(t): {reading!r}")


def fake_loss(fake_prediction: Tensor, x_fake: Tensor, noise: Tensor) -> Tensor:
    """L_fake = ||F(x_t_fake, t, c_fake) - (z - x_fake)||^2 (Eq. 12); keeps x_fake's gradient if it has one."""
    return mean_square(fake_prediction - (noise - x_fake))


def mix_loss(predicted: Tensor, v_fake: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, lam: float, reading: MixWeight = "t(1-t)") -> Tensor:
    """L_mix = 1/w(t) ||f(F, x_t, t) - T_mix||^2 (Eq. 24), T_mix = (1 - lam) x + lam f(sg v_fake, x_t, t) (Eq. 23)."""
    target = (1 - lam) * x0 + lam * endpoint(v_fake.detach(), x_t, t)
    error = mean_square(endpoint(predicted, x_t, t) - target)
    # mix_weight is on the velocity error, t^2 smaller than the endpoint's; at t = 0 both vanish together.
    return mix_weight(t, reading) / t.clamp_min(1e-8).square() * error


def joint_loss(predicted: Tensor, v_fake: Tensor, velocity: Tensor, t: Tensor, lam: float, reading: MixWeight = "t(1-t)") -> Tensor:
    """G_APEX = (1 - lam) L_sup + lam L_cons (Eq. 20-22), in velocities. Theorem 1: its gradient is L_mix's."""
    supervised = mean_square(predicted - velocity)
    consistency = mean_square(predicted - v_fake.detach())
    return mix_weight(t, reading) * ((1 - lam) * supervised + lam * consistency)
