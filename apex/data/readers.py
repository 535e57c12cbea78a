"""Raw samples out of the formats that training data comes in; used through `apex.data.shards`.

- WebDataset: `*.tar`, one image (png, jpg, jpeg, webp), one `txt` and perhaps one `json` a sample;
  an `index.json` beside them, where there is one, gives each shard's SHA-256, which is checked.
- Image folder: images with same-named `.txt` captions (and perhaps `.json`), or with a
  `metadata.jsonl` (Hugging Face's imagefolder convention: `file_name`, `text` or `caption`).
- Parquet: an image column (bytes, or Hugging Face's struct {bytes, path}) and a caption column.
- ShareGPT-4o-Image as it is published: tars of images alone, `text_to_image_part_*.tar`, and their captions in one list beside
  them, `text_to_image.json`, of {input_prompt, output_image}.

Without a `txt`, the `json` may hold the caption (`caption`, `text` or `prompt`), as img2dataset writes it; its `NNNNN.parquet` and
`NNNNN_stats.json` beside shards are no data. Hidden files, `__MACOSX` and notes (README, LICENSE, *.md) are passed over. Nothing else is
left out in silence: a file or sample that cannot be used is a `Defect`. A symbolic link may lead into the folder or into the blobs of the
Hugging Face cache that the folder is in.

Samples come in a fixed order: files by name, rows as they stand. Every defect is a `UserError`.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from apex.command import SKIP_LIMIT
from apex.data.pictures import SUFFIXES
from apex.errors import UserError, check_format, refuse_special, special
from apex.provenance import file_sha256
from apex.strict import has_surrogate

IMAGE_COLUMNS = ("image", "jpg", "png")
CAPTION_COLUMNS = ("caption", "text", "prompt")
INDEX = "index.json"
LISTING, LISTED_TARS = "text_to_image.json", "text_to_image_part_*.tar"


ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar")
LISTS = (".jsonl", ".ndjson", ".csv", ".tsv")
NOTES = re.compile(
    r"(readme|licen[cs]e|notice|citation)(\..*)?|.*\.md|dataset_infos?\.json|made\.json|_success|thumbs\.db|desktop\.ini", re.I
)
BOM = b"\xef\xbb\xbf"
MOVE = "move it away"  # what mends a special file
UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Defect(UserError):
    """One sample or file that cannot be used, where the others can be read without it."""


class Unread(Defect):
    """A file beside the data that is no part of them."""


class Record(NamedTuple):
    """One sample before its image is decoded; `where` names it in error messages."""

    key: str
    image: bytes
    caption: str
    meta: dict[str, Any]
    where: str


class Source(NamedTuple):
    """A data set on disk: its root, its kind (tar, parquet, jsonl, listed or folder) and the files to read, sorted.

    `whole` is false when a single file was named: then its neighbours are not looked at. beside: the captions of a folder of images, and
    of a folder with lists everything but them. defects: what is wrong with the folder's files, seen by their names alone.
    """

    root: Path
    kind: str
    files: tuple[Path, ...]
    whole: bool = True
    beside: tuple[Path, ...] = ()
    defects: tuple[UserError, ...] = ()


class Skipped:
    """Counts the defects that are skipped (`data.on_error: skip`). Called with one, raises it where it cannot be skipped, and a
    `UserError` when there are more than `limit`."""

    def __init__(self, limit: int = SKIP_LIMIT) -> None:
        self.limit = limit
        self.lines: list[str] = []

    def __call__(self, defect: UserError) -> None:
        if not isinstance(defect, Defect):
            raise defect
        self.lines.append(str(defect))
        if len(self.lines) > self.limit:
            raise UserError(f"{defect}: found {len(self.lines)} defects, expected {self.limit} at most (data.skip_limit); mend the data")

    def about(self) -> dict[str, Any]:
        """What a record says of it: the count, the limit, and ten lines, the first by name."""
        return {"count": len(self.lines), "limit": self.limit, "first": sorted(self.lines)[:10]}


def detect(path: Path) -> Source:
    """What `path` holds. Raises `UserError` when it is missing, empty, or holds two kinds at once."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected WebDataset tars, parquet files or a folder of images")
    refuse_special(path, MOVE)
    if path.is_file():
        kind = {".tar": "tar", ".parquet": "parquet"}.get(path.suffix.lower())
        if kind is None:
            raise UserError(f"{path}: not a data set; expected a .tar or .parquet file, or a folder")
        if (listing := path.parent / LISTING).is_file() and path.match(LISTED_TARS):
            return Source(path.parent, "listed", (listing, path), whole=False)
        return Source(path.parent, kind, (path,), whole=False)
    found, defects = _walk(path)

    def of(*suffixes: str) -> tuple[Path, ...]:
        return tuple(p for p in found if p.suffix.lower() in suffixes)

    def source(kind: str, files: tuple[Path, ...], beside: tuple[Path, ...] = (), others: Iterable[Path] = ()) -> Source:
        known = {*files, *beside, *others}
        return Source(path, kind, files, True, beside, (*defects, *(_unread(p, kind) for p in found if p not in known)))

    if path / LISTING in found:  # the published folder has further tars, of another task
        tars = tuple(p for p in found if p.parent == path and p.match(LISTED_TARS))
        if not tars:
            raise UserError(f"{path}: {LISTING} without its images; expected {LISTED_TARS} beside it")
        return source("listed", (path / LISTING, *tars), others=path.glob("text_and_image_to_image*"))
    tars, tables = of(".tar"), of(".parquet")
    if tars and tables:
        raise UserError(f"{path}: holds both .tar and .parquet files; name one kind, or one file")
    if tars or path / INDEX in found:
        return source("tar", tars, others=(path / INDEX,))
    if tables:
        return source("parquet", tables)
    if lists := tuple(p for p in found if p.name == "metadata.jsonl"):
        return Source(path, "jsonl", lists, True, tuple(p for p in found if p not in lists), tuple(defects))
    images = of(*SUFFIXES)
    if not images:
        for one in (*defects, *(_unread(p, "folder") for p in of(*ARCHIVES))):
            rest = len(defects) + len(of(*ARCHIVES)) - 1
            raise UserError(f"{one}" + (f" [and {rest} more]" if rest else ""))
        raise UserError(f"{path}: empty; expected .tar or .parquet files, or images ({', '.join(SUFFIXES)})")
    stems = {p.with_suffix("") for p in images}
    captions = of(".txt", ".json")
    defects += [
        Unread(f"{p}: found {'a caption' if p.suffix.lower() == '.txt' else 'JSON'} without an image, expected one of the same name;"
               " add the image, or move it away")
        for p in captions if p.with_suffix("") not in stems
    ]  # fmt: skip
    return source("folder", images, captions)


