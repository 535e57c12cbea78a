"""The gradient of the KL divergence between samples and data on the 2-D mixture, and how a row's own gradients lie to it.

`python -m apex.alignment` says what is measured, and writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from apex import methods
from apex import mixture_runs as mixture
from apex.ema import Ema
from apex.methods.base import STUDENT, Networks
from apex.mixture_rows import ROWS, WATCHED, Recipe
from apex.mixture_runs import VelocityMLP
from apex.seeds import torch_generator

MOMENTS = (0, 50, 100, 200, 400, 800, 1600, 3200)
LOW, HIGH = 0.02, 0.98  # of s: at 0 the samples' own score is a sum of peaks
SAMPLES = 4096  # per class


def variance_at(s: Tensor) -> Tensor:
    """Of one diffused mode per axis, (N, 1)."""
    return (mixture.SPREAD * (1 - s)).square() + s.square()


def data_score(x: Tensor, s: Tensor, label: int) -> Tensor:
    """Score of the class's data at time s, (N, 2): a mixture of four Gaussians about (1 - s) times their modes. x (N, 2), s (N, 1)."""
    return mixture_score(x, (1 - s)[:, None] * mixture.modes(label).to(x), variance_at(s))


def sample_score(x: Tensor, s: Tensor, samples: Tensor) -> Tensor:
    """Score at time s of the distribution that is equal weights on `samples` (M, 2), diffused, (N, 2). Exact."""
    parts = [mixture_score(one, (1 - at)[:, None] * samples[None], at.square()) for one, at in zip(x.split(512), s.split(512), strict=True)]
    return torch.cat(parts)


def mixture_score(x: Tensor, centres: Tensor, variance: Tensor) -> Tensor:
    """d/dx log of an even mixture of N(centre, variance I). x (N, 2), centres (N, M, 2), variance (N, 1)."""
    away = centres - x[:, None]
    weights = torch.softmax(-away.square().sum(2) / (2 * variance), dim=1)
    return (weights[..., None] * away).sum(1) / variance


def kl_gradient(student: VelocityMLP, seed: int, count: int = SAMPLES) -> Tensor:
    """The parameter gradient of KL(p_s || q_s), a mean over s in [LOW, HIGH] and over classes; flat."""
    generator = torch_generator(seed, "alignment", "kl")
    total = torch.zeros(())
    for label, (z, other) in enumerate(
        zip(mixture.noises(count, seed, "alignment"), mixture.noises(count, seed, "alignment", "own"), strict=True)
    ):
        cond = mixture.condition(torch.full((count,), label))
        one = torch.ones(count)
        x = (z - student(z, one, cond, torch.zeros(count))).flatten(1)
        with torch.no_grad():
            own = mixture.generate(student, other, label).flatten(1)
            s = LOW + (HIGH - LOW) * torch.rand(count, 1, generator=generator)
            x_s = (1 - s) * x + s * torch.randn(count, 2, generator=generator)
            force = (1 - s) * (sample_score(x_s, s, own) - data_score(x_s, s, label))
        total = total + (force * x).sum(1).mean() / len(mixture.CENTRES)
    return flat(total, student)


def flat(loss: Tensor, student: VelocityMLP) -> Tensor:
    """The loss's gradient with respect to the student's parameters, as one vector; zero where it has none."""
    parameters = list(student.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]).detach()


def method_gradient(name: str, params: Mapping[str, Any], student: VelocityMLP, nets: Networks, seed: int) -> Tensor:
    """The parameter gradient of the method's own loss of the student, on one large batch."""
    method = methods.get(name)(dict(params))
    mixture.make_extra(method, student, seed)  # a method may note there what it needs of its networks; those in `nets` are trained
    batch = mixture.draw_batch(2 * SAMPLES, torch_generator(seed, "alignment", "batch"))
    with torch.random.fork_rng(devices=[]):
        loss = method.losses(batch, nets, method.cycle() - 1).losses[STUDENT]
    return flat(loss, student)


def watch_row(name: str, teacher: VelocityMLP, recipe: Recipe, seed: int) -> list[dict[str, Any]]:
    """Trains the row and looks at its gradients at the moments of MOMENTS."""
    row, lines = ROWS[name], []
    noise, data = mixture.noises(2000, seed, "curve"), mixture.dataset(2000, seed, "curve")

    def watch(step: int, student: VelocityMLP, _ema: Ema, nets: Networks) -> None:
        if step not in MOMENTS:
            return
        true = kl_gradient(student, seed)
        distance = mixture.quality([mixture.generate(student, z, label) for label, z in enumerate(noise)], data)["sw1"]
        for part, changes in {"whole": {}, **WATCHED[name]}.items():
            own = method_gradient(row.method, {**row.params, **changes}, student, nets, seed)
            cosine = float(torch.nn.functional.cosine_similarity(own, true, dim=0, eps=1e-12))
            norms = {"gradient": float(own.norm()), "kl_gradient": float(true.norm())}
            lines.append({"row": name, "part": part, "seed": seed, "step": step, "cosine": cosine, **norms, "sw1": distance})

    mixture.train(teacher, row.method, row.params, recipe, seed, watch)
    return lines
