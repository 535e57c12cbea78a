"""rcgm and twinflow against `apex`, which `tests/apex/test_method_apex.py` writes out sample by sample; the negative-time branch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apex import methods
from apex.conditioning import AffineShift, Condition
from apex.testbed import Bed, Trial, pretrained

F64 = torch.float64


def make(name: str, **params):
    return methods.get(name)(params)


def run(method, student, make_nets, batch, gradients, *, teacher=None, **extra):
    out = method.losses(batch, nets := make_nets(student, teacher=teacher, **extra), 0)
    return out.losses["student"].detach(), gradients(out.losses["student"], student), out.logs, nets


# ---------------------------------------------------------------------------------------------------------------- rcgm

SETTINGS = [
    {},
    {"order": 2, "interval": 0.05},
    {"rho": 0.5, "guidance_network": "ema"},
    {"recursion_network": "online", "residual_clip": 0.1},
]


@pytest.mark.parametrize("params", SETTINGS, ids=str)
@pytest.mark.parametrize("count", [2, 9])
@pytest.mark.parametrize("name", ["apex", "twinflow"])
def test_rcgm_is_the_others_without_rectification(make_smooth, make_batch, make_nets, gradients, name: str, count: int, params: dict):
    """Bit by bit, and no sample goes to a fake branch."""
    extra = {"shift": AffineShift(-1.0).double()} if name == "apex" else {}
    found = [
        run(make(k, **params, **more), make_smooth(1), make_nets, make_batch(count), gradients, teacher=make_smooth(3), **extra)
        for k, more in (("rcgm", {}), (name, {"rectification": 0.0}))
    ]
    (loss, gradient, logs, nets), (same, same_gradient, same_logs, _) = found
    assert torch.equal(loss, same) and torch.equal(gradient, same_gradient) and float(gradient.norm()) > 0
    assert logs.keys() == same_logs.keys() and all(torch.equal(logs[k], same_logs[k]) for k in logs)
    assert all(float(t.min()) >= 0 for net in (nets.student, nets.ema, nets.teacher) for t, _ in net.calls)


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("interval", [0.01, 0.2])
def test_rcgm_is_zero_at_the_flow_map_of_straight_paths(make_exact, make_batch, make_nets, gradients, order: int, interval: float):
    """One picture a caption: z - x is the velocity and Euler's legs are exact, so every part's residual is 0 for any D."""
    method = make("rcgm", order=order, interval=interval, rho=0.0)
    loss, gradient, logs, _ = run(method, make_exact("r", spread=0.0), make_nets, make_batch(48, spread=0.0), gradients)
    assert float(loss) < 1e-15 and float(gradient.norm()) < 1e-6
    assert {k for k in logs if k.startswith("residual")} == {"residual/one_step", "residual/near", "residual/any"}
    beside = make_exact("r", spread=0.0)
    nn.init.constant_(beside.shift, 0.1)
    loss, gradient, *_ = run(method, beside, make_nets, make_batch(48, spread=0.0), gradients)
    assert float(loss) > 1e-2 and float(gradient.norm()) > 1e-2


def test_guidance_leaves_the_one_step_part_alone(make_exact, make_batch, make_nets, gradients):
    """v_hat at t = 1 is z - x itself: with straight paths and guidance on, its residual stays 0 and the others' does not."""
    student = make_exact("r", spread=0.0)
    *_, logs, nets = run(make("rcgm", rho=1.5), student, make_nets, make_batch(30, spread=0.0), gradients)
    assert float(logs["residual/one_step"]) < 1e-15 and min(float(logs[f"residual/{k}"]) for k in ("near", "any")) > 1e-2
    assert all(float(t.max()) < 1 for t, _ in nets.teacher.calls)


# ------------------------------------------------------------------------------------------------------------ twinflow


