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
from paper_tables.view import TASKS, Key, View

CELL = 128  # pixels of one picture's side, about
GAP, LABEL_WIDTH, LINE = 6, 132, 17
LEFT_OUT = frozenset({("noise", 0), ("shuffled", 0), ("teacher", 50)})  # they say nothing in a picture
INK, PALE, MISSING = "#1b1f24", "#6b737c", "#eef0f2"


@dataclass(frozen=True)
class Prompt:
    """One prompt of the set: its folder's name, its text and its task."""

    folder: str
    text: str
    task: str


def read_prompts(folder: Path) -> dict[str, Prompt]:
    """Folder name -> prompt, for every NNNNN/metadata.jsonl below `folder`."""
    prompts = {}
    for path in sorted(folder.glob("[0-9]*/metadata.jsonl")):
        try:
            data = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
            prompts[path.parent.name] = Prompt(path.parent.name, data["prompt"], data.get("tag", ""))
        except (json.JSONDecodeError, IndexError, KeyError, TypeError) as error:
            raise UserError(f"{path}: expected one JSON object with the keys prompt and tag ({type(error).__name__}: {error})") from None
    return prompts


def image_folders(images: Path, split: str) -> dict[Key, Path]:
    """(row, NFE) -> the folder of its lowest seed for that split."""
    found: dict[Key, tuple[int, Path]] = {}
    for path in images.glob(f"*/nfe*/seed*/{split}"):
        row, nfe, seed = path.parts[-4], re.fullmatch(r"nfe(\d+)", path.parts[-3]), re.fullmatch(r"seed(\d+)", path.parts[-2])
        if nfe and seed and not row.startswith(".") and path.is_dir():
            entry = (int(seed[1]), path)
            found[row, int(nfe[1])] = min(found.get((row, int(nfe[1])), entry), entry)
    return {key: path for key, (_, path) in found.items()}


def choose(prompts: list[Prompt], turn: int) -> list[Prompt]:
    """One prompt of each task, the tasks in GenEval's order; another `turn` gives others. The choice knows no result."""
    tasks = [task for task in TASKS if any(prompt.task == task for prompt in prompts)]
    tasks += sorted({prompt.task for prompt in prompts} - set(tasks))
    chosen = []
    for task in tasks:
        members = [prompt for prompt in prompts if prompt.task == task]
        chosen.append(members[(len(members) * (2 * turn + 1) // 6) % len(members)])
    return chosen


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _picture(path: Path, cell: int) -> Image.Image:
    """The image at about `cell` pixels: enlarged by a whole number without smoothing, or reduced with it."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    factor = cell // max(picture.size)
    if factor >= 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((cell, cell), Image.Resampling.LANCZOS)
    return picture


def draw(folders: dict[Key, Path], keys: list[Key], prompts: list[Prompt], samples: int, title: str, cell: int = CELL) -> Image.Image:
    """A grid: `prompts` x `samples` columns, `keys` rows. A cell whose image is missing, or belongs to another prompt, says so."""
    known = {key: read_prompts(folders[key]) for key in keys}
    width = LABEL_WIDTH + len(prompts) * (samples * (cell + GAP) + (samples > 1) * 3 * GAP)
    small, bold = _font(13), _font(14, bold=True)
    wrap = max(10, int(samples * (cell + GAP) / 7.9))
    captions = [textwrap.wrap(prompt.text, wrap) for prompt in prompts]
    head = 34 + LINE * max(len(lines) for lines in captions) + 8
    sheet = Image.new("RGB", (width + GAP, head + len(keys) * (cell + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 7), title, fill=INK, font=bold)
    left = LABEL_WIDTH
    for prompt, lines in zip(prompts, captions, strict=True):
        for index, line in enumerate(lines):
            pen.text((left, head - 8 - LINE * (len(lines) - index)), line, fill=INK, font=small)
        for row, key in enumerate(keys):
            top = head + row * (cell + GAP)
            same = known[key].get(prompt.folder)
            for sample in range(samples):
                x = left + sample * (cell + GAP)
                path = folders[key] / prompt.folder / "samples" / f"{sample:04d}.png"
                if same is None or same.text != prompt.text or not path.is_file():
                    pen.rectangle((x, top, x + cell - 1, top + cell - 1), fill=MISSING)
                    pen.text((x + 8, top + cell // 2 - 8), "other prompt" if same and same.text != prompt.text else "no image", fill=PALE, font=small)
                else:
                    sheet.paste(_picture(path, cell), (x, top))
        left += samples * (cell + GAP) + (samples > 1) * 3 * GAP
    for row, (name, nfe) in enumerate(keys):
        top = head + row * (cell + GAP) + cell // 2
        pen.text((GAP, top - 16), textwrap.shorten(name, 18, placeholder="…"), fill=INK, font=bold)
        pen.text((GAP, top + 1), "no model" if nfe == 0 else f"{nfe} step{'s' * (nfe != 1)}", fill=PALE, font=small)
    return sheet


def grids(images: Path, view: View) -> dict[str, Image.Image | None]:
    """The three grids, None where there are no images: two of one prompt per task, one of four samples per prompt."""
    names = ("grid_prompts", "grid_prompts_more", "grid_diversity")
    folders = image_folders(images, view.split)
    keys = [key for key in view.keys if key in folders and key not in LEFT_OUT]
    keys += sorted(key for key in folders if key not in view.keys and key not in LEFT_OUT)
    prompts = next((list(found.values()) for key in keys if (found := read_prompts(folders[key]))), [])
    if not prompts:
        return dict.fromkeys(names)
    first, second = choose(prompts, 0), choose(prompts, 2)
    title = f"One sample per prompt, split {view.split}: the first image of the lowest seed, prompts chosen by their place in the list"
    diversity = [prompt for prompt in first if prompt.task in ("single_object", "position")] or first[:2]
    return {
        names[0]: draw(folders, keys, first, 1, title),
        names[1]: draw(folders, keys, second, 1, title),
        names[2]: draw(folders, keys, diversity[:2], 4, f"Four samples of one prompt, split {view.split}: do they differ as real ones do?", 96),
    }
