"""regression, reflow and progressive: zero where the pairs or the steps are met exactly, the times they train at, and their stages."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from apex import losses, methods
from apex.flow import endpoint, expand, guide, interpolate, sample, uniform_sigmas
from apex.methods.base import Pairs
from apex.methods.progressive import StageTeacher
from apex.testbed import Bed, Trial

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


def mse(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


def make(name: str, **params):
    return methods.get(name)(params)


# ----------------------------------------------------------------------------------------------------------- loss terms


def test_endpoint_distances_by_hand():
    x, target = times(0.0, 3.0)[None], times(0.0, -1.0)[None]
    assert losses.endpoint_distance(x, target).tolist() == [8.0]
    assert losses.endpoint_distance(x, target, "huber", 3.0).tolist() == [(5 - 3) / 2]  # sqrt(16 + 9) - 3


@given(size=st.floats(-8, 3), scale=st.floats(1e-3, 1))
def test_huber_is_square_near_the_target_and_linear_far_from_it(size: float, scale: float):
    e = torch.tensor([[10**size]], dtype=F64, requires_grad=True)
    value = losses.endpoint_distance(e, torch.zeros_like(e), "huber", scale)
    slope = float(torch.autograd.grad(value.sum(), e)[0])
    assert slope == pytest.approx(10**size / math.hypot(10**size, scale)) and slope <= 1
    size = 10**size
    assert float(value.detach()) <= min(size, size**2 / (2 * scale)) + 1e-12
    assert float(losses.endpoint_distance(0 * e, 0 * e, "huber", scale).detach()) == 0


@given(uniform=st.floats(0, 1), sharpness=st.floats(0.05, 12))
def test_u_shaped_times_follow_their_density(uniform: float, sharpness: float):
    """dt/du = 1 / p(t) with p = a (e^(a t) + e^(a (1 - t))) / (2 (e^a - 1)), from t = 0 at u = 0 to t = 1 at u = 1."""
    u = times(uniform).requires_grad_()
    t = losses.u_shaped(u, sharpness)
    slope = float(torch.autograd.grad(t.sum(), u)[0])
    t, a = float(t.detach()), sharpness
    assert -1e-12 <= t <= 1 + 1e-12
    assert 1 / slope == pytest.approx(a * (math.exp(a * t) + math.exp(a * (1 - t))) / (2 * math.expm1(a)), rel=1e-9)
    assert float(losses.u_shaped(times(1 - uniform), a)) == pytest.approx(1 - t, abs=1e-9)  # both ends alike
    torch.testing.assert_close(losses.u_shaped(times(0.0, 0.5, 1.0), a), times(0.0, 0.5, 1.0))


def test_u_shaped_times_are_uniform_without_sharpness_and_in_its_limit():
    u = torch.linspace(0, 1, 11, dtype=F64)
    assert torch.equal(losses.u_shaped(u, 0.0), u)
    torch.testing.assert_close(losses.u_shaped(u, 1e-3), u, rtol=0, atol=1e-6)


def test_two_half_steps_are_one_step_of_their_mean(make_smooth, make_batch):
    """x - h target is where two Euler steps of h / 2 lead, each at its own time."""
    network, batch, t, h = make_smooth(1), make_batch(4), times(0.25, 0.5, 0.75, 1.0), 0.25
    x = normal(4, 2, 1, 1)
    with torch.no_grad():
        target = losses.two_half_steps(lambda y, now: network(y, now, batch.cond), x, t, h)
        middle = x - h / 2 * network(x, t, batch.cond)
        end = middle - h / 2 * network(middle, t - h / 2, batch.cond)
    torch.testing.assert_close(x - h * target, end)


def test_half_steps_of_a_straight_flow_are_its_velocity(make_exact, make_batch):
    network, batch, t = make_exact("t", spread=0.0), make_batch(4), times(0.25, 0.5, 0.75, 1.0)
    x = normal(4, 2, 1, 1)
    with torch.no_grad():
        found = losses.two_half_steps(lambda y, now: network(y, now, batch.cond), x, t, 0.25)
        torch.testing.assert_close(found, network(x, t, batch.cond))


def test_the_path_between_a_pairs_ends_has_their_difference_as_velocity():
    z, x, t = normal(4, 2, 1, 1), normal(4, 2, 1, 1, seed=1), times(0.0, 0.3, 0.8, 1.0)
    x_t, v = losses.velocity_along(z, x, t)
    torch.testing.assert_close(x_t, interpolate(x, z, t))
    torch.testing.assert_close((losses.velocity_along(z, x, t + 1e-6)[0] - x_t) / 1e-6, v, rtol=1e-6, atol=1e-8)


# ------------------------------------------------------------------------------------------------- regression and reflow

STEPS = 8


def teacher_end(teacher, noise: Tensor, cond, null, guidance: float) -> Tensor:
    """Where STEPS Euler steps of the guided teacher take the noise."""

    def velocity(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return guide(teacher(x, t.double(), cond), teacher(x, t.double(), null), guidance)

    return sample(velocity, noise, uniform_sigmas(STEPS), mode="multi")


class Straight(nn.Module):
    """The straight flow between the ends of Gaussian pairs: the ODE takes z to a z + b element by element, so x_t gives z back.

    slope, shift: a correction, zero at first.
    """

    def __init__(self, teacher: nn.Module, batch, guidance: float) -> None:
        super().__init__()
        rows = [int((batch.cond.embeds[:, 0, 0] == k).nonzero()[0]) for k in range(2)]  # one sample of each caption
        zero = torch.zeros(2, 2, 1, 1, dtype=F64)
        self.b = teacher_end(teacher, zero, batch.cond[rows], batch.null[rows], guidance)
        self.a = teacher_end(teacher, zero + 1, batch.cond[rows], batch.null[rows], guidance) - self.b
        self.slope, self.shift = (nn.Parameter(torch.zeros(2, 1, 1, dtype=F64)) for _ in range(2))

    def forward(self, x_t: Tensor, t: Tensor, cond, r: Tensor | None = None) -> Tensor:
        which, s = cond.embeds[:, 0, 0].long(), expand(t, x_t)
        a, b = self.a[which], self.b[which]
        z = (x_t - (1 - s) * b) / (s + (1 - s) * a)
        return (1 - a) * z - b + self.slope * x_t + self.shift


@pytest.fixture
def with_pairs(make_exact, make_batch):
    """with_pairs(count, guidance=2.5): a batch with pairs of the teacher's ODE, and the student with their straight flow."""

    def build(count: int, guidance: float = 2.5, **more):
        teacher, batch = make_exact("t"), make_batch(count, **more)
        noise = normal(count, 2, 1, 1, seed=100)
        batch.pairs = Pairs(noise, teacher_end(teacher, noise, batch.cond, batch.null, guidance), batch.cond)
        return batch, Straight(teacher, make_batch(16), guidance)

    return build


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize(
    ("name", "params", "progress"),
    [
        ("regression", {}, 0.5),
        ("regression", {"distance": "huber"}, 0.5),
        ("reflow", {}, 0.5),
        ("reflow", {}, 0.9),
        ("reflow", {"distil_mix": 0.5, "sharpness": 0.0}, 0.9),
    ],
    ids=str,
)
def test_the_straight_flow_of_the_pairs_has_loss_and_gradient_zero(
    with_pairs, make_nets, gradients, name: str, params: dict, progress: float, guidance: float
):
    """In one Euler step it is at the pair's other end, and on the way its velocity is z - x_T(z)."""
    batch, student = with_pairs(32, guidance, progress=progress)
    pairs, one = batch.pairs, torch.ones(32, dtype=F64)
    torch.testing.assert_close(endpoint(student(pairs.noise, one, pairs.cond), pairs.noise, one), pairs.x)
    nets, method = make_nets(student), make(name, **params)
    loss = method.losses(batch, nets, 0).losses["student"]
    assert float(loss.detach()) < 1e-20 and float(gradients(loss, student).norm()) < 1e-9
    assert nets.student.ledger.passes == {"training": {"student": 32}}  # the pairs are paid for already
    nn.init.constant_(student.shift, 0.1)
    loss = method.losses(with_pairs(32, guidance, progress=progress)[0], make_nets(student), 0).losses["student"]
    assert float(loss.detach()) > 1e-3 and float(gradients(loss, student).norm()) > 1e-2


