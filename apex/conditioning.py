"""The text condition, its affine shift c_fake = A c + b (Eq. 9), and the probe that shows whether a network sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

Place = Literal["embeds", "projected", "normed"]
PLACES: tuple[Place, ...] = ("embeds", "projected", "normed")


@dataclass(frozen=True)
class Condition:
    """What a network is told besides x_t and t.

    embeds: (B, L, D) text encoder output; mask: (B, L), 1 where a token counts.
    scale, offset: (B, 1, 1) the affine shift of each sample, applied by the backbone at `place`;
    None means no sample is shifted.
    """

    embeds: Tensor
    mask: Tensor
    scale: Tensor | None = None
    offset: Tensor | None = None
    place: Place = "projected"

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, index: slice | Tensor) -> Condition:
        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[index]

        return replace(self, embeds=self.embeds[index], mask=self.mask[index], scale=pick(self.scale), offset=pick(self.offset))

    def to(self, device: torch.device | str) -> Condition:
        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        return replace(self, embeds=self.embeds.to(device), mask=self.mask.to(device), scale=move(self.scale), offset=move(self.offset))

    def apply_shift(self, tokens: Tensor) -> Tensor:
        """A c + b on tokens (B, L, D) wherever this condition is shifted."""
        if self.scale is None:
            return tokens
        return tokens * self.scale.to(tokens.dtype) + self.offset.to(tokens.dtype)


def concatenate(conditions: Sequence[Condition]) -> Condition:
    """One batch from several; samples without a shift get the identity if any other has one."""
    shifted = [c for c in conditions if c.scale is not None]
    scale = offset = None
    if shifted:
        if len({c.place for c in shifted}) > 1:
            raise ValueError("conditions shifted at different places cannot share a batch")
        one = shifted[0].scale.new_ones(1, 1, 1)
        scale = torch.cat([c.scale if c.scale is not None else one.expand(len(c), 1, 1) for c in conditions])
        offset = torch.cat([c.offset if c.offset is not None else (0 * one).expand(len(c), 1, 1) for c in conditions])
    length = max(c.embeds.shape[1] for c in conditions)

    def pad(x: Tensor) -> Tensor:
        return x if x.shape[1] == length else torch.cat([x, x.new_zeros(x.shape[0], length - x.shape[1], *x.shape[2:])], dim=1)

    return Condition(
        torch.cat([pad(c.embeds) for c in conditions]),
        torch.cat([pad(c.mask) for c in conditions]),
        scale,
        offset,
        shifted[0].place if shifted else conditions[0].place,
    )


class AffineShift(nn.Module):
    """c_fake = A c + b (Eq. 9) in the scalar case A = a I, b = b 1, fixed or learned.

    `place` says where in the text path it acts: on the text encoder's "embeds", on the "projected" caption
    tokens (the public code's place), or after the caption's normalisation ("normed"). A positive rescale
    before an RMSNorm does nothing; see `shift_visibility`.
    """

    def __init__(self, a: float = -1.0, b: float = 0.0, *, place: Place = "projected", learned: bool = False) -> None:
        super().__init__()
        if place not in PLACES:
            raise ValueError(f"unknown shift place {place!r}; known: {', '.join(PLACES)}")
        self.place: Place = place
        self.a = nn.Parameter(torch.tensor(float(a)), requires_grad=learned)
        self.b = nn.Parameter(torch.tensor(float(b)), requires_grad=learned)

    def forward(self, cond: Condition) -> Condition:
        shape = (len(cond), 1, 1)
        return replace(cond, scale=self.a.expand(shape), offset=self.b.expand(shape), place=self.place)


@torch.no_grad()
def shift_visibility(
    network, x0: Tensor, cond: Condition, shift: AffineShift, times: Sequence[float], generator: torch.Generator
) -> dict[float, float]:
    """How much the shift changes F, where 1 is the change made by another sample's caption, per time.

    Near 0 the shifted branch is the real branch and APEX has no adversary; far above 1 it is a network
    that was never trained there. `network(x_t, t, cond, r)`; x0 (B, C, H, W), B >= 2.
    """
    found = {}
    swapped = cond[torch.arange(len(cond), device=x0.device).roll(1)]
    for time in times:
        t = torch.full((len(x0),), float(time), device=x0.device)
        noise = torch.randn(x0.shape, generator=generator).to(x0.device)  # the generator is on the CPU
        x_t = time * noise + (1 - time) * x0
        base = network(x_t, t, cond, t)
        change = (network(x_t, t, shift(cond), t) - base).square().mean().sqrt()
        scale = (network(x_t, t, swapped, t) - base).square().mean().sqrt()
        found[float(time)] = float(change / scale.clamp_min(1e-12))
    return found
