"""Loss terms of `ladd`, `add`, `dmd2` and the adversarial half of `sana-sprint`. Times, signs and guidance as in `apex.flow`.

Logits are given as a list, one (B, N) per discriminator head, large where a token looks real. Every function takes the
mean over a head's tokens and then over heads, so that a head counts the same at every size of its features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from apex.losses.self_adversarial import mean_square

Contest = Literal["hinge", "softplus"]


def _over_heads(values: Sequence[Tensor]) -> Tensor:
    """[(B, N), ...] to (B,)."""
    return torch.stack([v.flatten(1).mean(1) for v in values]).mean(0)


def called_real(logits: Sequence[Tensor], contest: Contest = "hinge") -> Tensor:
    """What real samples cost the discriminator, (B,): max(0, 1 - D), or softplus(-D)."""
    if contest == "hinge":
        return _over_heads([nn.functional.relu(1 - d) for d in logits])
    return _over_heads([nn.functional.softplus(-d) for d in logits])


def called_fake(logits: Sequence[Tensor], contest: Contest = "hinge") -> Tensor:
    """What fake samples cost the discriminator, (B,): max(0, 1 + D), or softplus(D).

    Softplus is the binary cross-entropy of logits, by its other name: -log sigmoid(D) = softplus(-D). Hinge: Sana-Sprint
    (train_scm_ladd.py, its default) and ADD; softplus: DMD2 (sd_guidance.py) and FastGen.
    """
    if contest == "hinge":
        return _over_heads([nn.functional.relu(1 + d) for d in logits])
    return _over_heads([nn.functional.softplus(d) for d in logits])


def fooling(logits: Sequence[Tensor], contest: Contest = "hinge") -> Tensor:
    """The generator's loss on its own samples, (B,): -D with the hinge, softplus(-D) (non-saturating) with softplus."""
    if contest == "hinge":
        return _over_heads([-d for d in logits])
    return _over_heads([nn.functional.softplus(-d) for d in logits])


def score_distillation(sample: Tensor, estimate: Tensor, s: Tensor) -> Tensor:
    """c(s) ||x_hat - sg f_T(x_hat_s, s)||^2 with c(s) = 1 - s, (B,): ADD's distillation term (arXiv 2311.17042, Eq. 4).

    c is the paper's exponential weighting, the signal's share alpha of the path, which is 1 - s here: the noisier, the less.
    The paper's norm is a sum over elements; this is a mean, as everywhere in the suite.
    """
    return (1 - s) * mean_square(sample - estimate.detach())


def distribution_matching(sample: Tensor, fake: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """1/2 ||x_hat - sg(x_hat - g)||^2, g = (f_fake - f_real) / mean|x_hat - f_real|, (B,), and g.

    DMD2 (arXiv 2405.14867; sd_guidance.py): its gradient with respect to x_hat is g over the number of elements, the
    difference of the two scores. f_fake, f_real: clean estimates of the re-noised sample by the fake-score network and by
    the guided teacher, (B, C, H, W).
    """
    with torch.no_grad():
        size = (sample - real).abs().flatten(1).mean(1).clamp_min(1e-8)
        force = (fake - real) / size.reshape(-1, *[1] * (sample.ndim - 1))
    return 0.5 * mean_square(sample - (sample - force).detach()), force