def homes(root: Path) -> tuple[Path, ...]:
    """Where links below `root` may lead: into itself, and into the blobs of the Hugging Face cache that it is in."""
    home = Path(os.path.realpath(root))
    for folder in (home, *home.parents):
        if folder.parent.name == "snapshots" and (blobs := folder.parent.parent / "blobs").is_dir():
            return home, blobs
    return (home,)


def _walk(root: Path) -> tuple[list[Path], list[UserError]]:
    """All files below `root` that may be data, sorted, and what is wrong with others."""
    found: list[Path] = []
    defects: list[UserError] = []
    allowed = homes(root)
    for path in sorted(root.rglob("*")):
        if any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(root).parts):
            continue
        if path.is_symlink():
            target = Path(os.path.realpath(path))
            if not any(target.is_relative_to(home) for home in allowed):
                what = f"{path}: found a link to {target}, expected a file inside the folder (or a link into its own hub cache)"
                defects.append(UserError(f"{what}; copy the file here"))
                continue
            if not path.exists() or path.is_dir():
                what = "a folder" if path.is_dir() else "nothing"
                defects.append(Unread(f"{path}: found a link to {what}, expected one to a file; remove it"))
                continue
        if kind := special(path):
            defects.append(Defect(f"{path}: found {kind}, expected a file; {MOVE}"))
            continue
        if path.is_file() and not NOTES.fullmatch(path.name):
            found.append(path)
    there = set(found)

    def of_img2dataset(path: Path) -> bool:
        """NNNNN.parquet and NNNNN_stats.json, which tell of a shard or folder NNNNN."""
        stem = str(path).removesuffix(".parquet").removesuffix("_stats.json")
        kinds = (".tar",) if path.suffix == ".parquet" else (".tar", ".parquet")
        return stem != str(path) and (Path(stem).is_dir() or any(Path(stem + kind) in there for kind in kinds))

    return [path for path in found if not of_img2dataset(path)], defects


