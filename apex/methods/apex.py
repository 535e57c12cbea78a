"""`apex`: self-adversarial one-step distillation by the objective of the public code, with the shift on the condition.

The objective is in `_recursive.py`; here the fake branch is the network under the shifted condition c_fake = A c + b.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from apex.conditioning import PLACES, AffineShift, Condition
from apex.methods._recursive import SelfAdversarial, SelfAdversarialParams
from apex.methods.base import Networks, Setup


class ApexParams(SelfAdversarialParams):
    a: float = Field(-1.0, description="scale A = a I of the shifted condition (Eq. 9); public code: -1")
    b: float = Field(0.0, description="offset b = b 1 of the shifted condition (Eq. 9); public code: 0")
    shift_place: Literal[PLACES] = Field("projected", description="where in the text path the shift acts; public code: projected tokens")
    learn_shift: bool = Field(False, description="train a and b with the student")
    negative_time: bool = Field(False, description="ask the fake branch at (-t, -r) as well, as `twinflow` does; public code: no")


class Apex(SelfAdversarial):
    name = "apex"
    family = "self-adversarial"
    citation = "arXiv 2604.12322, the objective of its public code"
    Params = ApexParams

    def extra_networks(self, setup: Setup | None = None) -> dict[str, nn.Module]:
        p = self.params
        return {"shift": AffineShift(p.a, p.b, place=p.shift_place, learned=p.learn_shift)}

    def as_fake(self, nets: Networks, t: Tensor, cond: Condition) -> tuple[Tensor, Condition]:
        return -t if self.params.negative_time else t, nets.extra["shift"](cond)


METHOD = Apex