@pytest.mark.parametrize("distance", ["mse", "huber"])
def test_regression_draws_the_one_step_sample_to_the_pairs_end(make_smooth, with_pairs, make_nets, gradients, distance: str):
    (batch, _), student = with_pairs(6), make_smooth(1)
    out = make("regression", distance=distance, huber_scale=0.5).losses(batch, make_nets(student), 0)
    pairs, one = batch.pairs, torch.ones(6, dtype=F64)
    predicted = student(pairs.noise, one, pairs.cond)
    e = (pairs.noise - predicted - pairs.x).detach()
    slope = 2 * e if distance == "mse" else e / (e.square() + 0.25).sqrt()
    torch.testing.assert_close(gradients(out.losses["student"], student), gradients(predicted, student, -slope / e.numel()))
    torch.testing.assert_close(float(out.logs["error"]), float(e.square().mean()))


def test_reflow_draws_to_the_straight_velocity_at_u_shaped_times(make_smooth, with_pairs, make_nets, gradients):
    (batch, _), student = with_pairs(6, progress=0.1), make_smooth(1)
    out = make("reflow", sharpness=3.0).losses(batch, make_nets(student), 0)
    u, (z, x) = batch.uniforms[0], (batch.pairs.noise, batch.pairs.x)
    t = 0.5 + torch.asinh((2 * u - 1) * math.sinh(1.5)) / 3
    predicted = student(interpolate(x, z, t), t, batch.pairs.cond)
    expected = mse(predicted - (z - x)).mean()
    torch.testing.assert_close(out.losses["student"], expected)
    torch.testing.assert_close(gradients(out.losses["student"], student), gradients(expected, student))


