"""Scenes with the faults that generators make, and how much of each object a person would still accept.

`draw` returns an image and, for every object in it, a score in [0, 1]: 1 for a fine object (also a
slightly soft or noisy one, as a latent codec gives), 0 for what is no longer that shape, and a linear
ramp between. The detector is trained to predict these scores, so they are its definition of an object.

Every ramp is a row of `RAMPS`: up to the first number the object is fine, beyond the second it is none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from apex.data import world

RAMPS = {
    "blur": (0.25, 0.50),  # standard deviation of the edge's softness, in half extents
    "noise": (0.10, 0.30),  # white noise, standard deviation; image values in [0, 1]
    "colour_noise": (0.08, 0.25),  # smooth noise, standard deviation
    "fade": (0.25, 0.65),  # share of the background that shines through
    "hidden": (0.08, 0.30),  # share of the area that is cut off or covered
    "morph": (0.20, 0.45),  # share of another shape in the distance field
    "wobble": (0.06, 0.20),  # relative dents of the outline
    "stretch": (1.20, 1.60),  # aspect ratio
    "two_colours": (0.35, 0.90),  # distance of the two ends of a colour gradient, RGB in [0, 1]
    "merge": (0.05, 0.50),  # overlap with another object, in half extents of the smaller
    "tiny": (-0.095, -0.06),  # minus the half extent, fraction of the side
}
FAULTS = ("fade", "soft", "hidden", "morph", "wobble", "stretch", "two_colours", "blotch", "merge", "tiny")


def score(fault: str, value: float) -> float:
    """How much of an object is left at `value` of a fault: 1, falling linearly to 0 (see `RAMPS`)."""
    full, none = RAMPS[fault]
    return float(np.clip((none - value) / (none - full), 0.0, 1.0))


@dataclass(frozen=True)
class Target:
    """One object of a drawing: class index, score, and its box (x0, y0, x1, y1) as fractions of the side."""

    shape: int
    score: float
    box: tuple[float, float, float, float]


@dataclass
class Drawing:
    """`image` float (R, R, 3) in [0, 1]; `cover` (R, R), how much of each pixel belongs to any object."""

    image: np.ndarray
    targets: list[Target]
    cover: np.ndarray

    def weakened(self, factor: float) -> list[Target]:
        return [replace(t, score=t.score * factor) for t in self.targets]


def _smooth(rng: np.random.Generator, resolution: int, cell: float, channels: int = 3) -> np.ndarray:
    """Smooth noise with unit variance, (R, R, channels); features are about `cell` pixels wide."""
    coarse = max(2, int(np.ceil(resolution / cell)) + 1)
    field = zoom(rng.standard_normal((coarse, coarse, channels)), (resolution / coarse, resolution / coarse, 1), order=1)
    return (field - field.mean()) / (field.std() + 1e-6)


def _background(rng: np.random.Generator, resolution: int, scene: world.Scene) -> np.ndarray:
    image = world.render(replace(scene, items=()), resolution) / 255.0
    return np.clip(image + rng.normal(0, 0.06, 3), 0, 1) if rng.random() < 0.15 else image


def _free_scene(rng: np.random.Generator) -> world.Scene:
    """Objects of any size and place that barely touch, also over the border: wider than the world's own scenes."""
    items: list[world.Item] = []
    for _ in range(rng.integers(0, 6)):
        size = rng.uniform(0.09, 0.28)
        x, y = rng.uniform(0.6 * size, 1 - 0.6 * size, 2)
        if all(max(abs(x - i.x), abs(y - i.y)) >= size + i.size + 0.01 for i in items):
            items.append(_item(rng, x, y, size))
    low, high = world.BACKGROUNDS[str(rng.choice(list(world.BACKGROUNDS)))]
    grey = rng.uniform(low, high, 2)
    return world.Scene(tuple(items), "", (float(grey[0]), float(grey[1])), float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.6, 1.6)))


