"""Fixtures for the data tests: a few world scenes in memory, and the same samples written in every format that is read."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from apex.data.shards import Sample, encode_png, world_sample, write_shards
from apex.data.world import PromptSampler

RESOLUTION = 16


@pytest.fixture(scope="session")
def sampler() -> PromptSampler:
    return PromptSampler()


@pytest.fixture(scope="session")
def scenes(sampler: PromptSampler) -> list[Sample]:
    return [world_sample(i, seed=7, resolution=RESOLUTION, sampler=sampler) for i in range(10)]


def as_tars(samples: list[Sample], out: Path) -> Path:
    write_shards(samples, out, {"source": "test"}, shard_size=4)
    return out


def as_tars_without_index(samples: list[Sample], out: Path) -> Path:
    (as_tars(samples, out) / "index.json").unlink()
    return out


def as_text_folder(samples: list[Sample], out: Path) -> Path:
    out.mkdir()
    for s in samples:
        (out / f"{s.key}.png").write_bytes(encode_png(s.image))
        (out / f"{s.key}.txt").write_text(s.caption + "\n")
        (out / f"{s.key}.json").write_text(json.dumps(s.meta))
    return out


def as_metadata_folder(samples: list[Sample], out: Path) -> Path:
    out.mkdir()
    for s in samples:
        (out / f"{s.key}.png").write_bytes(encode_png(s.image))
    rows = [{"file_name": f"{s.key}.png", "text": s.caption, **s.meta} for s in samples]
    (out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def _parquet(rows: list[dict], out: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir()
    half = len(rows) // 2
    for name, part in (("a.parquet", rows[:half]), ("b.parquet", rows[half:])):
        pq.write_table(pa.Table.from_pylist(part), out / name)
    return out


def as_parquet(samples: list[Sample], out: Path) -> Path:
    return _parquet([{"key": s.key, "image": encode_png(s.image), "caption": s.caption, "index": s.meta["index"]} for s in samples], out)


def as_hugging_face_parquet(samples: list[Sample], out: Path) -> Path:
    rows = [
        {"image": {"bytes": encode_png(s.image), "path": f"{s.key}.png"}, "text": s.caption, "key": s.key, "index": s.meta["index"]}
        for s in samples
    ]
    return _parquet(rows, out)


def as_listed(samples: list[Sample], out: Path) -> Path:
    """As ShareGPT-4o-Image is published: images in tars, captions in a list beside them, and another task's files."""
    out.mkdir()
    for name, part in (
        ("text_to_image_part_0", samples[:6]),
        ("text_to_image_part_1", samples[6:]),
        ("text_and_image_to_image_part_0", samples),
    ):
        images = out / "image"
        images.mkdir()
        for s in part:
            (images / f"{s.key}.png").write_bytes(encode_png(s.image))
        with tarfile.open(out / f"{name}.tar", "w") as tar:
            tar.add(images, "image")
        shutil.rmtree(images)
    rows = [{"input_prompt": s.caption, "output_image": f"image/{s.key}.png", "index": s.meta["index"]} for s in samples]
    (out / "text_to_image.json").write_text(json.dumps(rows))
    (out / "text_and_image_to_image.json").write_text("[]")
    return out


FORMATS: dict[str, Callable[[list[Sample], Path], Path]] = {
    "tars": as_tars,
    "tars_without_index": as_tars_without_index,
    "text_folder": as_text_folder,
    "metadata_folder": as_metadata_folder,
    "parquet": as_parquet,
    "hugging_face_parquet": as_hugging_face_parquet,
    "listed": as_listed,
}


@pytest.fixture
def written(scenes: list[Sample], tmp_path: Path) -> Callable[[str], Path]:
    """written("parquet") gives the folder of the fixture's scenes in that format, anew for each test."""
    return lambda name: FORMATS[name](scenes, tmp_path / name)
