"""The objective that `apex`, `twinflow` and `rcgm` share, as their authors' public code has it (LINs-lab).

The batch is split into equal parts (micro-batches that are too small rotate through them):

| part | t | r | data |
| --- | --- | --- | --- |
| one_step | 1 | 0 | real |
| near | U(0,1) | t - U 0.05 t | real |
| any | U(0,1) | t - U t | real |
| fake | U(0,1) | t | the student's own one-step sample, queried as fake |

Real parts learn the flow map from guided velocities (recursive consistency, RCGM). The fake part keeps the network's
fake branch an estimate of the student's own distribution; on the one-step part the difference of the two branches
pushes the student's samples toward the data (rectification). A method says how the fake branch is asked: `as_fake`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from apex import losses
from apex.conditioning import Condition, concatenate
from apex.flow import endpoint, interpolate
from apex.methods.base import Batch, Method, Networks, Params, Step

ONE_STEP, NEAR, ANY, FAKE = range(4)
NAMES = {ONE_STEP: "one_step", NEAR: "near", ANY: "any", FAKE: "fake"}


class RecursiveParams(Params):
    rho: float = Field(1.5, ge=0, description="strength of the guidance term in v_hat (public: 4.0 with the frozen base, 0.8 with EMA)")
    guidance_network: Literal["teacher", "ema", "online"] = Field(
        "teacher", description="F_g of v_hat; public: base if EMA is 1, else EMA or online"
    )
    recursion_network: Literal["ema", "online"] = Field("ema", description="F_r of the recursion; public: EMA, online if EMA is 0 or 1")
    order: int = Field(1, ge=1, le=4, description="legs N of the recursive consistency target; public: 1 or 2")
    interval: float = Field(0.01, gt=0, lt=0.5, description="D of the recursive consistency target, in time")
    residual_clip: float = Field(1.0, gt=0, description="clip of the real parts' residual R; the fake part has none; public: 1")
    near_width: float = Field(0.05, ge=0, le=1, description="r of the near part lies within this share of t; public: 0.05")


class SelfAdversarialParams(RecursiveParams):
    base_weight: float = Field(1.0, ge=0, description="weight of the base loss (parts one_step, near, any, fake)")
    rectification: float = Field(0.5, ge=0, description="weight of the rectification; public: 0.5, OpenUni-Sana 0.75")
    rectification_clip: float = Field(1.0, gt=0, description="clip of the force g; public: 1")


class Recursive(Method):
    """Recursive consistency on the real parts; with FAKE among `parts`, flow matching of the student's samples on the fake branch."""

    target_time = "embedding"
    sample_mode = "few"
    needs = frozenset({"ema", "teacher"})
    Params: ClassVar[type[RecursiveParams]] = RecursiveParams
    parts: tuple[int, ...] = (ONE_STEP, NEAR, ANY)

    def as_fake(self, nets: Networks, t: Tensor, cond: Condition) -> tuple[Tensor, Condition]:
        """The time (r is the same) and the condition under which the network answers for its own samples."""
        raise NotImplementedError

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
        width = torch.ones_like(t).masked_fill(part == NEAR, self.params.near_width)
        r = torch.where(part == FAKE, t, t - u * width * t)
        one = part == ONE_STEP
        return torch.where(one, torch.ones_like(t), t), torch.where(one, torch.zeros_like(r), r)

    def guided(self, batch: Batch, nets: Networks, x_t: Tensor, t: Tensor, velocity: Tensor, rows: Tensor) -> Tensor:
        """v_hat: the velocity, with the guidance term where 0 < t < 1 (the samples `rows`). Without gradient."""
        rho = self.params.rho
        if not len(rows) or rho == 0:
            return velocity
        pair, twice = concatenate([batch.cond[rows], batch.null[rows]]), torch.cat([rows, rows])
        with_c, without_c = nets.named(self.params.guidance_network)(x_t[twice], t[twice], pair, t[twice]).chunk(2)
        return velocity.index_copy(0, rows, losses.guided_velocity(velocity[rows], with_c, without_c, rho))

    def base(self, batch: Batch, nets: Networks) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor, Tensor]:
        """The base loss, logs, and of the one-step part: its samples' indices, F(z, 1, 0, c) and z."""
        p, device = self.params, batch.x0.device
        part = self.assign(batch).to(device)
        t, r = self.times(part, batch)
        noise = batch.normal_like(batch.x0)
        fake, real = (torch.nonzero(m).flatten() for m in (part == FAKE, part != FAKE))
        between = torch.nonzero((part == NEAR) | (part == ANY)).flatten()
        one_step = torch.nonzero(part == ONE_STEP).flatten()

        x0 = batch.x0
        if len(fake):
            z = batch.normal_like(x0[fake])
            ones = torch.ones_like(t[fake])
            with torch.no_grad():
                generated = endpoint(nets.student(z, ones, batch.cond[fake], torch.zeros_like(ones)), z, ones)
            x0 = x0.index_copy(0, fake, generated.to(x0.dtype))
        x_t = interpolate(x0, noise, t)
        velocity = noise - x0

        # The one pass with gradient: real parts, and the fake part on the fake branch.
        order, asked_t, asked_r, cond = torch.cat([real, fake]), t[real], r[real], batch.cond[real]
        if len(fake):
            fake_t, fake_cond = self.as_fake(nets, t[fake], batch.cond[fake])
            asked_t, asked_r, cond = torch.cat([asked_t, fake_t]), torch.cat([asked_r, fake_t]), concatenate([cond, fake_cond])
        predicted = torch.empty_like(x_t).index_copy(0, order, nets.student(x_t[order], asked_t, cond, asked_r))

        with torch.no_grad():
            guided = self.guided(batch, nets, x_t, t, velocity, between)
            residual = predicted.detach() - guided
            if len(real):
                recursion, cond_real = nets.named(p.recursion_network), batch.cond[real]
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
            # The fake part keeps its plain flow-matching target z - x: the public code clips the recursive target alone.
            target[fake] = velocity[fake]
            weight = torch.where(part == FAKE, torch.ones_like(t), losses.interval_weight(t, r))

        loss = (losses.adaptive_distance(predicted, target) * weight).mean()
        errors = losses.mean_square(residual)
        logs = {f"residual/{NAMES[k]}": errors[part == k].mean() for k in self.parts if bool((part == k).any())}
        return loss, {"base": loss.detach(), **logs}, one_step, predicted[one_step], noise[one_step]

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        loss, logs, *_ = self.base(batch, nets)
        return Step({"student": loss}, logs)


