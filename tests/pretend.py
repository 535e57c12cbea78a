"""A pretend GPU: tensors that say they are on `cuda:0` and lie in the CPU's memory, so that code meant for a GPU runs without one.

What would fail on a card for its tensors' places fails here: an operation on tensors of two devices, a CPU generator asked for random
numbers on the GPU, `numpy()` of a tensor that is there. Kernels, precisions, speed and memory are the CPU's, so that the numbers are those
of the same call on the CPU, bit for bit; nothing is learnt of a GPU's. Not followed: TorchScript, other threads, tensor subclasses.

    with pretend_gpu():
        torch.zeros(2, device="cuda") + torch.zeros(2)  # RuntimeError

A tensor is on the card if its storage is. Storages are followed below autograd, in every operation (a dispatch mode); Python's view of a
tensor's device, and what moves it, is changed above (a function mode).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CARD, CPU = torch.device("cuda", 0), torch.device("cpu")
MOVES = {"copy_", "_foreach_copy_", "_foreach_copy"}  # between devices, as on a card
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}  # the first argument's device is the result's


class Generator(torch.Generator):
    """The class, in the place of `torch.Generator`: one made for the GPU says so, and draws on the CPU."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu") -> None:
        self.on_card = torch.device(device).type == "cuda"

    @property
    def device(self) -> torch.device:
        return CARD if self.on_card else CPU


def plain(tensor: Tensor) -> Tensor:
    """Without what torch.func wraps around it."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


class Card:
    """The storages that are on the card."""

    def __init__(self) -> None:
        self.storages: dict[int, StorageWeakRef] = {}  # the weak reference keeps the key from being given to another storage
        self.called = False  # whether the function that Python is in was called with a tensor on the card

    def holds(self, tensor: Tensor) -> bool:
        tensor = plain(tensor)
        return tensor.layout is torch.strided and tensor.untyped_storage()._cdata in self.storages

    def place(self, tensor: Tensor, here: bool) -> Tensor:
        storage = plain(tensor).untyped_storage()
        if here:
            if len(self.storages) % 1000 == 999:
                self.storages = {key: ref for key, ref in self.storages.items() if not ref.expired()}
            self.storages[storage._cdata] = StorageWeakRef(storage)
        else:
            self.storages.pop(storage._cdata, None)
        return tensor


def tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class Follow(TorchDispatchMode):
    """Results of operations are where their arguments are, which is one place."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        given, name = tensors((args, kwargs)), func._schema.name.split("::")[1]
        there = [self.card.holds(t) for t in given]
        here = any(there) if there else self.card.called  # what C++ makes from nothing in a function, or in its derivative
        if name in INDEXED:
            here = there[0]
            if not here and any(there[1:]):
                raise RuntimeError(f"{name}: a tensor on {CPU} with indices or values on {CARD}")
        elif here and name not in MOVES:
            for tensor, is_there in zip(given, there, strict=True):
                if not is_there and tensor.ndim and tensor.device.type == "cpu":
                    raise RuntimeError(f"{name}: expected all tensors on one device, found {CARD} and {CPU}, {tuple(tensor.shape)}")
        known = {t.untyped_storage()._cdata for t in given}
        out = func(*args, **kwargs)
        for tensor in tensors(out):
            if tensor.layout is torch.strided and tensor.untyped_storage()._cdata not in known:
                self.card.place(tensor, here and tensor.device.type == "cpu")
        return out


class Say(TorchFunctionMode):
    """A tensor on the card says that it is on `cuda:0`; what is asked for there is made on the CPU and put there."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, first = dict(kwargs or {}), args[0] if args else None  # an attribute's getter is a new object each time: == finds it
        here = isinstance(first, Tensor) and self.card.holds(first)
        if func == Tensor.device.__get__:
            return CARD if here else func(*args)
        if func == Tensor.is_cuda.__get__:
            return here
        if here and func in (Tensor.numpy, Tensor.__array__):
            raise TypeError(f"can't convert {CARD} device type tensor to numpy. Use Tensor.cpu() first")
        if func in (Tensor.cuda, Tensor.cpu):
            return self.move(first, CARD if func is Tensor.cuda else CPU)
        if func is Tensor.to:
            return self.to(*args, **kwargs)
        if func is torch._C._nn._parse_to:  # how a module reads its own `to`
            _, *others = func(*args, **kwargs)
            return (CARD, *others) if here else func(*args, **kwargs)
        asked, generator = kwargs.get("device"), kwargs.get("generator")
        there = here if asked is None else torch.device(asked).type == "cuda"
        if generator is not None and (generator.device.type == "cuda") != there:
            raise RuntimeError(f"{func.__name__}: expected a generator on {CARD if there else CPU}, found one on {generator.device}")
        if asked is not None and torch.device(asked).type != "meta":
            if func is torch.as_tensor and isinstance(first, Tensor):
                return self.to(first, asked, kwargs.get("dtype"))
            return self.card.place(func(*args, **kwargs | {"device": CPU}), there)
        before, self.card.called = self.card.called, any(self.card.holds(t) for t in tensors((args, kwargs)))
        try:
            out = func(*args, **kwargs)
        finally:
            self.card.called = before
        if func in (Tensor.new_tensor, Tensor.__deepcopy__):
            self.card.place(out, here)
        return out

    def move(self, tensor: Tensor, device: torch.device) -> Tensor:
        if (device.type == "cuda") == self.card.holds(tensor):
            return tensor
        return self.card.place(Tensor.to(tensor, tensor.dtype, copy=True), device.type == "cuda")

    def to(self, tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        like = next(iter(tensors((args, kwargs))), None)  # to(another tensor): its type and its place
        if like is not None and self.card.holds(like):
            device = CARD
        tensor = Tensor.to(tensor, dtype or tensor.dtype, copy=copy)
        if device is not None and device.type == "meta":
            return Tensor.to(tensor, device)
        return tensor if device is None else self.move(tensor, device)


def load(*args: Any, map_location: Any = None, read: Any = torch.load, card: Card, **kwargs: Any) -> Any:
    """`torch.load`, of a file whose tensors go to the card where it is asked for."""
    found = read(*args, map_location=CPU, **kwargs)
    if map_location is not None and torch.device(map_location).type == "cuda":
        for tensor in tensors(found):
            card.place(tensor, True)
    return found


@contextmanager
def pretend_gpu() -> Iterator[None]:
    """torch has a GPU inside, for tensors, modules and `accelerate`; what was asked of torch for a GPU's sake is taken back behind it."""
    card = Card()
    with ExitStack() as stack:
        for where, name, value in (
            (torch, "Generator", Generator),
            (torch, "load", partial(load, card=card)),
            (torch.cuda, "get_device_name", lambda *_: "a pretend GPU"),
            (torch.cuda, "synchronize", lambda *_: None),
            (torch.cuda, "max_memory_allocated", lambda *_: 2**20),
            (torch.cuda, "reset_peak_memory_stats", lambda *_: None),
            (Accelerator, "device", property(lambda _: CARD)),
        ):
            stack.enter_context(patch.object(where, name, value))
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled(), warn_only=warns)
        stack.enter_context(Follow(card))
        stack.enter_context(Say(card))
        yield
