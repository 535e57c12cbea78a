"""The suite's methods on a 2-D Gaussian mixture: two classes of four modes, where the truth is known and a run takes seconds.

    python -m apex.mixture --out DIR                         all rows, three seeds; prints the table (about 12 CPU minutes)
    python -m apex.mixture --out DIR --seeds 0 --rows apex "eq25"   two rows, one seed

Writes DIR/mixture.csv (one line per row and seed) and DIR/mixture.png (one-step samples of the first seed). For each
seed a small MLP is trained by flow matching (`fm`) and then distilled by each row with the unchanged code of
`apex.methods`; all rows share batch, steps, optimiser and EMA. There is no guidance (rho = 0): the target is the data
themselves. Where a method has no r its student ignores it.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apex import flow, methods
from apex.budget import Counted, Ledger, measure_cost
from apex.conditioning import AffineShift, Condition, shift_visibility
from apex.ema import Ema
from apex.errors import UserError, run_command
from apex.files import write_atomic
from apex.methods.base import Batch, Networks
from apex.seeds import derive, torch_generator

RADIUS, SPREAD, MODES = 2.0, 0.15, 4
CENTRES = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])  # the class means
NULL = len(CENTRES)  # label of the empty condition
EMBEDDINGS = nn.functional.normalize(torch.randn(NULL + 1, 8, generator=torch_generator(0, "mixture", "embeddings")), dim=1) * math.sqrt(8)

APEX, EQ25 = {"rho": 0.0}, {"lam": 0.5}  # no guidance; the paper gives no lam
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "fm": ("fm", {}),
    "apex": ("apex", APEX),
    "apex no shift": ("apex", APEX | {"a": 1.0, "b": 0.0}),
    "apex no rectification": ("apex", APEX | {"rectification": 0.0}),
    "eq25": ("apex-eq25", EQ25),
    "eq25 lam=0": ("apex-eq25", {"lam": 0.0}),
    "eq25 lam=1": ("apex-eq25", {"lam": 1.0}),
    "eq25 w=t^3/(1-t)": ("apex-eq25", EQ25 | {"weighting": "t^3/(1-t)"}),
    "eq25 w=t^2": ("apex-eq25", EQ25 | {"weighting": "t^2"}),
    "eq25 stopped": ("apex-eq25", EQ25 | {"x_fake_gradient": False}),
    "eq25 fresh": ("apex-eq25", EQ25 | {"fresh_noise": True}),
    "eq25 fresh, stopped": ("apex-eq25", EQ25 | {"fresh_noise": True, "x_fake_gradient": False}),
    "eq25 lam=1 stopped": ("apex-eq25", {"lam": 1.0, "x_fake_gradient": False}),
    "eq25 lam=1 fresh": ("apex-eq25", {"lam": 1.0, "fresh_noise": True}),
    "eq25 lam=1 fresh, stopped": ("apex-eq25", {"lam": 1.0, "fresh_noise": True, "x_fake_gradient": False}),
}


def modes(label: int) -> Tensor:
    """The four mode centres of a class, (4, 2): a plus sign for class 0, a cross for class 1."""
    angle = (torch.arange(MODES) / MODES + label / (2 * MODES)) * 2 * math.pi
    return CENTRES[label] + RADIUS * torch.stack([angle.cos(), angle.sin()], 1)


def draw(labels: Tensor, generator: torch.Generator) -> Tensor:
    """One sample per label, (B, 2, 1, 1)."""
    centres = torch.stack([modes(k) for k in range(len(CENTRES))])
    which = torch.randint(MODES, labels.shape, generator=generator)
    return (centres[labels, which] + SPREAD * torch.randn(len(labels), 2, generator=generator))[..., None, None]


def condition(labels: Tensor) -> Condition:
    """One token per sample: the class embedding, (B, 1, 8)."""
    return Condition(EMBEDDINGS[labels][:, None], torch.ones(len(labels), 1))


class VelocityMLP(nn.Module):
    """F(x_t, t, r, c) on (B, 2, 1, 1). The target time enters through `target`(r) (t - r), zero until it is trained."""

    def __init__(self, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(5) * math.pi / 2)
        features = 1 + 2 * len(self.frequencies)
        self.inlet, self.time, self.text = nn.Linear(2, width), nn.Linear(features, width), nn.Linear(EMBEDDINGS.shape[1], width, bias=False)
        self.target = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.target[-1].weight)
        nn.init.zeros_(self.target[-1].bias)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outlet = nn.Linear(width, 2)

    def features(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        return torch.cat([t[:, None], angles.sin(), angles.cos()], 1)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        if cond.place == "normed":
            raise ValueError("VelocityMLP has no normalisation in its text path; shift at 'embeds' or 'projected'")
        tokens = cond.embeds if cond.place == "projected" else cond.apply_shift(cond.embeds)
        tokens = self.text(tokens)
        tokens = cond.apply_shift(tokens) if cond.place == "projected" else tokens
        h = self.inlet(x_t.flatten(1)) + self.time(self.features(t)) + tokens[:, 0]
        if r is not None:
            h = h + (t - r)[:, None] * self.target(self.features(r))
        for layer in self.layers:
            h = h + layer(nn.functional.silu(h))
        return self.outlet(nn.functional.silu(h)).reshape(x_t.shape)


@dataclass(frozen=True)
class Recipe:
    """What all rows share. AdamW (0.9, 0.99) without decay of the weights; warm-up of 100 steps, then linear to 0."""

    steps: int = 4000
    batch: int = 256
    learning_rate: float = 1e-3
    ema: float = 0.99
    max_grad_norm: float = 1.0


def train(network: VelocityMLP, name: str, params: Mapping[str, Any], recipe: Recipe, seed: int) -> tuple[VelocityMLP, dict[str, float]]:
    """Trains a copy of `network` (it is also the frozen teacher) by a method; returns it under its running mean, and what it took.

    Raises:
        UserError: unknown method, or a loss that is not finite.
    """
    method = methods.get(name)(dict(params))
    teacher, student = network.eval().requires_grad_(False), copy.deepcopy(network).requires_grad_(True)
    extra = method.extra_networks()
    ema = Ema(student.parameters(), recipe.ema)
    ledger = Ledger(dict.fromkeys(("student", "ema", "teacher"), measure_cost(student, (2, 1, 1), condition(torch.tensor([0])))))

    def averaged(x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        with ema.applied():
            return student(x_t, t, cond, r)

    nets = Networks(
        student=Counted(student, "student", ledger),
        ema=Counted(averaged, "ema", ledger, no_grad=True),
        teacher=Counted(teacher, "teacher", ledger, no_grad=True),
        extra=extra,
    )
    trained = [*student.parameters(), *(p for m in extra.values() for p in m.parameters() if p.requires_grad)]
    optimizer = torch.optim.AdamW(trained, recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, foreach=True)
    generator = torch_generator(seed, "mixture", "train")
    null = condition(torch.full((recipe.batch,), NULL))
    started = time.process_time()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min((step + 1) / 100, 1 - step / recipe.steps)
        ema.update()
        labels = torch.randint(len(CENTRES), (recipe.batch,), generator=generator)
        batch = Batch(draw(labels, generator), condition(labels), null, generator, step)
        loss = method.losses(batch, nets, step).losses["student"]
        if not torch.isfinite(loss):
            raise UserError(f"mixture: {name} {dict(params)}: the loss is {float(loss)} at step {step}; lower the learning rate")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)
        optimizer.step()
    with torch.no_grad(), ema.applied():
        averages = [p.detach().clone() for p in student.parameters()]
    for p, mean in zip(student.parameters(), averages, strict=True):
        p.data = mean
    unit = ledger.costs["teacher"].forward * recipe.batch * recipe.steps
    return student.requires_grad_(False), {"forward_equivalents": ledger.flops() / max(unit, 1), "cpu_seconds": time.process_time() - started}


# ---------------------------------------------------------------------------------------------------- measuring


def sliced_w1(a: Tensor, b: Tensor, projections: int = 128) -> float:
    """Mean over evenly spread directions of the Wasserstein-1 distance of the projections; a, b (N, 2, 1, 1), equal N."""
    angle = torch.arange(projections) / projections * math.pi
    directions = torch.stack([angle.cos(), angle.sin()])
    return float(((a.flatten(1) @ directions).sort(0).values - (b.flatten(1) @ directions).sort(0).values).abs().mean())


@torch.no_grad()
def generate(network: VelocityMLP, noise: Tensor, label: int, steps: int = 1) -> Tensor:
    """One step: z - F(z, 1, 0, c). More: Euler along the instantaneous velocity (r = t)."""
    cond = condition(torch.full((len(noise),), label))
    return flow.sample(lambda x, t, r: network(x, t, cond, r), noise, flow.uniform_sigmas(steps), mode="any" if steps == 1 else "multi")


@torch.no_grad()
def measure(network: VelocityMLP | None, seed: int, a: float = -1.0, b: float = 0.0, count: int = 20_000) -> dict[str, float]:
    """What one step gives, as means over the classes; `network` None: fresh data in the place of samples (the floor).

    sw1: at one step; sw1_50: at 50 Euler steps (r = t). least_mode: the smallest share of samples within three standard
    deviations of one mode (exact data: 0.247). variance: the samples' variance over the data's. mean_gap: distance of the
    samples' mean to E[x|c]. velocity_gap: RMS of F(z, 1, c) - (z - E[x|c]), both over the data's standard deviation.
    pull: RMS of F(z, 1, 1, c_fake) - F(z, 1, 1, c), the force that L_fake and L_cons can put on F at t = 1.
    force: RMS of F(x_s, s, c_fake) - F(x_s, s, c) at re-noised one-step samples, s ~ U(0, 1): the rectification's.
    """
    rows = []
    for label in range(len(CENTRES)):
        g = torch_generator(seed, "mixture", "measure", label)
        labels = torch.full((count,), label)
        data, noise, again, s = draw(labels, g), torch.randn(count, 2, 1, 1, generator=g), torch.randn(count, 2, 1, 1, generator=g), torch.rand(count, generator=g)
        mean, scale = CENTRES[label].reshape(1, 2, 1, 1), math.sqrt(RADIUS**2 / 2 + SPREAD**2)  # per axis
        x = draw(labels, g) if network is None else generate(network, noise, label)
        near = torch.cdist(x.flatten(1), modes(label)) < 3 * SPREAD
        row = {
            "sw1": sliced_w1(x, data),
            "least_mode": float(near.float().mean(0).min()),
            "variance": float(x.var(0).mean()) / scale**2,
            "mean_gap": float((x.mean(0) - mean[0]).norm()) / scale,
            "velocity_gap": float((x - mean).square().mean().sqrt()) / scale,  # at t = 1, F - (z - mean) = mean - x
        }
        if network is not None:
            one, cond = torch.ones(count), condition(labels)
            shifted = AffineShift(a, b)(cond)
            x_s = flow.interpolate(x, again, s)
            row |= {
                "sw1_50": sliced_w1(generate(network, noise, label, 50), data),
                "pull": float((network(noise, one, shifted) - network(noise, one, cond)).square().mean().sqrt()),
                "force": float((network(x_s, s, shifted) - network(x_s, s, cond)).square().mean().sqrt()),
            }
        rows.append(row)
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
