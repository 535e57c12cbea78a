"""One workflow at a time in a results folder, by a lock that ends with the process, even when it is killed.

Snakemake's own lock is a file that a killed run leaves behind; `nolock` in profiles/default switches it off.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from pathlib import Path
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
        file = path.open("w")
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
        except OSError:  # a file system without locks: nothing can be held, and nothing is
            return
    _held.append(file)
    os.environ[WORKFLOW] = f"{platform.node()}:{path.resolve()}"