class Signed(nn.Module):
    """A network for which a negative time is the shifted condition at the time's size."""

    def __init__(self, network: nn.Module, a: float, b: float) -> None:
        super().__init__()
        self.network, self.a, self.b = network, a, b
        self.slope = network.slope

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        fake = (t < 0).to(x_t)[:, None, None]
        shifted = Condition(cond.embeds, cond.mask, 1 + fake * (self.a - 1), fake * self.b)
        return self.network(x_t, t.abs(), shifted, None if r is None else r.abs())


@pytest.mark.parametrize("params", [{}, *SETTINGS[1:], {"rectification": 2.0, "rectification_clip": 0.05}, {"base_weight": 0.0}], ids=str)
@pytest.mark.parametrize("count", [3, 8])
def test_twinflow_is_apex_where_the_times_sign_is_the_shift(make_smooth, make_batch, make_nets, gradients, params: dict, count: int):
    a, b = -0.5, 0.25
    theirs = run(
        make("apex", a=a, b=b, **params), make_smooth(1), make_nets, make_batch(count), gradients,
        teacher=make_smooth(3), shift=AffineShift(a, b).double(),
    )  # fmt: skip
    mine = run(make("twinflow", **params), Signed(make_smooth(1), a, b), make_nets, make_batch(count), gradients, teacher=make_smooth(3))
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(mine[1], theirs[1], rtol=1e-10, atol=1e-12)
    assert mine[2].keys() == theirs[2].keys() and "force" in mine[2]


def test_apex_without_a_shift_at_negative_times_is_twinflow(make_smooth, make_batch, make_nets, gradients):
    extra = {"teacher": make_smooth(3), "shift": AffineShift(1.0).double()}
    apex = run(make("apex", a=1.0, negative_time=True), make_smooth(1), make_nets, make_batch(8), gradients, **extra)
    twin = run(make("twinflow"), make_smooth(1), make_nets, make_batch(8), gradients, teacher=make_smooth(3))
    assert torch.equal(apex[0], twin[0]) and torch.equal(apex[1], twin[1]) and float(twin[2]["force"]) > 0


def test_negative_times_are_asked_for_the_fake_part_and_the_force_alone(make_smooth, make_batch, make_nets, gradients):
    """Of 8 samples 2 are fake and 2 are rectified; there r = t, so t - r stays 0, and the caption is as it was."""
    *_, nets = run(make("twinflow"), make_smooth(1), make_nets, make_batch(8), gradients)
    negative = [int((t < 0).sum()) for t, _ in nets.student.calls]
    assert sorted(negative) == [0, 2, 2]  # the fake data; the pass with gradient; real and fake branch of the force
    for t, r in nets.student.calls:
        assert torch.equal(t[t < 0], r[t < 0])
    rectifying = nets.student.calls[-1][0]
    assert torch.equal(rectifying[:2], -rectifying[2:])  # the same time, both signs
    assert all(float(t.min()) >= 0 for net in (nets.ema, nets.teacher) for t, _ in net.calls)
    assert all(c.scale is None for net in (nets.student, nets.ema, nets.teacher) for c in net.conditions)