def _item(rng: np.random.Generator, x: float, y: float, size: float) -> world.Item:
    color = str(rng.choice(list(world.COLORS)))
    rgb = tuple(float(v) for v in np.clip(np.array(world.COLORS[color]) + rng.uniform(-0.06, 0.06, 3), 0, 1))
    return world.Item(str(rng.choice(world.SHAPES)), color, float(x), float(y), float(size), rgb)


class WorldScenes:
    """Scenes of all prompts, held-out pairs too: an evaluator must know what a generator is never shown."""

    def __init__(self) -> None:
        self._rows = {task: list(world.all_prompts(task)) for task in world.TASKS}

    def prompt(self, rng: np.random.Generator) -> dict:
        rows = self._rows[world.TASKS[rng.choice(len(world.TASKS), p=list(world.TASK_WEIGHTS.values()))]]
        return rows[rng.integers(len(rows))]

    def __call__(self, rng: np.random.Generator) -> world.Scene:
        return world.scene_for(self.prompt(rng), rng, allow_held_out=True)


def _paint(rng: np.random.Generator, drawing: Drawing, item: world.Item, edge: float, fault: str | None) -> None:
    """Draws one object over `drawing` with one fault, and appends its target."""
    resolution = len(drawing.image)
    centres = (np.arange(resolution) + 0.5) / resolution
    x, y = np.meshgrid(centres, centres)
    u, v, left, second = x - item.x, y - item.y, 1.0, None
    half_x = half_y = item.size
    colour = np.broadcast_to(np.array(item.rgb), (resolution, resolution, 3))
    alpha = 1.0
    if fault == "stretch":
        ratio = rng.uniform(1, 2.2)
        sx, sy = (ratio**0.5, ratio**-0.5) if rng.random() < 0.5 else (ratio**-0.5, ratio**0.5)
        u, v, half_x, half_y, left = u / sx, v / sy, half_x * sx, half_y * sy, score("stretch", ratio)
    distance = world._distance(item, u + item.x, v + item.y)
    if fault == "morph":
        share = rng.uniform(0, 1)
        other = replace(item, shape=str(rng.choice([s for s in world.SHAPES if s != item.shape])))
        distance = (1 - share) * distance + share * world._distance(other, x, y)
        left, second = score("morph", share), Target(world.SHAPES.index(other.shape), score("morph", 1 - share), item.box)
    elif fault == "wobble":
        size, angle = rng.uniform(0, 0.35), np.arctan2(v, u)
        waves = sum(rng.normal() * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 6)) / 2**0.5 / 2
        distance, left = distance + size * item.size * waves, score("wobble", size)
    elif fault == "soft":
        edge = rng.uniform(1.5, 2.5 * item.size * resolution)
        left = score("blur", edge / 12**0.5 / (item.size * resolution))
    elif fault == "fade":
        alpha = rng.uniform(0.1, 1)
        left = score("fade", 1 - alpha)
    elif fault == "two_colours":
        end = np.clip(np.array(world.COLORS[str(rng.choice(list(world.COLORS)))]) * rng.uniform(0.7, 1), 0, 1)
        angle, width = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 2.0)
        ramp = np.clip(0.5 + (np.cos(angle) * u + np.sin(angle) * v) / (item.size * width), 0, 1)[..., None]
        colour, left = colour * (1 - ramp) + end * ramp, score("two_colours", float(np.linalg.norm(end - item.rgb)))
    elif fault == "blotch":
        size = rng.uniform(0, 0.5)
        colour, left = np.clip(colour + size * _smooth(rng, resolution, rng.uniform(2, 5)), 0, 1), score("colour_noise", size * 0.8)
    elif fault == "tiny":
        left = score("tiny", -item.size)
    cover = np.clip(0.5 - distance * resolution / edge, 0, 1)
    if fault == "hidden":
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.9, 1.0) * item.size
        kept = np.clip(0.5 + (offset - np.cos(angle) * u - np.sin(angle) * v) * resolution / edge, 0, 1)
        left = score("hidden", 1 - float((cover * kept).sum() / (cover.sum() + 1e-6)))
        cover = cover * kept
    outside = [max(0.0, -(item.x - half_x), item.x + half_x - 1), max(0.0, -(item.y - half_y), item.y + half_y - 1)]
    left *= score("hidden", max(outside) / (2 * item.size))
    cover = cover * alpha
    drawing.image = drawing.image * (1 - cover[..., None]) + colour * cover[..., None]
    drawing.cover = np.maximum(drawing.cover, cover)
    box = (item.x - half_x, item.y - half_y, item.x + half_x, item.y + half_y)
    drawing.targets.append(Target(world.SHAPES.index(item.shape), left, box))
    if second:
        drawing.targets.append(second)


