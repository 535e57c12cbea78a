"""Closed forms of `apex.theory` and `apex.alignment`: what holds, what does not, and that a wrong formula is seen."""

from __future__ import annotations

import copy
import json
import math
import sys

import pytest
import torch

from apex import alignment, identities, kl_gradient, theory
from apex import mixture_runs as mixture
from apex.mixture_rows import Recipe
from apex.seeds import torch_generator

HOLD = {"duality", "score_difference", "discriminator_weight", "vanishing", "theorem_1", "eq25_at_noise", "architecture"}


@pytest.fixture(scope="module")
def found() -> dict[str, identities.Check]:
    return {check().id: check() for check in identities.CHECKS}


def test_what_holds_and_what_does_not(found):
    assert {name for name, check in found.items() if check.holds} == HOLD
    assert set(found) - HOLD == {"duality_of_a_jump", "vanishing_non_saturating", "fake_samples"}
    assert all(found[name].value < 1e-12 for name in HOLD - {"vanishing", "architecture"})


def test_an_error_that_is_no_number_does_not_hold():
    assert not identities.Check("x", "", math.nan, 1.0, 1).holds


def test_a_wrong_sign_is_seen(monkeypatch):
    monkeypatch.setattr(identities.flow, "score", lambda v, x, t: -(x - (1 - t[:, None]) * v) / t[:, None])
    assert not identities.duality().holds
    monkeypatch.setattr(identities.losses, "joint_loss", lambda p, v, u, t, lam, w: lam * p.square().flatten(1).mean(1))
    assert not identities.theorem_1().holds


def test_the_marginal_velocity_is_the_mean_over_draws():
    """At one place: draws of (x0, z) whose x_t lies near it."""
    generator, t = torch_generator(0, "test", "velocity"), 0.6
    x0 = mixture.draw(torch.zeros(400_000, dtype=torch.long), generator).double().flatten(1)
    z = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    place = torch.tensor([[-0.3, 0.4]], dtype=torch.float64)
    near = (((1 - t) * x0 + t * z) - place).square().sum(1) < 0.05**2
    expected = (z - x0)[near].mean(0)
    at = torch.full((1, 1), t, dtype=torch.float64)
    value = identities.marginal_velocity(place, at, mixture.modes(0).double())[0]
    assert near.sum() > 300 and float((value - expected).norm()) < 0.15


def test_the_samples_score_is_that_of_the_density_of_the_samples():
    generator = torch_generator(0, "test", "score")
    samples = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    x, s = torch.randn(7, 2, generator=generator, dtype=torch.float64).requires_grad_(True), torch.full((7, 1), 0.4, dtype=torch.float64)
    density = torch.logsumexp(-((1 - s)[:, None] * samples - x[:, None]).square().sum(2) / (2 * s.square()), 1)
    expected = torch.autograd.grad(density.sum(), x)[0]
    torch.testing.assert_close(kl_gradient.sample_score(x.detach(), s, samples), expected)


def test_the_kl_gradient_of_a_gaussian_is_its_closed_form(monkeypatch):
    """x = 0.8 z + b against N(0, I): d/db KL at s is (1 - s)^2 b / ((1 - s)^2 + s^2)."""
    student = mixture.VelocityMLP(16)
    torch.nn.init.constant_(student.outlet.bias, 0.7)
    monkeypatch.setattr(kl_gradient, "data_score", lambda x, s, label: -x / ((1 - s).square() + s.square()))
    monkeypatch.setattr(student, "forward", lambda z, t, cond, r=None: 0.2 * z - student.outlet.bias.reshape(1, 2, 1, 1))
    found = kl_gradient.kl_gradient(student, 0)[-2:]
    s = torch.linspace(kl_gradient.LOW, kl_gradient.HIGH, 10_000)
    expected = 0.7 * ((1 - s).square() / ((1 - s).square() + s.square())).mean()
    torch.testing.assert_close(found, expected.expand(2), rtol=0.2, atol=0)


def test_the_kl_gradient_is_small_for_samples_that_are_the_data(monkeypatch):
    """A generator that ignores its network and gives the data, plus what the network's bias adds."""
    student, data = mixture.VelocityMLP(16), mixture.dataset(kl_gradient.SAMPLES, 0, "exact")
    bias = student.outlet.bias

    def gradient(off: float) -> float:
        def forward(z, t, cond, r=None):
            label = int((cond.embeds[0, 0] - mixture.EMBEDDINGS[1]).norm() < 1e-6)
            return z - data[label][: len(z)] - off - (bias - bias.detach()).reshape(1, 2, 1, 1)

        fake = copy.copy(student)
        fake.forward = forward
        return float(kl_gradient.kl_gradient(fake, 0, 2048).norm())

    assert gradient(0.0) < 0.05 * gradient(1.0)


def test_the_commands_write_what_they_say(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["theory", "--out", str(tmp_path)])
    theory.main()
    content = json.loads((tmp_path / "theory.json").read_text())
    assert {one["id"]: one["holds"] for one in content["checks"]} == {check().id: check().holds for check in identities.CHECKS}
    assert content["git_commit"] and content["hardware"]
    monkeypatch.setattr(kl_gradient, "SAMPLES", 64)
    arguments = ["--out", str(tmp_path), "--seeds", "0", "--steps", "60", "--rows", "apex", "dmd2"]
    monkeypatch.setattr(sys, "argv", ["alignment", *arguments])
    alignment.main()
    lines = (tmp_path / "alignment.csv").read_text().splitlines()
    assert lines[0] == "row,part,seed,step,cosine,gradient,kl_gradient,sw1"
    assert [line.rsplit(",", 4)[0] for line in lines[1:]] == [
        *(f"apex,{part},0,{step}" for step in (0, 50) for part in ("whole", "base", "rectification")), "dmd2,whole,0,0", "dmd2,whole,0,50",
    ]  # fmt: skip


def test_looking_changes_no_run():
    recipe = Recipe(steps=60, batch=32, width=32)
    teacher = mixture.make_teacher(recipe, 0)
    runs = []
    for watch in (None, lambda step, student, ema, nets: kl_gradient.method_gradient("ladd", {}, student, nets, 0)):
        runs.append(mixture.train(teacher, "ladd", {}, recipe, 0, watch)[0])
    assert all(torch.equal(a, b) for a, b in zip(runs[0].parameters(), runs[1].parameters(), strict=True))
