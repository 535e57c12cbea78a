"""Reads the weights out of a checkpoint of OpenMMLab's (.pth) without running anything that is in it.

A .pth is a pickle, and a pickle can run code when it is opened. torch opens it with `weights_only=True`, which makes tensors and
plain values and refuses all else. Checkpoints of mmengine also hold what its training loop kept: configurations, numpy arrays,
histories. Of these nothing is needed, so each of the few names below stands for an inert object that forgets what it is given; any
other name is refused.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apex.errors import UserError

# What OpenMMLab's checkpoints are known to name beside tensors and plain values.
FORGOTTEN = (
    "builtins.getattr",
    "mmcv.utils.config.Config",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.Config",
    "mmengine.config.config.ConfigDict",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.PosixPath",
)


class _Forgotten(dict):
    """An object that takes any arguments, items and state, and keeps none of them."""

    def __new__(cls, *arguments: Any) -> _Forgotten:
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None:
        super().__init__()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_STAND_INS = [_Forgotten, *((_Forgotten, name) for name in FORGOTTEN)]


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, by name, on the CPU; its `meta`, optimiser and histories are left.

    Raises:
        UserError: the file is missing, is damaged, names what could run code, or holds no weights.
    """
    hint = "give the file as its publisher has it, or one that holds its state_dict alone"
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a checkpoint (.pth)")
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), str(error).splitlines()[0])
        raise UserError(
            f"{path}: not opened, for it holds more than weights and plain values, or is no checkpoint ({first}); {hint}"
        ) from error
    except Exception as error:  # zip, pickle and torch each have their own for a damaged file
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read, it is damaged or incomplete ({first}); {hint}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{path}: holds no weights; expected a state_dict, names to tensors; {hint}")
    return dict(state)
