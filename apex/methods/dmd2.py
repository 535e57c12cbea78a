"""`dmd2`: distribution matching distillation with a fake-score network and a discriminator on its features.

A second network, the fake score, starts at the teacher and learns by flow matching what the student makes. The student
follows the difference of the two clean estimates of its re-noised samples, the fake score's minus the guided teacher's,
and the gradient of heads on the fake score's features that tell data from its samples.

From arXiv 2405.14867 and its public code (tianweiy/DMD2, sd_guidance.py). Kept: normalisation, weights, the update ratio,
softplus, heads and fake score in one optimiser. Different: the fake score's flow-matching pass gives the features that
the heads judge (the public code runs two more passes at times of their own); its times stay within those at which it is
asked, rather than all; the student's inputs at t < 1 are noised data, not its own trajectory ("backward simulation").
Here the fake score is trained first in each cycle, and the student moves in the cycle's last step.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import nn

from apex import losses
from apex.conditioning import concatenate
from apex.discriminators import Heads
from apex.flow import endpoint, interpolate
from apex.methods._adversarial import StudentTimes, check_blocks, generate
from apex.methods._consistency import teacher_velocity
from apex.methods.base import Batch, Method, Networks, Setup, Step, frozen


class Dmd2Params(StudentTimes):
    guidance: float = Field(2.5, ge=0, description="of the teacher's score; published: 1.75 (SD1.5), 8 (SDXL)")
    fake_updates: int = Field(5, ge=1, description="updates of the fake score for one of the student; published: 5, 10 on SD1.5")
    gan_weight: float = Field(5e-3, ge=0, description="of the student's adversarial loss; published: 5e-3 (SDXL), 1e-3 (SD1.5)")
    discriminator_weight: float = Field(1e-2, ge=0, description="of the heads' loss beside the fake score's; published: 1e-2")
    min_noise: float = Field(0.02, ge=0, le=1, description="smallest time s of re-noised samples; published: 0.02")
    max_noise: float = Field(0.98, ge=0, le=1, description="largest; published: 0.98")
    blocks: list[int] | None = Field(None, description="blocks that have a head; null: four, evenly spaced; published: the bottleneck")
    head_width: int = Field(64, ge=1, description="width of a head's hidden layers")
    fake_rate: float = Field(1.0, gt=0, description="learning rate of fake score and heads over the student's; published: 1")

    @model_validator(mode="after")
    def _ordered(self) -> Dmd2Params:
        if self.min_noise >= self.max_noise:
            raise ValueError(f"max_noise: found {self.max_noise}, expected more than min_noise, {self.min_noise}")
        return self


class Dmd2(Method):
    name = "dmd2"
    family = "adversarial"
    citation = "Yin et al. 2024, arXiv 2405.14867"
    needs = frozenset({"teacher"})
    tunings = ("full",)
    no_lora = "its fake score is a second full network in training, which an adapter would not spare"
    Params = Dmd2Params

    def extra_networks(self, setup: Setup) -> dict[str, nn.Module]:
        self.blocks = check_blocks(self.params.blocks, setup.blocks)
        fake = {"fake_score": setup.copy()}
        if not self.contested:
            return fake
        return fake | {"heads": Heads([shape[-1] for shape in setup.feature_shapes(self.blocks)], self.params.head_width)}

    @property
    def contested(self) -> bool:
        """Whether there is a discriminator: without the student's term nobody heeds it."""
        return self.params.gan_weight > 0

    def roles(self) -> dict[str, str]:
        return {"fake_score": "fake_score"} | ({"heads": "fake_score"} if self.contested else {})

    def rates(self) -> dict[str, float]:
        return {"fake_score": self.params.fake_rate}

    def cycle(self) -> int:
        return self.params.fake_updates

    def noise_times(self, batch: Batch) -> torch.Tensor:
        p = self.params
        return p.min_noise + (p.max_noise - p.min_noise) * batch.uniform(len(batch))

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        turn = step % self.cycle() == self.cycle() - 1
        with torch.set_grad_enabled(turn):
            sample = generate(self.params, batch, nets)
        fake_score, logs = self.fake_loss(sample.detach(), batch, nets)
        if not turn:
            return Step({"fake_score": fake_score}, logs)
        student, more = self.student_loss(sample, batch, nets)
        return Step({"student": student, "fake_score": fake_score}, logs | more)

    def fake_loss(self, sample: torch.Tensor, batch: Batch, nets: Networks) -> tuple[torch.Tensor, dict]:
        """Flow matching on the student's samples, and the heads' contest on its features."""
        p, fake = self.params, nets.extra["fake_score"]
        s, noise = self.noise_times(batch), batch.normal_like(sample)
        x_s = interpolate(sample, noise, s)
        if not self.contested:
            loss = losses.flow_matching(fake(x_s, s, batch.cond), sample, noise).mean()
            return loss, {"fake_flow": loss.detach()}
        both = torch.cat([x_s, interpolate(batch.x0, batch.normal_like(batch.x0), s)])
        cond = concatenate([batch.cond, batch.cond])
        velocity, features = fake(both, torch.cat([s, s]), cond, None, blocks=self.blocks, both=True)
        flow = losses.flow_matching(velocity[: len(s)], sample, noise).mean()
        logits = nets.extra["heads"](features)
        on_fake, on_real = [d[: len(s)] for d in logits], [d[len(s) :] for d in logits]
        judged = losses.called_real(on_real, "softplus").mean() + losses.called_fake(on_fake, "softplus").mean()
        logs = {
            "fake_flow": flow.detach(),
            "d_real": torch.stack([d.detach().mean() for d in on_real]).mean(),
            "d_fake": torch.stack([d.detach().mean() for d in on_fake]).mean(),
        }
        return flow + p.discriminator_weight * judged, logs

    def student_loss(self, sample: torch.Tensor, batch: Batch, nets: Networks) -> tuple[torch.Tensor, dict]:
        """Distribution matching and the adversarial term at one time s: the fake score's one pass serves both."""
        p, fake = self.params, nets.extra["fake_score"]
        s = self.noise_times(batch)
        x_s = interpolate(sample, batch.normal_like(sample), s)
        if self.contested:
            with frozen(fake, nets.extra["heads"]):
                velocity, features = fake(x_s, s, batch.cond, None, blocks=self.blocks, both=True)
                fooled = losses.fooling(nets.extra["heads"](features), "softplus").mean()
        with torch.no_grad():
            x_s = x_s.detach()
            if not self.contested:
                velocity = fake(x_s, s, batch.cond)
            f_fake = endpoint(velocity.detach(), x_s, s)
            f_real = endpoint(teacher_velocity(nets, x_s, s, batch, p.guidance), x_s, s)
        matched, force = losses.distribution_matching(sample, f_fake, f_real)
        logs = {"matching": matched.detach().mean(), "force": force.square().mean().sqrt()}
        if not self.contested:
            return matched.mean(), logs
        return matched.mean() + p.gan_weight * fooled, logs | {"fooling": fooled.detach()}


METHOD = Dmd2
