"""Small worlds to try a method in: tiny untrained transformers, and Gaussian data where the exact answer is known.

`Bed` holds a network with data for it, `Trial` trains a method on it, step by step as `apex.train` does: roles and their
optimisers, the running mean, teacher-made pairs, state to save and restore. No budget, no files, no captions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from apex import flow
from apex.budget import Counted, Ledger
from apex.conditioning import Condition
from apex.ema import Ema
from apex.methods.base import STUDENT, Batch, Method, Networks, PairPlan, Pairs, Setup, Step
from apex.networks import Averaged, Base, Fixed, last_matrix, parameters_by_role
from apex.seeds import torch_generator

CAPTION = 16  # width of a caption's tokens
LORA_RANK = 2

# ------------------------------------------------------------------------------------ Gaussian data, where all is known

MEANS = torch.tensor([[0.8, -0.5], [-0.6, 0.9]])  # by condition
STDS = torch.tensor([[0.5, 0.9], [0.8, 0.4]])


class GaussianFlow(nn.Module):
    """F(x_t, t, r, c) on latents (B, 2, 1, 1) whose data are N(mean_c, diag std_c^2): the exact velocity plus a learned affine correction.

    At first it is the exact velocity whatever r is, so its one step gives the mean alone. The exact one-step map, and the
    exact flow map from any t to any r, are affine in x_t, so a correction that depends on (t, r, c) can make it either.
    """

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.register_buffer("means", MEANS.clone())
        self.register_buffer("stds", STDS.clone())
        self.text = nn.Linear(CAPTION, width)
        # What `features` gives: not a part of the velocity.
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(n, width), nn.SiLU()) for n in (width + 3, *[width] * (depth - 1)))
        self.span = nn.Sequential(nn.Linear(width + 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 4))
        self.now = nn.Sequential(nn.Linear(width + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 4))
        for head in (self.now, self.span):
            nn.init.zeros_(head[-1].weight)
            nn.init.zeros_(head[-1].bias)

    def exact(self, x_t: Tensor, t: Tensor, which: Tensor) -> Tensor:
        """E[z - x | x_t] of condition `which`."""
        mean, std, s = self.means[which], self.stds[which], t[:, None]
        slope = (s - (1 - s) * std**2) / (s**2 + (1 - s) ** 2 * std**2)
        return (slope * (x_t.flatten(1) - (1 - s) * mean) - mean).reshape(x_t.shape)

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None, blocks: Sequence[int] | None = None, both: bool = False
    ) -> Tensor | list[Tensor] | tuple[Tensor, list[Tensor]]:
        tokens = cond.apply_shift(self.text(cond.embeds if cond.place != "embeds" else cond.apply_shift(cond.embeds)))[:, 0]
        found = []
        if blocks is not None:
            h = torch.cat([x_t.flatten(1), t[:, None], tokens], 1)
            for block in self.blocks:
                h = block(h)
                found.append(h[:, None])
            found = [found[k] for k in blocks]
            if not both:
                return found
        t, r = t.to(x_t), None if r is None else r.to(x_t)
        correction = self.now(torch.cat([t[:, None], tokens], 1))
        if r is not None:
            correction = correction + (t - r)[:, None] * self.span(torch.cat([t[:, None], r[:, None], tokens], 1))
        slope, offset = correction.chunk(2, 1)
        velocity = self.exact(x_t, t, cond.embeds[:, 0, 0].long()) + (slope * x_t.flatten(1) + offset).reshape(x_t.shape)
        return (velocity, found) if both else velocity


def gaussian_condition(which: Tensor) -> Condition:
    """One token; its first number names the condition, the rest tell it apart."""
    table = torch.randn(len(MEANS), CAPTION, generator=torch_generator(0, "testbed", "captions"))
    table[:, 0] = torch.arange(len(MEANS))
    return Condition(table[which][:, None], torch.ones(len(which), 1))


@dataclass(frozen=True)
class Fit:
    """How a generator's Gaussians lie to the data's, means over conditions. w2: 2-Wasserstein distance. mean, std: errors, RMS."""

    w2: float
    mean: float
    std: float


@torch.no_grad()
def gaussian_fit(network: Callable[..., Tensor], mode: str, steps: int = 1) -> Fit:
    """Closed form: the sampler's map is affine in the noise, element by element, so two of its values tell all of it.

    mode: as of `flow.sample`; steps > 1 are equal Euler steps ("any", "multi").
    """
    which = torch.arange(len(MEANS))
    cond = gaussian_condition(which)

    def image(noise: Tensor) -> Tensor:
        return flow.sample(lambda x, t, r: network(x, t, cond, r), noise, flow.uniform_sigmas(steps), mode=mode).flatten(1)

    noise = torch.zeros(len(which), 2, 1, 1)
    mean = image(noise)
    std = (image(noise + 1) - mean).abs()
    squares = (mean - MEANS).square().sum(1), (std - STDS).square().sum(1)
    return Fit(float((squares[0] + squares[1]).sqrt().mean()), *(float(s.mean().sqrt()) for s in squares))


# ---------------------------------------------------------------------------------------------------- tiny transformers


class Pixels(nn.Module):
    """A stand-in for a frozen codec's decoder: latents (B, 4, h, w) to pixels (B, 3, 2 h, 2 w)."""

    constant = True

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 3, 2, 2)

    def forward(self, latents: Tensor) -> Tensor:
        return torch.tanh(self.up(latents))


