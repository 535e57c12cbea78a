"""How much other processes used the machine while something was timed: what a timing is worth.

The measure is the CPU time that all processes spent (/proc/stat, with what a hypervisor took for others), less this process's own and
its finished children's, over the wall time: cores that others used. A machine is busy where they used more than `BUSY` of all its cores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
BUSY = 0.1  # of the machine's cores, used by others
ATTEMPTS = 3  # timings that are taken, at most, to get one on a machine that is not busy
STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Reading:
    """Counters at one moment, in seconds: of the clock, of CPU time of all processes on all cores, and of this process."""

    wall: float
    every: float
    own: float


def read(stat: Path = STAT) -> Reading | None:
    """The counters now; None on a system that has no /proc/stat."""
    try:
        fields = stat.read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
    except (OSError, ValueError):
        return None
    mine = os.times()
    own = mine.user + mine.system + mine.children_user + mine.children_system
    ticks = user + nice + system + irq + softirq + steal  # guests are in `user`
    return Reading(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), own)


def between(first: Reading | None, last: Reading | None) -> dict[str, Any] | None:
    """`others`: the cores that other processes used on average, `cores`: all, `seconds`: of how long; None where it is not known."""
    if first is None or last is None or last.wall <= first.wall:
        return None
    seconds = last.wall - first.wall
    others = max(0.0, (last.every - first.every) - (last.own - first.own)) / seconds
    return {"others": round(others, 3), "cores": os.cpu_count() or 1, "seconds": round(seconds, 2)}


def is_busy(load: dict[str, Any] | None) -> bool:
    return bool(load) and load["others"] > BUSY * load["cores"]


def timed(
    measure: Callable[[], T], *, attempts: int = ATTEMPTS, reading: Callable[[], Reading | None] | None = None
) -> tuple[T, dict[str, Any]]:
    """What `measure` returns, taken again while the machine is busy, at most `attempts` times; the calmest counts.

    Returns its value and a record's details: `load` (see `between`, with the `attempts` that were made) and `busy`.
    """
    reading = reading or read
    taken: list[tuple[T, dict[str, Any] | None]] = []
    while len(taken) < attempts and (not taken or is_busy(taken[-1][1])):
        first = reading()
        value = measure()
        taken.append((value, between(first, reading())))
    value, load = min(taken, key=lambda one: one[1]["others"] if one[1] else 0.0)
    return value, {"load": load and load | {"attempts": len(taken)}, "busy": is_busy(load)}
