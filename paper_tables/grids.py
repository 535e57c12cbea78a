"""Picture grids: prompts across; down, the rows by family at one NFE, or the NFEs of one row. Pixels are enlarged by whole numbers.

Reads images/<row>/nfe<K>/seed<S>/<split>/NNNNN/metadata.jsonl and samples/0000.png .. 0003.png. Pictures that stand together are of the
same prompts and, where the rows have it, of the same seed; a line of another seed says so.
"""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from apex.data import pictures
from apex.errors import UserError
from paper_tables import drawn
from paper_tables.archives import Folder, Points
from paper_tables.cells import row_name
from paper_tables.plotting import ink, row_looks
from paper_tables.records import REFERENCE
from paper_tables.view import EXTERNAL, TASKS, Key, View

LARGEST, ABOUT = 128, 110  # pixels of one picture's side
GAP, LABEL_WIDTH, LINE, HEADING = 5, 150, 17, 24
COLUMNS, SAMPLES = 12, 4  # prompts of a grid; images of one prompt where a grid shows several
REFERENCES: tuple[Key, ...] = (("real", 0), ("mean", 0))  # above the methods, to compare with; below them the teacher
INK, PALE, MISSING = "#1b1f24", "#5f6770", "#eef0f2"


@dataclass(frozen=True)
class Prompt:
    """One prompt of the set: its folder's name, its text and its task."""

    folder: str
    text: str
    task: str


def read_prompt(path: Folder) -> Prompt:
    """The prompt of one folder NNNNN, from its metadata.jsonl."""
    try:
        data = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
        return Prompt(path.parent.name, data["prompt"], data.get("tag", ""))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: expected one JSON object with the keys prompt and tag ({type(error).__name__}); sample again") from None


def read_prompts(folder: Folder) -> list[Prompt]:
    """Every prompt below `folder`, in order."""
    return [read_prompt(path) for path in sorted(folder.glob("[0-9]*/metadata.jsonl"))]


def all_folders(images: Path | Points, split: str) -> dict[Key, dict[int, Folder]]:
    """(row, NFE) -> seed -> its folder for that split."""
    found: dict[Key, dict[int, Folder]] = {}
    for path in sorted(images.glob(f"*/nfe*/seed*/{split}"), key=lambda path: path.parts[-4:]):
        row, nfe, seed = path.parts[-4], re.fullmatch(r"nfe(\d+)", path.parts[-3]), re.fullmatch(r"seed(\d+)", path.parts[-2])
        if nfe and seed and not row.startswith(".") and path.is_dir():
            found.setdefault((row, int(nfe[1])), {})[int(seed[1])] = path
    return found


def usual_seed(folders: Mapping[Key, Mapping[int, Folder]]) -> int | None:
    """The seed that most of them have, the lowest of equals."""
    seeds = [seed for found in folders.values() for seed in found]
    return min(set(seeds), key=lambda seed: (-seeds.count(seed), seed), default=None)


def image_folders(images: Path | Points, split: str, view: View | None = None) -> dict[Key, Folder]:
    """(row, NFE) -> the folder of the usual seed, or of its lowest; with `view`, also the folders that the profile brings."""
    found = all_folders(images, split)
    usual = usual_seed(found)
    chosen = {key: seeds[usual if usual in seeds else min(seeds)] for key, seeds in found.items()}
    external = view.expected.external.values() if view and view.expected and split == view.split else ()
    return chosen | {(one.row, one.nfe): Path(one.images) for one in external if Path(one.images).is_dir()}


def seed_of(folder: Folder) -> int | None:
    """The seed that a folder of images/ is of; None for a folder from elsewhere."""
    match = re.fullmatch(r"seed(\d+)", folder.parent.name)
    return int(match[1]) if match else None


@lru_cache(maxsize=256)
def _by_text(folder: Folder) -> dict[str, str]:
    return {prompt.text: prompt.folder for prompt in reversed(read_prompts(folder))}