def _unread(path: Path, kind: str) -> Unread:
    """A file that no reader of a data set of this kind takes."""
    beside = {"tar": ".tar files", "parquet": ".parquet files", "listed": LISTING, "jsonl": "metadata.jsonl", "folder": "images"}[kind]
    suffix = path.suffix.lower()
    if suffix in ARCHIVES:
        what = "an archive, expected .tar files (not compressed), .parquet files or images; unpack it, or move it away"
    elif suffix in SUFFIXES and kind == "jsonl":
        what = "an image that no list names, expected a line for each in metadata.jsonl; add it, or move the image away"
    elif suffix in LISTS and kind == "folder":
        what = "a list, expected it to be JSON lines named metadata.jsonl; write it so, or move it away"
    elif suffix in (*SUFFIXES, ".txt", ".json", *LISTS):
        what = f"a {suffix} file that is not read beside {beside}, expected one kind of data; move it away"
    else:
        what = f"a file of unknown kind beside {beside}, expected images to be {', '.join(SUFFIXES)}; convert it, or move it away"
    return Unread(f"{path}: found {what}")


def readings(source: Source) -> Iterator[Record | UserError]:
    """Every sample of `source` and everything that is wrong with it. Goes on after a defect of one sample or file."""
    read = {
        "tar": _tar_records,
        "parquet": _parquet_records,
        "jsonl": _jsonl_records,
        "listed": _listed_records,
        "folder": _folder_records,
    }[source.kind]
    empty = True
    try:
        for reading in chain(source.defects, read(source)):
            empty = False
            yield reading
    except UserError as error:  # of a list or index, which all the rest depends on
        yield error
        return
    if empty:
        yield UserError(f"{source.root}: no samples in {len(source.files)} {source.kind} file(s); expected at least one")


def records(source: Source, skipped: Skipped | None = None) -> Iterator[Record]:
    """Every sample of `source`.

    Raises `UserError` at the first defect, and when there is no sample at all. With `skipped`, defects of single samples and files are
    counted there instead.
    """
    empty, stream = True, readings(source)
    for reading in stream:
        if isinstance(reading, Record):
            empty = False
            yield reading
        elif skipped is not None:
            skipped(reading)
        else:
            more = sum(1 for _ in takewhile(lambda one: isinstance(one, Unread), stream)) if isinstance(reading, Unread) else 0
            raise UserError(f"{reading}" + (f" [and {more} more]" if more else ""))
    if empty:
        raise UserError(f"{source.root}: no samples without a defect; expected at least one")


def _tried(make: Callable[[], Record], where: str) -> Record | Defect:
    try:
        return make()
    except UserError as error:
        return Defect(str(error))
    except OSError as error:
        return Defect(f"{where}: cannot be read ({error.strerror or error}); mend or remove it")


def text_defect(text: str) -> str | None:
    """What makes `text` useless as a prompt or caption: "a lone surrogate" or "a NUL"; None where nothing does."""
    if "\0" in text:
        return "a NUL"
    return "a lone surrogate" if has_surrogate(text) else None


