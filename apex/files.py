"""Writing files so that a crash, a full disk or a kill never leaves half of one under its final name, and nothing foreign is replaced."""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from apex.errors import UserError, refuse_special

OTHERS = (".snakemake_timestamp", ".nfs*")  # what Snakemake and NFS put into any folder
FULL = {errno.ENOSPC: "a full disk", errno.EDQUOT: "a used-up quota", errno.EFBIG: "a limit on the size of files"}


@dataclass(frozen=True)
class Kind:
    """A kind of folder that a command of this suite writes as a whole.

    what: in a message, such as "images of apex.sample". holds: patterns (`fnmatch`) of the paths of its files, relative to the folder; `*`
    matches `/` too. marker: a JSON file that every such folder holds as well, with this `key` in it; "": there is none.
    """

    what: str
    holds: tuple[str, ...]
    marker: str = ""
    key: str = ""

    def foreign(self, path: Path) -> str:
        """What at `path` is not of this kind; empty where nothing stands there, or an empty folder, or one of this kind."""
        if not os.path.lexists(path):
            return ""
        if not path.is_dir():
            return "a broken link" if path.is_symlink() and not path.exists() else "a file"
        names = [Path(root, file).relative_to(path).as_posix() for root, _, files in os.walk(path) for file in files]
        names = [name for name in names if not any(fnmatch.fnmatch(name, other) for other in OTHERS)]
        if names and self.marker and self.marker not in names:
            return f"a folder without {self.marker}"
        foreign = sorted(name for name in names if not self._holds(name))
        if foreign:
            return foreign[0] + (f" and {len(foreign) - 1} more that this suite does not write there" if foreign[1:] else "")
        return f"a {self.marker} that is not this suite's" if names and self.marker and not self._marked(path) else ""

    def _holds(self, name: str) -> bool:
        """Whether such a folder may hold a file of this name, or `atomic_file`'s temporary one for it, which a kill left behind."""
        name = re.sub(r"(^|/)\.([^/]+)\.\w{8}$", r"\1\2", name)
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in (self.marker, *self.holds))

    def _marked(self, path: Path) -> bool:
        try:
            found = json.loads((path / self.marker).read_bytes())
        except (OSError, ValueError):
            return False
        return isinstance(found, dict) and self.key in found

    def check(self, path: Path) -> None:
        """A command that replaces `path` calls this before its work. Raises `UserError` if that would remove something foreign."""
        if found := self.foreign(path):
            raise UserError(
                f"{path}: found {found}, expected no folder, an empty one or {self.what} alone; "
                "nothing was changed: move it away, or write to another folder"
            )


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Names `path` in one line if the disk is full, also where torch or safetensors report it.

    Raises:
        UserError: there is no space left for what the body writes.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not (why := no_space(error)):
            raise
        raise UserError(
            f"{path}: cannot be written: found {why}, expected room for it; "
            "nothing that existed was changed: free some space, or write to another disk, and run again"
        ) from error


def no_space(error: BaseException | None) -> str:
    """What kept a file from being written, if `error` or one of its causes says that there is no space; else empty."""
    while error is not None:
        # What is written in Rust (safetensors, tokenizers) gives the system's number as text.
        told = re.search(r"\(os error (\d+)\)|\bOs \{ code: (\d+)", str(error))
        number = getattr(error, "errno", None) or (int(told[1] or told[2]) if told else None)
        if number in FULL:
            return FULL[number]
        error = error.__cause__ or error.__context__
    return ""


class _Remembering:
    """A file that keeps the error of a failed write: torch.save raises another one that does not say why."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.failed = file, None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.failed = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


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
    """Gives a temporary sibling to write to; on success it is flushed to disk and renamed to `path`, on failure it is removed.

    Raises:
        UserError: a folder stands at `path`, or there is no space left; what stood there is as it was.
    """
    if path.is_dir():
        raise UserError(f"{path}: found a folder, expected a file or nothing there; name another file, or move the folder away")
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with _closing(os.fdopen(handle, "wb")) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp makes it private
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def _closing(file: BinaryIO) -> Iterator[Any]:
    """The file, whose own error counts if writing fails."""
    kept = _Remembering(file)
    try:
        yield kept
    except Exception:
        try:
            file.close()
        except OSError as error:  # what is still in its buffer does not fit either
            kept.failed = kept.failed or error
        if kept.failed:
            raise kept.failed  # noqa: B904, the library's own error is its context
        raise
    file.close()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes `content` to `path`, whole or not at all."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def replace_folder(finished: Path, path: Path, kind: Kind) -> None:
    """Gives the folder `finished` the name `path`; what stood there is removed only after the swap.

    Raises:
        UserError: something foreign stands at `path`; both are left as they are.
    """
    kind.check(path)
    path = path.resolve()  # a link to a folder stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        os.replace(finished, path)
        return
    old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    os.replace(path, old / "was")
    try:
        os.replace(finished, path)
    except BaseException:
        os.replace(old / "was", path)
        raise
    finally:
        shutil.rmtree(old)


@contextmanager
def atomic_folder(path: Path, kind: Kind) -> Iterator[Path]:
    """Gives a temporary sibling folder to fill; on success it takes the name `path`, on failure it is removed.

    A folder of this kind that stood at `path` is kept until the new one is complete.

    Raises:
        UserError: something foreign stands at `path`, or there is no space left; what stood there is as it was.
    """
    kind.check(path)
    place = path.resolve()  # beside a folder that is linked to, so that it can be renamed
    with saving(path):
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
        os.chmod(temporary, 0o755)
        try:
            yield temporary
            replace_folder(temporary, path, kind)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
