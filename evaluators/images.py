"""Reads a folder of images in GenEval's layout: `NNNNN/metadata.jsonl`, `NNNNN/samples/*.png`, and who made them.

The whole folder is checked before any work: every prompt line, every image. What is missing, empty or corrupt is
named and counted in one error; nothing is ever left out silently.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from apex.data import pictures
from apex.data.prompts import COMMITTED, check_row, load_prompts
from apex.errors import UserError
from apex.files import read_json, read_object
from evaluators.assets import registry
from evaluators.progress import progress
from evaluators.result import Identity, first_fault

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
SHOWN = 5  # faults named in an error; the rest are counted


@dataclass(frozen=True)
class Images:
    """The images of one row: `rows` (prompt lines), `files[p]` (the PNGs of prompt p, in order), `size` (width, height).

    departures: how many are decoded otherwise than an official script would (`pictures.DEPARTURES` and their numbers).
    """

    folder: Path
    rows: list[dict]
    files: list[list[Path]]
    size: tuple[int, int]
    identity: Identity
    made: dict[str, Any]
    departures: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(f) for f in self.files)

    @property
    def prompt_of(self) -> np.ndarray:
        """Index of the prompt of every image, (images,), in the order of `paths`."""
        return np.repeat(np.arange(len(self.rows)), [len(f) for f in self.files])

    @property
    def paths(self) -> list[Path]:
        return [path for files in self.files for path in files]

    def load(self, prompt: int) -> np.ndarray:
        """The images of one prompt, uint8 (n, H, W, 3)."""
        return pixels(self.files[prompt])

    def batches(self, size: int = 64) -> Iterator[np.ndarray]:
        """All images in order, uint8 (up to `size`, H, W, 3)."""
        paths = self.paths
        for start in range(0, len(paths), size):
            yield pixels(paths[start : start + size])


@dataclass
class Checked:
    """What is learnt while a folder's images are checked one by one: the size that all must have, and their departures."""

    size: tuple[int, int] | None = None
    departures: Counter[str] = field(default_factory=Counter)

    @property
    def counted(self) -> dict[str, int]:
        return dict(sorted(self.departures.items()))

    def fault_of(self, path: Path) -> str:
        """Why an image cannot be used, "" where it can."""
        try:
            picture = decoded(path)
        except pictures.PictureError as error:
            return str(error)
        height, width = picture.pixels.shape[:2]
        self.size = self.size or (width, height)
        if (width, height) != self.size:
            return f"{width}x{height}, the first is {self.size[0]}x{self.size[1]}"
        self.departures.update(picture.departures)
        return ""


# Small pictures stay decoded: several evaluators of one process check and read the same files, which takes as long as a network's pass.
SMALL, KEPT = 64 * 64 * 3, 4096  # bytes of one; how many
_small: dict[tuple[Path, int, int, int], pictures.Picture] = {}


def decoded(path: Path, decode: Callable[[Path], pictures.Picture] = pictures.decode) -> pictures.Picture:
    """The picture in a file. A small one that has not changed since is not decoded again; nobody may write to its pixels."""
    about = path.stat() if path.is_file() else None
    key = (path, about.st_ino, about.st_mtime_ns, about.st_size) if about else None
    if key in _small:
        return _small[key]
    picture = decode(path)
    if key and picture.pixels.nbytes <= SMALL:
        if len(_small) >= KEPT:
            _small.clear()
        _small[key] = picture
    return picture


def pixels(paths: list[Path]) -> np.ndarray:
    """Images of one size, uint8 (n, H, W, 3)."""
    return np.stack([decoded(path, lambda path: pictures.read(path, path)).pixels for path in paths])


