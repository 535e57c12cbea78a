"""lcm, pcm, ctm, scm and meanflow: zero at the exact solution, the published gradient beside it, and where their times lie."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from apex import losses, methods
from apex.flow import endpoint, expand, guide, interpolate, sample, uniform_sigmas
from apex.testbed import GaussianFlow

F64 = torch.float64
UNIT = st.floats(0.0, 1.0)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def mse(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


def make(name: str, **params):
    return methods.get(name)(params)


# ---------------------------------------------------------------------------------------------------- the test's own truth


def test_the_exact_flow_of_the_testbed_is_that_of_these_tests(make_batch, make_exact):
    """And the velocity is the derivative of the flow map: psi(x, t -> t - h) = x - h F + O(h^2)."""
    batch, t = make_batch(6), times(0.05, 0.3, 0.5, 0.7, 0.95, 1.0)
    x_t = interpolate(batch.x0, normal(6, 2, 1, 1), t)
    flow = GaussianFlow().double().exact(x_t, t, batch.cond.embeds[:, 0, 0].long())
    with torch.no_grad():
        torch.testing.assert_close(make_exact("t")(x_t, t, batch.cond), flow)
        whole = [losses.jump(make_exact("r")(x_t, t, batch.cond, t - h), x_t, t, t - h) for h in (1e-2, 5e-3)]
    off = [float((x - (x_t - h * flow)).norm()) for x, h in zip(whole, (1e-2, 5e-3), strict=True)]
    assert 3.6 < off[0] / off[1] < 4.4
    r = 0.3 * t
    with torch.no_grad():  # a flow: in two jumps as in one
        middle = losses.jump(make_exact("r")(x_t, t, batch.cond, r), x_t, t, r)
        end = losses.jump(make_exact("r")(middle, r, batch.cond, 0 * r), middle, r, 0 * r)
        torch.testing.assert_close(end, endpoint(make_exact("zero")(x_t, t, batch.cond), x_t, t))


# ----------------------------------------------------------------------------------------------------------- loss terms


@given(s=st.floats(0.0, 0.99), share=UNIT)
def test_renoising_gives_the_paths_own_mean_and_variance(s: float, share: float):
    """x_s = (1 - s) x + s z, so the mean's share must become 1 - s' and the noise's variance s'^2."""
    start, until = times(s), times(s + share * (1 - s))
    x, z = times(1.0)[None], times(1.0)[None]
    signal = losses.renoised((1 - start) * x, 0 * z, start, until)
    old, new = losses.renoised(start * z, 0 * z, start, until), losses.renoised(0 * x, z, start, until)
    torch.testing.assert_close(signal[0], 1 - until)
    # b is the root of a difference: what is lost there is the difference's rounding
    torch.testing.assert_close(old[0] ** 2 + new[0] ** 2, until**2, rtol=1e-12, atol=1e-12)


def test_renoising_to_the_same_time_changes_nothing_and_from_zero_it_is_the_path():
    x, z, s, until = normal(3, 2, 1, 1), normal(3, 2, 1, 1, seed=1), times(0.0, 0.4, 0.9), times(0.3, 0.5, 0.95)
    torch.testing.assert_close(losses.renoised(x, z, s, s), x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(losses.renoised(x, z, 0 * s, until), interpolate(x, z, until))


@pytest.mark.parametrize(("data_std", "moved"), [(0.5, 0.6931471805599453), (1.0, 0.0)])
def test_trigflow_times_are_flow_times_with_their_logarithm_moved(data_std: float, moved: float):
    """TrigFlow draws tan = exp(m + s n) / std; its signal and noise have shares cos and sin of one scale, so t = sin / (sin + cos)."""
    n = normal(200)
    angle = torch.atan(torch.exp(0.2 + 1.6 * n) / data_std)
    torch.testing.assert_close(losses.logit_normal(n, 0.2 + moved, 1.6), torch.sin(angle) / (torch.sin(angle) + torch.cos(angle)))


def test_the_default_times_are_the_published_ones_in_flow_time():
    """Sana-Sprint: log-normal (0.2, 1.6) for consistency, (-0.6, 1) for the discriminator, data of standard deviation 1/2."""
    for name in ("scm", "sana-sprint"):
        p = make(name).params
        assert abs(p.time_mean - (0.2 + 0.6931)) < 5e-3 and p.time_std == 1.6
    for name in ("ladd", "sana-sprint"):
        p = make(name).params
        assert abs(p.noise_mean - (-0.6 + 0.6931)) < 5e-3 and p.noise_std == 1.0


def along(network, x_t: Tensor, t: Tensor, cond, r: Tensor | None, v: Tensor, h: float = 1e-5) -> Tensor:
    """dF/dt along (v, 1) with r fixed, or with r = t where it is None: a central difference."""
    with torch.no_grad():
        ahead, behind = (network(x_t + k * v, t + k, cond, r) for k in (h, -h))
    return (ahead - behind) / (2 * h)


def test_the_backward_difference_tends_to_the_derivative_at_first_order(make_smooth, make_batch, make_nets):
    network, batch = make_smooth(1), make_batch(5)
    t, r = times(0.9, 0.6, 1.0, 0.4, 0.7), times(0.1, 0.3, 0.0, 0.2, 0.5)
    x_t, v = normal(5, 2, 1, 1), normal(5, 2, 1, 1, seed=1)
    exact = make_nets(network).student.jvp(x_t, t, batch.cond, r, (v, torch.ones_like(t), torch.zeros_like(t)))[1]
    torch.testing.assert_close(exact, along(network, x_t, t, batch.cond, r, v), rtol=1e-6, atol=1e-8)
    own = network(x_t, t, batch.cond, r)

    @torch.no_grad()
    def error(step: float) -> float:
        found = losses.backward_difference(lambda x, now: network(x, now, batch.cond, r), own, x_t, t, r, v, step)
        assert not found.requires_grad
        return float((found - exact).norm())

    sizes = [error(h) for h in (4e-3, 2e-3, 1e-3)]
    assert sizes[-1] < 0.02 * float(exact.norm())
    assert all(1.8 < coarse / fine < 2.2 for coarse, fine in pairwise(sizes))


def test_the_backward_difference_stays_in_its_interval_and_is_zero_without_one():
    seen = []

    def network(x: Tensor, now: Tensor) -> Tensor:
        seen.append(now.clone())
        return expand(now, x) ** 2 + 0 * x

    t, r, v = times(0.9, 0.502, 0.5), times(0.1, 0.5, 0.5), normal(3, 2, 1, 1)
    x_t = normal(3, 2, 1, 1, seed=1)
    found = losses.backward_difference(network, network(x_t, t), x_t, t, r, v, 0.1)
    torch.testing.assert_close(seen[1], times(0.8, 0.5, 0.5))
    # of t^2: [t^2 - (t - h)^2] / h = 2 t - h
    torch.testing.assert_close(found[:, 0, 0, 0], times(1.7, 1.002, 0.0))


def test_the_tangent_is_how_the_clean_estimate_moves_along_the_ode(make_smooth, make_batch):
    """g = d/dt [x_t - t F(x_t, t)] with dx/dt = v_hat."""
    network, batch, t = make_smooth(1), make_batch(4), times(0.2, 0.5, 0.8, 1.0)
    x_t, v, h = normal(4, 2, 1, 1), normal(4, 2, 1, 1, seed=1), 1e-5
    with torch.no_grad():
        f = [endpoint(network(x_t + k * v, t + k, batch.cond), x_t + k * v, t + k) for k in (h, -h)]
        own = network(x_t, t, batch.cond)
    slope = along(network, x_t, t, batch.cond, None, v)
    torch.testing.assert_close(losses.consistency_tangent(own, v, slope, t), (f[0] - f[1]) / (2 * h), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(own + losses.consistency_tangent(own, v, slope, t, warm=0.0), v)  # without its derivative: v_hat


def test_without_its_norm_the_tangents_target_is_meanflows_at_r_zero():
    (own, v, slope), t = (normal(4, 2, 1, 1, seed=k) for k in range(3)), times(0.2, 0.5, 0.8, 1.0)
    torch.testing.assert_close(
        own + losses.consistency_tangent(own, v, slope, t), losses.average_velocity_target(v, slope, t, torch.zeros_like(t))
    )


@given(size=st.floats(-6, 4), c=st.floats(0.01, 2))
def test_a_normalised_tangent_keeps_its_direction_and_stays_below_one(size: float, c: float):
    g = 10**size * normal(2, 3, 2, 2)
    rms = g.square().flatten(1).mean(1).sqrt()
    found = losses.normalised(g, c, "rms")
    torch.testing.assert_close(found, g / expand(rms + c, g))
    assert float(mse(found).max()) < 1
    # the L2 norm is sqrt(n) times as long, so c counts 1 / sqrt(n) of what it does beside the RMS
    torch.testing.assert_close(losses.normalised(g, c, "l2"), losses.normalised(g, c / 12**0.5, "rms") / 12**0.5)


def test_a_tangent_of_zero_stays_zero():
    assert losses.normalised(torch.zeros(2, 3), 0.1, "rms").abs().max() == 0
    assert losses.normalised(torch.zeros(2, 3), 0.1, "l2").abs().max() == 0


@given(power=st.floats(0, 2), size=st.floats(-3, 2))
def test_the_adaptive_weight_scales_the_squared_norms_gradient(power: float, size: float):
    d = (10**size * normal(2, 3, 2, 2)).requires_grad_()
    found = losses.self_weighted(d, power, 0.01)
    square = d.detach().square().flatten(1).sum(1)
    torch.testing.assert_close(found.detach(), square / (square + 0.01) ** power)
    gradient = torch.autograd.grad(found.sum(), d)[0]
    torch.testing.assert_close(gradient, 2 * d.detach() / expand((square + 0.01) ** power, d))


def test_with_power_one_every_far_sample_pulls_alike():
    """||d||^2 / sg(||d||^2 + eps): the pull is 2 ||d|| / (||d||^2 + eps), at most 1 / sqrt(eps)."""
    d = (times(1e-3, 0.1, 1.0, 1e3)[:, None] * torch.tensor([[0.6, 0.8]], dtype=F64)).requires_grad_()
    pull = torch.autograd.grad(losses.self_weighted(d, 1.0, 0.01).sum(), d)[0].norm(dim=1)
    torch.testing.assert_close(pull, times(2e-3 / (1e-6 + 0.01), 10.0, 2 / 1.01, 2e3 / (1e6 + 0.01)))


def test_the_adaptive_ratio_is_that_of_the_two_gradients():
    weight, x, y = normal(2, 3).requires_grad_(), normal(3, seed=1), normal(2, seed=2)
    first, second = (weight @ x * y).sum(), 7 * weight.sum()
    found = losses.adaptive_ratio(first, second, weight)
    assert not found.requires_grad
    torch.testing.assert_close(float(found), float(torch.outer(y, x).norm() / (7 * 6**0.5 + 1e-4)), rtol=1e-6, atol=0)
    assert float(losses.adaptive_ratio(1e6 * first, 0.0 * second, weight)) == 1e4
    (first + second).backward()  # both graphs are kept


# ------------------------------------------------------------------------------------------------------------------ lcm

SOLVERS = [
    ("lcm", {"steps": 8}),
    ("lcm", {"steps": 8, "distance": "mse", "target_network": "online"}),
    ("pcm", {"steps": 8, "phases": 1, "adversarial": 0.0}),
    ("pcm", {"steps": 8, "phases": 2, "adversarial": 0.0}),
    ("pcm", {"steps": 8, "phases": 8, "adversarial": 0.0}),
    ("ctm", {"steps": 8, "flow_matching": 0.0}),
    ("ctm", {"steps": 8, "flow_matching": 0.0, "solver_steps": 3}),
    ("ctm", {"steps": 8, "flow_matching": 0.0, "solver_steps": 8, "distance": "huber"}),
]


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize(("name", "params"), SOLVERS, ids=str)
def test_the_map_of_the_teachers_own_solver_has_loss_and_gradient_zero(
    make_exact, make_solved, make_batch, make_nets, gradients, name: str, params: dict, guidance: float
):
    """The student that jumps to where the guided teacher's Euler steps lead, to the phase's edge in `pcm`, to r in `ctm`."""
    teacher = make_exact("t")
    student = make_solved(teacher, 8, guidance, params.get("phases", 1))
    method = make(name, guidance=guidance, **params)
    # Over all phases and all of the grid.
    loss = method.losses(make_batch(64), make_nets(student, teacher=teacher), 0).losses["student"]
    assert float(loss.detach()) < 1e-20
    assert float(gradients(loss, student).norm()) < 1e-9
    beside = make_solved(teacher, 8, guidance, params.get("phases", 1))
    torch.nn.init.constant_(beside.shift, 0.1)
    loss = method.losses(make_batch(64), make_nets(beside, teacher=teacher), 0).losses["student"]
    assert float(loss.detach()) > 1e-5
    assert float(gradients(loss, beside).norm()) > 1e-4


@pytest.mark.parametrize(("name", "params"), [("lcm", {}), ("pcm", {"adversarial": 0.0}), ("ctm", {"flow_matching": 0.0})], ids=str)
def test_at_the_exact_flow_map_what_is_left_is_the_solvers_error(make_exact, make_batch, make_nets, name: str, params: dict):
    """One Euler step is off by h^2, so the mean square falls by 16 when h is halved; t is at the same places."""
    student = make_exact("r" if name == "ctm" else "zero")

    def left(steps: int) -> float:
        method = make(name, steps=steps, guidance=1.0, distance="mse", **params)
        batch = make_batch(4)
        batch.given = [times(0.25, 0.5, 0.75, 1.0) - 0.5 / steps, times(0.0, 0.0, 0.0, 0.0)]  # t, and r = 0
        return float(method.losses(batch, make_nets(student), 0).losses["student"].detach())

    sizes = [left(steps) for steps in (32, 64, 128)]
    assert 0 < sizes[0] < 1e-3
    assert all(14 < coarse / fine < 18 for coarse, fine in pairwise(sizes))


def solver_step(batch, steps: int, teacher, guidance: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_t, t, x_u, u from what the batch drew: index U of the grid, then noise."""
    index = (batch.uniforms[0] * steps).floor()
    t, u = (index + 1) / steps, index / steps
    x_t = interpolate(batch.x0, batch.noises[0], t)
    v = guide(teacher(x_t, t, batch.cond), teacher(x_t, t, batch.null), guidance)
    return x_t, t, x_t - v / steps, u


