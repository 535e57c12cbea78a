"""`add`: adversarial diffusion distillation. A discriminator on image features, and the guided teacher's clean estimate as a target.

The student's latents are decoded, and heads on the features of a frozen image network tell them from decoded data; the
heads are told the caption, for those features are not. Beside it the sample is pulled toward the guided teacher's clean
estimate of its re-noised self.

From arXiv 2311.17042; its code is not public. The paper's image network is DINOv2: give `features` a local folder of one
(transformers). Without it the codec's own encoder stands in, which is always at hand but knows less; where there is no
codec, as in the 2-D mixture, the latents themselves are judged. Sums over heads and over elements of the paper are means
here, so its weights carry over only roughly. Every step runs the codec twice, once with gradient: that cost is why LADD
followed.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from apex import losses
from apex.config import locate
from apex.discriminators import DinoFeatures, Heads, pooled, tokens
from apex.flow import endpoint, interpolate
from apex.methods._adversarial import StudentTimes, generate
from apex.methods._consistency import teacher_velocity
from apex.methods.base import Batch, Method, Networks, Setup, Step, frozen


class AddParams(StudentTimes):
    one_step_share: float = Field(0.25, ge=0, le=1, description="share of samples at the first of `times`; the paper: four times alike")
    guidance: float = Field(2.5, ge=0, description="of the teacher's clean estimate")
    distillation: float = Field(2.5, ge=0, description="lambda, weight of the teacher's target; the paper: 2.5")
    r1: float = Field(0.1, ge=0, description="weight of R1 on the features of real images")
    contest: losses.Contest = Field("hinge", description="the paper: hinge")
    features: str | None = Field(None, description="folder of a DINOv2 network as transformers saves it; null: the codec's encoder")
    feature_resolution: int = Field(224, ge=8, description="side to which images are resized for `features`, pixels")
    head_width: int = Field(64, ge=1, description="width of a head's hidden layers")
    discriminator_rate: float = Field(1.0, gt=0, description="learning rate of the heads over the student's")


class Add(Method):
    name = "add"
    family = "adversarial"
    citation = "Sauer et al. 2023, arXiv 2311.17042"
    needs = frozenset({"teacher"})
    Params = AddParams

    def extra_networks(self, setup: Setup) -> dict[str, nn.Module]:
        p, made = self.params, {}
        if setup.decoder is not None:
            made["decoder"] = setup.decoder
            made["image_features"] = DinoFeatures(locate(p.features), p.feature_resolution) if p.features else setup.encoder
        device = next((w.device for module in made.values() for w in module.parameters()), torch.device("cpu"))
        with torch.no_grad():
            example = self.image_features(torch.zeros(1, *setup.latent_shape, device=device), {k: m.to(device) for k, m in made.items()})
        widths = [f.shape[-1] for f in example]
        return made | {"heads": Heads(widths, p.head_width, caption=setup.caption_width, normalise="decoder" in made)}

    @staticmethod
    def image_features(latents: Tensor, extra: dict[str, nn.Module]) -> list[Tensor]:
        """What the heads judge, (B, N, D) each; gradient passes to the latents."""
        if "decoder" not in extra:
            return [tokens(latents)]
        return [tokens(f) if f.ndim == 4 else f for f in extra["image_features"](extra["decoder"](latents))]

    def roles(self) -> dict[str, str]:
        return {"heads": "discriminator"}

    def rates(self) -> dict[str, float]:
        return {"discriminator": self.params.discriminator_rate}

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        p, heads, caption = self.params, nets.extra["heads"], pooled(batch.cond)
        sample = generate(p, batch, nets)
        fake = self.image_features(sample, nets.extra)
        with torch.no_grad():
            real = self.image_features(batch.x0, nets.extra)
        with frozen(heads):
            student = fooled = losses.fooling(heads(fake, caption), p.contest).mean()
        on_real, penalty = heads(real, caption, penalty=True) if p.r1 > 0 else (heads(real, caption), None)
        on_fake = heads([f.detach() for f in fake], caption)
        judged = losses.called_real(on_real, p.contest).mean() + losses.called_fake(on_fake, p.contest).mean()
        logs = {
            "fooling": fooled.detach(),
            "d_real": torch.stack([d.detach().mean() for d in on_real]).mean(),
            "d_fake": torch.stack([d.detach().mean() for d in on_fake]).mean(),
        }
        if penalty is not None:
            judged = judged + p.r1 * penalty.mean()
            logs["r1"] = penalty.detach().mean()
        if p.distillation > 0:
            s = batch.uniform(len(batch))
            distilled = losses.score_distillation(sample, self.estimate(sample.detach(), s, batch, nets), s).mean()
            student = student + p.distillation * distilled
            logs["distillation"] = distilled.detach()
        return Step({"student": student, "discriminator": judged}, logs)

    @torch.no_grad()
    def estimate(self, sample: Tensor, s: Tensor, batch: Batch, nets: Networks) -> Tensor:
        """The guided teacher's clean estimate of the sample, re-noised to s."""
        x_s = interpolate(sample, batch.normal_like(sample), s)
        return endpoint(teacher_velocity(nets, x_s, s, batch, self.params.guidance), x_s, s)


METHOD = Add
