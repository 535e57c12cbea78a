"""Numerical checks of the paper's identities. `python -m apex.theory` is their command."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apex import flow, losses
from apex import mixture_runs as mixture
from apex.backbones.sana import SanaBackbone
from apex.conditioning import AffineShift, Condition
from apex.kl_gradient import data_score, flat, variance_at
from apex.mixture_runs import VelocityMLP
from apex.seeds import torch_generator
from apex.testbed import CAPTION, seeded, tiny_sana

F64 = torch.float64
ROUNDING = 1e-9


@dataclass(frozen=True)
class Check:
    """`value` is an error or a ratio, `bound` the largest that agrees with the statement."""

    id: str
    says: str
    value: float
    bound: float
    n: int

    @property
    def holds(self) -> bool:
        return math.isfinite(self.value) and self.value <= self.bound


def points(count: int, seed: str) -> tuple[Tensor, Tensor]:
    """Places (N, 2) and times (N, 1) in [0.05, 0.95], float64."""
    generator = torch_generator(0, "theory", seed)
    return 2.5 * torch.randn(count, 2, generator=generator, dtype=F64), 0.05 + 0.9 * torch.rand(count, 1, generator=generator, dtype=F64)


def clean_mean(x: Tensor, t: Tensor, modes: Tensor) -> Tensor:
    """E[x0 | x_t = x] for data that are an even mixture of N(mode, SPREAD^2 I), (N, 2)."""
    variance = variance_at(t)
    weights = torch.softmax(-(x[:, None] - (1 - t)[:, None] * modes).square().sum(2) / (2 * variance), dim=1)
    gain = (1 - t) * mixture.SPREAD**2 / variance
    each = modes + gain[:, None] * (x[:, None] - (1 - t)[:, None] * modes)
    return (weights[..., None] * each).sum(1)


def marginal_velocity(x: Tensor, t: Tensor, modes: Tensor) -> Tensor:
    """v*(x_t, t) = E[z - x0 | x_t] = (x_t - E[x0 | x_t]) / t, (N, 2)."""
    return (x - clean_mean(x, t, modes)) / t


def worst(found: Tensor, true: Tensor) -> float:
    """The largest difference over the root mean square of the truth."""
    return float((found - true).abs().max() / true.square().mean().sqrt())


# ------------------------------------------------------------------------------------------------- Eq. 5 and what uses it


def duality() -> Check:
    """Against the score by automatic differentiation of the log density."""
    x, t = points(2000, "duality")
    modes = mixture.modes(0).to(F64)
    x = x.requires_grad_(True)
    variance = variance_at(t)
    density = torch.logsumexp(-(x[:, None] - (1 - t)[:, None] * modes).square().sum(2) / (2 * variance), 1)
    true = torch.autograd.grad(density.sum(), x)[0]
    with torch.no_grad():
        found = flow.score(marginal_velocity(x, t, modes), x, t[:, 0])
    says = "Eq. 5: the score is -(x_t + (1 - t) v*) / t for the marginal velocity v*"
    return Check("duality", says, worst(found, true), ROUNDING, len(x))


def duality_of_a_jump() -> Check:
    """The same formula with the average velocity of the exact flow map to 0, which is what a one-step network learns.

    For x0 ~ N(0, sigma^2): x_t's ODE scales, so the map to 0 is sigma x_t / sd_t, and F = (x_t - that) / t.
    """
    sigma = 0.5
    x, t = points(2000, "jump")
    deviation = ((sigma * (1 - t)).square() + t.square()).sqrt()
    average = (x - sigma * x / deviation) / t
    found, true = flow.score(average, x, t[:, 0]), -x / deviation.square()
    says = "Eq. 5 holds for the velocity of a one-step network, F(x_t, t, 0), as Eq. 15 takes it to"
    return Check("duality_of_a_jump", says, worst(found, true), ROUNDING, len(x))


def score_difference() -> Check:
    """The difference of two branches that are exact for two distributions is the score difference with a weight of t alone."""
    x, t = points(2000, "difference")
    real, fake = mixture.modes(0).to(F64), mixture.modes(1).to(F64)
    found = -(1 - t) / t * (marginal_velocity(x, t, fake) - marginal_velocity(x, t, real))
    true = data_score(x, t, 1) - data_score(x, t, 0)
    says = "where both branches are exact, v_fake - v is the score difference times a weight of t alone: a KL gradient"
    return Check("score_difference", says, worst(found, true), ROUNDING, len(x))


def discriminator_weight() -> Check:
    """With the best discriminator D = q / (q + p), d/dx log(1 - D) is D times the score difference: a weight of the sample."""
    x, t = points(2000, "weight")
    real, fake = mixture.modes(0).to(F64), mixture.modes(1).to(F64)
    x = x.requires_grad_(True)
    variance = variance_at(t)
    logs = [torch.logsumexp(-(x[:, None] - (1 - t)[:, None] * m).square().sum(2) / (2 * variance), 1) for m in (real, fake)]
    d = torch.sigmoid(logs[0] - logs[1])
    gradient = torch.autograd.grad(nn.functional.logsigmoid(logs[1] - logs[0]).sum(), x)[0]
    difference = data_score(x, t, 1) - data_score(x, t, 0)
    says = "the generator's gradient under the best discriminator is the same score difference, weighted by D(x) of the sample"
    return Check("discriminator_weight", says, worst(gradient, (d[:, None] * difference).detach()), ROUNDING, len(x))


def separated() -> Tensor:
    """D of the best discriminator on the fake samples of two Gaussians that lie 6.7 standard deviations apart, (N,)."""
    t = torch.full((4000, 1), 0.05, dtype=F64)
    generator = torch_generator(0, "theory", "separated")
    fake = torch.tensor([[1.0, 0.0]], dtype=F64)
    x = (1 - t) * (fake + mixture.SPREAD * torch.randn(4000, 2, generator=generator, dtype=F64))
    x = x + t * torch.randn(4000, 2, generator=generator, dtype=F64)
    variance = variance_at(t)
    logs = [-(x - (1 - t) * centre).square().sum(1) / (2 * variance[:, 0]) for centre in (torch.zeros_like(fake), fake)]
    return torch.sigmoid(logs[0] - logs[1])


def vanishing() -> Check:
    d = separated()
    says = "far from the data the saturating loss log(1 - D) has all but no gradient: its weight is D(x), the score difference's is 1"
    return Check("vanishing", says, float(d.mean()), 0.01, len(d))


def vanishing_non_saturating() -> Check:
    d = separated()
    says = "so has the non-saturating loss -log D, which is used in practice: its weight is 1 - D(x)"
    return Check("vanishing_non_saturating", says, float((1 - d).mean()), 0.01, len(d))


# --------------------------------------------------------------------------------------------------- Theorem 1, Eq. 11 to 25


def random_network(seed: str) -> VelocityMLP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=torch_generator(0, "theory", seed))))
        return VelocityMLP(64).double()


def theorem_1() -> Check:
    """Over five lambdas and three weights, a random network and its own shifted branch."""
    network, shift = random_network("theorem"), AffineShift(-1.0, 0.0).double()
    batch = mixture.draw_batch(256, torch_generator(0, "theory", "theorem batch"))
    x0, cond = batch.x0.double(), mixture.condition(torch.arange(256) % 2)
    cond = type(cond)(cond.embeds.double(), cond.mask.double())
    noise = torch.randn(x0.shape, generator=torch_generator(0, "theory", "theorem noise"), dtype=F64)
    t = 0.02 + 0.96 * torch.rand(256, generator=torch_generator(0, "theory", "theorem times"), dtype=F64)
    x_t = flow.interpolate(x0, noise, t)
    errors = []
    for lam in (0.0, 0.25, 0.5, 0.75, 1.0):
        for reading in ("t(1-t)", "t^3/(1-t)", "t^2"):
            with torch.no_grad():
                v_fake = network(x_t, t, shift(cond))
            mix = flat(losses.mix_loss(network(x_t, t, cond), v_fake, x0, x_t, t, lam, reading).mean(), network)
            joint = flat(losses.joint_loss(network(x_t, t, cond), v_fake, noise - x0, t, lam, reading).mean(), network)
            errors.append(float((mix - joint).norm() / joint.norm()))
    return Check("theorem_1", "Theorem 1: L_mix and G_APEX have the same gradient", max(errors), ROUNDING, len(errors))


def eq25_at_noise() -> Check:
    """At t = 1 the gradient of every term is the same for the data and for the data's mean: there Eq. 25 cannot tell them apart."""
    network, shift = random_network("noise"), AffineShift(-1.0, 0.0).double()
    modes = mixture.modes(0).to(F64)
    count = 64
    z = torch.randn(count, 2, 1, 1, generator=torch_generator(0, "theory", "noise z"), dtype=F64).repeat_interleave(len(modes), 0)
    cond = mixture.condition(torch.zeros(len(z), dtype=torch.long))
    cond = type(cond)(cond.embeds.double(), cond.mask.double())
    one = torch.ones(len(z), dtype=F64)

    def gradient(x0: Tensor) -> Tensor:
        predicted = network(z, one, cond)
        x_fake = flow.endpoint(predicted, z, one)
        fake = losses.fake_loss(network(z, one, shift(cond)), x_fake, z).mean()
        mix = losses.mix_loss(predicted, network(z, one, shift(cond)), x0, z, one, 0.5, "t^2").mean()
        return flat(fake + mix, network)

    data = modes.repeat(count, 1).reshape(-1, 2, 1, 1)
    mean = modes.mean(0).expand(len(z), 2).reshape(-1, 2, 1, 1)
    true = gradient(mean)
    error = float((gradient(data) - true).norm() / true.norm())
    says = "at t = 1, where one-step samples are made, Eq. 25's gradient is the one that the prompt's mean image gives"
    return Check("eq25_at_noise", says, error, ROUNDING, len(z))


