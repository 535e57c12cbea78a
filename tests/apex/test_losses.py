"""Every loss term against its formula, its gradient, and the optimum that Gaussian data give in closed form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from apex import losses
from apex.flow import endpoint, expand, guide, interpolate, score

F64 = torch.float64
READINGS = ["t(1-t)", "t^3/(1-t)", "t^2"]
TIME = st.floats(0.01, 0.99)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def gradients(loss: Tensor, parameters) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(parameters)))


# ------------------------------------------------------------------------------------------------ flow matching


def test_mean_square_is_per_sample_whatever_the_shape():
    d = normal(3, 2, 4, 5)
    torch.testing.assert_close(losses.mean_square(d), torch.stack([(row**2).mean() for row in d]))
    assert losses.mean_square(d[:, 0, 0, 0:1]).shape == (3,)


def test_flow_matching_is_zero_at_the_velocity_and_differentiable():
    x0, noise = normal(2, 3), normal(2, 3, seed=1)
    assert losses.flow_matching(noise - x0, x0, noise).abs().max() == 0
    assert losses.flow_matching(x0 - noise, x0, noise).min() > 0.1  # the other sign is far off
    assert gradcheck(lambda f: losses.flow_matching(f, x0, noise), normal(2, 3, seed=2).requires_grad_())


class Affine:
    """F = slope x_t + shift at one time, with the expectation over Gaussian data and noise taken by quadrature."""

    def __init__(self, hermite, data, t: float) -> None:
        nodes, weights = hermite
        x, z = torch.meshgrid(data.mean + data.std * nodes, nodes, indexing="ij")
        self.x0, self.noise = x.reshape(-1, 1), z.reshape(-1, 1)
        self.weights = (weights[:, None] * weights).reshape(-1)
        self.t = torch.full((len(self.x0),), t, dtype=F64)
        self.x_t = interpolate(self.x0, self.noise, self.t)

    def gradient_at(self, optimum, loss_of) -> tuple[float, float]:
        """Sizes of the expected loss's gradient at `optimum` (a function of x_t), and next to it."""
        found = []
        for off in (0.0, 0.1):
            shift, slope = torch.tensor([off, off], dtype=F64, requires_grad=True).unbind()
            predicted = optimum(self.x_t, self.t) + shift + slope * self.x_t
            g = torch.autograd.grad((loss_of(predicted) * self.weights).sum(), [shift, slope])
            found.append(float(torch.stack(g).norm()))
        return found[0], found[1]


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9, 1.0])
def test_flow_matching_is_minimal_at_the_marginal_velocity(hermite, gaussian, t: float):
    world = Affine(hermite, gaussian, t)
    at, beside = world.gradient_at(gaussian.velocity, lambda f: losses.flow_matching(f, world.x0, world.noise))
    assert at < 1e-12 < 1e-2 < beside


def test_at_time_one_flow_matching_teaches_the_mean_image(hermite, gaussian):
    """What Eq. 25 alone gives at one step: F = z - E[x], so z - F is the mean, whatever the noise."""
    world = Affine(hermite, gaussian, 1.0)
    at, _ = world.gradient_at(lambda x, t: x - gaussian.mean, lambda f: losses.flow_matching(f, world.x0, world.noise))
    assert at < 1e-12


# ------------------------------------------------------------------------------------------ the paper's objective


@given(t=st.floats(1e-6, 1 - 1e-6))
def test_mix_weight_is_t_squared_over_the_reading_of_w(t: float):
    time = times(t)
    for reading, w in zip(READINGS, [t / (1 - t), (1 - t) / t, 1.0], strict=True):
        torch.testing.assert_close(losses.mix_weight(time, reading), times(t**2 / w), rtol=1e-12, atol=0)


def test_mix_weight_refuses_another_reading():
    with pytest.raises(ValueError, match="unknown reading of w"):
        losses.mix_weight(times(0.5), "t")


