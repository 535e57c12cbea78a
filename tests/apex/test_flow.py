"""Paths and samplers against closed forms: the ODE of a Gaussian has an exact solution."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from apex import flow

F64 = torch.float64
UNIT = st.floats(0, 1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# -------------------------------------------------------------------------------------------------- conventions


def test_time_one_is_noise_and_time_zero_is_data():
    x0, noise = normal(3, 2, 2, 2), normal(3, 2, 2, 2, seed=1)
    assert torch.equal(flow.interpolate(x0, noise, torch.ones(3, dtype=F64)), noise)
    assert torch.equal(flow.interpolate(x0, noise, torch.zeros(3, dtype=F64)), x0)


@given(t=UNIT, u=UNIT)
def test_velocity_is_the_derivative_of_the_path(t: float, u: float):
    x0, noise = normal(2, 3), normal(2, 3, seed=1)
    at = [flow.interpolate(x0, noise, torch.full((2,), s, dtype=F64)) for s in (t, u)]
    torch.testing.assert_close(at[1] - at[0], (u - t) * (noise - x0), atol=1e-14, rtol=1e-12)


@given(t=UNIT)
def test_endpoint_of_the_true_velocity_is_the_data(t: float):
    x0, noise = normal(2, 1, 3, 3), normal(2, 1, 3, 3, seed=1)
    time = torch.full((2,), t, dtype=F64)
    x_t = flow.interpolate(x0, noise, time)
    torch.testing.assert_close(flow.endpoint(noise - x0, x_t, time), x0, atol=1e-14, rtol=1e-12)


def test_each_sample_has_its_own_time():
    x0, noise, t = normal(3, 2, 2, 2), normal(3, 2, 2, 2, seed=1), torch.tensor([0.0, 0.25, 1.0], dtype=F64)
    x_t = flow.interpolate(x0, noise, t)
    for i in range(3):
        assert torch.equal(x_t[i], flow.interpolate(x0[i : i + 1], noise[i : i + 1], t[i : i + 1])[0])


@given(t=st.floats(1e-3, 1), mean=st.floats(-3, 3), std=st.floats(0.05, 3))
def test_score_follows_from_the_velocity(make_gaussian, t: float, mean: float, std: float):
    """Eq. 5 to rounding, for every Gaussian and time."""
    target = make_gaussian(mean, std)
    x_t, time = normal(4, 2) * 3, torch.full((4,), t, dtype=F64)
    torch.testing.assert_close(flow.score(target.velocity(x_t, time), x_t, time), target.score(x_t, time), rtol=1e-9, atol=1e-9)


def test_guidance_scale_one_is_the_conditional_and_zero_the_unconditional():
    with_c, without_c = normal(2, 3), normal(2, 3, seed=1)
    torch.testing.assert_close(flow.guide(with_c, without_c, 1.0), with_c, atol=1e-15, rtol=1e-14)
    assert torch.equal(flow.guide(with_c, without_c, 0.0), without_c)
    torch.testing.assert_close(flow.guide(with_c, without_c, 2.5) - with_c, 1.5 * (with_c - without_c))


# ---------------------------------------------------------------------------------------------------- time grids


@given(st.lists(st.floats(0, 1, exclude_min=True), min_size=1, max_size=8, unique=True))
def test_a_falling_grid_is_closed_with_zero(times: list[float]):
    falling = sorted(times, reverse=True)
    assert flow.time_grid(falling) == [*falling, 0.0]


@pytest.mark.parametrize("bad", [[], [0.0], [1.0, 0.0], [1.1], [-0.5], [0.5, 1.0], [0.5, 0.5], [math.nan], [1.0, math.nan]])
def test_a_grid_that_does_not_fall_in_range_is_refused(bad: list[float]):
    with pytest.raises(ValueError, match="must decrease"):
        flow.time_grid(bad)


@given(st.integers(1, 200))
def test_uniform_sigmas_are_even_and_end_one_step_above_zero(steps: int):
    grid = flow.time_grid(flow.uniform_sigmas(steps))
    assert grid[0] == 1.0
    assert len(grid) == steps + 1
    assert all(math.isclose(a - b, 1 / steps, rel_tol=1e-9) for a, b in pairwise(grid))


# ------------------------------------------------------------------------------------------------------ samplers


@pytest.mark.parametrize("mode", ["few", "any", "multi"])
def test_one_step_is_noise_minus_the_velocity_at_time_one(mode: str):
    noise, seen = normal(3, 1, 2, 2), []

    def network(x, t, r):
        seen.append((x, t, r))
        return 3 * x + 1

    out = flow.sample(network, noise, [1.0], mode=mode)
    torch.testing.assert_close(out, noise - (3 * noise + 1))
    ((x, t, r),) = seen
    assert torch.equal(x, noise)
    assert t.tolist() == [1.0] * 3
    assert r.tolist() == [1.0 if mode == "multi" else 0.0] * 3


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("few", [(1, 0), (0.5, 0), (0.25, 0)]), ("any", [(1, 0.5), (0.5, 0.25), (0.25, 0)]), ("multi", [(1, 1), (0.5, 0.5), (0.25, 0.25)])],
)
def test_times_given_to_the_network(mode: str, expected: list[tuple[float, float]]):
    seen = []

    def network(x, t, r):
        assert not torch.is_grad_enabled()
        seen.append((float(t[0]), float(r[0])))
        return torch.zeros_like(x, requires_grad=True)

    flow.sample(network, normal(2, 3), [1.0, 0.5, 0.25], mode=mode, fresh=[normal(2, 3), normal(2, 3)])
    assert seen == expected


@given(st.lists(st.floats(0.02, 0.98), max_size=5, unique_by=lambda s: round(s, 2)))
def test_any_step_sampling_with_the_exact_flow_map_is_exact_on_every_grid(gaussian, inner: list[float]):
    noise, sigmas = normal(4, 2), [1.0, *sorted(inner, reverse=True)]
    out = flow.sample(lambda x, t, r: gaussian.average_velocity(x, t, r), noise, sigmas, mode="any")
    torch.testing.assert_close(out, gaussian.mean + gaussian.std * noise, atol=1e-12, rtol=1e-12)


def test_multi_step_sampling_converges_to_the_ode_at_first_order(gaussian):
    noise = normal(64, 2)
    exact = gaussian.flow_map(noise, torch.ones(64, dtype=F64), torch.zeros(64, dtype=F64))

    def error(steps: int) -> float:
        out = flow.sample(lambda x, t, r: gaussian.velocity(x, t), noise, flow.uniform_sigmas(steps), mode="multi")
        return float((out - exact).abs().max())

    errors = [error(n) for n in (50, 100, 200, 400)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert errors[-1] < 1e-2
    assert all(0.9 < order < 1.1 for order in orders), orders


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 0.6], [1.0, 0.85, 0.6, 0.3]])
def test_few_step_sampling_with_the_exact_flow_map_keeps_the_distribution(gaussian, sigmas: list[float]):
    """The sampler is linear in its noises here, so mean and variance follow exactly from one run per noise."""
    noises = len(sigmas)

    def run(values: list[float]) -> float:
        each = [torch.full((1, 1), v, dtype=F64) for v in values]
        network = lambda x, t, r: gaussian.average_velocity(x, t, r)  # noqa: E731
        return float(flow.sample(network, each[0], sigmas, mode="few", fresh=each[1:]))

    mean = run([0.0] * noises)
    shares = [run([float(i == k) for i in range(noises)]) - mean for k in range(noises)]
    assert math.isclose(mean, gaussian.mean, abs_tol=1e-6)
    assert math.isclose(sum(s**2 for s in shares), gaussian.std**2, abs_tol=1e-6)
    assert all(abs(s) > 1e-3 for s in shares)


@pytest.mark.parametrize("mode", ["few", "multi"])
def test_the_stock_scheduler_takes_the_same_steps(mode: str):
    """diffusers' FlowMatchEulerDiscreteScheduler with explicit sigmas; stochastic_sampling is our "few"."""
    sigmas, noise = [1.0, 0.7, 0.2], normal(2, 1, 2, 2).float()
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0, stochastic_sampling=mode == "few")
    scheduler.set_timesteps(sigmas=sigmas)
    generator = torch.Generator().manual_seed(5)
    x = noise
    for time in scheduler.timesteps:
        x = scheduler.step(torch.sin(3 * x) + time / 1000, time, x, generator=generator, return_dict=False)[0]

    generator = torch.Generator().manual_seed(5)
    fresh = [torch.randn(noise.shape, generator=generator) for _ in sigmas[1:]]
    ours = flow.sample(lambda y, t, r: torch.sin(3 * y) + flow.expand(t, y), noise, sigmas, mode=mode, fresh=fresh)
    torch.testing.assert_close(ours, x, atol=2e-6, rtol=1e-5)


def test_a_sampler_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="unknown sampling mode 'euler'"):
        flow.sample(lambda x, t, r: x, normal(1, 1), [1.0], mode="euler")
    with pytest.raises(ValueError, match="needs 2 fresh noises, found 1"):
        flow.sample(lambda x, t, r: x, normal(1, 1), [1.0, 0.5, 0.2], mode="few", fresh=[normal(1, 1)])
    with pytest.raises(ValueError, match="must decrease"):
        flow.sample(lambda x, t, r: x, normal(1, 1), [0.5, 1.0], mode="any")