@pytest.mark.parametrize("network", ["ema", "online"])
@pytest.mark.parametrize("distance", ["mse", "huber"])
def test_lcm_draws_the_clean_estimate_to_that_of_the_next_point(make_smooth, make_batch, make_nets, gradients, distance: str, network: str):
    student, ema, teacher, batch = make_smooth(1), make_smooth(2), make_smooth(3), make_batch(6)
    method = make("lcm", steps=8, guidance=2.5, distance=distance, huber_scale=0.5, target_network=network)
    loss = method.losses(batch, make_nets(student, ema, teacher), 0).losses["student"]
    with torch.no_grad():
        x_t, t, x_u, u = solver_step(batch, 8, teacher, 2.5)
        target = endpoint((ema if network == "ema" else student)(x_u, u, batch.cond), x_u, u)
    predicted = student(x_t, t, batch.cond)
    e = endpoint(predicted.detach(), x_t, t) - target
    value = e.square() if distance == "mse" else (e.square() + 0.25).sqrt() - 0.5
    torch.testing.assert_close(loss.detach(), value.mean())
    slope = 2 * e if distance == "mse" else e / (e.square() + 0.25).sqrt()
    pull = -expand(t, e) * slope / e.numel()  # the clean estimate is x_t - t F
    torch.testing.assert_close(gradients(loss, student), gradients(predicted, student, pull))
    assert float(pull.norm()) > 1e-3


