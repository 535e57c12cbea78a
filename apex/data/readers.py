"""Raw samples out of the formats that training data comes in; used through `apex.data.shards`.

- WebDataset: `*.tar`, one image (png, jpg, jpeg, webp), one `txt` and perhaps one `json` a sample;
  an `index.json` beside them, where there is one, gives each shard's SHA-256, which is checked.
- Image folder: images with same-named `.txt` captions (and perhaps `.json`), or with a
  `metadata.jsonl` (Hugging Face's imagefolder convention: `file_name`, `text` or `caption`).
- Parquet: an image column (bytes, or Hugging Face's struct {bytes, path}) and a caption column.
- ShareGPT-4o-Image as it is published: tars of images alone, `text_to_image_part_*.tar`, and their captions in one list beside
  them, `text_to_image.json`, of {input_prompt, output_image}.

Samples come in a fixed order: files by name, rows as they stand. Every defect is a `UserError`.
"""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from apex.errors import UserError, check_format
from apex.provenance import file_sha256

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
IMAGE_COLUMNS = ("image", "jpg", "png")
CAPTION_COLUMNS = ("caption", "text", "prompt")
INDEX = "index.json"
LISTING, LISTED_TARS = "text_to_image.json", "text_to_image_part_*.tar"


class Record(NamedTuple):
    """One sample before its image is decoded; `where` names it in error messages."""

    key: str
    image: bytes
    caption: str
    meta: dict[str, Any]
    where: str


class Source(NamedTuple):
    """A data set on disk: its root, its kind (tar, parquet, jsonl, listed or folder) and the files to read, sorted.

    `whole` is false when a single file was named: then its neighbours are not looked at.
    """

    root: Path
    kind: str
    files: tuple[Path, ...]
    whole: bool = True


def detect(path: Path) -> Source:
    """What `path` holds. Raises `UserError` when it is missing, empty, or holds two kinds at once."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected WebDataset tars, parquet files or a folder of images")
    if path.is_file():
        kind = {".tar": "tar", ".parquet": "parquet"}.get(path.suffix)
        if kind is None:
            raise UserError(f"{path}: not a data set; expected a .tar or .parquet file, or a folder")
        if (listing := path.parent / LISTING).is_file() and path.match(LISTED_TARS):
            return Source(path.parent, "listed", (listing, path), whole=False)
        return Source(path.parent, kind, (path,), whole=False)
    if (path / LISTING).is_file():  # the published folder has further tars, of another task
        tars = sorted(path.glob(LISTED_TARS))
        if not tars:
            raise UserError(f"{path}: {LISTING} without its images; expected {LISTED_TARS} beside it")
        return Source(path, "listed", (path / LISTING, *tars))
    found = sorted(p for p in path.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts))
    tars = tuple(p for p in found if p.suffix == ".tar")
    tables = tuple(p for p in found if p.suffix == ".parquet")
    if tars and tables:
        raise UserError(f"{path}: holds both .tar and .parquet files; name one kind, or one file")
    if tars or (path / INDEX).is_file():
        return Source(path, "tar", tars)
    if tables:
        return Source(path, "parquet", tables)
    lists = tuple(p for p in found if p.name == "metadata.jsonl")
    if lists:
        return Source(path, "jsonl", lists)
    images = tuple(p for p in found if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise UserError(f"{path}: empty; expected .tar or .parquet files, or images ({', '.join(IMAGE_SUFFIXES)})")
    return Source(path, "folder", images)


def records(source: Source) -> Iterator[Record]:
    """Every sample of `source`. Raises `UserError` at the first defect, and when there is no sample at all."""
    read = {
        "tar": _tar_records,
        "parquet": _parquet_records,
        "jsonl": _jsonl_records,
        "listed": _listed_records,
        "folder": _folder_records,
    }[source.kind]
    empty = True
    for record in read(source):
        empty = False
        yield record
    if empty:
        raise UserError(f"{source.root}: no samples in {len(source.files)} {source.kind} file(s); expected at least one")


def _caption(text: Any, where: str) -> str:
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: caption is not UTF-8 ({error.reason} at byte {error.start})") from None
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where}: caption missing or empty; every image needs one")
    return text.strip()


def _object(text: bytes | str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: found a JSON {type(value).__name__}, expected an object {{...}}")
    return value


# ------------------------------------------------------------------------------------- WebDataset


def read_index(root: Path) -> dict[str, Any] | None:
    """The `index.json` of a shard folder, or None where there is none."""
    path = root / INDEX
    if not path.is_file():
        return None
    index = _object(path.read_bytes(), str(path))
    check_format(index.get("schema", 1), {1}, f"{path}: schema", "make the shards again, or remove this file to read unchecked")
    shards = index.get("shards")
    if not isinstance(shards, list) or not all(isinstance(s, dict) and {"file", "count", "sha256"} <= s.keys() for s in shards):
        raise UserError(
            f"{path}: expected a list `shards` of {{file, count, sha256}}; make the shards again, or remove this file to read unchecked"
        )
    return index


def _tar_records(source: Source) -> Iterator[Record]:
    index = read_index(source.root)
    known = None if index is None else {s["file"]: s for s in index["shards"]}
    if known is not None and source.whole:
        present = {p.relative_to(source.root).as_posix() for p in source.files}
        for name in sorted(known.keys() ^ present):
            what = "listed but not there" if name in known else "there but not listed"
            raise UserError(f"{source.root / INDEX}: shard {name} is {what}; make or copy the shards again")
    for path in source.files:
        listed = None if known is None else known.get(path.relative_to(source.root).as_posix())
        if listed is not None and (found := file_sha256(path)) != listed["sha256"]:
            wanted = str(listed["sha256"])[:12]
            raise UserError(f"{path}: SHA-256 {found[:12]}, but {INDEX} says {wanted}: changed or truncated; make or copy it again")
        for sample in _tar_samples(path, whole=listed is not None):
            where = f"{path}, sample {sample['__key__']}"
            image = _image(sample, where)
            meta = _object(sample["json"], f"{where}, json") if "json" in sample else {}
            yield Record(sample["__key__"], image, _caption(sample.get("txt"), where), meta, where)


def _tar_samples(path: Path, whole: bool = False) -> Iterator[dict[str, Any]]:
    """The samples of one tar as webdataset groups them; without `whole`, that nothing is cut off is checked first."""
    from webdataset.tariterators import tarfile_samples

    if not whole:
        _check_tar(path)
    try:
        # An absolute path, so that no file name can be taken for one of webdataset's URL schemes.
        yield from tarfile_samples([{"url": str(path.resolve())}])
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise UserError(f"{path}: corrupt tar ({_first_line(error)}); make or download it again") from None


def _image(sample: dict[str, Any], where: str) -> bytes:
    image = next((sample[s[1:]] for s in IMAGE_SUFFIXES if s[1:] in sample), None)
    if image is None:
        found = ", ".join(k for k in sample if not k.startswith("__"))
        raise UserError(f"{where}: no image; found {found}; expected one of {', '.join(IMAGE_SUFFIXES)}")
    return image


def _check_tar(path: Path) -> None:
    """Walks the headers. Needed because tarfile takes a damaged header, or a cut between members, for the end."""
    try:
        with tarfile.open(path, "r:") as tar:
            for _ in tar:
                pass
            end = tar.offset
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path}: truncated or corrupt tar ({_first_line(error)}); make or download it again") from None
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read()
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise UserError(f"{path}: truncated or corrupt tar (no end mark after byte {end}); make or download it again")


def _first_line(error: Exception) -> str:
    return str(error.args[0] if error.args else error).splitlines()[0] if str(error) else type(error).__name__


# ------------------------------------------------------------------------------ tars with a list beside


def _listed_records(source: Source) -> Iterator[Record]:
    """Images that the list does not name are left out, and how many of them, and of the list's rows, went without the other is said."""
    listing, *tars = source.files
    rows = _listed_rows(listing)
    unnamed, missing = 0, set(rows)
    for path in tars:
        for sample in _tar_samples(path):
            key = PurePosixPath(sample["__key__"]).as_posix()  # "./image/1" is image/1
            if key not in rows:
                unnamed += 1
                continue
            where = f"{path}, sample {key}"
            missing.discard(key)
            caption, meta = rows[key]
            yield Record(key, _image(sample, where), caption, meta, where)
    if unnamed or missing:
        print(
            f"{source.root}: left out: {unnamed} images without a row in {LISTING}, {len(missing)} rows without an image", file=sys.stderr
        )


