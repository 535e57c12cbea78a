"""One workflow at a time in a results folder, by a lock that ends with the process, even when it is killed.

Snakemake's own lock is a file that a killed run leaves behind; `nolock` in profiles/default switches it off. If the file system has no
locks either, nothing keeps two runs apart, and a warning says so.
"""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TextIO

from apex.errors import WORKFLOW, UserError

PATIENCE = 10.0  # seconds in which the jobs of a killed workflow end
_held: list[TextIO] = []  # closing the file would give the lock back


def hold(root: Path) -> None:
    """Takes the folder for the rest of this process and tells its jobs to end with it (`apex.errors.end_with_workflow`).

    Raises:
        UserError: the folder cannot be written, or another workflow is at work there.
    """
    path = root / ".lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = path.open("a")  # what another workflow has written there stays, until this one has the lock
    except OSError as error:
        raise UserError(f"{root}: cannot be written: {error.strerror}; free it, or run in another folder (--directory)") from None
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                raise UserError(f"{root}: another snakemake is at work there; wait for it or stop it") from None
            time.sleep(0.1)
        except OSError as error:
            warn(root, f"this file system has no locks ({error.strerror})")
            break
    if mount := of_this_machine_alone(root):
        warn(root, f"locks on {mount} hold on this machine alone")
    identity = f"{os.getpid()}-{time.time_ns()}"
    file.truncate(0)
    file.write(f"{identity}\n")
    file.flush()
    _held.append(file)
    os.environ[WORKFLOW] = f"{platform.node()}:{identity}:{path.resolve()}"
    stop_jobs_at_sigterm(path)


def warn(root: Path, why: str) -> None:
    print(f"warning: {root}: {why}: two runs at once may collide there; start one at a time", file=sys.stderr, flush=True)


def of_this_machine_alone(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Where `path` lies on a network file system that was mounted without its locks (`nolock`, `local_lock`): the mount; else empty."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return ""
    place = path.resolve()
    around = [line for line in lines if len(line) > 3 and place.is_relative_to(line[1].replace("\\040", " "))]
    if not around:
        return ""
    _, mount, kind, options, *_ = max(around, key=lambda line: len(line[1]))
    alone = {"nolock", "local_lock=all", "local_lock=flock", "localflock"} & set(options.split(","))
    return mount if alone and kind.startswith(("nfs", "lustre")) else ""


def stop_jobs_at_sigterm(path: Path) -> None:
    """SIGTERM to Snakemake alone also stops its jobs, which save what they have; Snakemake itself waits for them, as it always does."""
    if threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:  # not in a process that Snakemake has forked
            with path.open("a") as file:
                file.write("stopping\n")
        if callable(before):
            before(number, frame)
        else:
            signal.signal(number, before)
            os.kill(os.getpid(), number)

    owner = os.getpid()
    signal.signal(signal.SIGTERM, stop)
