"""What travels with every number: commit, versions, hardware, memory."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "diffusers", "peft", "accelerate", "transformers", "mmdet", "mmcv", "open_clip_torch", "clean-fid", "numpy")

# What images, and with them every record of them, repeat of the `made.json` of the run that drew them.
OF_THE_RUN = ("run_hash", "run", "params", "revision", "prompts_seen", "left_out", "teacher")


def git_commit(root: Path | None = None) -> str:
    """The checkout's commit, with `-dirty` where tracked files differ from it. Outside a checkout, on a copy of its files, what the
    variable APEX_COMMIT says, else "unknown"."""
    where = root or Path(__file__).resolve().parent
    try:
        head, changed = (
            subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("APEX_COMMIT", "unknown")
    return head + ("-dirty" if changed else "")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape results; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: str = "cpu") -> str:
    """One line naming the accelerator, or the processor and the number of cores this process may use."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def peak_memory_mb(device: str = "cpu") -> float:
    """Peak memory in MB: what torch had allocated on a CUDA device, else what this process had resident."""
    if device.startswith("cuda"):
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def digest(value: Any) -> str:
    """Short SHA-256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