def _caption(text: Any, where: str) -> str:
    if isinstance(text, bytes):
        if text.startswith(UTF16):
            raise UserError(f"{where}: caption is not UTF-8 but UTF-16; save it as UTF-8")
        try:
            text = text.removeprefix(BOM).decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: caption is not UTF-8 ({error.reason} at byte {error.start})") from None
    if text is not None and not isinstance(text, str):
        kind = {list: "a list", dict: "an object", int: "a number", float: "a number", bool: "a truth value"}.get(type(text), "no text")
        raise UserError(f"{where}: caption: found {kind}, expected one text; choose or write one")
    if not text or not text.strip():
        raise UserError(f"{where}: caption missing or empty; every image needs one")
    if bad := text_defect(text):
        raise UserError(f"{where}: caption: found {bad}, expected text in UTF-8; write it again")
    return text.strip()


def parse_json(text: bytes | str, where: str) -> Any:
    """Raises `UserError` beginning with `where` when `text` is not JSON in UTF-8."""
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None


def _object(text: bytes | str, where: str) -> dict[str, Any]:
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise UserError(f"{where}: found a JSON {type(value).__name__}, expected an object {{...}}")
    return value


def json_lines(path: Path) -> list[tuple[str, bytes]]:
    """(where, line) of every line of a file of JSON lines but for blank ones at its end; a byte order mark is dropped.

    Raises `UserError` where it is UTF-16, or one JSON value over all lines.
    """
    data = path.read_bytes().removeprefix(BOM).rstrip()
    if data.startswith(UTF16):
        raise UserError(f"{path}: found UTF-16, expected UTF-8; save it as UTF-8")
    lines = data.splitlines()
    opened = data.lstrip()[:1]
    if opened == b"[" or (opened == b"{" and len(lines) > 1 and lines[0].strip() == b"{"):
        try:
            whole = json.loads(data)
        except (ValueError, RecursionError):
            whole = None
        if isinstance(whole, list):
            raise UserError(f"{path}: found one JSON list, expected one object a line; write every object on its own line, without [ ]")
        if whole is not None:
            raise UserError(f"{path}: found one JSON object over several lines, expected one object a line; write it on one line")
    return [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]


def _said(meta: dict[str, Any]) -> str | None:
    """The caption that a sample's JSON holds, as img2dataset writes it."""
    return next((meta[column] for column in CAPTION_COLUMNS if isinstance(meta.get(column), str)), None)


# ------------------------------------------------------------------------------------- WebDataset


def read_index(root: Path) -> dict[str, Any] | None:
    """The `index.json` of a shard folder, or None where there is none."""
    path = root / INDEX
    if not path.is_file():
        return None
    index = _object(path.read_bytes(), str(path))
    check_format(index.get("schema", 1), {1}, f"{path}: schema", "make the shards again, or remove this file to read unchecked")
    shards = index.get("shards")
    if not isinstance(shards, list) or not all(
        isinstance(s, dict) and [type(s.get(key)) for key in ("file", "count", "sha256")] == [str, int, str] for s in shards
    ):
        raise UserError(
            f"{path}: expected a list `shards` of {{file, count, sha256}}; make the shards again, or remove this file to read unchecked"
        )
    if not isinstance(samples := index.get("samples", 0), int):
        raise UserError(f"{path}: samples: found {samples!r}, expected a number; make the shards again, or remove this file")
    return index


def _tar_records(source: Source) -> Iterator[Record | UserError]:
    index = read_index(source.root)
    known = None if index is None else {s["file"]: s for s in index["shards"]}
    if known is not None and source.whole:
        present = {p.relative_to(source.root).as_posix() for p in source.files}
        for name in sorted(known.keys() ^ present):
            what = "listed but not there" if name in known else "there but not listed"
            yield UserError(f"{source.root / INDEX}: shard {name} is {what}; make or copy the shards again")
    for path in source.files:
        listed = None if known is None else known.get(path.relative_to(source.root).as_posix())
        if listed is not None and (found := file_sha256(path)) != listed["sha256"]:
            wanted = str(listed["sha256"])[:12]
            yield UserError(f"{path}: SHA-256 {found[:12]}, but {INDEX} says {wanted}: changed or truncated; make or copy it again")
            continue
        for sample in _tar_samples(path):
            yield sample if isinstance(sample, UserError) else _tried(lambda sample=sample: _of_tar(*sample), str(path))