def _merge(rng: np.random.Generator, drawing: Drawing, item: world.Item, edge: float) -> None:
    """Draws a second object against `item`, which is already the last target: same shape and colour, or another."""
    same = rng.random() < 0.6
    size = float(np.clip(item.size * rng.uniform(0.8, 1.2), 0.09, 0.28))
    overlap = rng.uniform(-0.2, 1.2) * min(size, item.size)
    along, across = item.size + size - overlap, rng.uniform(-0.8, 0.8) * item.size
    dx, dy = (along, across) if rng.random() < 0.5 else (across, along)
    signs = rng.choice([-1, 1], 2)
    new = replace(item, x=float(item.x + signs[0] * dx), y=float(item.y + signs[1] * dy), size=size)
    if not same:
        new = replace(_item(rng, new.x, new.y, size), shape=str(rng.choice(world.SHAPES)))
    index = len(drawing.targets) - 1
    before = drawing.targets[index]
    area = world.mask(item, len(drawing.image))
    _paint(rng, drawing, new, edge, None)
    if same:  # two of one colour flow together: neither is left
        left = score("merge", overlap / min(size, item.size))
        drawing.targets[-1] = replace(drawing.targets[-1], score=drawing.targets[-1].score * left)
    else:  # the upper one is whole, the lower one is partly hidden
        left = score("hidden", float((area & world.mask(new, len(drawing.image))).sum() / max(area.sum(), 1)))
    drawing.targets[index] = replace(before, score=before.score * left)


def _scene_drawing(rng: np.random.Generator, scene: world.Scene, resolution: int, fault_share: float) -> Drawing:
    drawing = Drawing(_background(rng, resolution, scene), [], np.zeros((resolution, resolution)))
    for item in scene.items:
        fault = str(rng.choice(FAULTS)) if rng.random() < fault_share else None
        if fault == "tiny":
            item = replace(item, size=float(rng.uniform(0.03, 0.11)))
        _paint(rng, drawing, item, scene.edge, None if fault == "merge" else fault)
        if fault == "merge":
            _merge(rng, drawing, item, scene.edge)
    return drawing


