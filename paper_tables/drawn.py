"""Figures that need not be drawn again. A PNG file of this suite holds the stamp of everything that it shows: of the data, of the settings
and of the code. Where a whole file has the stamp that a figure would get now, drawing would make the same file.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.metadata import version
from multiprocessing.connection import wait
from pathlib import Path

from PIL import Image

KEY = "drawn from"  # of a PNG file's text
LIBRARIES = ("matplotlib", "numpy", "pillow")
HERE = Path(__file__).resolve().parent
# What `paper_tables.figures` imports beside this package, and, below METHODS, what it reads the methods' families from.
METHODS = "apex/methods"
IMPORTED = (
    *(f"apex/{name}.py" for name in ("__init__", "busy", "command", "config", "errors", "escape", "evaluation", "files", "kinds")),
    *(f"apex/{name}.py" for name in ("launch", "provenance", "strict")),
    *(f"apex/data/{name}.py" for name in ("__init__", "overlap", "pictures", "prompts", "readers", "shards", "world")),
    *(f"evaluators/{name}.py" for name in ("__init__", "assets", "images", "progress", "result", "statistics")),
)
FEW = 4  # figures that one process draws sooner than several start
_jobs: Mapping[str, Callable[[], bytes | None]] = {}  # of the pool's processes, which inherit them


def stamp(*parts: object) -> str:
    """The SHA-256 of these parts: bytes as they are, everything else as text."""
    found = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode()
        found.update(f"{len(content)} ".encode())
        found.update(content)
    return found.hexdigest()


@cache
def code() -> str:
    """The stamp of what draws: this package with its data, what it imports of the suite, and the libraries."""
    root = HERE.parent
    own = [path for path in HERE.rglob("*") if path.suffix in (".py", ".csv", ".yaml")]
    files = sorted([*own, *(root / METHODS).glob("*.py"), *(root / name for name in IMPORTED)])
    return stamp(*map(version, LIBRARIES), *(part for path in files for part in (path.relative_to(root).as_posix(), path.read_bytes())))


def kept(path: Path, wanted: str) -> bytes | None:
    """The content of a PNG file with that stamp; None where there is no such file, or it is damaged or of anything else."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            found = image.info.get(KEY)
            image.verify()  # every part's checksum
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return content if found == wanted else None


def run(jobs: Mapping[str, Callable[[], bytes | None]]) -> dict[str, bytes]:
    """What the jobs return by name, those left out that return None. As many processes as there are cores share them."""
    processes = min(len(os.sched_getaffinity(0)), len(jobs))
    if processes < 2 or len(jobs) < FEW:
        return {name: content for name, job in jobs.items() if (content := job())}
    global _jobs
    _jobs = jobs
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), initializer=_begin)
    try:
        return {name: content for name, content in zip(jobs, pool.map(_run, jobs), strict=True) if content}
    finally:
        pool.shutdown(cancel_futures=True)
        _jobs = {}


def _run(name: str) -> bytes | None:
    return _jobs[name]()


def _begin() -> None:
    """A process of the pool leaves signals to the command, which may get the same ones, and ends with it even if that is killed."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    parent: Sequence[int] = [multiprocessing.parent_process().sentinel]
    threading.Thread(target=lambda: (wait(parent), os._exit(3)), daemon=True).start()
