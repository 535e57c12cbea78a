"""Writing files so that a crash, a full disk or a kill never leaves half of one under its final name."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Gives a temporary sibling to write to; on success it is flushed to disk and renamed to `path`, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes `content` to `path`, whole or not at all."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def replace_folder(finished: Path, path: Path) -> None:
    """Gives the folder `finished` the name `path`; what stood there is removed only after the swap."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
        os.replace(path, old / "was")
        os.replace(finished, path)
        shutil.rmtree(old)
    else:
        os.replace(finished, path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary sibling folder to fill; on success it takes the name `path`, on failure it is removed.

    A folder that stood at `path` is kept until the new one is complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    os.chmod(temporary, 0o755)
    try:
        yield temporary
        replace_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
