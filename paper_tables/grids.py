"""Picture grids: prompts across; down, the rows by family at one NFE, or the NFEs of one row. Pixels are enlarged by whole numbers.

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
from paper_tables.plotting import row_looks
from paper_tables.view import TASKS, TEACHER, Key, View

LARGEST, ABOUT = 128, 110  # pixels of one picture's side
GAP, LABEL_WIDTH, LINE, HEADING = 5, 150, 17, 24
COLUMNS = 12  # prompts of a grid
SHOWN: tuple[Key, ...] = (("real", 0), ("mean", 0), TEACHER)  # above the methods, to compare with
INK, PALE, MISSING = "#1b1f24", "#5f6770", "#eef0f2"


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


def cell_side(side: int) -> int:
    """How large a picture of that side is shown: about 110 pixels, by a whole number; large ones at 128."""
    return min(LARGEST, side * max(1, round(ABOUT / side)))


@dataclass(frozen=True)
class Row:
    """A line of a grid: whose images, what it is called, what stands below the name, the heading above it where a group begins."""

    key: Key
    name: str
    below: str
    heading: str = ""
    color: str = INK


def places(rows: list[Row], top: int, cell: int) -> list[int]:
    """The upper edge of each row's pictures, in pixels; and, last, the height of the sheet."""
    found = []
    for row in rows:
        top += HEADING if row.heading else 0
        found.append(top)
        top += cell + GAP
    return [*found, top]


def draw(folders: dict[Key, Path], rows: list[Row], prompts: list[Prompt], samples: int, title: str) -> Image.Image:
    """A grid: `prompts` x `samples` columns, a line for each of `rows`.

    A cell whose image is missing, or belongs to another prompt, says so.
    """
    small, bold = _font(13), _font(13, bold=True)
    pictures = (path for row in rows for prompt in prompts for path in (folders[row.key] / prompt.folder / "samples").glob("0000.png"))
    first = next(pictures, None)
    cell = cell_side(_side(first)) if first else 96
    block = samples * (cell + GAP) + (2 * GAP if samples > 1 else 0)
    captions = [textwrap.wrap(prompt.text, max(10, int(samples * (cell + GAP) / 7.9))) for prompt in prompts]
    head = 34 + LINE * max(len(lines) for lines in captions) + 8
    width = max(LABEL_WIDTH + len(prompts) * block, int(_font(14, bold=True).getlength(title)) + 2 * GAP)
    *tops, bottom = places(rows, head, cell)
    sheet = Image.new("RGB", (width, bottom), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 7), title, fill=INK, font=_font(14, bold=True))
    for column, lines in enumerate(captions):
        for index, line in enumerate(lines):
            pen.text((LABEL_WIDTH + column * block, head - 8 - LINE * (len(lines) - index)), line, fill=INK, font=small)
    for row, top in zip(rows, tops, strict=True):
        if row.heading:
            pen.line((GAP, top - 9, LABEL_WIDTH + len(prompts) * block - GAP, top - 9), fill="#c9ced4")
            box = pen.textbbox((GAP, top - 18), row.heading, font=_font(14, bold=True))
            pen.rectangle((box[0] - 2, box[1] - 2, box[2] + 6, box[3] + 2), fill="white")
            pen.text((GAP, top - 18), row.heading, fill=PALE, font=_font(14, bold=True))
        middle = top + cell // 2
        lines = [line for part in row.name.replace(" (", "\n(").splitlines() for line in textwrap.wrap(part, 17)]
        for index, line in enumerate(lines):
            pen.text((GAP, middle - LINE * (len(lines) - index) + 4), line, fill=row.color, font=bold)
        pen.text((GAP, middle + 6), row.below, fill=PALE, font=small)
        for column, prompt in enumerate(prompts):
            metadata = folders[row.key] / prompt.folder / "metadata.jsonl"
            same = read_prompt(metadata) if metadata.is_file() else None
            for sample in range(samples):
                x = LABEL_WIDTH + column * block + sample * (cell + GAP)
                path = folders[row.key] / prompt.folder / "samples" / f"{sample:04d}.png"
                if same is not None and same.text == prompt.text and path.is_file():
                    sheet.paste(_picture(path, cell), (x, top))
                else:
                    pen.rectangle((x, top, x + cell - 1, top + cell - 1), fill=MISSING)
                    words = "other prompt" if same is not None and same.text != prompt.text else "no image"
                    pen.text((x + 8, middle - 8), words, fill=PALE, font=small)
    return sheet