def fake_samples() -> Check:
    """Sliced W1 over the data's spread: x_fake of Eq. 11, made at real points of all times, and one-step samples of that velocity."""
    count = 4000
    generator = torch_generator(0, "theory", "fake")
    modes = mixture.modes(0).to(F64)
    x0 = mixture.draw(torch.zeros(count, dtype=torch.long), generator).double().flatten(1)
    z = torch.randn(count, 2, generator=generator, dtype=F64)
    t = torch.rand(count, 1, generator=generator, dtype=F64).clamp(1e-3, 1)
    x_fake = clean_mean((1 - t) * x0 + t * z, t, modes)  # x_t - t v* is E[x0 | x_t]
    one_step = clean_mean(torch.randn(count, 2, generator=generator, dtype=F64), torch.ones(count, 1, dtype=F64), modes)
    shape = (count, 2, 1, 1)
    distance = mixture.sliced_w1(x_fake.reshape(shape).float(), one_step.reshape(shape).float())
    says = "x_fake of Eq. 11 is distributed as the model's one-step samples, which the shifted branch is said to estimate"
    return Check("fake_samples", says, distance / mixture.SCALE, 0.05, count)


def architecture() -> Check:
    """A one-step student that sees r, with random weights for what is new, folded into a stock network of the teacher's class and size."""
    teacher = seeded(tiny_sana)
    student = seeded(teacher.with_target_time, seed=1).double()
    generator = torch_generator(0, "theory", "architecture")
    x, embeds = (torch.randn(shape, generator=generator, dtype=F64) for shape in ((8, 4, 4, 4), (8, 5, CAPTION)))
    cond, one = Condition(embeds, torch.ones(8, 5)), torch.ones(8, dtype=F64)
    with torch.no_grad():
        expected = student(x, one, cond, torch.zeros_like(one))
        stock = student.fold_one_step(1.0)
        found = SanaBackbone(stock)(x, one, cond)
    same = type(stock) is type(teacher.transformer) and sum(p.numel() for p in stock.parameters()) == teacher.parameter_count()
    says = "a student that takes one step is a stock network of the teacher's class and size, with the same output"
    return Check("architecture", says, worst(found, expected) if same else math.inf, 1e-6, len(x))


CHECKS: tuple[Callable[[], Check], ...] = (
    duality,
    duality_of_a_jump,
    score_difference,
    discriminator_weight,
    vanishing,
    vanishing_non_saturating,
    theorem_1,
    eq25_at_noise,
    fake_samples,
    architecture,
)