@pytest.mark.parametrize("name", ["lcm", "pcm"])
def test_times_are_all_of_the_grid_and_neighbours(make_smooth, make_batch, make_nets, name: str):
    nets = make_nets(make_smooth(1))
    make(name, steps=8, **({"adversarial": 0.0} if name == "pcm" else {})).losses(make_batch(400), nets, 0)
    (t, _), (u, _) = nets.student.calls[0], nets.ema.calls[0]
    assert sorted(set(t.tolist())) == [k / 8 for k in range(1, 9)]
    torch.testing.assert_close(t - u, torch.full_like(t, 1 / 8))
    assert torch.equal(nets.teacher.calls[0][0][:400], t)


def test_guidance_of_a_range_is_uniform_in_it_and_of_each_sample(make_batch):
    from apex.methods._consistency import scale_of

    batch = make_batch(4000)
    scale = scale_of(make("lcm", guidance=6.0, guidance_max=16.0).params, batch)
    torch.testing.assert_close(scale, 6 + 10 * batch.uniforms[0])
    assert scale_of(make("lcm", guidance=6.0).params, batch) == 6.0


def test_each_sample_of_the_teacher_is_guided_by_its_own_scale(make_smooth, make_batch, make_nets):
    from apex.methods._consistency import teacher_velocity

    teacher, batch, t = make_smooth(3), make_batch(3), times(0.2, 0.5, 0.9)
    nets, x = make_nets(make_smooth(1), teacher=teacher), normal(3, 2, 1, 1)
    found = teacher_velocity(nets, x, t, batch, times(0.0, 1.0, 3.0))
    with torch.no_grad():
        with_c, without_c = teacher(x, t, batch.cond), teacher(x, t, batch.null)
    torch.testing.assert_close(found, torch.stack([without_c[0], with_c[1], without_c[2] + 3 * (with_c - without_c)[2]]))