def _of_tar(key: str, parts: dict[str, bytes], where: str) -> Record:
    image = _image(parts, where)
    meta = _object(parts["json"], f"{where}, json") if "json" in parts else {}
    return Record(key, image, _caption(parts.get("txt", _said(meta)), where), meta, where)


def _tar_samples(path: Path) -> Iterator[tuple[str, dict[str, bytes], str] | UserError]:
    """(key, contents by suffix, where) of every sample of one tar.

    As WebDataset groups members: the key ends at the first dot of the file's name, and a sample's members stand side by side.
    """
    try:
        apart = _check_tar(path)
    except UserError as error:
        yield error
        return
    key, parts, twice = None, {}, None

    def finished() -> Iterator[tuple[str, dict[str, bytes], str] | UserError]:
        where = f"{path}, sample {key}"
        if key is None or (key in apart and key in told):
            return
        told.add(key)
        if key in apart:
            yield Defect(f"{where}: its members stand apart, expected side by side; make the tar again with its members in order")
        elif twice:
            yield Defect(f"{where}: found {twice} twice, expected each member once; make the tar again")
        else:
            yield key, parts, where

    told: set[str] = set()
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            tar.members = []  # or all that were read stay in memory
            if _passed_over(member):
                continue
            found, suffix = _key(member.name)
            if found != key:
                yield from finished()
                key, parts, twice = found, {}, None
            if not member.isreg():
                yield Defect(f"{path}, {member.name}: found a link or special file, expected a file; make the tar again with --dereference")
            elif found is None:
                yield Defect(f"{path}, {member.name}: found a name without a suffix, expected KEY.png, KEY.txt, ...; take it out")
            else:
                twice = member.name if suffix in parts else twice
                parts[suffix] = tar.extractfile(member).read()
        yield from finished()


def _passed_over(member: tarfile.TarInfo) -> bool:
    """Folders, hidden files and those of macOS, and WebDataset's own `__name__`."""
    *folders, name = member.name.split("/")
    return member.isdir() or name.startswith(".") or "__MACOSX" in folders or bool(re.match(r"__[^/]*__($|/)", member.name))


def _key(name: str) -> tuple[str | None, str]:
    match = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", name)
    return (match[1], match[2].lower()) if match else (None, "")


def _image(sample: dict[str, bytes], where: str) -> bytes:
    images = [suffix[1:] for suffix in SUFFIXES if suffix[1:] in sample]
    if len(images) > 1:
        raise UserError(f"{where}: found two images ({', '.join(images)}), expected one; take the others out")
    if not images:
        found = ", ".join(sample)
        if any(suffix.endswith(SUFFIXES) for suffix in sample):
            mend = "a sample's key ends at the first dot of its name; make the tar again with names that have no other dot"
            raise UserError(f"{where}: no image; found {found}; {mend}")
        raise UserError(f"{where}: no image; found {found}; expected one of {', '.join(SUFFIXES)}")
    return sample[images[0]]


PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd", b"PK": "zip"}


def _check_tar(path: Path) -> set[str]:
    """The keys whose members stand apart. Raises `UserError` where the tar is cut or damaged.

    Needed because tarfile takes a damaged header, or a cut between members, for the end.
    """
    closed: set[str] = set()
    apart: set[str] = set()
    last = None
    try:
        with path.open("rb") as file:
            kind = PACKED.get(file.read(2))
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []
                if not _passed_over(member) and (key := _key(member.name)[0]) != last:
                    closed.add(last or "")
                    last = key
                    if key in closed:
                        apart.add(key)
            end = tar.offset
    except (tarfile.TarError, EOFError, OSError) as error:
        if kind:
            raise UserError(f"{path}: found a {kind} file, expected a tar that is not compressed; unpack it first") from None
        raise UserError(f"{path}: truncated or corrupt tar ({_first_line(error)}); make or download it again") from None
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read()
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise UserError(f"{path}: truncated or corrupt tar (no end mark after byte {end}); make or download it again")
    return apart


