"""Writes the embeddings of captions, and reads them. `python -m apex.data.embeddings` makes those of a cache."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from apex.conditioning import Condition
from apex.config import fingerprint
from apex.data.parts import MADE, Parts
from apex.data.shards import progress
from apex.errors import UserError, check_format
from apex.files import read_object
from apex.kinds import EMBEDDINGS
from apex.pipeline import DTYPES
from apex.provenance import digest, file_sha256
from apex.text import TextPath, pipeline_class

SCHEMA = 1  # of made.json
PART = 1024  # captions of a file
AGAIN = "make them again with python -m apex.data.embeddings"


def identity(pipeline: Path, captions: list[str], dtype: str) -> dict[str, Any]:
    """All that decides the embeddings' values. Of large files of weights size, begin and end count, as for a run's teacher."""
    return {
        "pipeline_class": pipeline_class(pipeline),
        "text_encoder": fingerprint(pipeline / "text_encoder"),
        "tokenizer": fingerprint(pipeline / "tokenizer"),
        "captions": digest(captions),
        "dtype": dtype,
    }


def build(pipeline: Path, captions: list[str], out: Path, *, dtype: str = "fp32", batch: int = 1, device: str = "cpu") -> dict[str, Any]:
    """Encodes `captions` and the empty one into `out`; returns what made.json holds.

    Args:
        dtype: fp32 or bf16, of the encoder's weights and of what is written. batch: captions encoded at once.
    """
    about = {"schema": SCHEMA} | identity(pipeline, captions, dtype)
    parts, texts = Parts(out, about | {"part": PART, "batch": batch}, EMBEDDINGS), [*captions, ""]
    names = {f"captions-{k:05d}.safetensors": texts[start : start + PART] for k, start in enumerate(range(0, len(texts), PART))}
    missing = {name: held for name, held in names.items() if parts.done(name) is None}
    if missing:
        text = TextPath(pipeline, device, DTYPES[dtype])
        found = (encoded(text, held, batch) for held in missing.values())
        stream = progress(itertools.chain.from_iterable(found), sum(map(len, missing.values())), "captions encoded")
        for name, held in missing.items():
            parts.add(name, partial(_write, stream, len(held)))
    files = [parts.done(name) for name in names]
    made = about | {"batch": batch, "count": len(captions), "tokens": sum(f["tokens"] for f in files), "width": files[0]["width"]}
    made |= {"files": files}
    parts.finish({MADE: json.dumps(made, indent=1) + "\n"})
    return made


def encoded(text: TextPath, captions: list[str], batch: int) -> Iterator[Tensor]:
    """Each caption's embeds (L, D) on the CPU, L its own length. Raises `UserError` where one is not finite."""
    for start in range(0, len(captions), batch):
        cond = text.encode(captions[start : start + batch])
        for k, length in enumerate((cond.mask > 0).sum(1).tolist()):
            found = cond.embeds[k, :length].cpu()
            if not found.isfinite().all():
                raise UserError(
                    f"caption {captions[start + k]!r}: its embedding is not finite; check the text encoder, or take --dtype fp32"
                )
            yield found


def _write(stream: Iterator[Tensor], count: int, path: Path) -> dict[str, Any]:
    found = list(itertools.islice(stream, count))
    embeds, lengths = torch.cat(found), torch.tensor([len(one) for one in found], dtype=torch.int32)
    save_file({"embeds": embeds, "lengths": lengths}, path)
    return {"captions": len(found), "tokens": len(embeds), "width": embeds.shape[1]}


class CaptionShards:
    """Conditions of captions read from disk when they are asked for, from memory-mapped files; the empty caption is last.

    A batch is padded with zeros to its own longest. Every file is checked first.

    Raises:
        UserError: a file is missing, changed or truncated, or the embeddings are of another encoder, of other captions or in another dtype.
    """

    def __init__(
        self, folder: Path, pipeline: Path, captions: list[str], dtype: str, device: str | torch.device = "cpu", *, verify: bool = True
    ) -> None:
        """verify: whether to check the files' checksums; of several processes on a machine one is enough."""
        self.device, self.empty = device, len(captions)
        made = _made(folder)
        check_format(made.get("schema"), {SCHEMA}, f"{folder / MADE}: schema", AGAIN)
        for key, expected in identity(pipeline, captions, dtype).items():
            if made.get(key) != expected:
                raise UserError(f"{folder / MADE}: {key}: found {made.get(key)!r}, expected {expected!r} of this run; {AGAIN}")
        self.embeds, lengths = [], []
        files = made["files"]
        for about in progress(files, len(files), "files of embeddings checked") if verify else files:
            path = folder / str(about["file"])
            if not path.is_file():
                raise UserError(f"{path}: not found, but {MADE} lists it; {AGAIN}")
            if verify and (found := file_sha256(path)) != about["sha256"]:
                wanted = str(about["sha256"])[:12]
                raise UserError(f"{path}: SHA-256 {found[:12]}, but {MADE} says {wanted}: changed or truncated; {AGAIN}")
            try:
                file = safe_open(path, framework="pt")
                lengths.append(file.get_tensor("lengths").long())
                self.embeds.append(file.get_slice("embeds"))  # maps the file; rows are read when they are indexed
            except SafetensorError as error:
                raise UserError(f"{path}: found {error}, expected tensors `embeds` and `lengths`; {AGAIN}") from None
            if self.embeds[-1].get_shape() != [int(lengths[-1].sum()), made["width"]]:
                found = f"embeds {self.embeds[-1].get_shape()}, lengths that sum to {int(lengths[-1].sum())}"
                raise UserError(f"{path}: found {found}, expected as many rows, {made['width']} wide; {AGAIN}")
        self.lengths = torch.cat(lengths) if lengths else torch.zeros(0, dtype=torch.long)
        if len(self.lengths) != self.empty + 1:
            raise UserError(
                f"{folder / MADE}: files: found {len(self.lengths)} captions, expected {self.empty + 1}, one of them empty; {AGAIN}"
            )
        # Of every caption its file and its first row there.
        self.file = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor([len(one) for one in lengths]))
        self.start = torch.cat([one.cumsum(0) - one for one in lengths])
        self.width, self.dtype = made["width"], self.embeds[0][:1].dtype

    def __getitem__(self, index: Tensor) -> Condition:
        """The captions of these numbers: embeds (B, L, D), mask (B, L), on the device."""
        index = index.cpu()
        lengths = self.lengths[index]
        embeds = torch.zeros(len(index), int(lengths.max()), self.width, dtype=self.dtype)
        for row, (file, start, length) in enumerate(
            zip(self.file[index].tolist(), self.start[index].tolist(), lengths.tolist(), strict=True)
        ):
            embeds[row, :length] = self.embeds[file][start : start + length]
        mask = (torch.arange(embeds.shape[1]) < lengths[:, None]).to(self.dtype)
        return Condition(embeds, mask).to(self.device)

    def longest(self) -> Condition:
        """The caption of most tokens, a batch of one."""
        return self[self.lengths.argmax()[None]]

    def null(self, count: int) -> Condition:
        return self[torch.full((count,), self.empty)]


def _made(folder: Path) -> dict[str, Any]:
    path = folder / MADE
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a folder of embeddings; {AGAIN}")
    made = read_object(path, AGAIN)
    try:
        good = all({"file", "sha256"} <= one.keys() for one in made["files"]) and isinstance(made["width"], int)
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise UserError(f"{path}: found no list `files` of {{file, sha256}} with a `width`: it is damaged; {AGAIN}")
    return made
