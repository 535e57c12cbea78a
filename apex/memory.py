"""Peak memory of tensors on any device, from the tensors themselves: the process's size on a CPU hides megabytes in its imports."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from apex.sharding import local


class PeakMemory(TorchDispatchMode):
    """Inside, the bytes of all storages that operations make are counted for as long as they live.

    Attributes:
        live, peak: bytes now, and at most. What existed before is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        known = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in known and storage not in self._seen:
                    self._seen[storage] = True
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def _free(self, size: int) -> None:
        self.live -= size


def megabytes(tensors: Any) -> float:
    """Of tensors on this process, each counted once; of one that is split over processes, its share."""
    unique = {id(t): local(t) for t in tensors}
    return sum(t.numel() * t.element_size() for t in unique.values()) / 2**20
