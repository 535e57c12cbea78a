"""The embedded world: scenes of coloured shapes, their captions and their exact truth.

A scene belongs to one of GenEval's six tasks (Ghosh et al. 2023, arXiv 2310.11513), with shapes in
the place of COCO objects. The same code makes training scenes, prompt sets and, for a given prompt,
fresh scenes that fulfil it (the reference for coverage and the ceiling row of every table).

    python -m apex.data.world --show scenes.png      draw a sheet of scenes with their captions
    python -m apex.data.world --prompts DIR          write the prompt sets (committed in the package)

Coordinates are fractions of the image side: x to the right, y down, so one scene renders at any
resolution. Shapes are signed distance functions; anti-aliasing is the width of their edge.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apex.command import RESOLUTION, SEED, Parser
from apex.errors import UserError, run_command
from apex.files import atomic_file, write_atomic

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.70, 0.15),
    "blue": (0.12, 0.20, 0.92),
    "yellow": (0.95, 0.88, 0.10),
    "purple": (0.62, 0.12, 0.80),
    "cyan": (0.10, 0.82, 0.90),
}
BACKGROUNDS = {"dark": (0.05, 0.28), "light": (0.70, 0.95)}
RELATIONS = ("left of", "right of", "above", "below")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
NUMBERS = {2: "two", 3: "three", 4: "four"}

# Never rendered and never captioned in training; `unseen.jsonl` asks for them.
HELD_OUT_COLORS = frozenset({("purple", "circle"), ("cyan", "square"), ("yellow", "triangle"), ("red", "cross")})
HELD_OUT_RELATIONS = frozenset(
    {("circle", "left of", "square"), ("triangle", "above", "cross"), ("cross", "left of", "triangle"), ("square", "above", "circle")}
)

# Share of each task in training: the compositional tasks are harder, so they come more often.
TASK_WEIGHTS = {"single_object": 0.10, "two_object": 0.18, "counting": 0.20, "colors": 0.10, "position": 0.22, "color_attr": 0.20}

# Half extents (fraction of the side) by the number of objects in the scene.
SIZES = {1: (0.15, 0.27), 2: (0.14, 0.20), 3: (0.125, 0.165), 4: (0.125, 0.155)}
MARGIN = 0.02  # of every object to the border
GAP = 0.035  # between the boxes of two objects


@dataclass(frozen=True)
class Item:
    """One drawn object: centre (x, y) and half extent, as fractions of the image side."""

    shape: str
    color: str
    x: float
    y: float
    size: float
    rgb: tuple[float, float, float]

    @property
    def box(self) -> tuple[float, float, float, float]:
        return (self.x - self.size, self.y - self.size, self.x + self.size, self.y + self.size)


@dataclass(frozen=True)
class Scene:
    """What is drawn: the objects, the grey background (a linear gradient) and the edge width in pixels."""

    items: tuple[Item, ...]
    background: str
    grey: tuple[float, float]
    angle: float
    edge: float


def inverse(relation: str) -> str:
    return {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[relation]


def is_held_out_relation(subject: str, relation: str, reference: str) -> bool:
    triple, mirrored = (subject, relation, reference), (reference, inverse(relation), subject)
    return triple in HELD_OUT_RELATIONS or mirrored in HELD_OUT_RELATIONS


def relations_between(a: tuple[float, ...], b: tuple[float, ...]) -> set[str]:
    """GenEval's position rule: the relations in which box `a` stands to box `b` (x0, y0, x1, y1).

    Source: djghosh13/geneval, evaluation/evaluate_images.py. Per axis the centre offset is shrunk by
    0.1 of the summed extents, then divided by the raw offset's norm; a relation holds beyond 0.5.
    """
    (ax, ay), (bx, by) = (((c[0] + c[2]) / 2, (c[1] + c[3]) / 2) for c in (a, b))
    raw = np.array([ax - bx, ay - by])
    extent = np.array([(a[2] - a[0]) + (b[2] - b[0]), (a[3] - a[1]) + (b[3] - b[1])])
    shrunk = np.maximum(np.abs(raw) - 0.1 * extent, 0.0) * np.sign(raw)
    norm = float(np.linalg.norm(raw))
    if norm == 0.0:
        return set()
    dx, dy = shrunk / norm
    found = set()
    if dx < -0.5:
        found.add("left of")
    if dx > 0.5:
        found.add("right of")
    if dy < -0.5:
        found.add("above")
    if dy > 0.5:
        found.add("below")
    return found


# ------------------------------------------------------------------------------------------ prompts


def _noun(shape: str, count: int = 1) -> str:
    return shape if count == 1 else shape + ("es" if shape == "cross" else "s")


TEMPLATES = {
    "single_object": ("a {0}", "one {0}", "a single {0}", "a picture of a {0}", "an image of one {0}", "there is a {0}"),
    "two_object": ("a {0} and a {1}", "a {0} with a {1}", "a picture of a {0} and a {1}", "one {0} and one {1}"),
    "counting": ("{n} {0}", "a picture of {n} {0}", "there are {n} {0}"),
    "colors": ("a {c0} {0}", "one {c0} {0}", "a {0} that is {c0}", "a picture of a {c0} {0}"),
    "position": ("a {0} {rel} a {1}", "a picture of a {0} {rel} a {1}", "there is a {0} {rel} a {1}"),
    "color_attr": ("a {c0} {0} and a {c1} {1}", "a {0} that is {c0} and a {1} that is {c1}", "a {c0} {0} with a {c1} {1}"),
}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


def prompt_row(
    task: str,
    shapes: tuple[str, ...],
    *,
    colors: tuple[str, ...] = (),
    count: int = 1,
    relation: str | None = None,
    template: int = 0,
    relation_word: int = 0,
    background: str | None = None,
) -> dict:
    """One line of a prompt set in GenEval's format, with `seen` and `background` beside it.

    As in the official file, a position prompt names the reference object first in `include`.
    """
    words = {"n": NUMBERS.get(count, "one")}
    words |= {f"c{i}": c for i, c in enumerate(colors)}
    if relation:
        words["rel"] = RELATION_WORDS[relation][relation_word]
    text = TEMPLATES[task][template].format(*(_noun(s, count) for s in shapes), **words)
    if background:
        text += f" on a {background} background"
    include = [{"class": s, "count": count} for s in shapes]
    for entry, color in zip(include, colors, strict=False):
        entry["color"] = color
    seen = not any((c, s) in HELD_OUT_COLORS for c, s in zip(colors, shapes, strict=False))
    if relation:
        include = [{"class": shapes[1], "count": 1}, {"class": shapes[0], "count": 1, "position": [relation, 0]}]
        seen = seen and not is_held_out_relation(shapes[0], relation, shapes[1])
    row = {"tag": task, "include": include}
    if task == "counting":
        row["exclude"] = [{"class": shapes[0], "count": count + 1}]
    return row | {"prompt": text, "background": background, "seen": seen}


def shapes_alone(prompt: dict) -> str:
    """A poorer caption of the same scene: its shapes, without colours, numbers, places and background."""
    shapes = dict.fromkeys(entry["class"] for entry in prompt["include"])
    return " and ".join(f"a {shape}" for shape in shapes)


def all_prompts(task: str) -> Iterator[dict]:
    """Every prompt of one task that the grammar can say, seen and unseen."""
    templates = range(len(TEMPLATES[task]))
    backgrounds = (None, *BACKGROUNDS)
    pairs = list(itertools.permutations(SHAPES, 2))
    for template, background in itertools.product(templates, backgrounds):
        rest = {"template": template, "background": background}
        if task == "single_object":
            yield from (prompt_row(task, (s,), **rest) for s in SHAPES)
        elif task == "two_object":
            yield from (prompt_row(task, p, **rest) for p in pairs)
        elif task == "counting":
            yield from (prompt_row(task, (s,), count=n, **rest) for s in SHAPES for n in NUMBERS)
        elif task == "colors":
            yield from (prompt_row(task, (s,), colors=(c,), **rest) for s in SHAPES for c in COLORS)
        elif task == "position":
            for p, relation, word in itertools.product(pairs, RELATIONS, (0, 1)):
                yield prompt_row(task, p, relation=relation, relation_word=word, **rest)
        elif task == "color_attr":
            for p, colors in itertools.product(pairs, itertools.permutations(COLORS, 2)):
                yield prompt_row(task, p, colors=colors, **rest)


def prompt_sets(seed: int = 2310_11513) -> dict[str, list[dict]]:
    """The committed prompt sets: `val` (20 a task), `test` (50 a task), `unseen` (30 a task that has any).

    The sets share no prompt. `val` and `test` ask only for what training may show.
    """
    rng = np.random.default_rng(seed)
    sets: dict[str, list[dict]] = {"val": [], "test": [], "unseen": []}
    for task in TASKS:
        rows = list(all_prompts(task))
        seen, unseen = ([r for r in rows if r["seen"] is flag] for flag in (True, False))
        order = rng.permutation(len(seen))
        sets["val"] += [seen[i] for i in order[:20]]
        sets["test"] += [seen[i] for i in order[20:70]]
        if unseen:
            sets["unseen"] += [unseen[i] for i in rng.permutation(len(unseen))[:30]]
    return sets


# ------------------------------------------------------------------------------------------- scenes


def _place(rng: np.random.Generator, count: int, relation: str | None) -> list[tuple[float, float, float]]:
    """Centres and half extents of `count` objects without overlap; of two, the first stands in `relation`."""
    while True:
        placed: list[tuple[float, float, float]] = []
        for _ in range(count):
            for _ in range(40):
                size = rng.uniform(*SIZES[count])
                x, y = rng.uniform(size + MARGIN, 1 - size - MARGIN, 2)
                if all(max(abs(x - u), abs(y - v)) >= size + s + GAP for u, v, s in placed):
                    placed.append((x, y, size))
                    break
            else:
                break
        if len(placed) < count:
            continue
        if relation:
            boxes = [(x - s, y - s, x + s, y + s) for x, y, s in placed]
            if relations_between(*boxes) != {relation}:
                continue
        return placed


def check_drawable(prompt: dict, where: str) -> None:
    """Raises `UserError` beginning with `where` where no scene can fulfil a prompt, a line in GenEval's format."""

    def need(good: bool, found: object, expected: str) -> None:
        if not good:
            raise UserError(
                f"{where}: found {found}, expected {expected}, for the embedded world to draw it; "
                "leave the row out, or choose other prompts"
            )

    need("include" in prompt, "no include", "a prompt in GenEval's format")
    wanted = prompt["include"]
    for entry in [*wanted, *prompt.get("exclude", [])]:
        need(entry["class"] in SHAPES, f"class {entry['class']!r}", f"one of {', '.join(SHAPES)}")
        need(entry.get("color", "red") in COLORS, f"color {entry.get('color')!r}", f"one of {', '.join(COLORS)}")
    count = sum(entry["count"] for entry in wanted)
    need(count in SIZES, f"{count} objects", f"at most {max(SIZES)}")
    placed = [entry for entry in wanted if "position" in entry]
    need(not placed or (count == 2 == len(wanted)), f"a position among {count} objects", "two objects, one placed by the other")
    background = prompt.get("background")
    need(not background or background in BACKGROUNDS, f"background {background!r}", f"one of {', '.join(BACKGROUNDS)}")


