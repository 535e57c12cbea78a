"""The one data path: scenes written as WebDataset shards, and image-caption data read from any of the formats that are known.

    python -m apex.data.shards world --out DIR --scenes 60000 --resolution 32 --seed 0     render the embedded world
    python -m apex.data.shards check DIR                                                   read everything, list all defects

Shards hold, per scene, `png`, `txt` (the caption) and `json` (the prompt row and the drawn objects:
the exact truth). The same arguments give the same bytes; scene i depends on (seed, i) alone. The
readers (WebDataset, image folder, parquet, ShareGPT-4o-Image as published) are in `apex.data.readers`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from apex.command import COUNT, RESOLUTION, SEED, Parser
from apex.data import pictures
from apex.data.pictures import encode_png as encode_png  # others find it here
from apex.data.readers import INDEX, Defect, Record, Skipped, Source, detect, readings, records
from apex.data.world import Item, PromptSampler, Scene, render, scene_for, shapes_alone
from apex.errors import UserError, run_command
from apex.files import atomic_folder
from apex.kinds import SHARDS
from apex.provenance import file_sha256

if TYPE_CHECKING:
    import torch

SHARD_SIZE = 10_000  # samples
T = TypeVar("T")


class Sample(NamedTuple):
    """One sample: uint8 RGB image (H, W, 3), its caption, and whatever else the data says of it."""

    key: str
    image: np.ndarray
    caption: str
    meta: dict[str, Any]


def progress(items: Iterable[T], total: int | None, label: str, every: float = 5.0) -> Iterator[T]:
    """Passes `items` on; prints a line with the time left every `every` seconds."""
    started = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= every:
            last = now
            if total:
                print(f"{label}: {done}/{total}, {(now - started) / done * (total - done):.0f} s left", flush=True)
            else:
                print(f"{label}: {done}, {done / (now - started):.0f} a second", flush=True)


# ---------------------------------------------------------------------------------------- writing


def world_sample(index: int, *, seed: int, resolution: int, sampler: PromptSampler, captions: str = "full") -> Sample:
    """Training scene number `index` of the world with this seed, at any resolution and with any captions the same scene."""
    rng = np.random.default_rng([seed, index])
    prompt = sampler(rng)
    scene = scene_for(prompt, rng)
    meta = {"index": index, "seed": seed, "prompt": prompt, "scene": dataclasses.asdict(scene)}
    caption = prompt["prompt"] if captions == "full" else shapes_alone(prompt)
    return Sample(f"{index:08d}", render(scene, resolution), caption, meta)


def scene_from(meta: dict[str, Any]) -> Scene:
    """The scene that a world sample's `meta` describes; `render` of it gives the sample's image again."""
    scene = meta["scene"]
    items = tuple(Item(**(item | {"rgb": tuple(item["rgb"])})) for item in scene["items"])
    return Scene(items, scene["background"], tuple(scene["grey"]), scene["angle"], scene["edge"])


def write_tar(samples: Iterable[Sample], path: Path) -> int:
    """Writes one shard; returns the number of samples. Bytes depend on the samples alone: no times, no user names."""
    from webdataset import TarWriter

    count = 0
    with path.open("wb") as file, TarWriter(file, user="", group="", mtime=0, compress=False, encoder=False) as writer:
        for sample in samples:
            parts = {"png": encode_png(sample.image), "txt": sample.caption.encode(), "json": json.dumps(sample.meta).encode()}
            writer.write({"__key__": sample.key, **parts})
            count += 1
    return count


def index_of(shards: list[dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """What index.json says of shards (file, count, sha256)."""
    return {"schema": 1, **about, "samples": sum(s["count"] for s in shards), "shards": shards}


def write_shards(samples: Iterable[Sample], out: Path, about: dict[str, Any], shard_size: int = SHARD_SIZE) -> dict[str, Any]:
    """Writes `samples` as `shard-NNNNNN.tar` and `index.json` (`about` and the shards' counts and SHA-256); returns the index.

    The folder appears when it is complete.
    """
    shards: list[dict[str, Any]] = []
    iterator = iter(samples)
    sample = next(iterator, None)
    with atomic_folder(out, SHARDS) as folder:
        while sample is not None:
            path = folder / f"shard-{len(shards):06d}.tar"
            count = write_tar(itertools.islice(itertools.chain([sample], iterator), shard_size), path)
            shards.append({"file": path.name, "count": count, "sha256": file_sha256(path)})
            sample = next(iterator, None)
        index = index_of(shards, about)
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return index


def write_world(
    out: Path, *, scenes: int, resolution: int, seed: int, captions: str = "full", shard_size: int = SHARD_SIZE
) -> dict[str, Any]:
    """Renders training scenes 0..scenes-1 into shards; returns the index."""
    for name, value, least in (("scenes", scenes, 1), ("resolution", resolution, 16), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"--{name} {value}: expected {least} or more")
    sampler = PromptSampler()
    samples = (world_sample(i, seed=seed, resolution=resolution, sampler=sampler, captions=captions) for i in range(scenes))
    about = {"source": "world", "resolution": resolution, "seed": seed, "scenes": scenes, "captions": captions}
    return write_shards(progress(samples, scenes, "scenes"), out, about, shard_size)


# ---------------------------------------------------------------------------------------- reading


def decode_image(data: bytes, where: str, resolution: int | None = None) -> np.ndarray:
    """uint8 RGB (H, W, 3) of `pictures.read`; with `resolution`, the shorter side is resized to it and the centre square cut out."""
    pixels = pictures.read(data, where).pixels
    height, width = pixels.shape[:2]
    if resolution is None or (width, height) == (resolution, resolution):
        return pixels
    image = Image.fromarray(pixels)
    scale = resolution / min(image.size)
    width, height = (max(resolution, round(side * scale)) for side in image.size)
    pictures.check_scaled((width, height), where)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    return np.asarray(image.crop((left, top, left + resolution, top + resolution)))


def open_samples(path: Path, resolution: int | None = None, skipped: Skipped | None = None) -> Iterator[Sample]:
    """Every sample of a data set of any known kind, in a fixed order.

    Without `resolution` all images must be of one size. Raises `UserError` naming the file and the
    sample: for a path that is missing or empty at once, for a defect inside when it is reached.
    With `skipped`, defects of single samples and files are counted there instead.
    """
    return decoded(records(detect(Path(path)), skipped), resolution, skipped)


def decoded(raw: Iterable[Record], resolution: int | None, skipped: Skipped | None = None) -> Iterator[Sample]:
    """The records with their images decoded, see `open_samples`."""
    size: list[tuple[int, ...]] = []
    for record in raw:
        try:
            yield decode(record, resolution, size)
        except Defect as error:
            if skipped is None:
                raise
            skipped(error)


def decode(record: Record, resolution: int | None, size: list[tuple[int, ...]]) -> Sample:
    """One record with its image decoded. `size` gets the first image's shape. Raises `Defect` for a bad image or one of another size."""
    try:
        image = decode_image(record.image, record.where, resolution)
    except UserError as error:
        raise Defect(str(error)) from None
    if not size:
        size.append(image.shape)
    if image.shape != size[0]:
        found, expected = (f"{s[1]}x{s[0]}" for s in (image.shape, size[0]))
        raise Defect(f"{record.where}: image is {found}, the first one {expected}; give a resolution to resize and crop to")
    return Sample(record.key, image, record.caption, record.meta)


def load_images(path: Path, limit: int | None = None, resolution: int | None = None) -> torch.Tensor:
    """The first `limit` images as one uint8 tensor (N, 3, H, W)."""
    import torch

    images = [s.image.transpose(2, 0, 1) for s in itertools.islice(open_samples(path, resolution), limit)]
    return torch.from_numpy(np.stack(images))


def load_captions(path: Path, limit: int | None = None) -> list[str]:
    """The first `limit` captions; no image is decoded."""
    return [r.caption for r in itertools.islice(records(detect(Path(path))), limit)]


def checksum(source: Source) -> str:
    """SHA-256 over the names and contents of everything that `records` reads."""
    files = set(source.files)
    if source.kind == "folder":
        stems = {f.with_suffix("") for f in source.files}
        files |= {p for p in source.beside if p.with_suffix("") in stems}
    elif source.kind == "jsonl":
        files |= {p for f in source.files for p in f.parent.rglob("*") if p.is_file()}
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(f"{path.relative_to(source.root).as_posix()} {file_sha256(path)}\n".encode())
    return total.hexdigest()


def check(path: Path, resolution: int | None = None) -> int:
    """Reads everything, prints a line for every defect, and returns the number of good samples. Raises `UserError` if there is any."""
    if resolution is not None and resolution < 1:
        raise UserError(f"--resolution: found {resolution}, expected 1 or more pixels")
    good = bad = 0
    size: list[tuple[int, ...]] = []
    for reading in progress(readings(detect(path)), None, "samples"):
        try:
            if isinstance(reading, UserError):
                raise reading
            decode(reading, resolution, size)
            good += 1
        except UserError as error:
            bad += 1
            print(error, flush=True)
    if bad:
        raise UserError(f"{path}: found {bad} defect{'s' * (bad > 1)} beside {good} good samples, expected none; they are listed above")
    return good


def main() -> None:
    parser = Parser("apex.data.shards", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    world = commands.add_parser("world", help="render scenes of the embedded world")
    world.add_argument("--out", required=True, type=Path)
    world.add_argument("--scenes", type=COUNT, default=60_000)
    world.add_argument("--resolution", type=RESOLUTION, default=32)
    world.add_argument("--seed", type=SEED, default=0)
    world.add_argument("--captions", choices=["full", "shapes"], default="full", help="what captions say: all, or the shapes alone")
    reading = commands.add_parser("check", help="read every sample of a data set")
    source = reading.add_mutually_exclusive_group(required=True)
    source.add_argument("source", nargs="?", type=Path, help="a folder, a .tar or a .parquet file")
    source.add_argument("--data", type=Path, help="the same")
    reading.add_argument("--resolution", type=RESOLUTION)
    args = parser.parse_args()
    if args.command == "world":
        index = write_world(args.out, scenes=args.scenes, resolution=args.resolution, seed=args.seed, captions=args.captions)
        print(f"{args.out}: {index['samples']} scenes in {len(index['shards'])} shards")
    else:
        data = args.source or args.data
        print(f"{data}: {check(data, args.resolution)} samples, no defect")


if __name__ == "__main__":
    sys.exit(run_command(main))