PASSES = [  # of a batch of 8: with gradient; forward by student, ema, teacher; jvp; through
    ("lcm", {"guidance": 1.0}, (8, 0, 8, 8, 0, 0)),
    ("lcm", {"guidance": 2.5}, (8, 0, 8, 16, 0, 0)),
    ("lcm", {"guidance": 2.5, "target_network": "online"}, (8, 8, 0, 16, 0, 0)),
    ("pcm", {"guidance": 2.5, "adversarial": 0.0}, (8, 0, 8, 16, 0, 0)),
    ("ctm", {"guidance": 1.0, "flow_matching": 0.0}, (8, 0, 16, 8, 0, 8)),
    ("ctm", {"guidance": 2.5}, (16, 0, 16, 16, 0, 8)),
    ("ctm", {"guidance": 2.5, "solver_steps": 3}, (16, 0, 16, 48, 0, 8)),
    ("scm", {"guidance": 1.0}, (8, 0, 0, 8, 8, 0)),
    ("scm", {"guidance": 2.5}, (8, 0, 0, 16, 8, 0)),
    ("scm", {"derivative": "finite_difference"}, (8, 8, 0, 16, 0, 0)),
    ("scm", {"velocity": "data"}, (8, 0, 0, 16, 8, 0)),
    ("scm", {"velocity": "data", "guidance": 1.0}, (8, 0, 0, 0, 8, 0)),
    ("scm", {"guidance": 2.5, "adapt": 0.6}, (8, 0, 0, 16, 0, 0)),  # half of the budget is spent
    ("scm", {"guidance": 2.5, "adapt": 0.5}, (8, 0, 0, 16, 8, 0)),
    ("meanflow", {"guidance": 1.0, "equal_share": 0.0}, (8, 0, 0, 8, 8, 0)),
    ("meanflow", {"guidance": 1.0, "equal_share": 1.0}, (8, 0, 0, 8, 0, 0)),
    ("meanflow", {"guidance": 1.0, "equal_share": 0.5}, (8, 0, 0, 8, 5, 0)),
    ("meanflow", {"guidance": 1.0, "equal_share": 0.5, "derivative": "finite_difference"}, (8, 5, 0, 8, 0, 0)),
]


@pytest.mark.parametrize(("name", "params", "expected"), PASSES, ids=str)
def test_passes_of_the_consistency_methods(make_smooth, make_batch, make_nets, name: str, params: dict, expected: tuple):
    """Guidance of 1 is no second pass; samples with r = t have no derivative, and nothing is paid for one."""
    nets, batch = make_nets(make_smooth(1)), make_batch(8)
    if name == "meanflow":
        batch.given = [torch.linspace(0.3, 0.99, 8)]  # below 0.5 for three of them
    make(name, **params).losses(batch, nets, 0)
    passes = nets.student.ledger.passes
    forward = passes.get("forward", {})
    found = passes["training"]["student"], *(forward.get(k, 0) for k in ("student", "ema", "teacher"))
    assert (*found, passes.get("jvp", {}).get("student", 0), passes.get("through", {}).get("ema", 0)) == expected


# ------------------------------------------------------------------------------------------------------------------ pcm


