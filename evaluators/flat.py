"""Images of a benchmark whose prompts have ids: in GenEval's layout, or in the benchmark's own flat folder, ID.png a prompt.

In GenEval's layout a prompt's folder belongs to the id in its metadata, or else to the prompt that has its very text.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from apex.errors import UserError
from evaluators.command import begin
from evaluators.images import Checked, Images, identify, open_images, refuse_left_out, some

SAFE_ID = re.compile(r"[\w-][\w.-]*")  # as a file's name


@dataclass(frozen=True)
class Matched:
    """Images and the id of each of their prompts; `missing` ids have no image, `rewritten` ones another text than the benchmark's."""

    images: Images
    ids: list[str]
    missing: list[str]
    rewritten: list[str]
    flat: bool
    device: str

    @property
    def whole(self) -> bool:
        """Whether the images are of all of the benchmark's prompts, in its own words."""
        return not self.missing and not self.rewritten


def is_flat(folder: Path) -> bool:
    """Whether a folder holds pictures itself, and no numbered folders."""
    return next(folder.glob("*.png"), None) is not None and not any(p.is_dir() and p.name.isdecimal() for p in folder.iterdir())


def open_matched(args: argparse.Namespace, prompts: Mapping[str, str], key: str, flat: bool | None = None) -> Matched:
    """Opens `args.images` and finds whose they are; all errors come before any work.

    Args:
        args: of `image_parser`, with `partial`: whether prompts may be missing.
        prompts: the benchmark's, text by id.
        key: where a prompt's line has its id.
        flat: the layout; None finds out.

    Raises:
        UserError: a prompt of the folder is none of the benchmark's, one comes twice, or, without `partial`, one is missing.
    """
    if flat is None:
        flat = args.images.is_dir() and is_flat(args.images)
    if flat:
        images, device = begin(args, lambda folder, **who: open_flat(folder, prompts, key, **who))
        ids = [str(row[key]) for row in images.rows]
    else:
        args.incomplete = True  # what is missing of the benchmark is said below
        images, device = begin(args, open_images)
        ids = match(images, prompts, key)
    found = set(ids)
    missing = [name for name in prompts if name not in found]
    if missing and not args.partial:
        raise UserError(
            f"{images.folder}: {len(missing)} of {len(prompts)} prompts have no image: {some(missing)}. "
            "Sample them, or give --partial to score what is there"
        )
    rewritten = [name for name, row in zip(ids, images.rows, strict=True) if row["prompt"] != prompts[name]]
    return Matched(images, ids, missing, rewritten, flat, device)


def open_flat(folder: Path, prompts: Mapping[str, str], key: str, *, row: str | None, nfe: int | None, source: str | None) -> Images:
    """A flat folder as `Images`, in the benchmark's order: one picture a prompt.

    Raises:
        UserError: no picture, one that cannot be read or has another size, or one whose name is no id.
    """
    files = {path.stem: path for path in folder.glob("*.png")} if folder.is_dir() else {}
    if not files:
        raise UserError(f"{folder}: no pictures; expected ID.png for each prompt")
    if unknown := sorted(set(files) - set(prompts)):
        raise UserError(
            f"{folder}: {len(unknown)} pictures are named after no prompt: {some(unknown)}; ids are such as {next(iter(prompts))}"
        )
    read = {*files.values(), folder / "made.json"}
    refuse_left_out(folder, sorted(path for path in folder.iterdir() if path not in read), "ID.png")
    identity, made = identify(folder, row, nfe, source)
    ids = [name for name in prompts if name in files]
    checked = Checked()
    faults = []
    for name in ids:
        if fault := checked.fault_of(files[name]):
            faults.append(f"{name}.png is {fault}")
    if faults:
        raise UserError(f"{folder}: {len(faults)} images missing or unusable: {some(faults)}. Delete them and make them again")
    rows = [{"prompt": prompts[name], key: name} for name in ids]
    return Images(folder, rows, [[files[name]] for name in ids], checked.size or (0, 0), identity, made, checked.counted)


def match(images: Images, prompts: Mapping[str, str], key: str) -> list[str]:
    """The id of each prompt of a folder in GenEval's layout, by `key` in its metadata, else by its text.

    Raises:
        UserError: prompts that are none of the benchmark's, or whose text belongs to several ids, or that come twice.
    """
    by_text = defaultdict(list)
    for name, text in prompts.items():
        by_text[text].append(name)
    ids, strange = [], []
    for index, row in enumerate(images.rows):
        candidates = _candidates(row, prompts, by_text, key)
        ids += candidates if len(candidates) == 1 else [""]
        if len(candidates) != 1:
            why = "none" if not candidates else f"any of {', '.join(candidates)}"
            strange.append(f"prompt {index} is {why} ({str(row.get(key, row['prompt']))[:60]!r})")
    if strange:
        raise UserError(
            f"{images.folder}: {len(strange)} prompts match no question set or several: {some(strange)}; give metadata.jsonl its {key}"
        )
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise UserError(f"{images.folder}: {len(twice)} prompts come twice: {some(twice)}; put their images into one folder")
    return ids


def _candidates(row: dict, prompts: Collection[str], by_text: Mapping[str, list[str]], key: str) -> list[str]:
    if key in row:
        return [str(row[key])] if str(row[key]) in prompts else []
    return by_text.get(row["prompt"], [])
