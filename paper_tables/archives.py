"""Folders of images in an archive, read where they lie: to make thousands of small files and to remove them takes longer than to draw."""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from apex.errors import UserError


@dataclass(frozen=True)
class Kept:
    """A file or folder in an archive, with the part of `pathlib.Path` that grids use.

    Attributes:
        archive: the open archive. path: its file. place: where it is in there, "" for the whole.
    """

    archive: zipfile.ZipFile
    path: Path
    place: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.place.split("/"))

    @property
    def name(self) -> str:
        return self.parts[-1]

    @property
    def parent(self) -> Kept:
        return Kept(self.archive, self.path, self.place.rpartition("/")[0])

    def __truediv__(self, name: str) -> Kept:
        return Kept(self.archive, self.path, f"{self.place}/{name}" if self.place else name)

    def __lt__(self, other: Kept) -> bool:
        return self.parts < other.parts

    def __str__(self) -> str:
        return f"{self.path}: {self.place}"

    def relative_to(self, other: Kept) -> PurePosixPath:
        return PurePosixPath(self.place).relative_to(other.place)

    def glob(self, pattern: str) -> list[Kept]:
        """As of a path; `pattern` has no `**`."""
        start, depth = (f"{self.place}/" if self.place else ""), pattern.count("/") + 1
        below = (name.removeprefix(start).split("/") for name in self.archive.NameToInfo if name.startswith(start))
        names = dict.fromkeys("/".join(parts[:depth]) for parts in below if len(parts) >= depth)
        return [self / name for name in names if fnmatchcase(name, pattern)]

    def is_file(self) -> bool:
        return self.place in self.archive.NameToInfo

    def is_dir(self) -> bool:
        return any(name.startswith(f"{self.place}/") for name in self.archive.NameToInfo)

    def read_bytes(self) -> bytes:
        with _readable(self.path):
            return self.archive.read(self.place)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)


Folder = Path | Kept


@dataclass(frozen=True)
class Points:
    """Folders of several sources by their paths <row>/nfe<K>/seed<S>/<split>; `glob` is that of one folder with all of them."""

    found: dict[str, Folder]

    def glob(self, pattern: str) -> list[Folder]:
        return [folder for name, folder in self.found.items() if fnmatchcase(name, pattern)]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:  # ValueError: an empty file
        raise UserError(f"{path}: not a readable zip archive ({type(error).__name__}); remove it, or restore it from git") from None


class _Mapped(mmap.mmap):
    """A file in memory: processes that inherit it do not share a place to read from, as they would of an open file."""

    def seekable(self) -> bool:
        return True


@contextmanager
def opened(path: Path) -> Iterator[Kept]:
    """What an archive holds. Raises `UserError` if it, or later one of its files, cannot be read."""
    with _readable(path):
        with path.open("rb") as file:
            content = _Mapped(file.fileno(), 0, access=mmap.ACCESS_READ)
        archive = zipfile.ZipFile(content)
    with content, archive:
        yield Kept(archive, path)