def _first_line(error: Exception) -> str:
    return str(error.args[0] if error.args else error).splitlines()[0] if str(error) else type(error).__name__


# ------------------------------------------------------------------------------ tars with a list beside


def _listed_records(source: Source) -> Iterator[Record | UserError]:
    """A row without an image is a defect only where the whole folder is read."""
    listing, *tars = source.files
    rows = _listed_rows(listing)
    missing = set(rows)
    for path in tars:
        for sample in _tar_samples(path):
            if isinstance(sample, UserError):
                yield sample
                continue
            key = PurePosixPath(sample[0]).as_posix()  # "./image/1" is image/1
            where = f"{path}, sample {key}"
            if key not in rows:
                yield Defect(
                    f"{where}: found an image that {LISTING} does not name, expected a row for each; add it, or set data.on_error: skip"
                )
                continue
            missing.discard(key)
            caption, meta = rows[key]
            yield _tried(
                lambda key=key, parts=sample[1], where=where, caption=caption, meta=meta: Record(
                    key, _image(parts, where), caption, meta, where
                ),
                where,
            )
    for key in sorted(missing) if source.whole else ():
        yield Defect(f"{listing}, {key}: found a row without an image, expected one; download the tars again, or set data.on_error: skip")


def _listed_rows(path: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Caption and other fields of every row, by the image's name without its suffix."""
    data = path.read_bytes().removeprefix(BOM)
    try:
        listed = parse_json(data, str(path))
    except UserError as error:
        lines = data.strip().splitlines()
        hint = (
            "it looks like JSON lines, expected one list [...]"
            if len(lines) > 1 and lines[0].strip().endswith(b"}")
            else "download it again"
        )
        raise UserError(f"{error}; {hint}") from None
    if not isinstance(listed, list):
        raise UserError(f"{path}: found a JSON {type(listed).__name__}, expected a list of {{input_prompt, output_image}}")
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    for number, row in enumerate(listed):
        where = f"{path}, row {number}"
        if not isinstance(row, dict) or not {"input_prompt", "output_image"} <= row.keys():
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"{where}: found {found or 'no keys'}; expected input_prompt and output_image")
        key = PurePosixPath(str(row.pop("output_image"))).with_suffix("").as_posix()
        if key in rows:
            raise UserError(f"{where}: output_image {key} has a row already; expected one caption an image")
        rows[key] = _caption(row.pop("input_prompt"), where), row
    return rows


# -------------------------------------------------------------------------------- images in folders


def _folder_records(source: Source) -> Iterator[Record | UserError]:
    beside = {(p.with_suffix(""), p.suffix.lower()): p for p in source.beside}
    seen: dict[Path, Path] = {}

    def read(path: Path) -> Record:
        stem = path.with_suffix("")
        if (first := seen.setdefault(stem, path)) != path:
            raise UserError(f"{path}: found two images of one name, {first.name} is the other, expected one; rename one with its caption")
        text, extra = (beside.get((stem, suffix)) for suffix in (".txt", ".json"))
        meta = _object(extra.read_bytes(), str(extra)) if extra else {}
        caption = text.read_bytes() if text else _said(meta)
        if caption is None:
            raise UserError(f"{path}: caption missing; expected {stem.name}.txt beside it, or one metadata.jsonl for the folder")
        return Record(stem.relative_to(source.root).as_posix(), path.read_bytes(), _caption(caption, str(text or extra)), meta, str(path))

    for path in source.files:
        yield _tried(lambda path=path: read(path), str(path))


