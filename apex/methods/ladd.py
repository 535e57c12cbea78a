"""`ladd`: latent adversarial diffusion distillation. Heads on the frozen teacher's features tell real latents from the student's.

Both are re-noised to a time s and shown to the teacher with the caption, so the features are text-aware and a codec is
never run. Each step updates the student and the heads once, from the same samples and the same teacher pass.

From arXiv 2403.12015, whose code is not public, as Sana-Sprint's public code (train_scm_ladd.py) fills it in. Where they
differ: the real side is the data, as in Sana-Sprint; the paper trains on what its guided teacher makes. The suite's guided
teacher follows its captions more closely than the data's likelihood asks for, so this objective aims at the data, not at
the guided teacher that the tables show. In Sana-Sprint student and heads take turns; here both move in each step. Its
mismatched pairs are re-noised anew; here they are the real ones at their time with the next sample's caption, none where
there is one sample.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from apex import losses
from apex.discriminators import Heads
from apex.flow import interpolate
from apex.methods._adversarial import StudentTimes, check_blocks, generate
from apex.methods.base import Batch, Method, Networks, Params, Setup, Step, frozen


class ContestParams(Params):
    noise_mean: float = Field(0.09, description="s is logit-normal: its mean; Sana-Sprint's log-normal(-0.6, 1) of TrigFlow is 0.09 here")
    noise_std: float = Field(1.0, gt=0, description="and standard deviation; Sana-Sprint: 1")
    contest: losses.Contest = Field("hinge", description="hinge (Sana-Sprint) or softplus, which is cross-entropy (FastGen, AMD)")
    blocks: list[int] | None = Field(None, description="blocks that have a head; null: four, evenly spaced; Sana-Sprint 0.6B: 2, 8, 14, 19")
    head_width: int = Field(64, ge=1, description="width of a head's hidden layers; Sana-Sprint: the teacher's own")
    spectral: bool = Field(False, description="spectral norm in the heads; Sana-Sprint has it")
    r1: float = Field(0.0, ge=0, description="weight of R1 on the real features; 0 in Sana-Sprint")
    mismatched: bool = Field(False, description="real latents with another caption as further fakes; on in Sana-Sprint")
    discriminator_rate: float = Field(1.0, gt=0, description="learning rate of the heads over the student's; Sana-Sprint: 1")


class LaddParams(StudentTimes, ContestParams):
    pass


class Ladd(Method):
    name = "ladd"
    family = "adversarial"
    citation = "Sauer et al. 2024, arXiv 2403.12015"
    needs = frozenset({"teacher"})
    Params = LaddParams

    def extra_networks(self, setup: Setup) -> dict[str, nn.Module]:
        self.blocks = check_blocks(self.params.blocks, setup.blocks)
        return {"heads": make_heads(self.params, self.blocks, setup)}

    def roles(self) -> dict[str, str]:
        return {"heads": "discriminator"}

    def rates(self) -> dict[str, float]:
        return {"discriminator": self.params.discriminator_rate}

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        student, discriminator, logs = latent_contest(self.params, self.blocks, generate(self.params, batch, nets), batch, nets)
        return Step({"student": student, "discriminator": discriminator}, logs)


def make_heads(p: ContestParams, blocks: list[int], setup: Setup) -> Heads:
    return Heads([shape[-1] for shape in setup.feature_shapes(blocks)], p.head_width, spectral=p.spectral)


def latent_contest(p: ContestParams, blocks: list[int], sample: torch.Tensor, batch: Batch, nets: Networks):
    """The student's loss, the heads' loss and what to log, for student samples (B, C, H, W) and the batch's data."""
    heads, teacher = nets.extra["heads"], nets.teacher
    s = losses.logit_normal(batch.normal(len(batch)), p.noise_mean, p.noise_std)
    fake = teacher.features(interpolate(sample, batch.normal_like(sample), s), s, batch.cond, blocks)
    with torch.no_grad():
        x_s = interpolate(batch.x0, batch.normal_like(batch.x0), s)
        real = teacher.features(x_s, s, batch.cond, blocks)
        others = []
        if p.mismatched and len(s) > 1:
            others = teacher.features(x_s, s, batch.cond[torch.arange(len(s), device=s.device).roll(1)], blocks)
    with frozen(heads):
        fooled = losses.fooling(heads(fake), p.contest).mean()
    on_real, penalty = heads(real, penalty=True) if p.r1 > 0 else (heads(real), None)
    shown = [f.detach() for f in fake]
    if others:
        shown = [torch.cat(pair) for pair in zip(shown, others, strict=True)]
    on_fake = heads(shown)
    judged = losses.called_real(on_real, p.contest).mean() + losses.called_fake(on_fake, p.contest).mean()
    if penalty is not None:
        judged = judged + p.r1 * penalty.mean()
    logs = {
        "d_real": torch.stack([d.detach().mean() for d in on_real]).mean(),
        "d_fake": torch.stack([d.detach()[: len(s)].mean() for d in on_fake]).mean(),
    }
    return fooled, judged, logs


METHOD = Ladd