def test_pcm_with_one_phase_and_no_discriminator_is_lcm(make_smooth, make_batch, make_nets, gradients):
    found = []
    for name, params in (("lcm", {}), ("pcm", {"adversarial": 0.0, "phases": 1})):
        student = make_smooth(1)
        loss = make(name, **params).losses(make_batch(8), make_nets(student, make_smooth(2)), 0).losses["student"]
        found.append((loss.detach(), gradients(loss, student)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("phases", [1, 2, 4, 8])
def test_the_phases_are_the_samplers_steps(make_exact, make_solved, make_batch, phases: int):
    """The student at the optimum, in K Euler steps, is the teacher in its 8 on the same grid."""
    teacher, batch, noise = make_exact("t"), make_batch(5), normal(5, 2, 1, 1)
    student = make_solved(teacher, 8, phases=phases)
    method = make("pcm", steps=8, phases=phases)
    assert method.sample_mode == ("few" if phases == 1 else "multi")

    def end(network, steps: int, mode: str) -> Tensor:
        return sample(
            lambda x, t, r: network(x, t.double(), batch.cond, None if network is student else t.double()),
            noise,
            uniform_sigmas(steps),
            mode=mode,
        )

    torch.testing.assert_close(end(student, phases, method.sample_mode), end(teacher, 8, "multi"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("phases", [1, 2, 5])
def test_phase_boundaries_and_the_times_of_the_discriminator(make_smooth, make_heads, make_batch, make_nets, phases: int):
    """s < t <= s + 1/K with s a multiple of 1/K; both sides of the contest are shown at one time of that phase."""
    method, batch = make("pcm", steps=10, phases=phases, adversarial=0.1), make_batch(300)
    method.blocks = [0, 1]
    nets = make_nets(make_smooth(1), heads=make_heads())
    method.losses(batch, nets, 0)
    t = nets.student.calls[0][0]
    s = torch.ceil(t * phases - 1e-6) / phases - 1 / phases
    shown = [now for now, _ in nets.teacher.calls[1:]]
    assert len(shown) == 2 and torch.equal(shown[0], shown[1])
    assert torch.all(shown[0] >= s - 1e-6) and torch.all(shown[0] <= s + 1 / phases + 1e-6)
    # Uniform over the phase, wherever in it t is.
    assert abs(float((shown[0] - s).mean()) * phases - 0.5) < 0.06
    assert len(set(torch.round(s * phases).tolist())) == phases


def test_the_discriminator_of_pcm_tells_the_prediction_from_the_target(make_smooth, make_heads, make_batch, make_nets):
    """Both re-noised from s to s'; fake is the student's jump, real the target's; hinge losses, weight on the student's."""
    student, ema, teacher, batch = make_smooth(1), make_smooth(2), make_smooth(3), make_batch(6)
    method = make("pcm", steps=8, phases=2, adversarial=0.3, guidance=2.5, distance="mse")
    method.blocks, heads = [1, 0], make_heads()
    out = method.losses(batch, make_nets(student, ema, teacher, heads=heads), 0)
    with torch.no_grad():
        x_t, t, x_u, u = solver_step(batch, 8, teacher, 2.5)
        s = torch.where(t > 0.5, 0.5, 0.0).double()
        predicted = losses.jump(student(x_t, t, batch.cond), x_t, t, s)
        target = losses.jump(ema(x_u, u, batch.cond), x_u, u, s)
        until = s + batch.uniforms[1] / 2
        logits = []
        for x, noise in ((predicted, batch.noises[1]), (target, batch.noises[2])):
            shown = losses.renoised(x, noise, s, until)
            logits.append(heads(teacher(shown, until, batch.cond, None, blocks=[1, 0])))
        fake, real = logits
        hinge = sum((1 - d).relu().mean() for d in real) / 2 + sum((1 + d).relu().mean() for d in fake) / 2
        torch.testing.assert_close(out.losses["discriminator"].detach(), hinge)
        fooling = sum(-d.mean() for d in fake) / 2
        torch.testing.assert_close(out.losses["student"].detach(), mse(predicted - target).mean() + 0.3 * fooling)


# ------------------------------------------------------------------------------------------------------------------ ctm


@pytest.mark.parametrize("solver_steps", [1, 3, 8])
def test_ctm_draws_r_and_u_before_t(make_smooth, make_batch, make_nets, solver_steps: int):
    """0 <= r <= u < t on the grid; u is `solver_steps` before t, or r where that is nearer."""
    nets = make_nets(make_smooth(1))
    make("ctm", steps=8, solver_steps=solver_steps, flow_matching=0.0).losses(make_batch(2000), nets, 0)
    t, r = nets.student.calls[0]
    u, to = nets.ema.calls[0]
    assert torch.equal(to, r)
    assert torch.all(r >= 0) and torch.all(r <= u) and torch.all(u < t) and float(t.max()) == 1
    torch.testing.assert_close(u, torch.maximum(t - solver_steps / 8, r))
    pairs = {(int(a), int(b)) for a, b in zip((8 * t).round(), (8 * r).round(), strict=True)}
    assert pairs == {(a, b) for a in range(1, 9) for b in range(a)}
    (now, to), (again, end) = nets.ema.calls[1:]  # the outer map, of the target and of the student
    assert torch.equal(now, r) and torch.equal(again, r) and float(to.abs().max()) == 0 and float(end.abs().max()) == 0


def ctm_by_hand(method, batch, student, ema, teacher) -> tuple[Tensor, Tensor, Tensor]:
    """The two terms, with the outer map differentiated by its input alone, and flow matching's points."""
    p, steps = method.params, method.params.steps
    start = (batch.uniforms[0] * steps).floor() + 1
    end = (batch.uniforms[1] * start).floor()
    t, r, zero = start / steps, end / steps, torch.zeros_like(start)
    noise = batch.noises[0]
    x_t = interpolate(batch.x0, noise, t)
    with torch.no_grad():
        x, now = x_t, t.clone()
        for _ in range(p.solver_steps):
            v = guide(teacher(x, now, batch.cond), teacher(x, now, batch.null), p.guidance)
            following = torch.maximum(now - 1 / steps, torch.maximum(t - p.solver_steps / steps, r))
            x, now = losses.jump(v, x, now, following), following
        x_r = losses.jump(ema(x, now, batch.cond, r), x, now, r)
        target = losses.jump(ema(x_r, r, batch.cond, zero), x_r, r, zero)
    for q in ema.parameters():
        q.requires_grad_(False)
    x_r = losses.jump(student(x_t, t, batch.cond, r), x_t, t, r)
    consistent = mse(losses.jump(ema(x_r, r, batch.cond, zero), x_r, r, zero) - target).mean()
    velocity = noise - batch.x0
    with torch.no_grad():
        velocity = velocity + (p.guidance - 1) * (teacher(x_t, t, batch.cond) - teacher(x_t, t, batch.null))
    return consistent, mse(student(x_t, t, batch.cond, t) - velocity).mean(), t


@pytest.mark.parametrize("params", [{}, {"guidance": 1.0}, {"solver_steps": 3}, {"flow_matching": 0.0}, {"flow_matching": 0.3}], ids=str)
def test_ctm_is_its_two_terms_weighted_by_their_gradients(make_smooth, make_batch, make_nets, gradients, params: dict):
    student, ema, teacher, batch = make_smooth(1), make_smooth(2), make_smooth(3), make_batch(6)
    method = make("ctm", steps=8, **params)
    out = method.losses(batch, make_nets(student, ema, teacher), 0)
    consistent, matching, _ = ctm_by_hand(method, batch, student, ema, teacher)
    first, second = (gradients(term, student) for term in (consistent, matching))
    sizes = [torch.autograd.grad(term, student.slope, retain_graph=True)[0].norm() for term in (consistent, matching)]
    weight = method.params.flow_matching * sizes[0] / (sizes[1] + 1e-4)
    torch.testing.assert_close(out.losses["student"].detach(), (consistent + weight * matching).detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradients(out.losses["student"], student), first + weight * second, rtol=1e-6, atol=1e-9)
    assert float(first.norm()) > 1e-4
    assert all(q.grad is None for q in ema.parameters())


def test_at_the_solvers_map_flow_matching_of_ctm_has_no_weight(make_exact, make_solved, make_batch, make_nets):
    """Its weight is the ratio of the gradients, and the consistency term's is zero there."""
    student = make_solved(make_exact("t"), 8, 2.5)
    out = make("ctm", steps=8, guidance=2.5).losses(make_batch(16), make_nets(student, teacher=make_exact("t")), 0)
    assert float(out.logs["flow_matching_weight"]) < 1e-8 < float(out.logs["flow_matching"])


# ------------------------------------------------------------------------------------------------------------------ scm


@pytest.mark.parametrize("norm", ["rms", "l2"])
def test_scm_is_zero_at_the_exact_consistency_function(make_exact, make_batch, make_nets, gradients, norm: str):
    """Along the teacher's own ODE its clean estimate does not move, sample by sample."""
    method, student = make("scm", guidance=1.0, tangent_norm=norm), make_exact("zero")
    loss = method.losses(make_batch(32), make_nets(student), 0).losses["student"]
    assert float(loss.detach()) < 1e-20 and float(gradients(loss, student).norm()) < 1e-9
    torch.nn.init.constant_(student.shift, 0.1)
    loss = method.losses(make_batch(32), make_nets(student), 0).losses["student"]
    assert float(loss.detach()) > 1e-3 and float(gradients(loss, student).norm()) > 1e-3


def test_scm_on_data_is_zero_where_the_paths_are_straight(make_exact, make_batch, make_nets, gradients):
    """One picture a caption: z - x is the marginal velocity, so `data` needs no teacher."""
    student = make_exact("zero", spread=0.0)
    nets = make_nets(student)
    loss = make("scm", velocity="data", guidance=1.0).losses(make_batch(32, spread=0.0), nets, 0).losses["student"]
    assert float(loss.detach()) < 1e-18 and float(gradients(loss, student).norm()) < 1e-9
    assert not nets.teacher.calls


@pytest.mark.parametrize("norm", ["rms", "l2"])
@pytest.mark.parametrize("velocity", ["teacher", "data"])
@pytest.mark.parametrize(("progress", "adapt"), [(0.05, 0.0), (0.6, 0.0), (0.05, 0.1), (0.15, 0.1)])
def test_the_gradient_of_scm_is_minus_two_normalised_tangents(
    make_smooth, make_batch, make_nets, gradients, norm: str, velocity: str, progress: float, adapt: float
):
    """g from central differences; only the t dF/dt part is warmed up, over a fifth of the budget after the adaptation."""
    student, teacher, batch = make_smooth(1), make_smooth(3), make_batch(6, progress=progress)
    method = make("scm", guidance=2.5, velocity=velocity, tangent_norm=norm, tangent_c=0.3, warmup=0.2, adapt=adapt)
    loss = method.losses(batch, make_nets(student, teacher=teacher), 0).losses["student"]
    t, noise = torch.sigmoid(0.89 + 1.6 * batch.normals[0]), batch.noises[0]
    x_t = interpolate(batch.x0, noise, t)
    predicted = student(x_t, t, batch.cond)
    with torch.no_grad():
        with_c, without_c = teacher(x_t, t, batch.cond), teacher(x_t, t, batch.null)
        v = guide(with_c, without_c, 2.5) if velocity == "teacher" else noise - batch.x0 + 1.5 * (with_c - without_c)
        g = v - predicted - min(max(progress - adapt, 0) / 0.2, 1.0) * expand(t, v) * along(student, x_t, t, batch.cond, None, v)
        size = g.square().flatten(1).sum(1).sqrt() / (1 if norm == "l2" else 2**0.5)
        g = g / expand(size + 0.3, g)
    torch.testing.assert_close(gradients(loss, student), gradients(predicted, student, -2 * g / g.numel()), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(loss.detach(), g.square().mean(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("warmup", "adapt", "progress", "warm"),
    [
        *((0.2, 0, 0.0, 0.0), (0.2, 0, 0.05, 0.25), (0.2, 0, 0.2, 1.0), (0.2, 0, 0.9, 1.0), (0.0, 0, 0.0, 1.0)),
        *((0.2, 0.1, 0.1, 0.0), (0.2, 0.1, 0.15, 0.25), (0.2, 0.1, 0.9, 1.0), (0.0, 0.1, 0.09, 0.0), (0.0, 0.1, 0.1, 1.0)),
    ],
)
def test_the_warm_up_of_scm_is_a_share_of_the_budget(make_smooth, make_batch, make_nets, warmup, adapt, progress, warm):
    out = make("scm", warmup=warmup, adapt=adapt).losses(make_batch(2, progress=progress), make_nets(make_smooth(1)), 0)
    assert out.logs["warm"] == pytest.approx(warm)


@pytest.mark.parametrize("name", ["scm", "meanflow"])
def test_the_finite_difference_tends_to_the_jvp_at_first_order(make_smooth, make_batch, make_nets, gradients, name: str):
    def gradient(**params) -> Tensor:
        student = make_smooth(1)
        more = {"equal_share": 0.0} if name == "meanflow" else {}
        loss = make(name, **more, **params).losses(make_batch(16), make_nets(student, teacher=make_smooth(3)), 0).losses["student"]
        return gradients(loss, student)

    exact = gradient(derivative="jvp")
    off = [float((gradient(derivative="finite_difference", difference=h) - exact).norm()) for h in (4e-3, 2e-3, 1e-3)]
    assert off[-1] < 1e-2 * float(exact.norm())
    assert all(1.7 < coarse / fine < 2.3 for coarse, fine in pairwise(off))


# ------------------------------------------------------------------------------------------------------------- meanflow


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("equal_share", [0.0, 0.5, 1.0])
def test_meanflow_is_zero_at_the_exact_average_velocity(make_exact, make_batch, make_nets, gradients, power: float, equal_share: float):
    method, student = make("meanflow", guidance=1.0, power=power, equal_share=equal_share), make_exact("r")
    loss = method.losses(make_batch(32), make_nets(student), 0).losses["student"]
    assert float(loss.detach()) < 1e-20 and float(gradients(loss, student).norm()) < 1e-9
    torch.nn.init.constant_(student.shift, 0.1)
    loss = method.losses(make_batch(32), make_nets(student), 0).losses["student"]
    assert float(gradients(loss, student).norm()) > 1e-3


def test_meanflow_on_data_is_zero_where_the_paths_are_straight(make_exact, make_batch, make_nets):
    nets = make_nets(make_exact("r", spread=0.0))
    out = make("meanflow", velocity="data", guidance=1.0, equal_share=0.25).losses(make_batch(32, spread=0.0), nets, 0)
    assert float(out.losses["student"].detach()) < 1e-18 and not nets.teacher.calls


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_meanflow_on_data_has_no_gradient_in_expectation(make_exact, make_batch, make_nets, gradients, share: float):
    """x and z mirrored at their means given x_t: the same x_t, and velocities whose mean is the marginal one. One alone pulls."""
    student, method = make_exact("r"), make("meanflow", velocity="data", guidance=1.0, power=0.0, equal_share=share)
    first = make_batch(16)
    alone = gradients(method.losses(first, make_nets(student), 0).losses["student"], student)
    t, z = torch.maximum(*(torch.sigmoid(n - 0.4) for n in first.normals)), first.noises[0]
    x_t, velocity = interpolate(first.x0, z, t), z - first.x0
    with torch.no_grad():
        mirrored = 2 * make_exact("t")(x_t, t, first.cond) - velocity
    second = make_batch(16, given_noises=[x_t + (1 - expand(t, x_t)) * mirrored])
    second.x0 = endpoint(mirrored, x_t, t)
    second.given, second.given_normals = list(first.uniforms), list(first.normals)
    other = gradients(method.losses(second, make_nets(student), 0).losses["student"], student)
    assert float(alone.norm()) > 0.05
    torch.testing.assert_close(alone + other, torch.zeros_like(alone), rtol=0, atol=1e-9)


@pytest.mark.parametrize("velocity", ["teacher", "data"])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_meanflow_draws_to_v_minus_the_interval_times_the_derivative(
    make_smooth, make_batch, make_nets, gradients, velocity: str, power: float
):
    """The derivative from central differences along (v_hat, 1) with r fixed; the weight has no gradient."""
    student, teacher, batch = make_smooth(1), make_smooth(3), make_batch(8)
    batch.given = [torch.linspace(0.3, 0.99, 8)]
    method = make("meanflow", guidance=2.5, velocity=velocity, power=power, equal_share=0.5)
    loss = method.losses(batch, make_nets(student, teacher=teacher), 0).losses["student"]
    a, b = (torch.sigmoid(n - 0.4) for n in batch.normals)
    t, noise = torch.maximum(a, b), batch.noises[0]
    r = torch.where(batch.uniforms[0] < 0.5, t, torch.minimum(a, b))
    x_t = interpolate(batch.x0, noise, t)
    predicted = student(x_t, t, batch.cond, r)
    with torch.no_grad():
        with_c, without_c = teacher(x_t, t, batch.cond), teacher(x_t, t, batch.null)
        v = guide(with_c, without_c, 2.5) if velocity == "teacher" else noise - batch.x0 + 1.5 * (with_c - without_c)
        d = predicted - (v - expand(t - r, v) * along(student, x_t, t, batch.cond, r, v))
        square = expand(d.square().flatten(1).sum(1), d)
    pull = 2 * d / (square + 0.01) ** power / len(d)
    torch.testing.assert_close(gradients(loss, student), gradients(predicted, student, pull), rtol=1e-6, atol=1e-9)
    assert float(expand(t - r, v).abs().max()) > 0.1


@pytest.mark.parametrize("share", [0.0, 0.75, 1.0])
def test_times_of_meanflow(make_batch, share: float):
    method, batch = make("meanflow", equal_share=share), make_batch(4000)
    t, r = method.times(batch)
    assert torch.all((r <= t) & (r > 0) & (t < 1))
    assert abs(float((r == t).double().mean()) - share) < 0.03
    both = torch.logit(torch.cat([t, torch.minimum(*(torch.sigmoid(n - 0.4) for n in batch.normals))]))
    assert abs(float(both.mean()) + 0.4) < 0.05 and abs(float(both.std()) - 1) < 0.05


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("lcm", {"steps": 0}, "rows.mine.params.steps: found 0, expected greater than or equal to 1"),
        ("lcm", {"distance": "lpips"}, "rows.mine.params.distance: found 'lpips', expected 'mse' or 'huber'"),
        ("lcm", {"target_network": "teacher"}, "rows.mine.params.target_network: found 'teacher', expected 'ema' or 'online'"),
        ("lcm", {"guidance": -1.0}, "rows.mine.params.guidance: found -1.0, expected greater than or equal to 0"),
        ("pcm", {"steps": 50, "phases": 4}, "phases: found 4, expected a divisor of steps, 50"),
        ("pcm", {"phase": 2}, "rows.mine.params.phase: unknown key 'phase'; did you mean 'phases'?"),
        ("ctm", {"solver_steps": 0}, "rows.mine.params.solver_steps: found 0, expected greater than or equal to 1"),
        ("scm", {"derivative": "exact"}, "rows.mine.params.derivative: found 'exact', expected 'jvp' or 'finite_difference'"),
        ("scm", {"difference": 0.5}, "rows.mine.params.difference: found 0.5, expected less than 0.5"),
        ("scm", {"tangent_norm": "l1"}, "rows.mine.params.tangent_norm: found 'l1', expected 'rms' or 'l2'"),
        ("meanflow", {"equal_share": 1.5}, "rows.mine.params.equal_share: found 1.5, expected less than or equal to 1"),
        ("meanflow", {"eps": 0.0}, "rows.mine.params.eps: found 0.0, expected greater than 0"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_in_one_line(refusal, name: str, params: dict, said: str):
    assert said in refusal(name, params)


@pytest.mark.parametrize("blocks", [[], [2], [-1], [0, 0]], ids=str)
def test_blocks_that_the_teacher_does_not_have_are_refused(blocks: list[int]):
    from apex.errors import UserError
    from apex.methods._adversarial import check_blocks

    with pytest.raises(UserError, match=r"params\.blocks: found .*expected different numbers from 0 to 1") as error:
        check_blocks(blocks, 2)
    assert str(blocks) in str(error.value) and "\n" not in str(error.value)


def test_ctm_without_a_matrix_to_compare_gradients_at_says_so(make_smooth, make_batch, make_nets):
    from apex.errors import UserError

    nets = make_nets(make_smooth(1))
    nets.last_parameter = None
    with pytest.raises(UserError, match=r"ctm: Networks\.last_parameter is not set"):
        make("ctm").losses(make_batch(2), nets, 0)