def open_images(
    folder: Path, *, row: str | None = None, nfe: int | None = None, source: str | None = None, incomplete: bool = True
) -> Images:
    """Opens and checks a folder. `row`, `nfe` and `source` identify folders without `made.json`; `incomplete`: prompts may be missing.

    Raises:
        UserError: no prompts; missing, empty or corrupt images or prompt lines; files that would be left out; without `incomplete`, not
            all prompts of the set; no identity; images that could not be made.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected GenEval's layout (NNNNN/metadata.jsonl and NNNNN/samples/*.png)")
    if made := failure(folder):
        where, who = folder / "made.json", f"{made.get('row')} at NFE {made.get('nfe')}"
        raise UserError(f"{where}: {who} has no images to score: {made['failed']}; train the row again")
    prompts = sorted((p for p in folder.iterdir() if _is_number(p.name) and p.is_dir()), key=lambda p: (int(p.name), p.name))
    if not prompts:
        raise UserError(f"{folder}: no prompt folders; expected GenEval's layout (NNNNN/metadata.jsonl and NNNNN/samples/*.png)")
    check_strangers(folder, prompts)
    identity, made = identify(folder, row, nfe, source)
    rows = [_prompt_row(p / "metadata.jsonl") for p in prompts]
    files = [sorted(f for f in (p / "samples").glob("*.png") if _is_number(f.stem)) for p in prompts]
    if not incomplete:
        check_whole(folder, rows, made)
    checked = Checked()
    faults = _faults(prompts, files, checked)
    if faults:
        raise UserError(f"{folder}: {len(faults)} images missing or unusable: {some(faults)}. Delete them and sample again")
    return Images(folder, rows, files, checked.size or (0, 0), identity, made, checked.counted)


def _is_number(name: str) -> bool:
    return re.fullmatch(r"[0-9]+", name) is not None


def _is_hidden(path: Path) -> bool:
    """Whether an operating system or an archiver left it there."""
    return path.name.startswith(".") or path.name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def check_strangers(folder: Path, prompts: Sequence[Path]) -> None:
    """Raises `UserError` where a folder in GenEval's layout holds images, archives or folders that would be left out, or two prompts or
    images of one number. Other files beside them are named in a warning; the official script's grid.png is expected."""
    left, twice = [], []
    prompt_set, look = set(prompts), left.append

    def same_number(paths: Sequence[Path]) -> None:
        counted = Counter(int(path.stem) for path in paths)
        twice.extend(path.relative_to(folder).as_posix() for path in paths if counted[int(path.stem)] > 1)

    for path in sorted(folder.iterdir()):
        if path not in prompt_set and not _is_hidden(path) and path.name != "made.json":
            look(path)
    same_number(prompts)
    for prompt in prompts:
        for path in sorted(prompt.iterdir()):
            if not _is_hidden(path) and path.name not in ("metadata.jsonl", "samples", "grid.png"):
                look(path)
        samples = prompt / "samples"
        found = sorted(samples.iterdir()) if samples.is_dir() else []
        numbered = [path for path in found if path.suffix == ".png" and _is_number(path.stem)]
        same_number(numbered)
        for path in found:
            if path not in numbered and not _is_hidden(path):
                look(path)
    if twice:
        raise UserError(f"{folder}: found {len(twice)} names that share a number with another, expected one: {some(twice)}; remove one")
    refuse_left_out(folder, left, "NNNNN/samples/NNNN.png")


def refuse_left_out(folder: Path, left: Sequence[Path], layout: str) -> None:
    """Raises `UserError` where images, archives or folders of `left` would not be read; other files are named in a warning."""
    strange: list[str] = []
    other: list[str] = []
    for path in left:
        if not _is_hidden(path):
            loses = not path.is_file() or path.suffix.lower() in (*pictures.SUFFIXES, *ARCHIVES)
            (strange if loses else other).append(path.relative_to(folder).as_posix() + ("/" if path.is_dir() else ""))
    if strange:
        raise UserError(
            f"{folder}: found {len(strange)} images, archives or folders that would be left out, expected {layout} alone: "
            f"{some(strange)}; rename them, unpack them or move them away"
        )
    if other:
        print(f"warning: {folder}: {len(other)} other files are left out: {some(other)}", file=sys.stderr)


def known_sets() -> dict[str, list[dict[str, Any]]]:
    """The prompt sets that a folder without made.json can be of: the world's, and GenEval's where it was fetched."""
    files = {f"the world's {path.stem} set": path for path in sorted(COMMITTED.glob("*.jsonl"))}
    files |= {"GenEval's official set": registry()["geneval-prompts"].path}
    return {name: load_prompts(path) for name, path in files.items() if path.is_file()}