@pytest.mark.parametrize(
    ("progress", "params", "at_one"),
    [
        (0.0, {}, 0.0),
        (0.7499, {}, 0.0),
        (0.75, {}, 1.0),
        (0.99, {}, 1.0),
        (0.99, {"distil_mix": 0.3}, 0.3),
        (0.5999, {"distil_share": 0.4}, 0.0),
        (0.6, {"distil_share": 0.4}, 1.0),
        (0.999, {"distil_share": 0.0}, 0.0),
        (0.0, {"distil_share": 1.0}, 1.0),
    ],
    ids=str,
)
def test_distillation_at_one_begins_at_its_share_of_the_budget(
    make_smooth, with_pairs, make_nets, progress: float, params: dict, at_one: float
):
    batch, _ = with_pairs(2000, progress=progress)
    nets = make_nets(make_smooth(1))
    out = make("reflow", **params).losses(batch, nets, 0)
    t = nets.student.calls[0][0]
    assert float((t == 1).double().mean()) == pytest.approx(at_one, abs=0.03)
    assert ("error/one_step" in out.logs) == (at_one > 0)
    if at_one < 1:  # the rest keeps the shape of a U: the outer halves of both sides hold most of it
        rest = t[t < 1]
        outer = float(((rest < 0.25) | (rest > 0.75)).double().mean())
        assert outer == pytest.approx(1 - math.sinh(1.0) / math.sinh(2.0), abs=0.05)


@pytest.mark.parametrize("name", ["regression", "reflow"])
def test_the_plan_of_pairs_is_that_of_the_settings(name: str):
    plan = make(name, guidance=1.0, teacher_steps=7, pair_share=0.3).pairs()
    assert (plan.share, plan.steps, plan.guidance, plan.passes) == (0.3, 7, 1.0, 7)
    assert make(name, guidance=2.5, teacher_steps=7).pairs().passes == 14


# ----------------------------------------------------------------------------------------------------------- progressive


