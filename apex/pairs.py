"""Teacher-made pairs: noise, and where the guided teacher's ODE takes it. Part of a run, and paid from its budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from apex.conditioning import Condition, concatenate
from apex.errors import readable
from apex.files import write_atomic
from apex.flow import guide, sample, uniform_sigmas
from apex.methods.base import Network, PairPlan, Pairs
from apex.seeds import torch_generator

CHUNK = 250  # pairs of one file, and of one pass of the teacher


def pair_count(plan: PairPlan, budget: float) -> int:
    """How many pairs the plan's share of the budget (in forward-equivalents) pays for; at least one."""
    return max(1, int(plan.share * budget / plan.passes))


class PairStore:
    """All pairs of a run, in memory: noise and x (N, C, H, W) on the CPU, caption (N,) rows of the caption table."""

    def __init__(self, noise: Tensor, x: Tensor, caption: Tensor, captions: Callable[[Tensor], Condition], device: torch.device) -> None:
        self.noise, self.x, self.caption, self.captions, self.device = noise, x, caption, captions, device

    def __len__(self) -> int:
        return len(self.noise)

    def draw(self, size: int, generator: torch.Generator) -> Pairs:
        chosen = torch.randint(len(self), (size,), generator=generator)
        return Pairs(
            self.noise[chosen].to(self.device), self.x[chosen].to(self.device), self.captions(self.caption[chosen]).to(self.device)
        )


@torch.no_grad()
def make_pairs(
    plan: PairPlan,
    count: int,
    teacher: Network,
    captions: Callable[[Tensor], Condition],
    null: Callable[[int], Condition],
    index: Tensor,
    latent_shape: tuple[int, ...],
    folder: Path,
    seed: int,
    device: torch.device,
    say: Callable[[str], None] = print,
) -> PairStore:
    """Makes `count` pairs, or reads those that an interrupted run left in `folder`; the rest is made as it would have been.

    Args:
        teacher: not counted here: the caller enters `count * plan.passes` teacher passes, made now or before.
        captions: rows of the caption table to conditions. null: that many empty captions. index: the training captions' rows.
        folder: gets one safetensors file per CHUNK pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts, started, said, fresh = [], time.time(), time.time(), 0
    for number, first in enumerate(range(0, count, CHUNK)):
        size = min(CHUNK, count - first)
        file = folder / f"{number:05d}.safetensors"
        if file.exists():
            with readable(file, "remove it to make its pairs again"):
                part = load_file(file)
        else:
            generator = torch_generator(seed, "teacher pairs", number)
            caption = index[torch.randint(len(index), (size,), generator=generator)].clone()
            noise = torch.randn(size, *latent_shape, generator=generator)
            cond = captions(caption).to(device)
            if plan.guidance == 1.0:
                network = lambda x, t, r, cond=cond: teacher(x, t, cond, t)  # noqa: E731
            else:
                both = concatenate([cond, null(size).to(device)])

                def network(x: Tensor, t: Tensor, r: Tensor, both: Condition = both) -> Tensor:
                    with_c, without_c = teacher(torch.cat([x, x]), torch.cat([t, t]), both, torch.cat([t, t])).chunk(2)
                    return guide(with_c, without_c, plan.guidance)

            x = sample(network, noise.to(device), uniform_sigmas(plan.steps), mode="multi").cpu()
            part = {"noise": noise, "x": x, "caption": caption}
            write_atomic(file, save({k: v.contiguous() for k, v in part.items()}))
            fresh += size
        parts.append(part)
        if time.time() - said > 10 and fresh:
            said = time.time()
            done = first + size
            say(f"teacher pairs: {done}/{count}, {(said - started) / fresh * (count - done) / 60:.1f} min left")
    joined = {k: torch.cat([p[k] for p in parts]) for k in ("noise", "x", "caption")}
    return PairStore(joined["noise"], joined["x"], joined["caption"], captions, device)