def _patchwork(rng: np.random.Generator, a: Drawing, b: Drawing) -> Drawing:
    """Replaces some patches (an eighth to a quarter of the side) of `a` by those of `b`: incoherent latent tokens."""
    resolution = len(a.image)
    patch = resolution // int(rng.choice([4, 8]))
    cells = rng.random((resolution // patch, resolution // patch)) < rng.uniform(0.05, 0.5)
    from_b = np.kron(cells, np.ones((patch, patch))).astype(bool)
    targets = []
    for drawing, kept in ((a, ~from_b), (b, from_b)):
        for t in drawing.targets:
            x0, y0, x1, y1 = (int(np.clip(round(v * resolution), 0, resolution)) for v in t.box)
            part = drawing.cover[y0:y1, x0:x1]
            hidden = 1 - float((part * kept[y0:y1, x0:x1]).sum() / (part.sum() + 1e-6))
            targets.append(replace(t, score=t.score * score("hidden", hidden)))
    return Drawing(np.where(from_b[..., None], b.image, a.image), targets, np.where(from_b, b.cover, a.cover))


def _nothing(rng: np.random.Generator, resolution: int, scenes: WorldScenes) -> Drawing:
    """An image without objects: noise, smooth colour, blobs, the mean of many scenes, an empty background."""
    kind = rng.integers(5)
    if kind == 0:
        image = rng.random((resolution, resolution, 3))
    elif kind == 1:
        image = rng.random(3) + rng.uniform(0.1, 0.4) * _smooth(rng, resolution, rng.uniform(2, 12))
    elif kind == 2:
        image = np.full((resolution, resolution, 3), rng.uniform(0.05, 0.95))
        for _ in range(rng.integers(1, 6)):
            spot = np.zeros((resolution, resolution))
            spot[tuple(rng.integers(0, resolution, 2))] = 1
            spot = gaussian_filter(spot, rng.uniform(0.08, 0.2, 2) * resolution)
            spot = (rng.uniform(0.5, 1) * spot / spot.max())[..., None]
            image = image * (1 - spot) + rng.random(3) * spot
    elif kind == 3:
        image = np.mean([world.render(scenes(rng), resolution) for _ in range(rng.integers(5, 20))], axis=0) / 255.0
    else:
        image = _background(rng, resolution, _free_scene(rng))
    return Drawing(np.clip(image, 0, 1), [], np.zeros((resolution, resolution)))


def soften(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The loss of a good latent codec: slightly soft edges and faint colour noise (about 28 to 40 dB)."""
    resolution = len(image)
    blur = rng.uniform(0, 0.75) * resolution / 32
    image = gaussian_filter(image, (blur, blur, 0))
    image = image + rng.uniform(0, 0.04) * _smooth(rng, resolution, rng.uniform(1.5, 5) * resolution / 32)
    return image + rng.normal(0, rng.uniform(0, 0.03), image.shape)


def _spoil(rng: np.random.Generator, drawing: Drawing) -> Drawing:
    """One fault of the whole image: strong blur, white noise, smooth colour noise, loss of contrast."""
    resolution = len(drawing.image)
    kind = rng.integers(4)
    if kind == 0:
        blur = rng.uniform(0.02, 0.125) * resolution
        image = gaussian_filter(drawing.image, (blur, blur, 0), mode="nearest")
        targets = [replace(t, score=t.score * score("blur", blur / resolution / ((t.box[2] - t.box[0]) / 2))) for t in drawing.targets]
        return Drawing(image, targets, drawing.cover)
    if kind == 1:
        size = rng.uniform(0.03, 0.5)
        return Drawing(drawing.image + rng.normal(0, size, drawing.image.shape), drawing.weakened(score("noise", size)), drawing.cover)
    if kind == 2:
        size = rng.uniform(0.03, 0.4)
        field = _smooth(rng, resolution, rng.uniform(2, 8) * resolution / 32)
        return Drawing(drawing.image + size * field, drawing.weakened(score("colour_noise", size)), drawing.cover)
    contrast = rng.uniform(0.1, 1)
    mean = drawing.image.mean((0, 1))
    return Drawing(mean + contrast * (drawing.image - mean), drawing.weakened(score("fade", 1 - contrast)), drawing.cover)


def draw(rng: np.random.Generator, scenes: WorldScenes, resolution: int) -> tuple[np.ndarray, list[Target], np.ndarray]:
    """One training image of the detector.

    Returns the image, uint8 (R, R, 3); its targets, those without any score left out; and the cover, float32 (R, R).
    """

    def base(fault_share: float) -> Drawing:
        scene = scenes(rng) if rng.random() < 0.65 else _free_scene(rng)
        return _scene_drawing(rng, scene, resolution, fault_share)

    kind = rng.random()
    if kind < 0.45:
        drawing = base(0.0)
    elif kind < 0.70:
        drawing = base(0.6)
    elif kind < 0.82:
        drawing = _spoil(rng, base(0.2))
    elif kind < 0.88:
        drawing = _patchwork(rng, base(0.1), base(0.1))
    elif kind < 0.94:
        a, b, share = base(0.0), base(0.0), rng.uniform(0.1, 0.9)
        targets = a.weakened(score("fade", 1 - share)) + b.weakened(score("fade", share))
        drawing = Drawing(share * a.image + (1 - share) * b.image, targets, np.maximum(share * a.cover, (1 - share) * b.cover))
    else:
        drawing = _nothing(rng, resolution, scenes)
    image = soften(rng, drawing.image) if rng.random() < 0.75 else drawing.image
    image = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return image, [t for t in drawing.targets if t.score > 0], drawing.cover.astype(np.float32)
