"""The methods, one file each, found by looking: a file that defines METHOD is a method. The contract is in `base.py`."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from apex.errors import UserError

if TYPE_CHECKING:
    from apex.methods.base import Method

_NOT_METHODS = {"base"}


def available() -> dict[str, str]:
    """Method name -> module name, from file names alone: `apex_eq25.py` is `apex-eq25`. Imports nothing."""
    names = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_METHODS and not m.name.startswith("_"))
    return {name.replace("_", "-"): f"{__name__}.{name}" for name in names}


def get(name: str) -> type[Method]:
    """The method's class. Imports torch.

    Raises:
        UserError: unknown name, a file that does not import, or one without METHOD.
    """
    known = available()
    if name not in known:
        raise UserError(f"unknown method {name!r}; known: {', '.join(known)}; a method is a file in apex/methods/")
    path = known[name].replace(".", "/") + ".py"
    try:
        module = importlib.import_module(known[name])
    except Exception as error:
        raise UserError(f"{path}: cannot be imported ({type(error).__name__}: {error}); mend it or remove the method {name!r}") from error
    method = getattr(module, "METHOD", None)
    if method is None or getattr(method, "name", None) != name:
        raise UserError(f"{path}: expected METHOD, a Method with name = {name!r}; found {method!r}")
    return method
