"""`apex-eq25` and `fm` against their formulas; their settings, passes and gradients. What every method must do."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from apex import methods
from apex.conditioning import Condition
from apex.config import check_params, load
from apex.errors import UserError
from apex.methods.apex_eq25 import ApexEq25, Eq25Params
from apex.methods.base import Batch, Method, Networks, Step
from apex.methods.fm import FlowMatching, FMParams

F64 = torch.float64


def refuse(*_):
    raise AssertionError("this network is not in the method's needs")


def run(cls, make_toy, batch, params: dict, wrap=lambda network: network):
    method, toy = cls(params), make_toy(seed=1)
    extra = {k: m.double() for k, m in method.extra_networks(None).items()}
    student = wrap(toy)
    out = method.losses(batch, Networks(student, refuse, refuse, extra), 0)
    return toy, student, extra.get("shift"), out


def by_hand(batch, p: Eq25Params, F, a: Tensor, b: Tensor) -> Tensor:
    """Eq. 25 from Eqs. 11, 12, 14, 23 and 24, with 1 / w(t) on the endpoint's error."""
    t, noise, *rest = batch.drawn
    s, x, c = t[:, None, None, None], batch.x0, batch.cond
    fake = Condition(c.embeds, c.mask, a.expand(len(c), 1, 1), b.expand(len(c), 1, 1))
    square = lambda d: d.square().flatten(1).mean(1)  # noqa: E731
    x_t = s * noise + (1 - s) * x
    f = F(x_t, t, c)
    x_fake = x_t - s * f
    if not p.x_fake_gradient:
        x_fake = x_fake.detach()
    z = rest[0] if p.fresh_noise else noise
    fake_term = square(F(s * z + (1 - s) * x_fake, t, fake) - (z - x_fake))
    v_fake = F(x_t, t, fake).detach()
    mixed = (1 - p.lam) * x + p.lam * (x_t - s * v_fake)
    w = {"t(1-t)": t / (1 - t), "t^3/(1-t)": (1 - t) / t, "t^2": torch.ones_like(t)}[p.weighting]
    mix_term = square(x_t - s * f - mixed) / w
    return p.fake_weight * fake_term.mean() + p.mix_weight * mix_term.mean()


OTHER = {
    "a": 0.5,
    "b": 1.0,
    "shift_place": "normed",
    "learn_shift": True,
    "lam": 0.9,
    "fake_weight": 3.0,
    "mix_weight": 3.0,
    "weighting": "t^2",
    "x_fake_gradient": False,
    "fresh_noise": True,
}
CASES = [
    {},
    *({k: v} for k, v in OTHER.items()),
    {"lam": 0.0},
    {"lam": 1.0},
    {"fake_weight": 0.0},
    {"mix_weight": 0.0},
    {"weighting": "t^3/(1-t)"},
    {"fresh_noise": True, "x_fake_gradient": False, "learn_shift": True},
]


def test_every_setting_is_tried():
    assert set(OTHER) == set(Eq25Params.model_fields)
    assert all(Eq25Params.model_fields[k].default != v for k, v in OTHER.items())