class SelfAdversarial(Recursive):
    """Adds the fake part and the rectification."""

    revision = 2  # 1 clipped the fake part's residual too
    Params: ClassVar[type[SelfAdversarialParams]] = SelfAdversarialParams

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        super().__init__(params)
        # Without the rectification nothing reads the fake branch, so no sample is spent on it (this is RCGM).
        self.parts = (ONE_STEP, NEAR, ANY, FAKE) if self.params.rectification > 0 else (ONE_STEP, NEAR, ANY)

    def losses(self, batch: Batch, nets: Networks, step: int) -> Step:
        p = self.params
        base, logs, one_step, own, noise = self.base(batch, nets)
        total = p.base_weight * base
        if len(one_step) and p.rectification > 0:
            with torch.no_grad():
                s = batch.uniform(len(one_step))
                x_s = interpolate(endpoint(own, noise, torch.ones_like(s)), batch.normal_like(own), s)
                c = batch.cond[one_step]
                fake_s, fake_c = self.as_fake(nets, s, c)
                asked = torch.cat([fake_s, s])
                f_fake, f_real = nets.student(torch.cat([x_s, x_s]), asked, concatenate([fake_c, c]), asked).chunk(2)
            # A mean over the one-step quarter: 4 / B of its sum, which also holds when micro-batches rotate.
            rectified = losses.rectification(own, f_fake, f_real, p.rectification_clip).sum() * len(self.parts) / len(batch)
            total = total + p.rectification * rectified
            logs |= {"rectification": rectified.detach(), "force": (f_fake - f_real).square().mean().sqrt()}
        return Step({"student": total}, logs)