class Maps(nn.Module):
    """A stand-in for a frozen codec's encoder: pixels to two feature maps."""

    constant = True

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)])

    def forward(self, pixels: Tensor) -> list[Tensor]:
        first = torch.relu(self.down[0](pixels))
        return [first, self.down[1](first)]


def tiny_sana() -> nn.Module:
    from diffusers import SanaTransformer2DModel

    from apex.backbones.sana import SanaBackbone

    return SanaBackbone(
        SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=CAPTION,
            mlp_ratio=2.0,
            sample_size=4,
            patch_size=1,
            interpolation_scale=1.0,
            guidance_embeds=False,
        )
    )


def tiny_qwen() -> nn.Module:
    from diffusers import QwenImageTransformer2DModel

    from apex.backbones.qwen_image import QwenImageBackbone

    return QwenImageBackbone(
        QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=CAPTION,
            axes_dims_rope=(4, 6, 6),
        )
    )


def seeded(make: Callable[[], nn.Module], seed: int = 0, stir: float = 0.05) -> nn.Module:
    """A module with weights of its own seed; `stir` moves every parameter, so that what starts at zero is not silent."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = make()
        for p in module.parameters():
            p += stir * torch.randn_like(p)
    return module


# -------------------------------------------------------------------------------------------------------------- beds

FAMILIES: dict[str, Callable[[], nn.Module]] = {"sana": tiny_sana, "qwen_image": tiny_qwen, "gaussian": GaussianFlow}


@cache
def pretrained(family: str) -> nn.Module:
    """The teacher of a bed. Callers copy it."""
    network = seeded(FAMILIES[family], stir=0.0 if family == "gaussian" else 0.05)
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Bed:
    """A pretrained network with data for it. family: "sana", "qwen_image" or "gaussian"."""

    family: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (2, 1, 1) if self.family == "gaussian" else (4, 4, 4)

    def conditions(self, size: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """What each sample is of, and its caption."""
        which = torch.randint(len(MEANS), (size,), generator=generator)
        if self.family == "gaussian":
            return which, gaussian_condition(which)
        embeds = torch.randn(size, 5, CAPTION, generator=generator)
        mask = torch.ones(size, 5)
        mask[0, 4:] = 0  # one caption is shorter
        return which, Condition(embeds, mask)

    def data(self, size: int, generator: torch.Generator) -> tuple[Tensor, Condition, Condition]:
        """x0, cond, null. On Gaussian data null is cond: a guided teacher is the unguided one, so the target is the data."""
        which, cond = self.conditions(size, generator)
        noise = torch.randn(size, *self.shape, generator=generator)
        if self.family == "gaussian":
            return MEANS[which].reshape(noise.shape) + STDS[which].reshape(noise.shape) * noise, cond, cond
        return noise, cond, Condition(torch.zeros_like(cond.embeds), torch.ones_like(cond.mask))

    def setup(self, teacher: nn.Module) -> Setup:
        def feature_shapes(blocks: Sequence[int]) -> list[tuple[int, int]]:
            with torch.no_grad():
                _, cond, _ = self.data(1, torch.Generator())
                found = teacher(torch.zeros(1, *self.shape), torch.full((1,), 0.5), cond, None, blocks=blocks)
            return [tuple(f.shape[1:]) for f in found]

        codec = [None, None] if self.family == "gaussian" else [seeded(make).eval().requires_grad_(False) for make in (Pixels, Maps)]
        return Setup(
            copy=lambda: copy.deepcopy(pretrained(self.family)).requires_grad_(True),
            latent_shape=self.shape,
            blocks=len(teacher.blocks),
            feature_shapes=feature_shapes,
            decoder=codec[0],
            encoder=codec[1],
            caption_width=CAPTION,
        )


def add_lora(student: nn.Module) -> nn.Module:
    """As `apex.networks.build_student` does it; the adapter moves away from zero, so that it is heard."""
    from peft import LoraConfig

    student.requires_grad_(False)
    targets = list(student.lora_targets)
    student.transformer.add_adapter(LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=targets, init_lora_weights="gaussian"))
    generator = torch_generator(0, "testbed", "lora")
    with torch.no_grad():
        for p in student.parameters():
            if p.requires_grad:
                p += 0.05 * torch.randn(p.shape, generator=generator)
    return student


class Trial:
    """One method on one bed, with everything that a run keeps.

    Attributes:
        student, teacher, ema, extra: the networks. roles: parameters by role. nets: what the method sees.
        total: steps of the whole run, for schedules.
    """

    def __init__(
        self, method: Method, bed: Bed, *, tuning: str = "full", total: int = 8, size: int = 4, rate: float = 1e-3, ema: float = 0.9
    ) -> None:
        self.method, self.bed, self.total, self.size, self.rate, self.step, self.moved = method, bed, total, size, rate, 0, True
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # new modules of every trial start alike
            base = pretrained(bed.family)
            self.student = copy.deepcopy(base).requires_grad_(True)
            if tuning == "lora":
                self.student = add_lora(self.student)
            elif method.target_time == "embedding" and hasattr(self.student, "with_target_time"):
                self.student = self.student.with_target_time().requires_grad_(True)
            self.teacher = Base(self.student) if tuning == "lora" else copy.deepcopy(base)
            self.extra = dict(method.extra_networks(bed.setup(base)))
        self.ema = Ema(self.student.parameters(), ema)
        averaged, ledger = Averaged(self.student, self.ema), Ledger({})
        self.nets = Networks(
            student=Counted(self.student, "student", ledger, fixed=Fixed(self.student)),
            ema=Counted(averaged, "ema", ledger, no_grad=True),
            teacher=Counted(self.teacher if tuning == "lora" else Fixed(self.teacher), "teacher", ledger, no_grad=True),
            extra=self.extra,
            weights=averaged.weights,
            last_parameter=lambda: last_matrix(self.student),
        )
        self.roles = parameters_by_role(method, self.student, self.extra)
        self.optimizers = {role: torch.optim.AdamW(p, rate, betas=(0.9, 0.99), weight_decay=0.0) for role, p in self.roles.items()}
        plan = method.pairs()
        self.pairs = None if plan is None else self.make_pairs(plan)

    @torch.no_grad()
    def make_pairs(self, plan: PairPlan) -> Pairs:
        """256 pairs on Gaussian data, else 16; the ODE is cut to 8 steps on transformers, whose weights mean nothing."""
        gaussian = self.bed.family == "gaussian"
        generator = torch_generator(0, "testbed", "pairs")
        _, cond, _ = self.bed.data(256 if gaussian else 16, generator)
        noise = torch.randn(len(cond), *self.bed.shape, generator=generator)
        sigmas = flow.uniform_sigmas(plan.steps if gaussian else min(plan.steps, 8))
        return Pairs(noise, flow.sample(lambda x, t, r: self.nets.teacher(x, t, cond, t), noise, sigmas, mode="multi"), cond)

    def batch(self, step: int, size: int | None = None, seed: int = 0, progress: float | None = None) -> Batch:
        size = size or self.size
        generator = torch_generator(seed, "testbed", step)
        x0, cond, null = self.bed.data(size, generator)
        pairs = None
        if self.pairs is not None:
            chosen = torch.randint(len(self.pairs.noise), (size,), generator=generator)
            pairs = Pairs(self.pairs.noise[chosen], self.pairs.x[chosen], self.pairs.cond[chosen])
        return Batch(x0, cond, null, generator, step, step / self.total if progress is None else progress, pairs)

    def losses(self, step: int, **batch: Any) -> Step:
        return self.method.losses(self.batch(step, **batch), self.nets, step)

    def optimise(self) -> Step:
        """One optimiser step."""
        rate = self.rate * min((self.step + 1) / (0.05 * self.total + 1), 1 - self.step / self.total)
        if self.moved:
            self.ema.update()
        out = self.losses(self.step)
        for loss in out.losses.values():
            loss.backward()
        for role in out.losses:
            nn.utils.clip_grad_norm_(self.roles[role], 1.0)
            self.optimizers[role].param_groups[0]["lr"] = rate * self.method.rates().get(role, 1.0)
            self.optimizers[role].step()
            self.optimizers[role].zero_grad()
        self.moved = STUDENT in out.losses
        self.step += 1
        return out

    def trained(self) -> dict[str, Tensor]:
        """All that training changes, as `apex.loop.Loop.trained`."""
        named = {f"student.{k}": p for k, p in self.student.named_parameters() if p.requires_grad}
        for name, module in self.extra.items():
            if not getattr(module, "constant", False):
                named |= {f"{name}.{k}": p for k, p in (*module.named_parameters(), *module.named_buffers())}
        return named

    def state(self) -> dict[str, Any]:
        """A copy of what `apex.loop.Loop` saves."""
        found = {
            "trained": {k: p.detach() for k, p in self.trained().items()},
            "ema": self.ema.state(),
            "optimizers": {role: o.state_dict() for role, o in self.optimizers.items()},
            "step": self.step,
            "moved": self.moved,
        }
        return copy.deepcopy(found)

    def restore(self, state: dict[str, Any]) -> None:
        for name, parameter in self.trained().items():
            parameter.data.copy_(state["trained"][name])
        self.ema.restore(state["ema"])
        for role, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][role])
        self.step, self.moved = state["step"], state["moved"]


def gradient_sizes(parameters: Sequence[nn.Parameter]) -> float:
    """Norm of the gradients that are there."""
    return math.sqrt(sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None))