@pytest.mark.parametrize("params", CASES, ids=str)
def test_the_loss_and_its_gradients_are_those_written_out(make_toy, make_batch, params: dict):
    batch = make_batch(6, seed=3)
    toy, _, shift, out = run(ApexEq25, make_toy, batch, params)
    p = ApexEq25(params).params
    a, b = (torch.tensor(v, dtype=F64, requires_grad=p.learn_shift) for v in (p.a, p.b))
    expected = by_hand(batch, p, toy, a, b)
    torch.testing.assert_close(out.losses["student"], expected, rtol=1e-9, atol=1e-12)
    mine = torch.autograd.grad(out.losses["student"], [*toy.parameters(), *([shift.a, shift.b] if p.learn_shift else [])])
    theirs = torch.autograd.grad(expected, [*toy.parameters(), *([a, b] if p.learn_shift else [])])
    for x, y in zip(mine, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", [k for k in OTHER if k not in ("learn_shift", "shift_place")])
def test_every_setting_does_something(make_toy, make_batch, name: str):
    def gradient(params: dict) -> Tensor:
        toy, _, _, out = run(ApexEq25, make_toy, make_batch(8, seed=4), params)
        return torch.cat([g.flatten() for g in torch.autograd.grad(out.losses["student"], toy.parameters())])

    default, other = gradient({}), gradient({name: OTHER[name]})
    assert float((default - other).norm() / default.norm()) > 1e-3


def test_x_fake_gradient_changes_the_gradient_and_not_the_loss(make_toy, make_batch):
    values = [float(run(ApexEq25, make_toy, make_batch(6), {"x_fake_gradient": g})[3].losses["student"].detach()) for g in (True, False)]
    assert values[0] == values[1]


def test_the_fake_terms_gradient_is_its_finite_difference(make_toy, make_batch):
    """With x_fake's gradient kept, L_fake stops no gradient at all: a plain derivative along a random direction."""
    params = {"mix_weight": 0.0}
    toy, _, _, out = run(ApexEq25, make_toy, make_batch(6), params)
    grads = torch.autograd.grad(out.losses["student"], toy.parameters())
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=F64) for p in toy.parameters()]
    slope = float(sum((g * d).sum() for g, d in zip(grads, direction, strict=True)))

    def value(step: float) -> float:
        class Moved(make_toy):
            def __init__(self, seed: int) -> None:
                super().__init__(seed=seed)
                with torch.no_grad():
                    for p, d in zip(self.parameters(), direction, strict=True):
                        p += step * d

        return float(run(ApexEq25, Moved, make_batch(6), params)[3].losses["student"].detach())

    numeric = (value(1e-5) - value(-1e-5)) / 2e-5
    assert abs(slope) > 1e-2
    assert abs(numeric - slope) < 1e-6 * abs(slope) + 1e-7


@pytest.mark.parametrize(
    ("params", "with_grad", "without"),
    [
        ({}, 2, 1),
        ({"lam": 0.0}, 2, 0),
        ({"mix_weight": 0.0}, 2, 0),
        ({"fake_weight": 0.0}, 1, 1),
        ({"fake_weight": 0.0, "lam": 0.0}, 1, 0),
    ],
    ids=str,
)
def test_passes_of_eq25(make_toy, make_batch, watch, params: dict, with_grad: int, without: int):
    _, student, _, _ = run(ApexEq25, make_toy, make_batch(6), params, watch)
    assert student.samples(grad=True) == 6 * with_grad
    assert student.samples(grad=False) == 6 * without
    assert all(c["r"] is None or torch.equal(c["r"], c["t"]) for c in student.calls)


@pytest.mark.parametrize("place", ["embeds", "projected", "normed"])
def test_the_shift_stands_at_the_place_that_is_set(make_toy, make_batch, watch, place: str):
    _, student, _, _ = run(ApexEq25, make_toy, make_batch(6), {"shift_place": place, "a": 0.3, "b": 0.2}, watch)
    conds = [c["cond"] for c in student.calls if c["cond"].scale is not None]
    assert len(conds) == 2
    for c in conds:
        assert c.place == place
        assert torch.allclose(c.scale.flatten(), torch.tensor(0.3, dtype=F64))
        assert torch.allclose(c.offset.flatten(), torch.tensor(0.2, dtype=F64))


def test_both_weights_at_zero_are_refused(make_toy, make_batch):
    try:
        run(ApexEq25, make_toy, make_batch(6), {"fake_weight": 0.0, "mix_weight": 0.0})[3].losses["student"].backward()
    except (UserError, ValidationError):
        return
    raise AssertionError("nothing would be trained, and nothing says so")


# ---------------------------------------------------------------------------------------------------------- fm