class Even(Signed):
    """A network that does not see the sign of the time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, 1.0, 0.0)


def test_a_network_that_does_not_see_the_sign_has_no_force(make_smooth, make_batch, make_nets, gradients):
    *_, logs, _ = run(make("twinflow"), Even(make_smooth(1)), make_nets, make_batch(8), gradients)
    assert float(logs["force"]) == 0 and float(logs["rectification"]) == 0
    *_, logs, _ = run(make("twinflow"), make_smooth(1), make_nets, make_batch(8), gradients)
    assert float(logs["force"]) > 1e-3


@pytest.mark.parametrize("family", ["sana", "qwen_image"])
def test_transformers_see_the_sign_of_the_time(family: str):
    """By the sines of the stock embedding; not much less than they see another caption, or the branches could not differ."""
    network, bed = pretrained(family), Bed(family)
    x, cond, _ = bed.data(4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for time in (0.2, 0.5, 0.9):
            t = torch.full((4,), time)
            real, fake = network(x, t, cond, t), network(x, -t, cond, -t)
            other = network(x, t, cond[torch.tensor([1, 2, 3, 0])], t)
            assert float((fake - real).norm()) > 0.3 * float((other - real).norm())


class Twins(nn.Module):
    """One-step samples of a wrong Gaussian; at (t, t) the data's velocity, at (-t, -t) that of its own samples."""

    def __init__(self, make_exact, spread: float, offset: float) -> None:
        super().__init__()
        self.own, self.fake, self.real = make_exact("r", spread, offset), make_exact("t", spread, offset), make_exact("t")
        self.fake.requires_grad_(False)
        self.real.requires_grad_(False)
        self.slope, self.shift = self.own.slope, self.own.shift

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        size = t.abs()
        fake, long = (m[:, None, None, None] for m in (t < 0, r < t))
        value = torch.where(fake, self.fake(x_t, size, cond), self.real(x_t, size, cond))
        return torch.where(long, self.own(x_t, size, cond, r.abs()), value)


@pytest.mark.parametrize(("spread", "offset"), [(0.5, 0.0), (1.5, 0.0), (1.0, 0.4), (1.0, -0.4)])
def test_the_negative_branch_moves_a_wrong_distribution_toward_the_data(make_exact, make_batch, make_nets, spread: float, offset: float):
    """The sample is z - F: descent on the slope widens it, on the shift raises it."""
    student = Twins(make_exact, spread, offset)
    out = make("twinflow", base_weight=0.0, rectification_clip=100.0).losses(make_batch(4000), make_nets(student), 0)
    slope, shift = torch.autograd.grad(out.losses["student"], [student.slope, student.shift])
    if spread != 1:
        assert torch.all((slope > 0) == (spread < 1)) and float(slope.abs().min()) > 0.01
    else:
        assert torch.all((shift < 0) == (offset > 0)) and float(shift.abs().min()) > 0.01


def test_the_force_rests_where_the_samples_are_the_data(make_exact, make_batch, make_nets, gradients):
    loss, gradient, logs, _ = run(make("twinflow", base_weight=0.0), Twins(make_exact, 1.0, 0.0), make_nets, make_batch(64), gradients)
    assert float(logs["force"]) == 0 and float(loss) == 0 and float(gradient.norm()) == 0


def test_the_settings_that_the_public_code_of_twinflow_has_can_be_set():
    """Order 2, guidance by the running mean with rho 0.5: a step moves the student and asks the teacher nothing."""
    trial = Trial(make("twinflow", order=2, guidance_network="ema", rho=0.5), Bed("sana"))
    before = {k: v.detach().clone() for k, v in trial.trained().items()}
    trial.optimise()
    assert any(not torch.equal(v, before[k]) for k, v in trial.trained().items())
    assert "teacher" not in trial.nets.student.ledger.passes["forward"]


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("rcgm", {"rectification": 0.5}, "rows.mine.params.rectification: unknown key 'rectification'"),
        ("rcgm", {"order": 5}, "rows.mine.params.order: found 5, expected less than or equal to 4"),
        ("rcgm", {"interval": 0.5}, "rows.mine.params.interval: found 0.5, expected less than 0.5"),
        ("rcgm", {"near_width": 1.5}, "rows.mine.params.near_width: found 1.5, expected less than or equal to 1"),
        ("twinflow", {"a": -1.0}, "rows.mine.params.a: unknown key 'a'"),
        ("twinflow", {"rectification_clip": 0.0}, "rows.mine.params.rectification_clip: found 0.0, expected greater than 0"),
        ("twinflow", {"guidance_network": "student"}, "rows.mine.params.guidance_network: found 'student', expected 'teacher', 'ema' or"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_in_one_line(refusal, name: str, params: dict, said: str):
    assert said in refusal(name, params)