def check_whole(folder: Path, rows: list[dict[str, Any]], made: dict[str, Any]) -> None:
    """Raises `UserError` where prompts are missing, also the last ones: by made.json's count, else by the known set that all are of."""
    mend = "make their images, or give --incomplete to score what is there"
    wanted = made.get("prompts_total")
    if wanted is not None and wanted != len(rows):
        raise UserError(f"{folder}: found {len(rows)} prompts, expected {wanted} as made.json says; {mend}")
    if "row" in made:  # the suite's own: a profile may take a part of a set
        return
    have, lacking = Counter(row["prompt"] for row in rows), {}
    for name, known in known_sets().items():
        texts = Counter(row["prompt"] for row in known)
        if not have - texts:
            lacking[name] = (list((texts - have).elements()), len(known))
    if lacking:
        name, (missing, total) = min(lacking.items(), key=lambda one: len(one[1][0]))
        if missing:
            raise UserError(f"{folder}: found {len(rows)} of the {total} prompts of {name}, expected all: lacks {some(missing)}; {mend}")


def open_anonymous(folder: Path) -> Images:
    """Opens and checks a folder whose images are only copied: nobody needs to say who made them."""
    known = (folder / "made.json").is_file()
    return open_images(folder) if known else open_images(folder, row="", nfe=0)


def some(names: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    return "; ".join(names[:SHOWN]) + (f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def identify(folder: Path, row: str | None, nfe: int | None, source: str | None) -> tuple[Identity, dict[str, Any]]:
    """Who made the images of a folder: from its `made.json`, or from what the command line names.

    Raises:
        UserError: neither says it, or they disagree.
    """
    path = folder / "made.json"
    if not path.is_file():
        if row is None or nfe is None:
            raise UserError(f"{path}: missing, so the images have no identity; name them with --row NAME and --nfe K")
        return Identity(row=row, method=row, nfe=nfe), {"source": source} if source else {}
    made = read_object(path, "sample again")
    try:
        identity = Identity(**made)
    except ValidationError as error:
        raise UserError(f"{path}: {first_fault(error)}; sample again") from error
    for name, given in (("row", row), ("nfe", nfe)):
        if given is not None and given != getattr(identity, name):
            raise UserError(f"{path}: {name} is {getattr(identity, name)!r}, but --{name} says {given!r}; leave --{name} out")
    return identity, made


def failure(folder: Path) -> dict[str, Any] | None:
    """The made.json of a folder whose images could not be made (`failed` says why); None for any other folder."""
    path = folder / "made.json"
    try:
        made = read_json(path) if path.is_file() else None
    except (OSError, UserError):  # what is wrong with it is said where the images are opened
        return None
    return made if isinstance(made, dict) and made.get("failed") else None


def _prompt_row(path: Path) -> dict:
    if not path.exists():
        raise UserError(f"{path}: missing; every prompt folder holds its line of the prompt file there")
    return check_row(read_json(path, "sample again"), str(path))


def _faults(prompts: list[Path], files: list[list[Path]], checked: Checked) -> list[str]:
    """Everything wrong with the images, one text each. Prompts are numbered without gaps from the
    first one, and each has as many images as the fullest."""
    faults: list[str] = []
    numbers = [int(p.name) for p in prompts]
    width = len(prompts[0].name)
    faults += [f"{n:0{width}d}/ is missing" for n in sorted(set(range(numbers[-1] + 1)) - set(numbers))]
    expected = max(1, max(len(f) for f in files))
    pairs = progress(zip(prompts, files, strict=True), len(prompts), "checking the images of prompts", quick_is_silent=True)
    for prompt, found in pairs:
        here = {int(f.stem) for f in found}
        faults += [f"{prompt.name}/samples/{n:04d}.png is missing" for n in range(expected) if n not in here]
        for path in found:
            if fault := checked.fault_of(path):
                faults.append(f"{prompt.name}/samples/{path.name} is {fault}")
    return faults
