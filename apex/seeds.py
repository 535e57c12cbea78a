"""One source of randomness per purpose, derived from the run's seed: a resumed run draws what an uninterrupted one would."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for one purpose, such as derive(0, "noise", step); independent of Python's hash seed."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def torch_generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator, so that the numbers do not depend on the device."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def numpy_generator(seed: int, *purpose: object) -> np.random.Generator:
    return np.random.default_rng(derive(seed, *purpose))
