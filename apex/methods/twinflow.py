"""`twinflow`: self-adversarial one-step distillation where the fake branch is told apart by the sign of the time.

TwinFlow (arXiv 2512.05150; its public code): the objective of `_recursive.py`, which `apex` shares, but the network is
asked for its own samples at (-t, -r) under the same condition. Since r = t there, a network that sees t - r still sees 0,
so what tells the branches apart is the stock embedding of a negative time: its sines change sign, its cosines do not.
Public defaults that differ: order 2, guidance by the running mean (rho 0.5).
"""

from __future__ import annotations

from torch import Tensor

from apex.conditioning import Condition
from apex.methods._recursive import SelfAdversarial
from apex.methods.base import Networks


class TwinFlow(SelfAdversarial):
    name = "twinflow"
    family = "self-adversarial"
    citation = "arXiv 2512.05150"

    def as_fake(self, nets: Networks, t: Tensor, cond: Condition) -> tuple[Tensor, Condition]:
        return -t, cond


METHOD = TwinFlow
