"""`sana-sprint`: continuous-time consistency (`scm`) and half as much latent adversarial distillation (`ladd`).

L = L_sCM + 0.5 L_LADD. The adversarial term has a student pass of its own, half of it at t = 1, where one-step sampling
begins, the rest at the consistency term's times; the heads are those of `ladd`, on the frozen teacher's features.

From arXiv 2503.09641 and its public code (train_scm_ladd.py), in this suite's flow time. Not here: the guidance scale as
the student's input, the learned log-variance weight, and turns: student and heads move in every step.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from apex import losses
from apex.flow import endpoint, interpolate
from apex.methods._adversarial import check_blocks
from apex.methods.base import Batch, Method, Networks, Setup, Step
from apex.methods.ladd import ContestParams, latent_contest, make_heads
from apex.methods.scm import ScmParams, consistency


class SanaSprintParams(ScmParams, ContestParams):
    adversarial: float = Field(0.5, ge=0, description="weight of the adversarial term; published: 0.5")
    one_step_share: float = Field(0.5, ge=0, le=1, description="share of the adversarial samples at t = 1; published: 0.5")


class SanaSprint(Method):
    name = "sana-sprint"
    family = "adversarial"
    citation = "Chen et al. 2025, arXiv 2503.09641"
    needs = frozenset({"teacher"})
    Params = SanaSprintParams

    @property
    def time_scale(self) -> float:
        return self.params.time_scale

    def extra_networks(self, setup: Setup) -> dict[str, nn.Module]:
        self.blocks = check_blocks(self.params.blocks, setup.blocks)
        return {"heads": make_heads(self.params, self.blocks, setup)}

    def roles(self) -> dict[str, str]:
        return {"heads": "discriminator"}

    def rates(self) -> dict[str, float]:
        return {"discriminator": self.params.discriminator_rate}

    def sample(self, batch: Batch, nets: Networks) -> torch.Tensor:
        """The student's clean estimates for the heads, (B, C, H, W)."""
        p = self.params
        t = losses.logit_normal(batch.normal(len(batch)), p.time_mean, p.time_std)
        t = torch.where(batch.uniform(len(batch)) < p.one_step_share, torch.ones_like(t), t)
        x_t = interpolate(batch.x0, batch.normal_like(batch.x0), t)
        return endpoint(nets.student(x_t, t, batch.cond), x_t, t)

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        p = self.params
        consistent, logs = consistency(p, batch, nets)
        fooled, judged, more = latent_contest(p, self.blocks, self.sample(batch, nets), batch, nets)
        student = consistent + p.adversarial * fooled
        logs = {"consistency": consistent.detach(), "fooling": fooled.detach(), **logs, **more}
        return Step({"student": student, "discriminator": judged}, logs)


METHOD = SanaSprint
