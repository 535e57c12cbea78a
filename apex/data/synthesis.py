"""Draws a dataset by the teacher, in parts that a killed call keeps. `python -m apex.data.synthesise` is its command."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from apex import provenance
from apex.config import Config, FromTeacher, fingerprint, locate
from apex.data.parts import MADE, Parts
from apex.data.readers import INDEX
from apex.data.shards import Sample, index_of, progress, write_tar
from apex.errors import NotFinite, UserError
from apex.generator import Generator, load_generator
from apex.kinds import SYNTHESISED
from apex.provenance import file_sha256

SHARD = 500  # images of a shard: of a 20B teacher some hours, which is what a kill may lose


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file, one a line, in its order; of a .jsonl file each line's `prompt`. Empty lines are left out.

    Raises:
        UserError: no such file, no prompt in it, or a line that is none.
    """
    if not path.is_file():
        raise UserError(f"{path}: prompt file not found; expected a prompt a line, or a .jsonl file with `prompt` in every line")
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            text = line.decode()
            if path.suffix == ".jsonl" and text.strip():
                text = json.loads(text)["prompt"]
                if not text.strip():
                    raise ValueError("an empty prompt")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            kind = '{"prompt": "a text"}' if path.suffix == ".jsonl" else "a prompt in UTF-8"
            raise UserError(
                f"{path}, line {number}: found {line[:60]!r} ({type(error).__name__}), expected {kind}; mend the line"
            ) from None
        if text.strip():
            found.append(text.strip())
    if not found:
        raise UserError(f"{path}: found no prompts, expected one a line")
    return found


def build(config: Config, settings: FromTeacher, out: Path, *, seed: int, device: str = "cpu") -> dict[str, Any]:
    """Draws the images into `out`; returns what made.json holds."""
    file, pipeline = locate(settings.prompts), config.pipeline_path
    prompts = read_prompts(file)
    count, guidance = settings.count or len(prompts), config.guidance if settings.guidance is None else settings.guidance
    about = {
        "source": "teacher", "teacher": fingerprint(pipeline), "prompts_sha256": file_sha256(file), "count": count, "steps": settings.steps,
        "guidance": guidance, "seed": seed, "resolution": config.data.resolution, "precision": config.sampling.precision,
    }  # fmt: skip
    parts = Parts(out, about | {"shard": SHARD}, SYNTHESISED)
    generator = load_generator(config.model_copy(update={"guidance": guidance}), "teacher", pipeline, settings.steps, device)
    names = {f"shard-{k:06d}.tar": range(first, min(first + SHARD, count)) for k, first in enumerate(range(0, count, SHARD))}
    missing = {name: held for name, held in names.items() if parts.done(name) is None}
    drawn = (images(generator, prompts, held, seed, config.sampling.batch_size) for held in missing.values())
    stream = progress(itertools.chain.from_iterable(drawn), sum(map(len, missing.values())), "images")
    for name, held in missing.items():
        parts.add(name, partial(_write, stream, len(held)))
    records = [parts.done(name) for name in names]
    made = about | {
        "schema": 1, "pipeline": config.pipeline, "hub": config.hub, "prompts": settings.prompts,
        "forward_equivalents": count * generator.passes, "sigmas": generator.sigmas, "wall_seconds": sum(r["seconds"] for r in records),
        "git_commit": provenance.git_commit(), "hardware": provenance.hardware(device), "versions": provenance.versions(),
    }  # fmt: skip
    index = index_of([{key: record[key] for key in ("file", "count", "sha256")} for record in records], about)
    parts.finish({name: json.dumps(value, indent=1) + "\n" for name, value in ((INDEX, index), (MADE, made))})
    return made


def images(generator: Generator, prompts: list[str], indices: range, seed: int, batch: int) -> Iterator[Sample]:
    """The samples of these indices, `batch` drawn at once."""
    for first in range(0, len(indices), batch):
        places = [(i % len(prompts), i // len(prompts)) for i in indices[first : first + batch]]
        try:
            pictures = generator.pictures([prompts[prompt] for prompt, _ in places], seed, places)
        except NotFinite as error:
            raise NotFinite(f"teacher: {error}; check its weights, or set sampling.precision to fp32") from None
        for i, (prompt, image), picture in zip(indices[first:], places, pictures, strict=False):
            yield Sample(f"{i:08d}", picture, prompts[prompt], {"index": i, "seed": seed, "prompt": prompt, "image": image})


def _write(stream: Iterator[Sample], count: int, path: Path) -> dict[str, Any]:
    started = time.time()
    return {"count": write_tar(itertools.islice(stream, count), path), "seconds": round(time.time() - started, 2)}