def test_fm_is_flow_matching_at_one_pass(make_toy, make_batch, watch):
    batch = make_batch(6)
    toy, student, _, out = run(FlowMatching, make_toy, batch, {}, watch)
    assert student.samples(grad=True) == 6
    assert student.samples(grad=False) == 0
    (call,) = student.calls
    t, noise = call["t"], batch.drawn[0]
    assert call["cond"] is batch.cond
    s = t[:, None, None, None]
    expected = (toy(s * noise + (1 - s) * batch.x0, t, batch.cond) - (noise - batch.x0)).square().mean()
    torch.testing.assert_close(out.losses["student"], expected)


def test_fm_times_are_logit_normal(make_toy, make_batch, watch):
    def logits(params: dict) -> Tensor:
        _, student, _, _ = run(FlowMatching, make_toy, make_batch(4000), params, watch)
        return torch.logit(student.calls[0]["t"])

    found = logits({})
    assert abs(float(found.mean())) < 0.06 and abs(float(found.std()) - 1) < 0.04
    found = logits({"time_mean": -1.5, "time_std": 0.5})
    assert abs(float(found.mean()) + 1.5) < 0.03 and abs(float(found.std()) - 0.5) < 0.02
    assert set(FMParams.model_fields) == {"time_mean", "time_std"}


# ---------------------------------------------------------- what needs no more than a velocity network; all: apex.conformance


@pytest.fixture(params=["apex", "apex-eq25", "fm", "rcgm", "twinflow"])
def method(request: pytest.FixtureRequest) -> Method:
    return methods.get(request.param)()


def one_step(method: Method, make_toy, make_batch, watch, seed: int = 0) -> tuple[Step, dict]:
    nets = {k: watch(make_toy(seed=i), no_grad=k != "student") for i, k in enumerate(("student", "ema", "teacher"))}
    extra = {k: m.double() for k, m in method.extra_networks(None).items()}
    return method.losses(make_batch(8, seed=seed), Networks(nets["student"], nets["ema"], nets["teacher"], extra), 0), nets


def test_a_method_says_what_it_is(method: Method):
    assert method.name in methods.available()
    assert method.family and method.citation
    assert method.sample_mode in ("few", "any", "multi")
    assert method.target_time in ("none", "embedding")
    assert method.needs <= {"ema", "teacher"}
    assert set(method.tunings) <= {"full", "lora"} and method.tunings
    assert set(method.roles()) <= set(method.extra_networks(None))
    assert all(f.description for f in type(method.params).model_fields.values())


def test_a_method_gives_finite_differentiable_losses_and_plain_logs(method: Method, make_toy, make_batch, watch):
    step, nets = one_step(method, make_toy, make_batch, watch)
    assert "student" in step.losses
    for loss in step.losses.values():
        assert loss.ndim == 0 and torch.isfinite(loss)
    sum(step.losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in nets["student"].network.parameters())
    for value in step.logs.values():
        assert not (isinstance(value, Tensor) and value.requires_grad)
        assert torch.isfinite(torch.as_tensor(value))


def test_a_method_queries_only_the_networks_that_it_needs(method: Method, make_toy, make_batch, watch):
    _, nets = one_step(method, make_toy, make_batch, watch)
    assert {k for k in ("ema", "teacher") if nets[k].calls} == set(method.needs)


def test_a_method_that_never_shows_r_to_the_network_asks_for_no_target_time(method: Method, make_toy, make_batch, watch):
    _, nets = one_step(method, make_toy, make_batch, watch)
    sees_r = any(c["r"] is not None and not torch.equal(c["r"], c["t"]) for c in nets["student"].calls)
    assert sees_r == (method.target_time == "embedding")


def test_a_method_draws_from_its_batch_alone(method: Method, make_toy, make_batch, watch):
    """The same batch gives the same loss whatever torch's own generator did, and leaves that one alone."""
    before = torch.get_rng_state()
    first, _ = one_step(method, make_toy, make_batch, watch)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second, _ = one_step(method, make_toy, make_batch, watch)
    third, _ = one_step(method, make_toy, make_batch, watch, seed=1)
    assert {k: float(v.detach()) for k, v in first.losses.items()} == {k: float(v.detach()) for k, v in second.losses.items()}
    assert first.losses["student"] != third.losses["student"]


