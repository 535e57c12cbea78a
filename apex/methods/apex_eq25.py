"""`apex-eq25`: the paper's Eq. 25 to the letter, L = lambda_p L_fake + lambda_e L_mix. Every ambiguity is a setting."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from apex import losses
from apex.conditioning import PLACES, AffineShift
from apex.flow import endpoint, interpolate
from apex.methods.base import Batch, Method, Networks, Params, Setup, Step


class Eq25Params(Params):
    a: float = Field(-1.0, description="scale of the shifted condition (Eq. 9); public code: -1; Table 7's best: -0.5")
    b: float = Field(0.0, description="offset of the shifted condition (Eq. 9); public code: 0; Table 7's best: 1.0")
    shift_place: Literal[PLACES] = Field("projected", description="where in the text path the shift acts; not in the paper")
    learn_shift: bool = Field(False, description="train a and b with the student; the paper leaves it open")
    lam: float = Field(0.5, ge=0, le=1, description="inner lambda of T_mix (Eq. 23); the paper gives no value")
    fake_weight: float = Field(1.0, ge=0, description="lambda_p of L_fake (Eq. 25); default of the paper: 1")
    mix_weight: float = Field(1.0, ge=0, description="lambda_e of L_mix (Eq. 25); default of the paper: 1")
    weighting: Literal["t(1-t)", "t^3/(1-t)", "t^2"] = Field(
        "t(1-t)", description="reading of w(t) in Eq. 24, as a weight on the velocity error"
    )
    x_fake_gradient: bool = Field(True, description="L_fake sends gradient through x_fake (text after Eq. 12)")
    fresh_noise: bool = Field(False, description="x_t_fake is made with fresh noise rather than the noise of x_t (Eq. 12)")

    @model_validator(mode="after")
    def _some_loss(self) -> Eq25Params:
        if self.fake_weight == self.mix_weight == 0:
            raise ValueError("fake_weight and mix_weight: found 0 and 0, expected one above 0")
        return self


class ApexEq25(Method):
    name = "apex-eq25"
    family = "self-adversarial"
    citation = "arXiv 2604.12322, Eq. 25"
    target_time = "none"
    sample_mode = "few"
    one_step = False  # its minimiser at t = 1 is the mean
    Params = Eq25Params

    def extra_networks(self, setup: Setup | None = None) -> dict[str, nn.Module]:
        p = self.params
        return {"shift": AffineShift(p.a, p.b, place=p.shift_place, learned=p.learn_shift)}

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        p, shift = self.params, nets.extra["shift"]
        x0 = batch.x0
        t, noise = batch.uniform(len(batch)), batch.normal_like(x0)
        x_t, shifted = interpolate(x0, noise, t), shift(batch.cond)
        predicted = nets.student(x_t, t, batch.cond)
        logs = {}
        total = torch.zeros((), device=x0.device)
        if p.fake_weight > 0:
            x_fake = endpoint(predicted, x_t, t)  # Eq. 11
            if not p.x_fake_gradient:
                x_fake = x_fake.detach()
            other = batch.normal_like(x0) if p.fresh_noise else noise
            fake = losses.fake_loss(nets.student(interpolate(x_fake, other, t), t, shifted), x_fake, other).mean()
            total = total + p.fake_weight * fake
            logs["fake"] = fake.detach()
        if p.mix_weight > 0:
            if p.lam > 0:
                with torch.no_grad():
                    v_fake = nets.student(x_t, t, shifted)  # Eq. 14: at real trajectory points
            else:
                v_fake = torch.zeros_like(x_t)  # multiplied by lam = 0
            mix = losses.mix_loss(predicted, v_fake, x0, x_t, t, p.lam, p.weighting).mean()
            total = total + p.mix_weight * mix
            logs["mix"] = mix.detach()
        return Step({"student": total}, logs)


METHOD = ApexEq25