def place_of(folder: Folder, prompt: Prompt) -> Folder | None:
    """Where a row's images of that prompt lie: under the same number, or under the one that has its text; None where it has it not."""
    metadata = folder / prompt.folder / "metadata.jsonl"
    if metadata.is_file() and read_prompt(metadata).text == prompt.text:
        return metadata.parent
    found = _by_text(folder).get(prompt.text)
    return folder / found if found else None


def choose(prompts: list[Prompt], columns: int = 6) -> list[Prompt]:
    """`columns` prompts, as many of each task as there is room for, in GenEval's order of tasks. The choice knows no result."""
    tasks = [task for task in TASKS if any(prompt.task == task for prompt in prompts)]
    tasks += sorted({prompt.task for prompt in prompts} - set(tasks))
    each = max(1, columns // max(1, len(tasks)))
    chosen: list[Prompt] = []
    for task in tasks:
        members = [prompt for prompt in prompts if prompt.task == task]
        places = dict.fromkeys(len(members) * (2 * turn + 1) // (2 * each) for turn in range(each))
        chosen += [members[place] for place in places]
    return chosen


def in_four(prompts: list[Prompt]) -> list[Prompt]:
    """Two of a grid's prompts, of which `grid_samples` shows four images each."""
    return [prompt for prompt in prompts if prompt.task in ("single_object", "position")][::2][:2] or prompts[:2]


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _image(path: Folder) -> Image.Image:
    return pictures.image_of(path if isinstance(path, Path) else path.read_bytes(), str(path))


def _picture(path: Folder, cell: int) -> Image.Image:
    """The image at about `cell` pixels: enlarged by a whole number without smoothing, or reduced with it."""
    picture = _image(path)
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


@dataclass(frozen=True)
class Sheet:
    """A grid: `prompts` x `samples` columns, a line for each of `rows`, whose images are in `folders`; `foot` is a remark below.

    A cell whose image is missing, or belongs to another prompt, says so.
    """

    folders: dict[Key, Folder]
    rows: list[Row]
    prompts: list[Prompt]
    samples: int
    title: str
    foot: str = ""

    @cached_property
    def cells(self) -> list[list[tuple[Folder | None, str]]]:
        """A list a row, from left to right: the image's file, or None and what stands in its place."""
        _by_text.cache_clear()
        return [self._cells(self.folders[row.key]) for row in self.rows]

    def _cells(self, folder: Folder) -> list[tuple[Folder | None, str]]:
        found: list[tuple[Folder | None, str]] = []
        for prompt in self.prompts:
            place = place_of(folder, prompt)
            for sample in range(self.samples):
                path = place / "samples" / f"{sample:04d}.png" if place else None
                if path and path.is_file():
                    found.append((path, ""))
                else:
                    found.append((None, "no image" if place or not (folder / prompt.folder).is_dir() else "other prompt"))
        return found

    def stamp(self) -> str:
        """Of everything that the grid shows."""
        cells = (path.read_bytes() if path else words for line in self.cells for path, words in line)
        return drawn.stamp(drawn.code(), self.rows, self.prompts, self.samples, self.title, self.foot, *cells)

    def draw(self) -> Image.Image:
        samples, prompts, rows = self.samples, self.prompts, self.rows
        small, bold = _font(13), _font(13, bold=True)
        samples_of = (self.folders[row.key] / prompt.folder / "samples" for row in rows for prompt in prompts)
        first = next((path for folder in samples_of for path in folder.glob("0000.png")), None)
        cell = cell_side(_side(first)) if first else 96
        block = samples * (cell + GAP) + (2 * GAP if samples > 1 else 0)
        captions = [textwrap.wrap(prompt.text, max(10, int(samples * (cell + GAP) / 7.9))) for prompt in prompts]
        head = 34 + LINE * max(len(lines) for lines in captions) + 8
        width = max(LABEL_WIDTH + len(prompts) * block, int(_font(14, bold=True).getlength(self.title)) + 2 * GAP)
        *tops, bottom = places(rows, head, cell)
        remarks = textwrap.wrap(self.foot, int(width / 7.2), break_on_hyphens=False) if self.foot else []
        sheet = Image.new("RGB", (width, bottom + (LINE * len(remarks) + GAP if remarks else 0)), "white")
        pen = ImageDraw.Draw(sheet)
        for index, line in enumerate(remarks):
            pen.text((GAP, bottom + LINE * index), line, fill=PALE, font=small)
        pen.text((GAP, 7), self.title, fill=INK, font=_font(14, bold=True))
        for column, lines in enumerate(captions):
            for index, line in enumerate(lines):
                pen.text((LABEL_WIDTH + column * block, head - 8 - LINE * (len(lines) - index)), line, fill=INK, font=small)
        for row, cells, top in zip(rows, self.cells, tops, strict=True):
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
            for place, (path, words) in enumerate(cells):
                x = LABEL_WIDTH + place // samples * block + place % samples * (cell + GAP)
                if path:
                    sheet.paste(_picture(path, cell), (x, top))
                else:
                    pen.rectangle((x, top, x + cell - 1, top + cell - 1), fill=MISSING)
                    pen.text((x + 8, middle - 8), words, fill=PALE, font=small)
        return sheet


def png(sheet: Image.Image, stamp: str = "") -> bytes:
    """A grid as a PNG file, with a stamp in its text (`drawn.KEY`)."""
    buffer, text = io.BytesIO(), PngImagePlugin.PngInfo()
    if stamp:
        text.add_text(drawn.KEY, stamp)
    sheet.save(buffer, format="PNG", compress_level=4, pnginfo=text)
    return buffer.getvalue()


def _side(path: Folder) -> int:
    return max(_image(path).size)


def _below(key: Key, folder: Folder, usual: int | None) -> str:
    seed = seed_of(folder)
    return (f"NFE {key[1]}" if key[1] else "no model") + (f", seed {seed}" if key[1] and seed not in (None, usual) else "")


def rows_at(view: View, folders: dict[Key, Folder], nfe: int, usual: int | None = None, elsewhere: bool = False) -> list[Row]:
    """What is compared at one NFE: real renders, the teacher with many and with as many steps, every method by family.

    elsewhere: also rows of images from elsewhere whose NFE is not compared. usual: the seed that needs no mention.
    """
    look = row_looks(view)
    usual = next((seed_of(folder) for folder in folders.values()), None) if usual is None else usual
    levels = [key for key in dict.fromkeys([*REFERENCES, view.teacher, ("teacher", nfe)]) if key in folders]
    found = [Row(key, row_name(key, view), _below(key, folders[key], usual)) for key in levels]
    groups = dict(view.grouped(nfe))
    if elsewhere:
        others = [key for key in view.methods if view.images_only(key[0]) and key[1] not in view.compared]
        groups |= {EXTERNAL: [*groups.get(EXTERNAL, []), *others]}
    for family, keys in groups.items():
        known = [key for key in keys if key in folders]
        for index, key in enumerate(known):
            below = _below(key, folders[key], usual)
            found.append(Row(key, row_name(key, view), below, family if index == 0 else "", ink(look[key[0]].color)))
    strangers = sorted(key for key in folders if key not in view.keys and key[1] == nfe)  # images without a record
    return found + [
        Row(key, key[0], _below(key, folders[key], usual), "no record" if index == 0 else "") for index, key in enumerate(strangers)
    ]


def prompts_of(folders: dict[Key, Folder], rows: list[Row], columns: int = COLUMNS) -> list[Prompt]:
    known = next((found for row in rows if (found := read_prompts(folders[row.key]))), [])
    return choose(known, columns)


def sheets(images: Path | Points, view: View) -> dict[str, Sheet]:
    """The grids that the images allow.

    grid: all rows at the lowest NFE; grid_nfe<K>: at the others that are compared; grid_unseen: prompts of the unseen set; grid_samples:
    four images of two prompts; sweep_<row>: one row, or the teacher, at each of its NFEs.
    """
    found: dict[str, Sheet] = {}
    every = all_folders(images, view.split)
    usual, folders, unseen = usual_seed(every), image_folders(images, view.split, view), image_folders(images, "unseen")
    words = f"each prompt's first image, seed {usual}; prompts chosen by place in the list"
    nfes = view.compared or sorted({nfe for _, nfe in folders if nfe})
    for index, nfe in enumerate(nfes):
        rows = rows_at(view, folders, nfe, usual, elsewhere=index == 0)
        if not any(row.key[1] == nfe for row in rows) or not (prompts := prompts_of(folders, rows)):
            continue
        foot = _without(view, rows, nfe)
        name = "grid" if index == 0 else f"grid_nfe{nfe}"
        found[name] = Sheet(folders, rows, prompts, 1, f"NFE {nfe}, {view.split} set: {words}", foot)
        if index == 0:
            title = f"NFE {nfe}, {view.split} set: four images of one prompt; do they differ as real ones do?"
            found["grid_samples"] = Sheet(folders, rows, in_four(prompts), SAMPLES, title, foot)
            rows = rows_at(view, unseen, nfe, usual)
            if rows and (prompts := prompts_of(unseen, rows)):
                found["grid_unseen"] = Sheet(unseen, rows, prompts, 1, f"NFE {nfe}, unseen set: {words}", _without(view, rows, nfe, False))
    for name in [*view.rows, "teacher"]:
        if made := _sweep(view, name, every):
            found[f"sweep_{name}"] = made
    return found


def grids(images: Path | Points, view: View) -> dict[str, Image.Image]:
    """The grids of `sheets`, drawn."""
    return {name: sheet.draw() for name, sheet in sheets(images, view).items()}


def _without(view: View, rows: list[Row], nfe: int, elsewhere: bool = True) -> str:
    """Which rows of that NFE are marked, and which have no images; without `elsewhere`, of those that are sampled here."""
    shown = {row.key for row in rows}
    names = {name for name, _ in shown}
    wanted = [key for key in view.methods if key[1] == nfe and (elsewhere or not view.images_only(key[0]))]
    absent = [key[0] for key in wanted if key not in shown]
    words = [f"{', '.join(mine)}: {remark}" for remark, rows in view.remarked.items() if (mine := [row for row in rows if row in names])]
    return "; ".join([*_origin(view), *words, *([f"no images yet: {', '.join(absent)}"] if absent else [])])


def _origin(view: View) -> list[str]:
    return [f"{REFERENCE}: {view.origin}"] if view.origin else []


def _sweep(view: View, name: str, every: dict[Key, dict[int, Folder]]) -> Sheet | None:
    """One row at each NFE that has images of one and the same seed; None where that is fewer than two."""
    mine = {key: seeds for key, seeds in every.items() if key[0] == name and key[1]}
    seed = usual_seed(mine)
    folders = {key: seeds[seed] for key, seeds in sorted(mine.items()) if seed in seeds}
    if len(folders) < 2:
        return None
    folders |= {key: min(every[key].items())[1] for key in REFERENCES[:1] if key in every}
    order = sorted(folders, key=lambda key: (key not in REFERENCES, key[1]))
    rows = [Row(key, row_name(key, view), _below(key, folders[key], seed)) for key in order]
    prompts = prompts_of(folders, rows)
    words = f"{name}, {view.split} set, seed {seed}: the same prompts and seed at every NFE; prompts chosen by place in the list"
    absent = [str(nfe) for row, nfe in view.methods if row == name and (row, nfe) not in folders]
    foot = _origin(view) + list(view.remarks(name)) + ([f"NFE without images of this seed: {', '.join(absent)}"] if absent else [])
    return Sheet(folders, rows, prompts, 1, words, "; ".join(foot)) if prompts else None