def scene_for(prompt: dict, rng: np.random.Generator, *, allow_held_out: bool = False) -> Scene:
    """A random scene that fulfils `prompt`: what the prompt leaves open is drawn at random.

    Args:
        prompt: one line of a prompt set.
        rng: the only source of randomness.
        allow_held_out: draw held-out colour-shape and relation pairs too (for `unseen` prompts).
    """
    wanted = [(e["class"], e.get("color")) for e in prompt["include"] for _ in range(e["count"])]
    relation = next((e["position"][0] for e in prompt["include"] if "position" in e), None)
    if relation:  # the reference comes first in `include`; place the subject first
        wanted.reverse()
    one_color = prompt["tag"] == "counting"
    while True:
        shared = _free_color(rng, wanted[0][0], allow_held_out)
        colors = [c or (shared if one_color else _free_color(rng, s, allow_held_out)) for s, c in wanted]
        spots = _place(rng, len(wanted), relation)
        items = tuple(
            Item(shape, color, x, y, size, _jitter(rng, color))
            for (shape, _), color, (x, y, size) in zip(wanted, colors, spots, strict=True)
        )
        if allow_held_out or not _shows_held_out_relation(items):
            break
    background = prompt.get("background") or str(rng.choice(list(BACKGROUNDS)))
    low, high = BACKGROUNDS[background]
    base = rng.uniform(low, high)
    other = float(np.clip(base + rng.uniform(-0.08, 0.08), low, high))
    return Scene(items, background, (float(base), other), float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.6, 1.6)))


