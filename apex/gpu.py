"""One GPU for each job on a box with several: a lock file a GPU, held until the process ends, however it ends. And the same numbers on it.

Snakemake counts GPUs (`--resources gpu=4`) and sets no CUDA_VISIBLE_DEVICES. A scheduler such as SLURM sets it, and nothing is done here.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TextIO

from apex.errors import UserError

# Card -> memory in GB and dense bf16 TFLOP/s, as their makers' data sheets say. A rate measured on the card itself is better: --tflops.
CARDS = {"h200": (141, 989), "h100": (80, 989), "a100": (80, 312), "l40s": (48, 362), "rtx4090": (24, 165)}
SHARE = 0.35  # of the card's rate that training reaches; assumed where nothing was measured
VISIBLE = "CUDA_VISIBLE_DEVICES"
_held: list[TextIO] = []  # closing the file would give the lock back


def devices() -> list[int]:
    """The numbers of this box's NVIDIA GPUs, by their device files."""
    return sorted(int(path.name.removeprefix("nvidia")) for path in Path("/dev").glob("nvidia[0-9]*"))


def pick_device(name: str) -> str:
    """`auto` is a GPU where there is one, claimed for this process, else the CPU; another name stays.

    Raises:
        UserError: torch has no such device here.
    """
    import torch

    if name == "auto":
        claim()
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: not usable here ({str(error).splitlines()[0]}); expected auto, cpu, cuda or cuda:N") from error
    return name


def repeatable(device: str, *, strict: bool = False) -> None:
    """On a GPU, asks torch for kernels whose sums have one order, so that one seed gives one result on one card; slower in some backward
    passes. Nothing is to be asked on a CPU.

    An operation that has no such kernel runs, with torch's warning; `strict`, it raises RuntimeError. The backward pass of attention, which
    has one, takes it only then: torch says so where it does not.

    To be called before the first product of matrices: cuBLAS reads its setting then.
    """
    import torch

    if not device.startswith("cuda"):
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads memory before it is written


def claim(found: list[int] | None = None, folder: Path | None = None, patience: float = 1.0) -> int | None:
    """Takes a free GPU for this process and what it starts, waiting for one if all are taken; returns its number.

    Nothing is done, and None returned, where CUDA_VISIBLE_DEVICES is set, where a launcher started several processes, or with fewer than
    two GPUs. To be called before CUDA is.
    """
    found = devices() if found is None else found
    if VISIBLE in os.environ or "WORLD_SIZE" in os.environ or len(found) < 2:
        return None
    folder = folder or Path(tempfile.gettempdir())
    said = False
    while True:
        for number in found:
            lock = (folder / f"apex-gpu-{os.getuid()}-{number}.lock").open("a")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.close()
                continue
            _held.append(lock)
            os.environ[VISIBLE] = str(number)
            return number
        if not said:
            print(
                f"waiting for one of {len(found)} GPUs; jobs at once: snakemake --resources gpu={len(found)}", file=sys.stderr, flush=True
            )
            said = True
        time.sleep(patience)
