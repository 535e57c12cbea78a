"""`apex`: self-adversarial one-step distillation as the public code trains it, with the shift on the condition.

The batch is split into four equal parts (micro-batches below 4 rotate through them):

| part | t | r | data |
| --- | --- | --- | --- |
| one_step | 1 | 0 | real |
| near | U(0,1) | t - U 0.05 t | real |
| any | U(0,1) | t - U t | real |
| fake | U(0,1) | t | the student's own one-step sample, queried under c_fake |

Real parts learn the flow map from guided velocities (recursive consistency); the fake part keeps the shifted
branch an estimate of the student's own distribution; on the one-step part the difference of the two branches
pushes the student's samples toward the data (rectification).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from apex import losses
from apex.conditioning import PLACES, AffineShift, concatenate
from apex.flow import endpoint, interpolate
from apex.methods.base import Batch, Method, Networks, Params, Setup, Step

ONE_STEP, NEAR, ANY, FAKE = range(4)


class ApexParams(Params):
    a: float = Field(-1.0, description="scale A = a I of the shifted condition (Eq. 9); public code: -1")
    b: float = Field(0.0, description="offset b = b 1 of the shifted condition (Eq. 9); public code: 0")
    shift_place: Literal[PLACES] = Field("projected", description="where in the text path the shift acts; public code: projected tokens")
    learn_shift: bool = Field(False, description="train a and b with the student")
    rho: float = Field(1.5, ge=0, description="strength of the guidance term in v_hat (public: 4.0 with the frozen base, 0.8 with EMA)")
    guidance_network: Literal["teacher", "ema", "online"] = Field(
        "teacher", description="F_g of v_hat; public: base if EMA is 1, else EMA or online"
    )
    recursion_network: Literal["ema", "online"] = Field("ema", description="F_r of the recursion; public: EMA, online if EMA is 0 or 1")
    order: int = Field(1, ge=1, le=4, description="legs N of the recursive consistency target; public: 1 or 2")
    interval: float = Field(0.01, gt=0, lt=0.5, description="D of the recursive consistency target, in time")
    residual_clip: float = Field(1.0, gt=0, description="clip of the residual R; public: 1")
    near_width: float = Field(0.05, ge=0, le=1, description="r of the near part lies within this share of t; public: 0.05")
    base_weight: float = Field(1.0, ge=0, description="weight of the base loss (parts one_step, near, any, fake)")
    rectification: float = Field(0.5, ge=0, description="weight of the rectification; public: 0.5, OpenUni-Sana 0.75")
    rectification_clip: float = Field(1.0, gt=0, description="clip of the force g; public: 1")


class Apex(Method):
    name = "apex"
    family = "self-adversarial"
    citation = "arXiv 2604.12322, as its public code trains it"
    target_time = "embedding"
    sample_mode = "few"
    needs = frozenset({"ema", "teacher"})
    Params = ApexParams

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        super().__init__(params)
        # Without the rectification nothing reads the shifted branch, so no sample is spent on it (this is RCGM).
        self.parts = (ONE_STEP, NEAR, ANY, FAKE) if self.params.rectification > 0 else (ONE_STEP, NEAR, ANY)

    def extra_networks(self, setup: Setup | None = None) -> dict[str, nn.Module]:
        p = self.params
        return {"shift": AffineShift(p.a, p.b, place=p.shift_place, learned=p.learn_shift)}

    def assign(self, batch: Batch) -> Tensor:
        """Which part each sample belongs to: blocks of equal size; small micro-batches take turns."""
        count, parts = len(batch), len(self.parts)
        if count >= parts:
            return torch.tensor([self.parts[i * parts // count] for i in range(count)])
        return torch.tensor([self.parts[(batch.micro_step * count + i) % parts] for i in range(count)])

    def times(self, part: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """t and r per sample, (B,)."""
        t, u = batch.uniform(len(part)), batch.uniform(len(part))
        part = part.to(t.device)
        width = torch.where(part == NEAR, self.params.near_width, 1.0)
        r = torch.where(part == FAKE, t, t - u * width * t)
        one = part == ONE_STEP
        return torch.where(one, torch.ones_like(t), t), torch.where(one, torch.zeros_like(r), r)

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        p, shift = self.params, nets.extra["shift"]
        device = batch.x0.device
        part = self.assign(batch).to(device)
        t, r = self.times(part, batch)
        noise = batch.normal_like(batch.x0)
        fake, real = (torch.nonzero(m).flatten() for m in (part == FAKE, part != FAKE))
        guided_rows = torch.nonzero((part == NEAR) | (part == ANY)).flatten()
        one_step = torch.nonzero(part == ONE_STEP).flatten()

        x0 = batch.x0
        if len(fake):
            z = batch.normal_like(x0[fake])
            ones = torch.ones(len(fake), device=device)
            with torch.no_grad():
                generated = endpoint(nets.student(z, ones, batch.cond[fake], torch.zeros_like(ones)), z, ones)
            x0 = x0.index_copy(0, fake, generated.to(x0.dtype))
        x_t = interpolate(x0, noise, t)
        velocity = noise - x0

        # The one pass with gradient: real parts under c, the fake part under c_fake.
        order = torch.cat([real, fake])
        cond = concatenate([batch.cond[real], shift(batch.cond[fake])]) if len(fake) else batch.cond[real]
        predicted = torch.empty_like(x_t).index_copy(0, order, nets.student(x_t[order], t[order], cond, r[order]))

        with torch.no_grad():
            guided = velocity
            if len(guided_rows) and p.rho > 0:
                rows = guided_rows
                pair = concatenate([batch.cond[rows], batch.null[rows]])
                twice = torch.cat([rows, rows])
                with_c, without_c = nets.named(p.guidance_network)(x_t[twice], t[twice], pair, t[twice]).chunk(2)
                guided = velocity.index_copy(0, rows, losses.guided_velocity(velocity[rows], with_c, without_c, p.rho))

            recursion = nets.named(p.recursion_network)
            residual = predicted.detach() - guided  # on the fake part: plain flow matching
            if len(real):
                cond_real = batch.cond[real]
                residual[real] = losses.recursive_residual(
                    predicted[real],
                    lambda x, now, following, index: recursion(x, now, cond_real[index], following),
                    x_t[real],
                    t[real],
                    r[real],
                    guided[real],
                    order=p.order,
                    step=p.interval,
                )
            target = predicted.detach() - residual.clamp(-p.residual_clip, p.residual_clip)
            weight = torch.where(part == FAKE, torch.ones_like(t), losses.interval_weight(t, r))

        per_sample = losses.adaptive_distance(predicted, target) * weight
        total = p.base_weight * per_sample.mean()
        names = {ONE_STEP: "one_step", NEAR: "near", ANY: "any", FAKE: "fake"}
        errors = losses.mean_square(residual)
        logs: dict[str, Tensor | float] = {f"residual/{names[k]}": errors[part == k].mean() for k in self.parts if bool((part == k).any())}

        if len(one_step) and p.rectification > 0:
            own = predicted[one_step]
            with torch.no_grad():
                s = batch.uniform(len(one_step))
                again = batch.normal_like(own)
                x_s = interpolate(endpoint(own, noise[one_step], torch.ones_like(s)), again, s)
                c = batch.cond[one_step]
                both = concatenate([shift(c), c])
                f_fake, f_real = nets.student(torch.cat([x_s, x_s]), torch.cat([s, s]), both, torch.cat([s, s])).chunk(2)
            # A mean over the one-step quarter: 4 / B of its sum, which also holds when micro-batches rotate.
            rectified = losses.rectification(own, f_fake, f_real, p.rectification_clip).sum() * len(self.parts) / len(batch)
            total = total + p.rectification * rectified
            logs["rectification"] = rectified.detach()
            logs["force"] = (f_fake - f_real).square().mean().sqrt()
        return Step({"student": total}, {"base": per_sample.mean().detach(), **logs})


METHOD = Apex