def _free_color(rng: np.random.Generator, shape: str, allow_held_out: bool) -> str:
    return str(rng.choice([c for c in COLORS if allow_held_out or (c, shape) not in HELD_OUT_COLORS]))


def _jitter(rng: np.random.Generator, color: str) -> tuple[float, float, float]:
    return tuple(float(v) for v in np.clip(np.array(COLORS[color]) + rng.uniform(-0.06, 0.06, 3), 0, 1))


def _shows_held_out_relation(items: tuple[Item, ...]) -> bool:
    return any(
        is_held_out_relation(a.shape, relation, b.shape)
        for a, b in itertools.permutations(items, 2)
        for relation in relations_between(a.box, b.box)
    )


class PromptSampler:
    """Draws training prompts: tasks by `TASK_WEIGHTS`, within a task uniformly over its seen prompts."""

    def __init__(self) -> None:
        self._rows = {task: [r for r in all_prompts(task) if r["seen"]] for task in TASKS}
        self._weights = np.array([TASK_WEIGHTS[t] for t in TASKS])

    def __call__(self, rng: np.random.Generator) -> dict:
        rows = self._rows[TASKS[rng.choice(len(TASKS), p=self._weights)]]
        return rows[rng.integers(len(rows))]


# ----------------------------------------------------------------------------------------- renderer


