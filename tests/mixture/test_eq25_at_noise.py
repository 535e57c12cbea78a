"""Why Eq. 25 gives the class mean in one step: exact laws of its gradient at t = 1, where x_t is pure noise.

1. The expected gradient depends on the data only through E[x|c].
2. F = z - E[x|c] on both branches is a stationary point, and elsewhere L_sup points from the sample to the mean.
3. With fresh noise, L_fake's gradient through x_fake is that of the samples' variance: it shrinks the spread.

Every expectation is a finite sum here, so the laws hold to float64 rounding. `apex` and a time below 1 break the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apex import methods
from apex import mixture_runs as mixture
from apex.conditioning import Condition
from apex.methods.base import Batch, Networks

F64 = torch.float64
READINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "lam=0": {"lam": 0.0},
    "lam=1": {"lam": 1.0},
    "t^2": {"weighting": "t^2"},
    "stopped": {"x_fake_gradient": False},
    "fresh": {"fresh_noise": True},
    "fresh t^2": {"fresh_noise": True, "weighting": "t^2"},
    "fresh stopped t^2": {"fresh_noise": True, "x_fake_gradient": False, "weighting": "t^2"},
}


@dataclass
class AtTime(Batch):
    """A batch in which every drawn time is `time` and the i-th drawn noise is the head of `given[i]`."""

    time: float = 1.0
    given: list[Tensor] = field(default_factory=list)

    def uniform(self, size: int) -> Tensor:
        return torch.full((size,), self.time, dtype=F64)

    def normal_like(self, x: Tensor) -> Tensor:
        return self.given.pop(0)[: len(x)]


def all_pairs(points: Tensor, count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Every noise with every point, and a second noise: their sample mean is the exact mean over the points."""
    g = torch.Generator().manual_seed(0)
    z, other = (torch.randn(count, 2, 1, 1, generator=g, dtype=F64).repeat_interleave(len(points), 0) for _ in range(2))
    return points.to(F64)[:, :, None, None].repeat(count, 1, 1, 1), z, other


def class_condition(count: int) -> Condition:
    cond = mixture.condition(torch.zeros(count, dtype=torch.long))
    return Condition(cond.embeds.to(F64), cond.mask.to(F64))


def gradient(network: nn.Module, name: str, params: dict[str, Any], points: Tensor, time: float = 1.0) -> Tensor:
    """The gradient of a method's loss wrt all parameters, over all pairs of noises and points, at one time."""
    x, z, other = all_pairs(points)
    method, cond = methods.get(name)(params), class_condition(len(x))
    batch = AtTime(x, cond, cond, torch.Generator(), time=time, given=[z, other, other.flip(0), z.flip(0)])
    nets = Networks(network, network, network, {k: m.to(F64) for k, m in method.extra_networks(None).items()})
    loss = method.losses(batch, nets, 0).losses["student"]
    parameters = list(network.parameters())
    slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if s is None else s).flatten() for p, s in zip(parameters, slopes, strict=True)])


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    net = mixture.VelocityMLP(16).to(F64)
    return net


def same_mean() -> tuple[Tensor, Tensor]:
    """Two sets of four points with the same mean and nothing else in common: the modes, and four others near the mean."""
    wide = mixture.modes(0).to(F64)
    mean = wide.mean(0)
    offsets = torch.tensor([[0.3, 0.1], [-0.5, 0.2], [0.1, -0.4], [0.1, 0.1]], dtype=F64)
    return wide, mean + offsets


def difference(network: nn.Module, name: str, params: dict[str, Any], time: float = 1.0) -> float:
    """How far the gradients on the two sets of points lie apart, relative to their size."""
    a, b = (gradient(network, name, params, points, time) for points in same_mean())
    return float((a - b).norm() / a.norm())


# ------------------------------------------------------------------------------- law 1: nothing but the mean is seen


@pytest.mark.parametrize("reading", READINGS)
def test_at_pure_noise_eq25_sees_the_data_through_their_mean_alone(network, reading: str):
    assert difference(network, "apex-eq25", READINGS[reading]) < 1e-12


def test_the_reading_that_is_infinite_at_noise_obeys_the_law_in_the_limit(network):
    """w(t) = (1-t)/t weighs t = 1 without bound; the relative difference falls in proportion to 1 - t."""
    far, near = (difference(network, "apex-eq25", {"weighting": "t^3/(1-t)"}, 1 - gap) for gap in (1e-4, 1e-6))
    assert near < 1e-4
    assert 50 < far / near < 200


def test_another_mean_is_seen(network):
    """The law is no accident of a gradient without data: move the mean and the gradient moves."""
    wide, _ = same_mean()
    a, b = (gradient(network, "apex-eq25", {"weighting": "t^2"}, points) for points in (wide, wide + 1))
    assert float((a - b).norm() / a.norm()) > 0.1


