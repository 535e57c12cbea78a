"""Picture grids: prompts across, rows and NFEs down, pixels enlarged by whole numbers, captions in words.

Reads images/<row>/nfe<K>/seed<S>/<split>/NNNNN/metadata.jsonl and samples/0000.png .. 0003.png.
"""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from apex.errors import UserError
from paper_tables.cells import row_name
from paper_tables.view import TASKS, Key, View

CELL = 128  # pixels of one picture's side, about
GAP, LABEL_WIDTH, LINE = 6, 150, 17
LEFT_OUT = frozenset({("noise", 0), ("shuffled", 0), ("teacher", 50)})  # they say nothing in a picture
INK, PALE, MISSING = "#1b1f24", "#5f6770", "#eef0f2"
NAMES = ("grid", "grid_unseen", "grid_samples")


@dataclass(frozen=True)
class Prompt:
    """One prompt of the set: its folder's name, its text and its task."""

    folder: str
    text: str
    task: str


def read_prompt(path: Path) -> Prompt:
    """The prompt of one folder NNNNN, from its metadata.jsonl."""
    try:
        data = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
        return Prompt(path.parent.name, data["prompt"], data.get("tag", ""))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected one JSON object with the keys prompt and tag ({type(error).__name__}); sample again") from None


def read_prompts(folder: Path) -> list[Prompt]:
    """Every prompt below `folder`, in order."""
    return [read_prompt(path) for path in sorted(folder.glob("[0-9]*/metadata.jsonl"))]


def image_folders(images: Path, split: str) -> dict[Key, Path]:
    """(row, NFE) -> the folder of its lowest seed for that split."""
    found: dict[Key, tuple[int, Path]] = {}
    for path in images.glob(f"*/nfe*/seed*/{split}"):
        row, nfe, seed = path.parts[-4], re.fullmatch(r"nfe(\d+)", path.parts[-3]), re.fullmatch(r"seed(\d+)", path.parts[-2])
        if nfe and seed and not row.startswith(".") and path.is_dir():
            entry = (int(seed[1]), path)
            found[row, int(nfe[1])] = min(found.get((row, int(nfe[1])), entry), entry)
    return {key: path for key, (_, path) in found.items()}


def choose(prompts: list[Prompt], columns: int = 6) -> list[Prompt]:
    """`columns` prompts, as many of each task as there is room for, in GenEval's order of tasks. The choice knows no result."""
    tasks = [task for task in TASKS if any(prompt.task == task for prompt in prompts)]
    tasks += sorted({prompt.task for prompt in prompts} - set(tasks))
    each = max(1, columns // len(tasks))
    chosen: list[Prompt] = []
    for task in tasks:
        members = [prompt for prompt in prompts if prompt.task == task]
        places = dict.fromkeys(len(members) * (2 * turn + 1) // (2 * each) for turn in range(each))
        chosen += [members[place] for place in places]
    return chosen


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _picture(path: Path, cell: int) -> Image.Image:
    """The image at about `cell` pixels: enlarged by a whole number without smoothing, or reduced with it."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except OSError:
        raise UserError(f"{path}: not an image; sample again") from None
    factor = cell // max(picture.size)
    if factor >= 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    return picture


def draw(folders: dict[Key, Path], names: dict[Key, str], prompts: list[Prompt], samples: int, title: str) -> Image.Image:
    """A grid: `prompts` x `samples` columns, a row for each of `names`.

    A cell whose image is missing, or belongs to another prompt, says so.
    """
    small, bold = _font(13), _font(13, bold=True)
    block = samples * (CELL + GAP) + (2 * GAP if samples > 1 else 0)
    captions = [textwrap.wrap(prompt.text, max(10, int(samples * (CELL + GAP) / 7.9))) for prompt in prompts]
    head = 34 + LINE * max(len(lines) for lines in captions) + 8
    width = max(LABEL_WIDTH + len(prompts) * block, int(_font(14, bold=True).getlength(title)) + 2 * GAP)
    sheet = Image.new("RGB", (width, head + len(names) * (CELL + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 7), title, fill=INK, font=_font(14, bold=True))
    for column, lines in enumerate(captions):
        for index, line in enumerate(lines):
            pen.text((LABEL_WIDTH + column * block, head - 8 - LINE * (len(lines) - index)), line, fill=INK, font=small)
    for row, (key, name) in enumerate(names.items()):
        top = head + row * (CELL + GAP)
        middle = top + CELL // 2
        lines = [line for part in name.replace(" (", "\n(").splitlines() for line in textwrap.wrap(part, 17)]
        for index, line in enumerate(lines):
            pen.text((GAP, middle - LINE * (len(lines) - index) + 4), line, fill=INK, font=bold)
        pen.text((GAP, middle + 6), f"NFE {key[1]}" if key[1] else "no model", fill=PALE, font=small)
        for column, prompt in enumerate(prompts):
            metadata = folders[key] / prompt.folder / "metadata.jsonl"
            same = read_prompt(metadata) if metadata.is_file() else None
            for sample in range(samples):
                x = LABEL_WIDTH + column * block + sample * (CELL + GAP)
                path = folders[key] / prompt.folder / "samples" / f"{sample:04d}.png"
                if same is not None and same.text == prompt.text and path.is_file():
                    sheet.paste(_picture(path, CELL), (x, top))
                else:
                    pen.rectangle((x, top, x + CELL - 1, top + CELL - 1), fill=MISSING)
                    words = "other prompt" if same is not None and same.text != prompt.text else "no image"
                    pen.text((x + 8, middle - 8), words, fill=PALE, font=small)
    return sheet


def _names(view: View, folders: dict[Key, Path]) -> dict[Key, str]:
    """The grid's rows in the tables' order; images without a record come last."""
    keys = [key for key in view.keys if key in folders] + sorted(key for key in folders if key not in view.keys)
    return {key: row_name(key, view) for key in keys if key not in LEFT_OUT}


def grids(images: Path, view: View) -> dict[str, Image.Image]:
    """The grids that the images allow: prompts of the main set, of the unseen set, and four samples of two prompts."""
    found = {}
    for name, split in ((NAMES[0], view.split), (NAMES[1], "unseen")):
        folders = image_folders(images, split)
        names = _names(view, folders)
        prompts = next((known for key in names if (known := read_prompts(folders[key]))), [])
        if prompts and name not in found:
            chosen = choose(prompts)
            found[name] = draw(
                folders, names, chosen, 1, f"{split} set: each prompt's first image, lowest seed; prompts chosen by place in the list"
            )
            if split == view.split:
                two = [prompt for prompt in chosen if prompt.task in ("single_object", "position")][:2] or chosen[:2]
                found[NAMES[2]] = draw(folders, names, two, 4, f"{split} set: four images of one prompt; do they differ as real ones do?")
    return found
