"""Python processes that train together. They are forked from one that has imported what they need: imports take seconds each."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 900.0  # seconds until a process counts as hanging


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its exit code, and what it wrote to standard output and standard error."""

    returncode: int | None
    stdout: str


def _child(script: str, arguments: list[str], environment: dict[str, str], said: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    with open(said, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})


def run(script: str, arguments: list[str], count: int = 2, **environment: str) -> list[Ended]:
    """Runs a Python script in `count` processes that find each other, on the CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    shared |= {"ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": str(count), "GLOO_SOCKET_IFNAME": "lo"}
    shared |= environment
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["apex.loop", "torch.distributed.fsdp"])
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(rank)) for rank in range(count)]
        started = [
            server.Process(target=_child, args=(script, arguments, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, str(file)))
            for rank, file in enumerate(files)
        ]
        try:
            for process in started:
                process.start()
            for process in started:
                process.join(PATIENCE)
            return [Ended(process.exitcode, file.read_text()) for process, file in zip(started, files, strict=True)]
        finally:
            for process in started:
                process.kill()