def _distance(item: Item, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the shape's border, negative inside, in fractions of the side."""
    u, v, r = x - item.x, y - item.y, item.size
    if item.shape == "circle":
        return np.hypot(u, v) - r
    if item.shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.88 * r
    if item.shape == "triangle":  # upright: base at the bottom, apex at the top
        slope = np.hypot(2.0, 1.0)
        return np.maximum(v - 0.9 * r, (2.0 * np.abs(u) - v - 0.95 * r) / slope)
    if item.shape == "cross":
        a, b, arm = np.abs(u), np.abs(v), 0.36 * r
        return np.minimum(np.maximum(a - r, b - arm), np.maximum(a - arm, b - r))
    raise ValueError(f"unknown shape {item.shape!r}; known: {', '.join(SHAPES)}")


def render(scene: Scene, resolution: int) -> np.ndarray:
    """The scene as uint8 RGB, (resolution, resolution, 3)."""
    centres = (np.arange(resolution) + 0.5) / resolution
    x, y = np.meshgrid(centres, centres)
    ramp = 0.5 + 0.5 * (np.cos(scene.angle) * (2 * x - 1) + np.sin(scene.angle) * (2 * y - 1)) / np.sqrt(2)
    grey = scene.grey[0] + (scene.grey[1] - scene.grey[0]) * ramp
    image = np.repeat(grey[..., None], 3, axis=2)
    for item in scene.items:
        cover = np.clip(0.5 - _distance(item, x, y) * resolution / scene.edge, 0, 1)[..., None]
        image = image * (1 - cover) + np.array(item.rgb) * cover
    return np.round(image * 255).astype(np.uint8)


def mask(item: Item, resolution: int) -> np.ndarray:
    """Where the object is, boolean (resolution, resolution)."""
    centres = (np.arange(resolution) + 0.5) / resolution
    x, y = np.meshgrid(centres, centres)
    return _distance(item, x, y) <= 0


def main() -> None:
    parser = Parser("apex.data.world", __doc__)
    parser.add_argument("--show", type=Path, help="write a sheet of scenes as PNG")
    parser.add_argument("--prompts", type=Path, help="write the prompt sets into this folder")
    parser.add_argument("--resolution", type=RESOLUTION, default=32)
    parser.add_argument("--seed", type=SEED, default=0)
    args = parser.parse_args()
    if args.prompts:
        args.prompts.mkdir(parents=True, exist_ok=True)
        for name, rows in prompt_sets().items():
            write_atomic(args.prompts / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    if args.show:
        from PIL import Image

        rng = np.random.default_rng(args.seed)
        sampler = PromptSampler()
        tiles = []
        for _ in range(48):
            prompt = sampler(rng)
            print(prompt["prompt"])
            tiles.append(np.pad(render(scene_for(prompt, rng), args.resolution), ((1, 1), (1, 1), (0, 0))))
        sheet = np.concatenate([np.concatenate(tiles[i : i + 8], axis=1) for i in range(0, 48, 8)], axis=0)
        with atomic_file(args.show) as file:
            Image.fromarray(sheet).resize((sheet.shape[1] * 3, sheet.shape[0] * 3), Image.NEAREST).save(file, "PNG")


if __name__ == "__main__":
    sys.exit(run_command(main))
