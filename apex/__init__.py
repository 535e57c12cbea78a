"""APEX: one-step text-to-image distillation, its baselines and their training protocol.

Reading order: `flow.py` (paths and samplers), `losses.py` (one pure function per term),
`methods/` (one file per method), `train.py` (the one loop), `sample.py`, `export.py`.

Importing this package imports neither torch nor diffusers, so the tables can be made without them.
"""

import logging

from apex.errors import end_with_workflow

__version__ = "0.1.0"

end_with_workflow()  # here, because a job may be killed while it imports torch

# diffusers 0.42 warns at every import that torchao 0.18 has no longer some classes of quantised weights; none are read here.
logging.getLogger("diffusers.quantizers.torchao.torchao_quantizer").setLevel(logging.ERROR)