def _jsonl_records(source: Source) -> Iterator[Record | UserError]:
    """All lines are checked before the first image is read."""
    rows: list[tuple[Path, Path, str, dict[str, Any], str]] = []
    named: set[Path] = set()
    allowed = homes(source.root)
    for listing in source.files:
        try:
            lines = json_lines(listing)
        except UserError as error:
            yield error
            continue
        for where, line in lines:
            try:
                rows.append(_listed_image(listing, line, where, allowed))
            except UserError as error:
                yield Defect(str(error))
            except OSError as error:  # a name that is too long
                yield Defect(f"{where}: file_name: {error.strerror}; expected the name of a file beside {listing.name}")
            else:
                named.add(rows[-1][0])
    yield from (_unread(path, "jsonl") for path in source.beside if path not in named)
    for image, place, caption, meta, where in rows:
        key = place.relative_to(source.root).with_suffix("").as_posix()
        yield _tried(
            lambda image=image, place=place, caption=caption, meta=meta, where=where, key=key: Record(
                key, image.read_bytes(), caption, meta, str(place)
            ),
            where,
        )


def _listed_image(listing: Path, line: bytes, where: str, allowed: tuple[Path, ...]) -> tuple[Path, Path, str, dict[str, Any], str]:
    """(image, the same as it is named, caption, the row's other fields, where) of one line of a metadata.jsonl."""
    row = _object(line, where)
    name = row.pop("file_name", None)
    if not isinstance(name, str):
        raise UserError(f"{where}: key file_name missing; found {', '.join(row) or 'no keys'}")
    if bad := text_defect(name):
        raise UserError(f"{where}: file_name: found {bad} in {name!r}, expected the name of a file beside {listing.name}")
    column = next((c for c in CAPTION_COLUMNS if c in row), None)
    if column is None:
        raise UserError(
            f"{where}: caption missing; found {', '.join(row) or 'no other keys'}; expected one of {', '.join(CAPTION_COLUMNS)}"
        )
    image = Path(os.path.normpath(listing.parent / name))
    target = Path(os.path.realpath(image))
    if not image.is_relative_to(os.path.normpath(listing.parent)) or not any(target.is_relative_to(home) for home in allowed):
        raise UserError(f"{where}: file_name {name!r} leads out of the folder")
    if not image.is_file():
        near = sorted(p.name for p in image.parent.glob("*") if p.stem == image.stem and p.suffix.lower() in SUFFIXES)
        raise UserError(
            f"{where}: image {name!r} not found beside {listing.name}" + (f"; found {near[0]}, correct the line" if near else "")
        )
    return image, listing.parent / name, _caption(row.pop(column), where), row, where


# ---------------------------------------------------------------------------------------- parquet


def _parquet_records(source: Source) -> Iterator[Record | UserError]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in source.files:
        try:
            with pq.ParquetFile(path) as table:
                image = _column(path, table.schema_arrow.names, IMAGE_COLUMNS, "image")
                caption = _column(path, table.schema_arrow.names, CAPTION_COLUMNS, "caption")
                number = 0
                for batch in table.iter_batches(batch_size=256):
                    for row in batch.to_pylist():
                        where = f"{path}, row {number}"
                        name = f"{path.stem}-{number:08d}"
                        yield _tried(partial(_of_row, row, image, caption, name, where), where)
                        number += 1
        except UserError as error:
            yield error
        except UnicodeDecodeError as error:
            yield UserError(f"{path}: found text that is not UTF-8 ({error.reason}), expected UTF-8; make it again")
        except (pa.ArrowException, OSError) as error:
            yield UserError(f"{path}: truncated or corrupt parquet ({_first_line(error)}); make or download it again")


def _of_row(row: dict[str, Any], image: str, caption: str, name: str, where: str) -> Record:
    data = row.pop(image)
    data = data.get("bytes") if isinstance(data, dict) else data
    if not isinstance(data, bytes):
        raise UserError(f"{where}: column {image} holds no image bytes; expected bytes or {{bytes, path}} with the image inside")
    return Record(str(row.pop("key", name)), data, _caption(row.pop(caption), where), row, where)


def _column(path: Path, found: list[str], wanted: tuple[str, ...], what: str) -> str:
    name = next((c for c in wanted if c in found), None)
    if name is None:
        raise UserError(f"{path}: {what} column missing; found {', '.join(found) or 'none'}; expected one of {', '.join(wanted)}")
    return name
