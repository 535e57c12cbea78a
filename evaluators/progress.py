"""Lines on stderr that say how long work still takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], total: int, name: str, every: float = 5.0, quick_is_silent: bool = False) -> Iterator[T]:
    """Passes `items` on; prints a line with the time left every few seconds and one at the end, on stderr.

    With `quick_is_silent` work that is done before the first line is due says nothing.
    """
    started = last = time.time()
    for done, item in enumerate(items, 1):
        yield item
        if time.time() - last > every and done < total:
            last = time.time()
            print(f"{name} {done}/{total}, {(last - started) / done * (total - done):.0f} s left", file=sys.stderr, flush=True)
    if not quick_is_silent or last > started:
        print(f"{name} {total}/{total}, {time.time() - started:.1f} s", file=sys.stderr, flush=True)
