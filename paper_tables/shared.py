"""What several commands of one process read, read once (`paper_tables.__main__`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
_answers: dict[tuple[Any, ...], Any] | None = None


@contextmanager
def reading_once() -> Iterator[None]:
    """Inside, functions that are `shared` run once for the same arguments. Files that they read must not change meanwhile."""
    global _answers
    before, _answers = _answers, {}
    try:
        yield
    finally:
        _answers = before


def shared(function: Function) -> Function:
    """A function of hashable arguments that reads files; callers do not change what it returns."""

    @wraps(function)
    def call(*arguments: Any) -> Any:
        if _answers is None:
            return function(*arguments)
        asked = (function.__module__, function.__qualname__, *arguments)
        if asked not in _answers:
            _answers[asked] = function(*arguments)
        return _answers[asked]

    return call