def test_a_method_refuses_an_unknown_setting(method: Method):
    with pytest.raises(ValidationError, match="no_such_setting"):
        type(method)({"no_such_setting": 1})


# ---------------------------------------------------------------------------------------------------- in a profile


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("apex", {"lam": 0.5}, "rows.mine.params.lam: unknown key 'lam'"),
        ("apex-eq25", {"lambda": 0.5}, "rows.mine.params.lambda: unknown key 'lambda'; did you mean 'lam'?"),
        ("apex-eq25", {"lam": 1.5}, "rows.mine.params.lam: found 1.5, expected less than or equal to 1"),
        ("apex-eq25", {"weighting": "t"}, "rows.mine.params.weighting: found 't', expected 't\\(1-t\\)', 't\\^3/\\(1-t\\)' or 't\\^2'"),
        ("apex", {"shift_place": "here"}, "rows.mine.params.shift_place: found 'here', expected 'embeds', 'projected' or 'normed'"),
        ("apex", {"order": 0}, "rows.mine.params.order: found 0, expected greater than or equal to 1"),
        ("fm", {"time_std": 0.0}, "rows.mine.params.time_std: found 0.0, expected greater than 0"),
    ],
    ids=str,
)
def test_wrong_settings_are_one_line_that_names_the_key(tmp_path, name: str, params: dict, said: str):
    import yaml

    profile = tmp_path / "p.yaml"
    profile.write_text(yaml.safe_dump({"profile": "p", "methods": ["mine"], "rows": {"mine": {"method": name, "params": params}}}))
    with pytest.raises(UserError, match=said) as error:
        check_params(load(profile))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "params"), [("apex", {"a": math.nan}), ("apex-eq25", {"lam": "0.5"}), ("apex", {"learn_shift": "yes"})], ids=str
)
def test_wrong_types_and_nan_in_settings_are_refused(name: str, params: dict):
    with pytest.raises(ValidationError):
        methods.get(name)(params)


def test_an_unknown_method_names_those_there_are():
    with pytest.raises(UserError, match=r"unknown method 'apx'; known: .*apex, apex-eq25.*fm"):
        methods.get("apx")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module_anywhere\n", "cannot be imported"),
        ("x = 1\n", "expected METHOD"),
        ("from apex.methods.fm import METHOD\n", "expected METHOD, a subclass of Method with name = 'mine'"),
    ],
)
def test_a_broken_method_file_is_named(tmp_path, monkeypatch, text: str, said: str):
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setattr(methods, "__path__", [str(tmp_path)])
    monkeypatch.delitem(__import__("sys").modules, "apex.methods.mine", raising=False)
    assert "mine" in methods.available()
    with pytest.raises(UserError, match=said) as error:
        methods.get("mine")
    assert str(error.value).startswith(f"{tmp_path / 'mine.py'}: ")
    __import__("sys").modules.pop("apex.methods.mine", None)


def test_a_new_file_is_a_new_method(tmp_path, monkeypatch, make_toy, make_batch):
    """Adding a method is adding one file."""
    (tmp_path / "scaled_fm.py").write_text(
        "from apex.methods.fm import FlowMatching\n\n\nclass Scaled(FlowMatching):\n    name = 'scaled-fm'\n\n\nMETHOD = Scaled\n"
    )
    monkeypatch.setattr(methods, "__path__", [str(tmp_path)])
    assert list(methods.available()) == ["scaled-fm"]
    new = methods.get("scaled-fm")()
    batch: Batch = make_batch(4)
    assert torch.isfinite(new.losses(batch, Networks(make_toy(), refuse, refuse), 0).losses["student"])
    __import__("sys").modules.pop("apex.methods.scaled_fm", None)