def _listed_rows(path: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Caption and other fields of every row, by the image's name without its suffix."""
    try:
        listed = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); download it again") from None
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


def _folder_records(source: Source) -> Iterator[Record]:
    for path in source.files:
        text, extra = path.with_suffix(".txt"), path.with_suffix(".json")
        if not text.is_file():
            raise UserError(f"{path}: caption missing; expected {text.name} beside it, or one metadata.jsonl for the folder")
        meta = _object(extra.read_bytes(), str(extra)) if extra.is_file() else {}
        key = path.relative_to(source.root).with_suffix("").as_posix()
        yield Record(key, path.read_bytes(), _caption(text.read_bytes(), str(text)), meta, str(path))


def _jsonl_records(source: Source) -> Iterator[Record]:
    for listing in source.files:
        folder = listing.parent.resolve()
        for number, line in enumerate(listing.read_bytes().splitlines(), 1):
            where = f"{listing}, line {number}"
            row = _object(line, where)
            name = row.pop("file_name", None)
            if not isinstance(name, str):
                raise UserError(f"{where}: key file_name missing; found {', '.join(row) or 'no keys'}")
            column = next((c for c in CAPTION_COLUMNS if c in row), None)
            if column is None:
                raise UserError(
                    f"{where}: caption missing; found {', '.join(row) or 'no other keys'}; expected one of {', '.join(CAPTION_COLUMNS)}"
                )
            image = folder / name
            if not image.resolve().is_relative_to(folder):
                raise UserError(f"{where}: file_name {name!r} leads out of the folder")
            if not image.is_file():
                raise UserError(f"{where}: image {name!r} not found beside {listing.name}")
            key = (listing.parent.relative_to(source.root) / name).with_suffix("").as_posix()
            yield Record(key, image.read_bytes(), _caption(row.pop(column), where), row, f"{listing.parent / name}")


# ---------------------------------------------------------------------------------------- parquet


def _parquet_records(source: Source) -> Iterator[Record]:
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
                        data = row.pop(image)
                        data = data.get("bytes") if isinstance(data, dict) else data
                        if not isinstance(data, bytes):
                            raise UserError(
                                f"{where}: column {image} holds no image bytes; expected bytes or {{bytes, path}} with the image inside"
                            )
                        key = str(row.pop("key", f"{path.stem}-{number:08d}"))
                        yield Record(key, data, _caption(row.pop(caption), where), row, where)
                        number += 1
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: truncated or corrupt parquet ({_first_line(error)}); make or download it again") from None


def _column(path: Path, found: list[str], wanted: tuple[str, ...], what: str) -> str:
    name = next((c for c in wanted if c in found), None)
    if name is None:
        raise UserError(f"{path}: {what} column missing; found {', '.join(found) or 'none'}; expected one of {', '.join(wanted)}")
    return name