@pytest.mark.parametrize("reading", READINGS)
def test_below_one_the_data_are_seen(network, reading: str):
    assert difference(network, "apex-eq25", READINGS[reading], 0.7) > 1e-2


def test_apex_sees_more_than_the_mean_at_pure_noise(network):
    """Its consistency target asks the network at a point that still knows x, just below t = 1."""
    assert difference(network, "apex", {"rho": 0.0, "rectification": 0.0}) > 1e-4


# ------------------------------------------------------------------------------------- laws 2 and 3: where it ends


class Table(nn.Module):
    """F at t = 1 as free numbers: the one-step samples x1 are parameters, F(z, c) = z - x1; the shifted branch likewise."""

    def __init__(self, samples: Tensor, shifted: Tensor) -> None:
        super().__init__()
        self.samples, self.shifted = nn.Parameter(samples.clone()), nn.Parameter(shifted.clone())

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        return x_t - (self.samples if cond.scale is None else self.shifted)


def pulls(samples: Tensor, shifted: Tensor, params: dict[str, Any], points: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the gradient wrt each sample and its shifted branch, times the batch size; means over the points."""
    table = Table(samples.repeat_interleave(len(points), 0), shifted.repeat_interleave(len(points), 0))
    whole = -gradient(table, "apex-eq25", params, points) * table.samples.shape[0]
    of_samples, of_shifted = whole.reshape(2, -1, len(points), 2).mean(2)
    return of_samples, of_shifted


@pytest.fixture
def points() -> Tensor:
    return mixture.modes(1).to(F64)


@pytest.fixture
def samples() -> Tensor:
    return torch.randn(6, 2, 1, 1, generator=torch.Generator().manual_seed(1), dtype=F64) + 2


@pytest.mark.parametrize("reading", READINGS)
def test_the_mean_image_is_stationary(points, reading: str):
    mean = points.mean(0).reshape(1, 2, 1, 1).expand(6, 2, 1, 1)
    assert max(float(p.abs().max()) for p in pulls(mean, mean, READINGS[reading], points)) < 1e-12


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.9])
def test_the_pull_is_towards_the_mean_and_the_modes_are_no_rest(points, samples, lam: float):
    """With equal branches the pull on a sample is exactly (1 - lam) (mean - sample): also on samples that are the modes."""
    mean = points.mean(0)
    exact = torch.cat([points, points[:2]])[:, :, None, None]
    for x in (samples, exact):
        found, _ = pulls(x, x, {"lam": lam, "weighting": "t^2"}, points)
        torch.testing.assert_close(found, (1 - lam) * (mean - x.flatten(1)), rtol=1e-12, atol=1e-12)


def test_with_shared_noise_the_adversarial_terms_only_draw_the_branches_together(points, samples):
    """L_fake is ||F(c_fake) - F(c)||^2 at t = 1: equal and opposite pulls, whatever the data are."""
    other = samples.flip(0) + 1
    found, of_shifted = pulls(samples, other, {"mix_weight": 0.0}, points)
    torch.testing.assert_close(found, (other - samples).flatten(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(of_shifted, -found, rtol=1e-12, atol=1e-12)
    consistency, none = pulls(samples, other, {"fake_weight": 0.0, "lam": 1.0, "weighting": "t^2"}, points)
    torch.testing.assert_close(consistency, found, rtol=1e-12, atol=1e-12)
    assert float(none.abs().max()) == 0


def test_with_fresh_noise_the_fake_term_shrinks_the_spread(points, samples):
    """The shifted branch at rest answers the mean sample; x_fake's gradient is then that of the variance."""
    centre = samples.mean(0, keepdim=True).expand_as(samples)
    found, at_rest = pulls(samples, centre, {"mix_weight": 0.0, "fresh_noise": True}, points)
    torch.testing.assert_close(found, (centre - samples).flatten(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at_rest.mean(0), torch.zeros(2, dtype=F64), rtol=0, atol=1e-12)
    stopped, _ = pulls(samples, centre, {"mix_weight": 0.0, "fresh_noise": True, "x_fake_gradient": False}, points)
    assert float(stopped.abs().max()) == 0


def test_without_a_shift_apex_has_no_force(network):
    """Both branches are one, so the rectification's gradient is exactly 0; with the shift it is not."""
    points = mixture.modes(0)
    settings = {"rho": 0.0, "base_weight": 0.0}
    assert float(gradient(network, "apex", settings | {"a": 1.0}, points).abs().max()) == 0
    assert float(gradient(network, "apex", settings, points).abs().max()) > 0