@given(final=st.integers(0, 4), more=st.integers(0, 6), late=st.floats(0.1, 5))
def test_stages_halve_the_steps_and_share_the_budget(final: int, more: int, late: float):
    """Each has one part, and `late` parts where N <= 2; the last goes on to the end."""
    method = make("progressive", start_steps=2 ** (final + more), final_steps=2**final, late_share=late)
    stages = method.params.stages()
    assert stages == [2 ** (final + more - k) for k in range(more + 1)]
    parts = [late if n <= 2 else 1.0 for n in stages]
    for index in range(len(stages)):
        begin, end = (sum(parts[:k]) / sum(parts) for k in (index, index + 1))
        assert method.stage(begin + 1e-9) == method.stage((begin + end) / 2) == method.stage(end - 1e-9) == index
    assert method.stage(0.0) == 0 and method.stage(1.0) == len(stages) - 1


class Halved(nn.Module):
    """What a stage of N steps ends as: each of its steps is two of the teacher's, in one velocity."""

    def __init__(self, velocity, count: int) -> None:
        super().__init__()
        self.velocity, self.count = velocity, count
        self.shift = nn.Parameter(torch.zeros(2, 1, 1, dtype=F64))

    def forward(self, x_t: Tensor, t: Tensor, cond, r: Tensor | None = None) -> Tensor:
        return losses.two_half_steps(lambda x, now: self.velocity(x, now, cond), x_t, t, 1 / self.count) + self.shift


class Guided(nn.Module):
    """The guided teacher as the first stage sees it; its parameters are another's."""

    def __init__(self, teacher: nn.Module, other, guidance: float) -> None:
        super().__init__()
        self.teacher, self.other, self.guidance = [teacher], other, guidance

    def forward(self, x_t: Tensor, t: Tensor, cond, r: Tensor | None = None) -> Tensor:
        return guide(self.teacher[0](x_t, t, cond), self.teacher[0](x_t, t, self.other(cond)), self.guidance)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_each_stage_is_zero_where_its_step_is_two_of_the_stage_before(make_exact, make_batch, make_nets, gradients, guidance: float):
    """And so one step of the last student is where 16 guided steps of the pretrained network lead."""
    method = make("progressive", start_steps=8, final_steps=1, guidance=guidance)
    teacher = make_exact("t")
    first, cond = make_batch(16), make_batch(16).cond
    null = lambda c: first.null[[int((first.cond.embeds[:, 0, 0] == k).nonzero()[0]) for k in c.embeds[:, 0, 0]]]  # noqa: E731
    velocity, stage_teacher = Guided(teacher, null, guidance), StageTeacher(teacher)
    for stage, count in enumerate(method.params.stages()):
        student = Halved(velocity, count)
        stage_teacher.stage.fill_(stage)
        progress = [0.05, 0.2, 0.4, 0.8][stage]
        assert method.stage(progress) == stage
        nets = make_nets(student, stage_teacher=stage_teacher)
        loss = method.losses(make_batch(16, progress=progress), nets, 0).losses["student"]
        assert float(loss.detach()) < 1e-20 and float(gradients(loss, student).norm()) < 1e-9
        t = nets.student.calls[0][0]
        assert torch.all((t * count).round() == t * count) and float(t.min()) > 0
        beside = Halved(velocity, count)
        nn.init.constant_(beside.shift, 0.1)
        loss = method.losses(make_batch(16, progress=progress), make_nets(beside, stage_teacher=stage_teacher), 0).losses["student"]
        torch.testing.assert_close(float(loss.detach()), 0.01)  # the mean square of the offset
        velocity = student
        stage_teacher = StageTeacher(student)

    def end(network, steps: int) -> Tensor:
        return sample(lambda x, t, r: network(x, t.double(), cond), normal(16, 2, 1, 1), uniform_sigmas(steps), mode="multi")

    with torch.no_grad():
        torch.testing.assert_close(end(student, 1), end(Guided(teacher, null, guidance), 16), rtol=1e-6, atol=1e-6)