def _side(path: Path) -> int:
    try:
        with Image.open(path) as image:
            return max(image.size)
    except OSError:
        raise UserError(f"{path}: not an image; sample again") from None


def _below(key: Key) -> str:
    return f"NFE {key[1]}" if key[1] else "no model"


def rows_at(view: View, folders: dict[Key, Path], nfe: int) -> list[Row]:
    """What is compared at one NFE: real renders, the teacher with 25 and with as many steps, every method by family."""
    look = row_looks(view)
    levels = [key for key in dict.fromkeys([*SHOWN, ("teacher", nfe)]) if key in folders]
    found = [Row(key, row_name(key, view), _below(key)) for key in levels]
    for family, keys in view.grouped(nfe):
        known = [key for key in keys if key in folders]
        for index, key in enumerate(known):
            found.append(Row(key, row_name(key, view), _below(key), family if index == 0 else "", look[key[0]].color))
    strangers = sorted(key for key in folders if key not in view.keys and key[1] == nfe)  # images without a record
    return found + [Row(key, key[0], _below(key), "no record" if index == 0 else "") for index, key in enumerate(strangers)]


def _prompts(folders: dict[Key, Path], rows: list[Row], columns: int = COLUMNS) -> list[Prompt]:
    known = next((found for row in rows if (found := read_prompts(folders[row.key]))), [])
    return choose(known, columns) if known else []


def is_grid(name: str) -> bool:
    """Whether a figure of that name is made from images."""
    return name.startswith(("grid", "sweep_"))


def grids(images: Path, view: View) -> dict[str, Image.Image]:
    """The grids that the images allow.

    grid: all rows at the lowest NFE; grid_nfe<K>: at the others that are compared; grid_unseen: prompts of the unseen set; grid_samples:
    four images of two prompts; sweep_<row>: one row, or the teacher, at each of its NFEs.
    """
    found: dict[str, Image.Image] = {}
    words = "each prompt's first image, lowest seed; prompts chosen by place in the list"
    folders, unseen = image_folders(images, view.split), image_folders(images, "unseen")
    nfes = view.compared or sorted({nfe for _, nfe in folders if nfe})
    for index, nfe in enumerate(nfes):
        rows = rows_at(view, folders, nfe)
        if not any(row.key[1] == nfe for row in rows) or not (prompts := _prompts(folders, rows)):
            continue
        found["grid" if index == 0 else f"grid_nfe{nfe}"] = draw(folders, rows, prompts, 1, f"NFE {nfe}, {view.split} set: {words}")
        if index == 0:
            two = [prompt for prompt in prompts if prompt.task in ("single_object", "position")][::2][:2] or prompts[:2]
            title = f"NFE {nfe}, {view.split} set: four images of one prompt; do they differ as real ones do?"
            found["grid_samples"] = draw(folders, rows, two, 4, title)
            rows = rows_at(view, unseen, nfe)
            if rows and (prompts := _prompts(unseen, rows)):
                found["grid_unseen"] = draw(unseen, rows, prompts, 1, f"NFE {nfe}, unseen set: {words}")
    for name in [*view.rows, "teacher"]:
        keys = sorted(key for key in folders if key[0] == name and key[1])
        real = [Row(key, row_name(key, view), _below(key)) for key in SHOWN[:1] if key in folders]
        rows = [*real, *(Row(key, row_name(key, view), _below(key)) for key in keys)]
        if len(keys) > 1 and (prompts := _prompts(folders, rows)):
            found[f"sweep_{name}"] = draw(folders, rows, prompts, 1, f"{name}, {view.split} set: {words}")
    return found
