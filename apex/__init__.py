"""APEX: one-step text-to-image distillation, its baselines and their training protocol.

Reading order: `flow.py` (paths and samplers), `losses.py` (one pure function per term),
`methods/` (one file per method), `train.py` (the one loop), `sample.py`, `export.py`.

Importing this package imports neither torch nor diffusers, so the tables can be made without them.
"""

__version__ = "0.1.0"
