"""Which way the methods' gradients point on the 2-D mixture: against the true gradient of the KL divergence, step by step.

    python -m apex.alignment --out DIR                                   all rows, seeds 0 to 2
    python -m apex.alignment --out DIR --seeds 0 --rows apex --steps 400

For one-step samples x = z - F(z, 1, 0, c) the gradient of KL(p_s || q_s), both diffused to time s and s uniform, is
E[(1 - s) (score of p_s - score of q_s)(x_s) dx/dtheta]. The data's score is known in closed form, the samples' is that of a large
set of them, exactly. The paper says that its gradient is aligned with that of a GAN with a constant weight (its abstract and
Section 3), and that discriminators' gradients vanish. DIR/alignment.csv has, for each row and moment of training: the cosine of
the method's own parameter gradient with that gradient, the norms of both, and how far the samples are from the data.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apex import methods, mixture
from apex.command import COUNT, SEED, THREADS, Parser
from apex.ema import Ema
from apex.errors import run_command
from apex.files import write_atomic
from apex.methods.base import STUDENT, Networks
from apex.mixture import ROWS, Recipe, VelocityMLP
from apex.seeds import torch_generator

# A row of the mixture, and the terms of its loss that are looked at alone; `apex`: its force is the rectification.
WATCHED: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "fm": {},
    "rcgm": {},
    "apex": ROWS["apex"].parts,
    "apex no shift": {"rectification": {"base_weight": 0.0}},
    "twinflow": ROWS["apex"].parts,
    "eq25": ROWS["eq25"].parts,
    "dmd2": {},
    "ladd": {},
    "ladd, R1": {},
}
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


def main() -> None:
    parser = Parser("apex.alignment", __doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder for alignment.csv")
    parser.add_argument("--seeds", type=SEED, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--rows", nargs="+", default=list(WATCHED), choices=list(WATCHED), metavar="ROW", help=", ".join(WATCHED))
    parser.add_argument("--steps", type=COUNT, default=Recipe.steps, help="of the teacher and of every row")
    parser.add_argument("--threads", type=THREADS, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines: list[dict[str, Any]] = []
    for seed in args.seeds:
        recipe = Recipe(steps=args.steps)
        teacher = mixture.make_teacher(recipe, seed)
        for name in args.rows:
            found = watch_row(name, teacher, recipe, seed)
            lines += found
            last = [line for line in found if line["part"] == "whole"]
            print(f"seed {seed} {name:14}", "  ".join(f"{line['step']}: {line['cosine']:+.2f}" for line in last), flush=True)
            write_atomic(args.out / "alignment.csv", mixture.as_csv(lines))


if __name__ == "__main__":
    sys.exit(run_command(main))
