"""`rcgm`: recursive consistency alone, the any-step base of `apex` and `twinflow` (LINs-lab, RCGM).

The objective of `_recursive.py` on its real parts: one_step, near, any. With order 1 it is MeanFlow with a backward
difference over D in place of the derivative, and so has a bias of the order of D.
"""

from __future__ import annotations

from apex.methods._recursive import Recursive


class RCGM(Recursive):
    name = "rcgm"
    family = "consistency"
    citation = "LINs-lab/RCGM; the base of arXiv 2512.05150"


METHOD = RCGM