@pytest.mark.parametrize("reading", READINGS)
@given(lam=st.floats(0, 1), t=st.lists(TIME, min_size=3, max_size=3), seed=st.integers(0, 100))
def test_theorem_1(make_toy, make_condition, reading: str, lam: float, t: list[float], seed: int):
    """grad L_mix = grad G_APEX to float64 rounding, for every parameter, lambda, time and reading of w."""
    network, cond = make_toy(seed=seed), make_condition(3, dtype=F64)
    x0, noise, time = normal(3, 1, 2, 2, seed=seed), normal(3, 1, 2, 2, seed=seed + 1), times(*t)
    x_t, v_fake = interpolate(x0, noise, time), normal(3, 1, 2, 2, seed=seed + 2)
    predicted = network(x_t, time, cond)
    mix = losses.mix_loss(predicted, v_fake, x0, x_t, time, lam, reading).sum()
    joint = losses.joint_loss(predicted, v_fake, noise - x0, time, lam, reading).sum()
    by_mix = torch.autograd.grad(mix, network.parameters(), retain_graph=True)
    for a, b in zip(by_mix, gradients(joint, network.parameters()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(1.0, float(b.abs().max())))


@given(lam=st.floats(0, 1), t=TIME)
def test_the_two_objectives_differ_by_what_no_parameter_changes(lam: float, t: float):
    """||F - (1-lam) v - lam v'||^2 = (1-lam) ||F-v||^2 + lam ||F-v'||^2 - lam (1-lam) ||v-v'||^2."""
    x0, noise, predicted, v_fake = (normal(2, 3, seed=k) for k in range(4))
    time = times(t, t)
    mix = losses.mix_loss(predicted, v_fake, x0, interpolate(x0, noise, time), time, lam)
    joint = losses.joint_loss(predicted, v_fake, noise - x0, time, lam)
    constant = losses.mix_weight(time, "t(1-t)") * lam * (1 - lam) * losses.mean_square(noise - x0 - v_fake)
    torch.testing.assert_close(mix, joint - constant, rtol=1e-7, atol=1e-9)


def test_the_mixed_target_at_its_ends():
    x0, noise, v_fake, time = normal(2, 3), normal(2, 3, seed=1), normal(2, 3, seed=2), times(0.3, 0.8)
    x_t = interpolate(x0, noise, time)
    assert losses.mix_loss(noise - x0, v_fake, x0, x_t, time, 0.0).max() < 1e-28  # the data alone
    assert losses.mix_loss(v_fake, v_fake, x0, x_t, time, 1.0).max() < 1e-28  # the fake branch alone
    assert losses.mix_loss(v_fake, v_fake, x0, x_t, time, 0.0).min() > 1e-3
    assert losses.mix_loss(noise - x0, v_fake, x0, x_t, time, 1.0).min() > 1e-3


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_mix_is_minimal_at_the_mixture_of_the_velocities(hermite, gaussian, make_gaussian, lam: float, t: float):
    world, fake = Affine(hermite, gaussian, t), make_gaussian(-0.4, 0.9)
    v_fake = fake.velocity(world.x_t, world.t)
    at, beside = world.gradient_at(
        lambda x, s: (1 - lam) * gaussian.velocity(x, s) + lam * fake.velocity(x, s),
        lambda f: losses.mix_loss(f, v_fake, world.x0, world.x_t, world.t, lam),
    )
    assert at < 1e-12 < 1e-3 < beside


def test_no_gradient_enters_the_fake_branch_of_mix():
    x0, noise, time = normal(2, 3), normal(2, 3, seed=1), times(0.3, 0.8)
    x_t, f, v = interpolate(x0, noise, time), normal(2, 3, seed=2).requires_grad_(), normal(2, 3, seed=3).requires_grad_()
    for loss in (losses.mix_loss(f, v, x0, x_t, time, 0.4), losses.joint_loss(f, v, noise - x0, time, 0.4)):
        g_f, g_v = torch.autograd.grad(loss.sum(), [f, v], allow_unused=True)
        assert g_f.abs().min() > 0
        assert g_v is None


def test_mix_vanishes_with_its_gradient_at_time_zero():
    x0 = normal(1, 3)
    predicted = normal(1, 3, seed=1).requires_grad_()
    loss = losses.mix_loss(predicted, normal(1, 3, seed=2), x0, x0, times(0.0), 0.5)
    assert float(loss.detach()) == 0
    assert torch.autograd.grad(loss.sum(), predicted)[0].abs().max() == 0


@pytest.mark.parametrize("reading", READINGS)
def test_gradients_of_the_papers_terms_are_their_finite_differences(reading: str):
    x0, noise, v, time = normal(2, 3), normal(2, 3, seed=1), normal(2, 3, seed=2), times(0.3, 0.8)
    x_t = interpolate(x0, noise, time)
    f = normal(2, 3, seed=3).requires_grad_()
    assert gradcheck(lambda p: losses.mix_loss(p, v, x0, x_t, time, 0.4, reading), f)
    assert gradcheck(lambda p: losses.joint_loss(p, v, noise - x0, time, 0.4, reading), f)


def test_fake_loss_keeps_the_gradient_of_x_fake():
    prediction, x_fake = normal(2, 3, seed=1).requires_grad_(), normal(2, 3, seed=2).requires_grad_()
    noise = normal(2, 3)
    assert gradcheck(lambda p, x: losses.fake_loss(p, x, noise), (prediction, x_fake))
    assert losses.fake_loss(noise - x_fake, x_fake, noise).abs().max() < 1e-30
    g_p, g_x = torch.autograd.grad(losses.fake_loss(prediction, x_fake, noise).sum(), [prediction, x_fake])
    torch.testing.assert_close(g_x, g_p)  # F and x_fake enter with the same sign: F - (z - x_fake)


@pytest.mark.parametrize("t", [0.2, 0.6, 1.0])
def test_fake_branch_learns_the_velocity_of_the_students_own_distribution(hermite, gaussian, make_gaussian, t: float):
    """With fresh noise: x_fake = E[x | x_t] is Gaussian of spread (1-t) s^2 / sigma_t, and L_fake is minimal at its velocity."""
    sigma = float(gaussian.spread(times(t)))
    own = make_gaussian(gaussian.mean, (1 - t) * gaussian.std**2 / sigma)
    world = Affine(hermite, own, t)  # its data are x_fake
    at, beside = world.gradient_at(own.velocity, lambda f: losses.fake_loss(f, world.x0, world.noise))
    assert at < 1e-12 < 1e-2 < beside


def test_with_shared_noise_the_fake_loss_at_time_one_compares_the_two_branches():
    """L_fake = ||F(z, c_fake) - F(z, c)||^2 at t = 1: nothing there pulls the one-step sample off the mean."""
    noise, real, fake, one = normal(3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2), times(1, 1, 1)
    x_fake = endpoint(real, noise, one)
    assert torch.equal(interpolate(x_fake, noise, one), noise)
    torch.testing.assert_close(losses.fake_loss(fake, x_fake, noise), losses.mean_square(fake - real))


# ------------------------------------------------------------------------------------- the public code's objective


@given(size=st.floats(-6, 2), seed=st.integers(0, 50))
def test_adaptive_distance_and_its_gradient(size: float, seed: int):
    """Value mse / sqrt(mse + c^2) up to 1e-8; gradient that of mse times a constant, never longer than 2 / sqrt(n)."""
    c, target = 1e-3, normal(2, 5, seed=seed + 1)
    predicted = (target + 10**size * normal(2, 5, seed=seed)).requires_grad_()
    loss = losses.adaptive_distance(predicted, target)
    mse = losses.mean_square(predicted.detach() - target)
    torch.testing.assert_close(loss.detach(), mse / (mse + c**2).sqrt(), rtol=6e-3, atol=0)
    gradient = torch.autograd.grad(loss.sum(), predicted)[0]
    weight = ((mse / (c**2 + 1e-8) + 1) ** -0.5 / c)[:, None]
    torch.testing.assert_close(gradient, 2 * (predicted.detach() - target) / 5 * weight, rtol=1e-9, atol=1e-12)
    assert float(gradient.norm(dim=1).max()) <= 2 / math.sqrt(5) * 1.006


def test_adaptive_distance_is_zero_with_zero_gradient_at_the_target():
    target = normal(2, 5)
    predicted = target.clone().requires_grad_()
    loss = losses.adaptive_distance(predicted, target)
    assert loss.abs().max() == 0
    assert torch.autograd.grad(loss.sum(), predicted)[0].abs().max() == 0


@given(t=st.floats(0, 1), share=st.floats(0, 1))
def test_interval_weight_falls_from_an_instant_to_the_whole_interval(t: float, share: float):
    r = share * t
    weight = float(losses.interval_weight(times(t), times(r)))
    assert 1.0 - 1e-12 <= weight <= math.tan(math.pi / 2.5) + 1 + 1e-12
    assert weight >= float(losses.interval_weight(times(t), times(r * 0.9))) - 1e-12
    assert math.isclose(weight, math.tan((1 - (t - r)) * math.pi / 2.5) + 1, rel_tol=1e-12)


def test_interval_weight_at_its_ends():
    assert float(losses.interval_weight(times(1.0), times(0.0))) == 1.0
    assert math.isclose(float(losses.interval_weight(times(0.4), times(0.4))), 4.0776835, rel_tol=1e-7)


@given(scale=st.floats(0, 8))
def test_guided_velocity_with_the_teacher_is_guidance_one_plus_rho(scale: float):
    with_c, without_c = normal(2, 3), normal(2, 3, seed=1)
    torch.testing.assert_close(losses.guided_velocity(with_c, with_c, without_c, scale), guide(with_c, without_c, 1 + scale))


@pytest.mark.parametrize("rho", [0.3, 0.8])
def test_guided_velocity_with_the_network_itself_compounds(rho: float):
    """Fixed point F(c) = v + rho (F(c) - F(null)), F(null) = v_null: guidance 1 / (1 - rho), so 5 for rho = 0.8."""
    v, v_null = normal(2, 3), normal(2, 3, seed=1)
    f = v
    for _ in range(400):
        f = losses.guided_velocity(v, f, v_null, rho)
    torch.testing.assert_close(f, guide(v, v_null, 1 / (1 - rho)), rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------ recursive consistency


def residual(gaussian, step: float, order: int, t: Tensor, r: Tensor, x_t: Tensor) -> Tensor:
    return losses.recursive_residual(
        gaussian.average_velocity(x_t, t, r),
        lambda x, now, following, index: gaussian.average_velocity(x, now, following),
        x_t,
        t,
        r,
        gaussian.velocity(x_t, t),
        order=order,
        step=step,
    )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_residual_of_the_exact_flow_map_vanishes_at_first_order(gaussian, order: int):
    """With the marginal velocity as v_hat: zero up to O(D), halving with D."""
    t, r, x_t = times(1.0, 0.8, 0.5, 0.9), times(0.0, 0.1, 0.2, 0.85), normal(4, 6)
    sizes = [residual(gaussian, d, order, t, r, x_t).abs().amax(1) for d in (0.01, 0.005, 0.0025)]
    assert float(sizes[0].max()) < 0.1
    for coarse, fine in pairwise(sizes):
        assert torch.all((coarse / fine > 1.8) & (coarse / fine < 2.2))


def test_the_residual_of_a_wrong_map_does_not_vanish(gaussian, make_gaussian):
    t, r, x_t = times(1.0, 0.8), times(0.0, 0.1), normal(2, 6)
    own = make_gaussian(gaussian.mean, 2 * gaussian.std).average_velocity(x_t, t, r)
    found = losses.recursive_residual(
        own, lambda x, now, following, index: gaussian.average_velocity(x, now, following), x_t, t, r, gaussian.velocity(x_t, t), step=1e-3
    )
    assert float(losses.mean_square(found).min()) > 1


def test_order_one_tends_to_the_meanflow_identity(make_toy, make_condition):
    """R -> F - (v - (t - r) dF/dt) as D -> 0 for any network; dF/dt by forward-mode differentiation along (v, 1, 0)."""
    network, cond = make_toy(), make_condition(3, dtype=F64)
    t, r = times(0.9, 0.6, 1.0), times(0.2, 0.5, 0.0)
    x_t, v = normal(3, 1, 2, 2), normal(3, 1, 2, 2, seed=1)
    network.requires_grad_(False)
    own, slope = torch.func.jvp(lambda x, s: network(x, s, cond, r), (x_t, t), (v, torch.ones_like(t)))
    expected = own - (v - expand(t - r, x_t) * slope)
    assert float((slope * expand(t - r, x_t)).abs().min()) > 1e-4  # the term that a wrong sign would turn

    def error(step: float) -> float:
        advance = lambda x, now, following, index: network(x, now, cond[index], following)  # noqa: E731
        return float((losses.recursive_residual(own, advance, x_t, t, r, v, step=step) - expected).abs().max())

    assert error(1e-4) < 1e-3
    assert 1.8 < error(1e-3) / error(5e-4) < 2.2


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_residual_leg_by_leg(make_toy, make_condition, order: int):
    """Each sample on its own, as method.md writes it, in a batch that mixes long and short intervals."""
    network, cond, step = make_toy(), make_condition(4, dtype=F64), 0.05
    t, r = times(0.9, 0.5, 1.0, 0.3), times(0.2, 0.48, 0.0, 0.3)
    x_t, v = normal(4, 1, 2, 2), normal(4, 1, 2, 2, seed=1)
    own = network(x_t, t, cond, r)
    calls = []

    def advance(x, now, following, index):
        calls.append(index.tolist())
        return network(x, now, cond[index], following)

    with torch.no_grad():
        found = losses.recursive_residual(own, advance, x_t, t, r, v, order=order, step=step)
        expected = []
        for i in range(4):
            if t[i] - r[i] < step:
                expected.append((own - v)[i])
                continue
            now, x, total = t[i] - step, x_t[i : i + 1] - step * v[i : i + 1], 0
            leg = (now - r[i]) / order
            for _ in range(order):
                f = network(x, now[None], cond[i : i + 1], (now - leg)[None])
                total, x, now = total + leg * f, x - leg * f, now - leg
            expected.append((((t[i] - r[i]) * own[i : i + 1] - total) / step - v[i : i + 1])[0])
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)
    assert calls == [[0, 2]] * order  # short intervals cost nothing


def test_short_intervals_spend_no_pass_and_the_residual_has_no_gradient():
    own = normal(2, 3).requires_grad_()

    def never(*_):
        raise AssertionError("a pass was spent")

    found = losses.recursive_residual(own, never, normal(2, 3), times(0.5, 0.5), times(0.495, 0.5), normal(2, 3, seed=2))
    assert not found.requires_grad
    torch.testing.assert_close(found, own.detach() - normal(2, 3, seed=2))


@given(t=st.floats(0.0, 1.0), share=st.floats(0, 1))
def test_the_residual_is_finite_for_every_interval(gaussian, t: float, share: float):
    t, r = times(max(t, 1e-6)), times(max(t, 1e-6) * share)
    assert torch.isfinite(residual(gaussian, 0.01, 2, t, r, normal(1, 3))).all()


# ------------------------------------------------------------------------------------------------ rectification


@pytest.mark.parametrize(("fake_mean", "fake_std"), [(-0.5, 0.6), (2.0, 0.6), (0.7, 0.2), (0.7, 1.5)])
def test_rectification_moves_samples_toward_the_real_distribution(gaussian, make_gaussian, fake_mean: float, fake_std: float):
    """One descent step on F moves x = z - F along score_real - score_fake at the re-noised sample."""
    fake, s = make_gaussian(fake_mean, fake_std), torch.full((64,), 0.4, dtype=F64)
    x_s = interpolate(fake.mean + fake.std * normal(64, 3), normal(64, 3, seed=1), s)
    v_real, v_fake = gaussian.velocity(x_s, s), fake.velocity(x_s, s)
    f = normal(64, 3, seed=2).requires_grad_()
    step = -torch.autograd.grad(losses.rectification(f, v_fake, v_real, clip=1e9).sum(), f)[0]
    moved = -step  # x = z - F
    wanted = score(v_real, x_s, s) - score(v_fake, x_s, s)
    assert float(torch.nn.functional.cosine_similarity(moved, wanted, dim=1).min()) > 1 - 1e-9


def test_rectification_at_the_optimum_and_its_clip():
    f, real = normal(4, 3).requires_grad_(), normal(4, 3, seed=1)
    at = losses.rectification(f, real, real)
    assert at.abs().max() == 0
    assert torch.autograd.grad(at.sum(), f)[0].abs().max() == 0
    far = losses.rectification(f, real + 100.0, real, clip=0.5)
    torch.testing.assert_close(far, losses.rectification(f, real + 0.5, real, clip=9.0))
    signs = torch.sign(normal(4, 3, seed=2))
    gradient = torch.autograd.grad(losses.rectification(f, real + signs, real).sum(), f)[0]
    assert torch.equal(torch.sign(gradient), signs)


def test_rectification_sends_no_gradient_into_its_branches():
    f, real, fake = (normal(2, 3, seed=k).requires_grad_() for k in range(3))
    grads = torch.autograd.grad(losses.rectification(f, fake, real).sum(), [f, real, fake], allow_unused=True)
    assert grads[0].abs().min() > 0
    assert grads[1] is None and grads[2] is None