def test_every_time_of_a_stages_grid_is_trained(make_smooth, make_batch, make_nets):
    method = make("progressive", start_steps=8)
    for stage, count, progress in ((0, 8, 0.05), (3, 1, 0.9)):
        teacher = StageTeacher(make_smooth(3))
        teacher.stage.fill_(stage)
        nets = make_nets(make_smooth(1), stage_teacher=teacher)
        out = method.losses(make_batch(300, progress=progress), nets, 0)
        assert sorted(set(nets.student.calls[0][0].tolist())) == [k / count for k in range(1, count + 1)]
        assert out.logs["student_steps"] == count


def test_a_stages_teacher_is_the_students_mean_at_the_end_of_the_stage_before():
    """And stays it until the next stage, whatever the student does; the first one's is the pretrained network."""
    trial = Trial(make("progressive", start_steps=4), Bed("gaussian"), total=20, ema=0.9)  # 4, 2, 1 from 0, 0.2 and 0.6
    teacher = trial.extra["stage_teacher"]
    pretrained = {k: v.clone() for k, v in trial.student.state_dict().items()}
    expected, stages = pretrained, []
    for step in range(20):
        stage = trial.method.stage(step / 20)
        if stages and stage != stages[-1]:
            with torch.no_grad():  # the mean that the step itself sees follows the last step's update
                shadow = [s.clone() for s in trial.ema.shadow]
                trial.ema.update()
                expected = {k: v.clone() for k, v in trial.nets.weights().items()}
            assert any(not torch.equal(a, b) for a, b in zip(shadow, trial.ema.shadow, strict=True))
            trial.moved = False  # updated above
        trial.optimise()
        stages.append(int(teacher.stage))
        assert stages[-1] == stage
        for name, value in teacher.network.state_dict().items():
            assert torch.equal(value, expected[name]), (step, name)
    assert [stages.index(k) for k in range(3)] == [0, 4, 12]
    assert any(not torch.equal(v, pretrained[k]) for k, v in expected.items())
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize(("guidance", "progress", "passes"), [(2.5, 0.05, 32), (1.0, 0.05, 16), (2.5, 0.9, 16)])
def test_only_the_pretrained_teacher_is_guided(make_smooth, make_batch, make_nets, guidance: float, progress: float, passes: int):
    """Of 8 samples: two half steps, twice that with guidance; later teachers have it in their weights."""
    method, counted = make("progressive", start_steps=8, guidance=guidance), []
    teacher = StageTeacher(make_smooth(3))
    teacher.stage.fill_(method.stage(progress))
    teacher.register_forward_hook(lambda _m, inputs, _o: counted.append(len(inputs[0])))
    method.losses(make_batch(8, progress=progress), make_nets(make_smooth(1), stage_teacher=teacher), 0)
    assert sum(counted) == passes


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("regression", {"pair_share": 1.0}, "rows.mine.params.pair_share: found 1.0, expected less than 1"),
        ("regression", {"teacher_steps": 0}, "rows.mine.params.teacher_steps: found 0, expected greater than or equal to 1"),
        ("regression", {"distance": "lpips"}, "rows.mine.params.distance: found 'lpips', expected 'mse' or 'huber'"),
        ("reflow", {"pair_share": 0.0}, "rows.mine.params.pair_share: found 0.0, expected greater than 0"),
        ("reflow", {"sharpness": -1.0}, "rows.mine.params.sharpness: found -1.0, expected greater than or equal to 0"),
        ("reflow", {"distil_share": 1.5}, "rows.mine.params.distil_share: found 1.5, expected less than or equal to 1"),
        ("reflow", {"distil": 0.5}, "rows.mine.params.distil: unknown key 'distil'"),
        ("progressive", {"start_steps": 12, "final_steps": 5}, "found 12 and 5, expected final_steps times a power of 2"),
        ("progressive", {"start_steps": 2, "final_steps": 4}, "found 2 and 4, expected final_steps times a power of 2"),
        ("progressive", {"late_share": 0.0}, "rows.mine.params.late_share: found 0.0, expected greater than 0"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_in_one_line(refusal, name: str, params: dict, said: str):
    assert said in refusal(name, params)
