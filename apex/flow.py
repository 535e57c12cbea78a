"""The optimal-transport path between data and noise, and the samplers. Pure tensor functions.

| paper (arXiv 2604.12322) | here | meaning |
| --- | --- | --- |
| x | `x0` | clean latent, (B, C, H, W) |
| z | `noise` | standard normal, same shape |
| t, r | `t`, `r` | time and target time, (B,), 0 <= r <= t <= 1; 1 is noise, 0 is data |
| x_t | `x_t` | `t * noise + (1 - t) * x0` |
| v = z - x | `velocity` | the path's velocity |
| F(x_t, t, r, c) | `network(x_t, t, cond, r)` | the network's velocity; r = t is the instantaneous one |
| f(F, x_t, t) | `endpoint` | clean estimate `x_t - t * F` (Eq. 10) |
| c, c_fake | `cond`, `shifted` | text condition and `A c + b` (Eq. 9) |
| sg | `.detach()` | stop gradient |
| NFE | `nfe` | network evaluations per image |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t, t, r) -> velocity, the condition already bound


def expand(t: Tensor, like: Tensor) -> Tensor:
    """(B,) to (B, 1, ..., 1), so that a time multiplies a batch of images."""
    return t.reshape(-1, *[1] * (like.ndim - 1))


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = t z + (1 - t) x."""
    s = expand(t, x0)
    return s * noise + (1 - s) * x0


def endpoint(velocity: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """f(F, x_t, t) = x_t - t F, the clean estimate (Eq. 10)."""
    return x_t - expand(t, x_t) * velocity


def score(velocity: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """s_t(x_t) = -(x_t + (1 - t) v) / t, the score of the marginal at t from its velocity (Eq. 5); t > 0."""
    s = expand(t, x_t)
    return -(x_t + (1 - s) * velocity) / s


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """uncond + scale (cond - uncond): the suite's one guidance convention; scale 1 is no guidance."""
    return unconditional + scale * (conditional - unconditional)


def time_grid(sigmas: Sequence[float]) -> list[float]:
    """Checks the times of a sampler (decreasing, in (0, 1]) and closes them with 0."""
    times = [float(s) for s in sigmas]
    if not times or any(not 0 < s <= 1 for s in times) or any(a <= b for a, b in pairwise(times)):
        raise ValueError(f"sigmas must decrease within (0, 1], found {list(sigmas)}")
    return [*times, 0.0]


def uniform_sigmas(steps: int) -> list[float]:
    """1, 1 - 1/steps, ..., 1/steps: the grid of a many-step ODE solution."""
    return [1.0 - i / steps for i in range(steps)]


@torch.no_grad()
def sample(
    network: Network,
    noise: Tensor,
    sigmas: Sequence[float],
    *,
    mode: str,
    fresh: Sequence[Tensor] = (),
) -> Tensor:
    """Noise to clean latents in `len(sigmas)` network calls.

    Args:
        network: (x_t, t, r) -> velocity.
        noise: (B, C, H, W), standard normal, at time `sigmas[0]`.
        mode: "few": jump to the clean estimate with r = 0, then re-noise with fresh noise (diffusers'
            FlowMatchEulerDiscreteScheduler with stochastic_sampling=True);
            "any": Euler with r = the next time; "multi": Euler with r = t, the usual ODE sampler.
        fresh: the noises of "few" after the first, `len(sigmas) - 1` of them, each shaped as `noise`.
    """
    if mode not in ("few", "any", "multi"):
        raise ValueError(f"unknown sampling mode {mode!r}; known: few, any, multi")
    x = noise
    times = time_grid(sigmas)
    if mode == "few" and len(fresh) < len(times) - 2:
        raise ValueError(f"few-step sampling on {len(times) - 1} times needs {len(times) - 2} fresh noises, found {len(fresh)}")
    for k, (now, following) in enumerate(pairwise(times)):
        t = torch.full((len(x),), now, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
        if mode == "few":
            clean = endpoint(network(x, t, torch.zeros_like(t)), x, t)
            if following == 0.0:
                return clean
            x = following * fresh[k] + (1 - following) * clean
        else:
            r = torch.full_like(t, following) if mode == "any" else t
            x = x - (now - following) * network(x, t, r)
    return x
