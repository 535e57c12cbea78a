"""The rows of the 2-D mixture and what they are trained with. Imports no torch: `apex.mixture` and `apex.alignment` list them in --help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """What all rows share. AdamW (0.9, 0.99) without decay of the weights; warm-up of 100 steps, then linear to 0."""

    steps: int = 4000
    batch: int = 256
    learning_rate: float = 1e-3
    ema: float = 0.99
    max_grad_norm: float = 1.0
    width: int = 128


@dataclass(frozen=True)
class Row:
    """A method with its settings; `parts` are the same method with terms of its loss switched off, for push.csv."""

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    start: str = "teacher"  # or the row whose student it starts from
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


NO_RHO, UNGUIDED = {"rho": 0.0}, {"guidance": 1.0}
APEX, EQ25 = NO_RHO, {"lam": 0.5}  # the paper gives no lam
EQ25_PARTS = {"L_sup": {"fake_weight": 0.0, "lam": 0.0}, "L_cons": {"fake_weight": 0.0, "lam": 1.0}, "L_fake": {"mix_weight": 0.0}}
ROWS: dict[str, Row] = {
    "fm": Row("fm"),
    "rcgm": Row("rcgm", NO_RHO),
    "apex": Row("apex", APEX, parts={"base": {"rectification": 0.0}, "rectification": {"base_weight": 0.0}}),
    "apex no shift": Row("apex", APEX | {"a": 1.0, "b": 0.0}),
    "eq25": Row("apex-eq25", EQ25, parts=EQ25_PARTS),
    "eq25 lam=0": Row("apex-eq25", {"lam": 0.0}),
    "eq25 lam=1": Row("apex-eq25", {"lam": 1.0}),
    "eq25 w=t^2": Row("apex-eq25", EQ25 | {"weighting": "t^2"}),
    "eq25 w=t^3/(1-t)": Row("apex-eq25", EQ25 | {"weighting": "t^3/(1-t)"}),
    "eq25 stopped": Row("apex-eq25", EQ25 | {"x_fake_gradient": False}),
    "eq25 fresh": Row("apex-eq25", EQ25 | {"fresh_noise": True}),
    "eq25 from apex": Row("apex-eq25", EQ25, start="apex", parts=EQ25_PARTS),
    "twinflow": Row("twinflow", NO_RHO),
    "lcm": Row("lcm", UNGUIDED),
    "pcm": Row("pcm", UNGUIDED),
    "ctm": Row("ctm", UNGUIDED),
    "scm": Row("scm", UNGUIDED),
    "scm, difference": Row("scm", UNGUIDED | {"derivative": "finite_difference"}),
    "meanflow": Row("meanflow", UNGUIDED),
    "meanflow, difference": Row("meanflow", UNGUIDED | {"derivative": "finite_difference"}),
    "sana-sprint": Row("sana-sprint", UNGUIDED),
    "ladd": Row("ladd"),
    "ladd, R1": Row("ladd", {"r1": 0.1}),
    "add": Row("add", UNGUIDED),
    "dmd2": Row("dmd2", UNGUIDED),
    "regression": Row("regression", UNGUIDED),
    "progressive": Row("progressive", UNGUIDED),
    "reflow": Row("reflow", UNGUIDED),
}

FAMILIES = {
    "self-adversarial, control": ("self-adversarial", "control"),
    "consistency": ("consistency",),
    "adversarial, regression": ("adversarial", "regression"),
}

# A row of the mixture, and the terms of its loss that are looked at alone; `apex`: its force is the rectification.
WATCHED: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "fm": {},
    "rcgm": {},
    "apex": ROWS["apex"].parts,
    "apex no shift": {"rectification": {"base_weight": 0.0}},
    "twinflow": ROWS["apex"].parts,
    "eq25": ROWS["eq25"].parts,
    "dmd2": {},
    "ladd": {},
    "ladd, R1": {},
}
