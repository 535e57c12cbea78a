"""Prompt sets as JSON lines, and GenEval's folder layout for the images made from them.

A line is an object with a `prompt`. GenEval's own are {"tag": task, "include": [{"class", "count"[, "color"]
[, "position": [relation, index]]}, ...], ["exclude": [{"class", "count"}, ...],] "prompt": text}, as in the official
`evaluation_metadata.jsonl` (Ghosh et al. 2023, arXiv 2310.11513). Other benchmarks have other keys: a `tag` is the part of the
set that a prompt belongs to, the rest is passed on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apex.data.readers import MOVE, json_lines, parse_json, text_defect
from apex.data.shards import encode_png
from apex.data.world import RELATIONS, TASKS
from apex.errors import UserError, refuse_special
from apex.files import write_atomic
from apex.provenance import file_sha256

COMMITTED = Path(__file__).parent / "prompts" / "world"


def load_prompts(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The rows of a prompt file, in its order.

    With `limit`, that many rows spread evenly over the tasks: the first ones of each. Raises `UserError`
    naming the file and the line at the first defect.
    """
    path = Path(path)
    refuse_special(path, MOVE)
    if not path.is_file():
        raise UserError(f"{path}: prompt file not found; expected JSON lines, each with a prompt")
    if limit is not None and limit < 1:
        raise UserError(f"{path}: limit of {limit} prompts; expected 1 or more")
    rows = []
    for where, line in json_lines(path):
        if line.strip():
            rows.append(_row(line, where))
    if not rows:
        raise UserError(f"{path}: empty; expected one JSON object a line")
    return rows if limit is None or limit >= len(rows) else _spread(rows, limit)


def prompts_sha256(path: Path) -> str:
    """SHA-256 of the prompt file: two results compare only when it is the same."""
    return file_sha256(Path(path))


def _spread(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """`limit` rows, taking one of each task in turn, returned in the file's order."""
    places: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row.get("tag", ""), []).append(i)
    turns = sorted((turn, i) for indices in places.values() for turn, i in enumerate(indices))
    return [rows[i] for i in sorted(i for _, i in turns[:limit])]


def _row(line: bytes, where: str) -> dict[str, Any]:
    return check_row(parse_json(line, where), where)


def check_row(row: Any, where: str) -> dict[str, Any]:
    """Returns `row` if it is a prompt, of GenEval's format where it has its keys; else raises `UserError` beginning with `where`."""

    def need(good: bool, expected: str) -> None:
        if not good:
            raise UserError(f"{where}: {expected}; found {_short(row)}")

    need(isinstance(row, dict), 'expected an object with a "prompt"')
    need("prompt" in row, "key prompt missing")
    need(isinstance(row["prompt"], str) and bool(row["prompt"].strip()), "prompt must be a text that is not empty")
    tag = row.get("tag", "")
    need(isinstance(tag, str), "tag must be a text")
    for key in ("prompt", "tag"):
        if bad := text_defect(row.get(key, "")):
            raise UserError(f"{where}: {key}: found {bad}, expected text in UTF-8; write it again")
    if "include" not in row and tag not in TASKS:
        return row
    for key in ("tag", "include"):
        need(key in row, f"key {key} missing")
    need(tag in TASKS, f"tag must be one of {', '.join(TASKS)}")
    need(isinstance(row["include"], list) and bool(row["include"]), "include must be a list that is not empty")
    need(isinstance(row.get("exclude", []), list), "exclude must be a list")
    for key in ("include", "exclude"):
        for place, entry in enumerate(row.get(key, [])):
            name = f"{key}[{place}]"
            need(isinstance(entry, dict) and isinstance(entry.get("class"), str), f"{name} needs a class name")
            count = entry.get("count")
            need(isinstance(count, int) and not isinstance(count, bool) and count >= 1, f"{name} needs a count of 1 or more")
            need(isinstance(entry.get("color", ""), str), f"{name}: color must be a text")
            if "position" in entry:
                position = entry["position"]
                need(isinstance(position, list) and len(position) == 2, f"{name}: position must be [relation, index]")
                need(position[0] in RELATIONS, f"{name}: relation must be one of {', '.join(RELATIONS)}")
                need(
                    position[1] in range(place) and not isinstance(position[1], bool),
                    f"{name}: position must point to an earlier include entry",
                )
    return row


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


# ---------------------------------------------------------------------------------- GenEval's layout


def prompt_folder(out: Path, index: int) -> Path:
    """Where the images of prompt number `index` lie: out/NNNNN."""
    return out / f"{index:05d}"


def write_layout(out: Path, index: int, row: dict[str, Any], images: Sequence[np.ndarray]) -> Path:
    """Writes one prompt's images, uint8 (H, W, 3) each: out/NNNNN/metadata.jsonl and samples/0000.png, ...; returns the folder.

    The metadata come last: a folder that has them has all its images.
    """
    folder = prompt_folder(out, index)
    for number, image in enumerate(images):
        write_atomic(folder / "samples" / f"{number:04d}.png", encode_png(np.asarray(image)))
    write_atomic(folder / "metadata.jsonl", json.dumps(row) + "\n")
    return folder


def read_layout(root: Path) -> Iterator[tuple[int, dict[str, Any], list[Path]]]:
    """(index, row, image paths) of every prompt folder under `root`, by number.

    Raises `UserError` when there is none, or one lacks its metadata or images. Images are not opened.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected images in GenEval's layout, 00000/samples/0000.png")
    folders = sorted((p for p in root.iterdir() if p.is_dir() and p.name.isdecimal()), key=lambda p: int(p.name))
    if not folders:
        raise UserError(f"{root}: no prompt folders; expected 00000/metadata.jsonl and 00000/samples/0000.png, ...")
    for folder in folders:
        metadata = folder / "metadata.jsonl"
        if not metadata.is_file():
            raise UserError(f"{metadata}: not found; each prompt folder needs the prompt's line")
        images = sorted(p for p in (folder / "samples").glob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"))
        if not images:
            raise UserError(f"{folder / 'samples'}: no images; expected 0000.png, ...")
        yield int(folder.name), _row(metadata.read_bytes(), str(metadata)), images
