"""Writing files so that a crash, a full disk or a kill never leaves half of one under its final name."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from apex.errors import UserError, refuse_special


def read_json(path: Path, mend: str = "make it again") -> Any:
    """A JSON file's content.

    Args:
        mend: how to mend a fault, the end of its line.

    Raises:
        UserError: the file is missing, is no regular file, or holds no JSON in UTF-8.
    """
    refuse_special(path, mend)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found, expected a JSON file; {mend}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: found a folder, expected a JSON file; {mend}") from None
    except RecursionError:
        raise UserError(f"{path}: found JSON that is nested too deeply, expected a JSON file of the suite; {mend}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}), expected a JSON file in UTF-8; {mend}") from None


def read_object(path: Path, mend: str = "make it again") -> dict[str, Any]:
    """A JSON file's object. Raises `UserError` as `read_json` does, and where the file holds another type."""
    found = read_json(path, mend)
    if not isinstance(found, dict):
        raise UserError(f"{path}: found a JSON {type(found).__name__}, expected an object; {mend}")
    return found


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
