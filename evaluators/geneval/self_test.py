"""A look at the detector and the colour check before hours are spent on them: known pictures in, known objects expected.

The world's are tried on renders, where the truth is known: a miss ends the run. The official ones are tried on pictures that are drawn
here, since no photograph comes with the suite: what they find is kept in the record, and a warning is printed where it is nothing, but no
miss ends the run, for they were trained on photographs. A picture of your own (`--self-test-image FILE --self-test-class NAME`) does.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from apex.data import pictures, world
from apex.errors import UserError
from evaluators.geneval.logic import COUNTING_THRESHOLD, THRESHOLD, ColorClassifier, Detection, Detector

SIDE = 512  # of the drawn pictures, pixels


def _canvas(above: tuple[int, int, int], below: tuple[int, int, int], horizon: float) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A picture of two faded areas, as of a sky and a ground."""
    shade = np.linspace(0.85, 1.1, SIDE)[:, None, None]
    ground = np.arange(SIDE)[:, None, None] > horizon * SIDE
    image = np.broadcast_to(np.where(ground, below, above) * shade, (SIDE, SIDE, 3))
    picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    return picture, ImageDraw.Draw(picture)


def _around(x: float, y: float, radius: float, corners: int, turn: float = 0.0) -> list[tuple[float, float]]:
    angles = [math.tau * (i + turn) / corners for i in range(corners)]
    return [(x + radius * math.sin(a), y - radius * math.cos(a)) for a in angles]


def stop_sign() -> Image.Image:
    picture, draw = _canvas((150, 190, 230), (110, 130, 80), 0.8)
    draw.rectangle((248, 280, 264, 500), fill=(120, 120, 125))
    for radius, color in ((150, (245, 245, 245)), (140, (190, 20, 30))):
        draw.polygon(_around(256, 200, radius, 8, 0.5), fill=color)
    draw.text((256, 200), "STOP", fill=(250, 250, 250), font=ImageFont.load_default(96), anchor="mm", stroke_width=2)
    return picture


def clock() -> Image.Image:
    picture, draw = _canvas((205, 195, 175), (140, 100, 70), 0.92)
    for radius, color in ((165, (40, 30, 30)), (148, (250, 250, 245))):
        draw.ellipse((256 - radius, 240 - radius, 256 + radius, 240 + radius), fill=color)
    for hour, (x, y) in enumerate(_around(256, 240, 118, 12)):
        draw.text((x, y), str(hour or 12), fill=(10, 10, 10), font=ImageFont.load_default(32), anchor="mm")
    for length, width, turn in ((70, 11, 10.15), (108, 7, 1.8)):
        draw.line([(256, 240), _around(256, 240, length, 12, turn)[0]], fill=(10, 10, 10), width=width)
    return picture


def traffic_light() -> Image.Image:
    picture, draw = _canvas((160, 195, 230), (95, 95, 100), 0.85)
    draw.rectangle((244, 330, 268, 512), fill=(70, 70, 75))
    draw.rounded_rectangle((186, 60, 326, 350), 24, fill=(28, 32, 28))
    for y, color in ((115, (235, 30, 25)), (205, (70, 60, 20)), (295, (15, 60, 30))):
        draw.ellipse((216, y - 40, 296, y + 40), fill=color)
    return picture


DRAWN: dict[str, Callable[[], Image.Image]] = {"stop sign": stop_sign, "clock": clock, "traffic light": traffic_light}


def said(found: dict[str, list[Detection]], shown: int = 5) -> str:
    """What a detector found that counts, the most confident first, in words."""
    all_found = sorted(((d.score, name) for name, each in found.items() for d in each if d.score > THRESHOLD), reverse=True)
    return ", ".join(f"{name} {score:.2f}" for score, name in all_found[:shown]) or "nothing above 0.3"


def try_world(detector: Detector, classify: ColorClassifier, weights: Path) -> str:
    """Renders of one object each, all shapes in all colours: every one has to be found, with its colour.

    Raises:
        UserError: naming the picture, what was found, and what is there.
    """
    shown = [(shape, color) for shape in world.SHAPES for color in world.COLORS]
    items = [world.Item(shape, color, 0.5, 0.5, 0.2, world.COLORS[color]) for shape, color in shown]
    images = np.stack([world.render(world.Scene((item,), "dark", (0.15, 0.15), 0.0, 1.0), 32) for item in items])
    for image, found, (shape, color) in zip(images, detector(images), shown, strict=True):
        best = [d for d in found.get(shape, []) if d.score > COUNTING_THRESHOLD]
        named = classify(image, best[:1], shape)[0] if best else "no colour asked for"
        if named != color:
            raise UserError(
                f"{weights}: self-test failed on a render of one {color} {shape}: found {said(found)}; colour: {named}; "
                "the detector or the CLIP is not one of the world's"
            )
    return f"{len(shown)} renders of one object: all found, with their colours"


def try_drawn(detector: Detector) -> dict[str, str]:
    """What is found on each drawn picture; a warning where none is found for what it shows."""
    found = dict(zip(DRAWN, detector(np.stack([np.asarray(draw()) for draw in DRAWN.values()])), strict=True))
    if not any(d.score > THRESHOLD for name, each in found.items() for d in each.get(name, [])):
        print(
            f"warning: the detector finds none of the drawn {', '.join(DRAWN)} ({'; '.join(map(said, found.values()))}); try it on a "
            "photograph: --self-test-image FILE --self-test-class NAME",
            file=sys.stderr,
        )
    return {name: said(each) for name, each in found.items()}


def try_picture(detector: Detector, file: Path, name: str) -> str:
    """A picture of the user's own, which has to show an object of the class.

    Raises:
        UserError: the class is not known, the picture cannot be read, or the object is not found; with what was found.
    """
    if name not in detector.classes:
        raise UserError(f"--self-test-class {name}: not known; this detector knows {', '.join(detector.classes)}")
    if not file.exists():
        raise UserError(f"--self-test-image {file}: not found; expected a picture of a {name}")
    image = pictures.read(file, f"--self-test-image {file}").pixels
    (found,) = detector(image[None])
    if not any(d.score > THRESHOLD for d in found.get(name, [])):
        raise UserError(f"{file}: self-test failed: expected a {name} above {THRESHOLD}, found {said(found)}")
    return f"{file.name}: {said(found)}"


def run(detector: Detector, classify: ColorClassifier, weights: Path, file: Path | None = None, name: str | None = None) -> dict[str, Any]:
    """The self-test of the detector that was chosen; what was seen, for the record."""
    if (file is None) != (name is None):
        raise UserError("--self-test-image and --self-test-class: expected both or none")
    seen: dict[str, Any] = (
        {"renders": try_world(detector, classify, weights)} if detector.name == "world" else {"drawn": try_drawn(detector)}
    )
    if file is not None:
        seen["picture"] = try_picture(detector, file, name)
    return seen
