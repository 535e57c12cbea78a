"""The contract between a diffusers transformer of any size and the methods: `Backbone`.

A method sees only `velocity(x_t, t, cond, r)` and `features(...)`; everything stays a stock diffusers module,
so what is trained loads in stock diffusers. Two things are added around it, both by forward hooks:

- the condition's affine shift at its place in the text path;
- the target time r. `target_time="none"`: the network does not see r (the public LoRA recipe; stock loading
  reproduces every NFE). `target_time="embedding"`: a second time embedding of t - r, whose last layer starts
  at zero, so training starts exactly at the pretrained network for every r. In the Sana family it lives in the
  stock `guidance_embeds` slot (stock loading reproduces every NFE: pass `guidance=1000 (t - r)`); elsewhere it is
  an extra module. At NFE 1 it is a constant, and `fold_one_step` writes it exactly into the time embedder's last
  bias, so a plain stock transformer reproduces NFE 1 in every family, on the time grid that it was folded for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from apex.conditioning import Condition
from apex.errors import UserError
from apex.weights import precision

TargetTime = Literal["none", "embedding"]
TIME_SCALE = 1000.0  # diffusers' schedulers count time in [0, 1000]


class Backbone(nn.Module):
    """A velocity network. Subclasses name their diffusers class and how it is called.

    Attributes:
        family: name of the architecture family ("sana", "qwen_image").
        transformer: the stock diffusers model.
        target_time: whether the network sees r.
    """

    family: str
    lora_targets: Sequence[str]
    block_list: str  # attribute of the transformer that holds its blocks

    def __init__(self, transformer: nn.Module, target_time: TargetTime = "none") -> None:
        super().__init__()
        self.transformer = transformer
        self.target_time: TargetTime = target_time
        self._cond: Condition | None = None
        for place, module in self.shift_modules().items():
            module.register_forward_hook(lambda _m, _i, out, place=place: self._shift_hook(place, out))

    # -- to be filled by a family ----------------------------------------------------------------
    def call(self, x_t: Tensor, t: Tensor, cond: Condition, delta: Tensor | None) -> Tensor:
        """One forward pass of the stock transformer; `delta` is t - r where the network sees r."""
        raise NotImplementedError

    def shift_modules(self) -> dict[str, nn.Module]:
        """Modules of the text path whose output the shift may act on, by place ("projected", "normed")."""
        raise NotImplementedError

    def with_target_time(self) -> Backbone:
        """A copy of this backbone that sees r, equal to this one for every r until it is trained."""
        raise NotImplementedError

    def with_time_scale(self, factor: float) -> Backbone:
        """This backbone with `factor` times the time in its embedding: the same weights, another function, smoother in t below 1.

        Raises:
            UserError: the family's stock class fixes that scale, so what is trained would not load in stock diffusers.
        """
        if factor == 1.0:
            return self
        raise UserError(f"time_scale: found {factor:g}, expected 1: {self.family} has its scale in code, not in its configuration")

    def fold_one_step(self, gap: float) -> nn.Module:
        """A stock transformer without r whose output at every t equals this network's at (t, r = t - gap).

        gap: t - r of the step, in [0, 1]; a jump to r = 0 from the first time of its grid has that time.
        """
        raise NotImplementedError

    def save_extra(self, folder: Path) -> None:
        """Saves what the stock transformer has no place for; nothing in most families."""

    def load_extra(self, folder: Path) -> Backbone:
        """The counterpart of `save_extra`: this backbone with what `folder` holds beside its transformer."""
        return self

    # -- shared ----------------------------------------------------------------------------------
    def velocity(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        """F(x_t, t, r, c): x_t (B, C, H, W), t and r (B,) in [0, 1]; r = None means r = t. Returns (B, C, H, W)."""
        delta = None
        if self.target_time == "embedding":
            delta = torch.zeros_like(t) if r is None else t - r
        if cond.place == "embeds":
            cond = Condition(cond.apply_shift(cond.embeds), cond.mask)
        dtype = precision(self.transformer)  # the text encoder may be kept in another
        self._cond = cond = cond if cond.embeds.dtype == dtype else replace(cond, embeds=cond.embeds.to(dtype))
        try:
            return self.call(x_t, t, cond, delta)
        finally:
            self._cond = None

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None, blocks: Sequence[int] | None = None, both: bool = False
    ) -> Tensor | list[Tensor] | tuple[Tensor, list[Tensor]]:
        """`velocity`, or with `blocks` their `features`, or `both` from one pass: one entry, so that DDP, FSDP and hooks see every call."""
        if blocks is None:
            return self.velocity(x_t, t, cond, r)
        velocity, features = self._features(x_t, t, cond, r, blocks)
        return (velocity, features) if both else features

    def _shift_hook(self, place: str, output: Tensor) -> Tensor | None:
        cond = self._cond
        if cond is None or cond.scale is None or cond.place != place:
            return None
        return cond.apply_shift(output)

    @property
    def blocks(self) -> nn.ModuleList:
        return getattr(self.transformer, self.block_list)

    def features(self, x_t: Tensor, t: Tensor, cond: Condition, blocks: Sequence[int], r: Tensor | None = None) -> list[Tensor]:
        """Outputs of the named blocks, each (B, N, D) image tokens, from one forward pass."""
        return self(x_t, t, cond, r, blocks=blocks)

    def _features(self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None, blocks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        found: dict[int, Tensor] = {}

        def keep(index: int):
            def hook(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
                # Blocks with two streams return (text, image).
                found[index] = output[-1] if isinstance(output, tuple) else output

            return hook

        handles = [self.blocks[i].register_forward_hook(keep(i)) for i in blocks]
        try:
            velocity = self.velocity(x_t, t, cond, r)
        finally:
            for handle in handles:
                handle.remove()
        return velocity, [found[i] for i in blocks]

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.transformer.parameters())
