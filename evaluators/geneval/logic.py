"""GenEval's verdict on one image, from detections alone (Ghosh et al. 2023, arXiv 2310.11513).

Follows the official evaluation of djghosh13/geneval in every rule and constant; no detector and no
colour classifier is in here. Coordinates are pixels, x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from apex.errors import UserError

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS = 16  # per class
POSITION_MARGIN = 0.1  # of the summed extents
POSITION_SHARE = 0.5  # of the raw distance between the centres
NO_OFFSET = 1e-3  # pixels
RELATIONS = ("left of", "right of", "above", "below")


class Detection(NamedTuple):
    """One object: box (x0, y0, x1, y1) in pixels, score in [0, 1], mask boolean (H, W) or None."""

    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray | None = None


class Detector(Protocol):
    """Images uint8 (B, H, W, 3) -> per image, class name -> detections."""

    name: str
    classes: Sequence[str]
    colors: Sequence[str]

    def __call__(self, images: np.ndarray) -> list[dict[str, list[Detection]]]: ...


class ColorClassifier(Protocol):
    """Image uint8 (H, W, 3), its objects of one class, and the class name -> one colour name per object."""

    def __call__(self, image: np.ndarray, objects: Sequence[Detection], class_name: str) -> list[str]: ...


class Reason(NamedTuple):
    """Why an image failed: the kind (missing, colour, position, extra) and the sentence."""

    kind: str
    text: str


class Verdict(NamedTuple):
    correct: bool
    reasons: tuple[Reason, ...]


def keep(detections: Mapping[str, Sequence[Detection]], tag: str) -> dict[str, list[Detection]]:
    """The detections that count: above the threshold (0.9 for counting, else 0.3), best first, at most 16 a class."""
    # In the precision of a detector's scores, of which the one nearest to 0.3 is not above 0.3.
    threshold = np.float32(COUNTING_THRESHOLD if tag == "counting" else THRESHOLD)
    kept = {
        name: sorted((d for d in found if np.float32(d.score) > threshold), key=lambda d: -d.score) for name, found in detections.items()
    }
    return {name: found[:MAX_OBJECTS] for name, found in kept.items() if found}


def relative_position(a: Sequence[float], b: Sequence[float]) -> set[str]:
    """The relations in which box `a` stands to box `b`.

    Per axis the distance of the centres is shrunk by 0.1 of the summed extents (not below zero) and divided
    by the length of the raw offset; a relation holds beyond 0.5. None hold when nothing is left after shrinking.
    """
    raw, shrunk = [], []
    for low, high in ((0, 2), (1, 3)):
        offset = (a[low] + a[high]) / 2 - (b[low] + b[high]) / 2
        extent = abs(a[high] - a[low]) + abs(b[high] - b[low])
        raw.append(offset)
        shrunk.append(float(np.sign(offset)) * max(abs(offset) - POSITION_MARGIN * extent, 0.0))
    if max(abs(shrunk[0]), abs(shrunk[1])) < NO_OFFSET:
        return set()
    length = float(np.hypot(*raw))
    dx, dy = shrunk[0] / length, shrunk[1] / length
    holds = (dx < -POSITION_SHARE, dx > POSITION_SHARE, dy < -POSITION_SHARE, dy > POSITION_SHARE)
    return {name for name, true in zip(RELATIONS, holds, strict=True) if true}


def judge(
    detections: Mapping[str, Sequence[Detection]], metadata: Mapping, classify: Callable[[Sequence[Detection], str], list[str]]
) -> Verdict:
    """The verdict on one image.

    Args:
        detections: class name -> all detections of the image.
        metadata: the prompt's line: `tag`, `include`, optionally `exclude`.
        classify: (objects of one class, class name) -> one colour per object; called only where a colour is asked for.

    The `count` best objects of a class are the matched ones; colour and position look at these alone, so extra
    objects never hurt, except through `exclude`.
    """
    objects = keep(detections, metadata["tag"])
    reasons: list[Reason] = []
    groups: list[Sequence[Detection] | None] = []  # matched objects per include entry, None where it failed
    for wanted in metadata.get("include", []):
        name, count = wanted["class"], wanted["count"]
        found = objects.get(name, [])[:count]
        failures: list[Reason] = []
        if len(found) < count:
            failures.append(Reason("missing", f"expected {name}>={count}, found {len(found)}"))
        elif "color" in wanted:
            colors = classify(found, name)
            if (right := sum(c == wanted["color"] for c in colors)) < count:
                failures.append(
                    Reason("colour", f"expected {wanted['color']} {name}>={count}, found {right}; colours: {', '.join(colors)}")
                )
        if "position" in wanted and not failures:
            relation, index = wanted["position"]
            if groups[index] is None:
                failures.append(Reason("position", f"no target for {name} to be {relation}"))
            else:
                pairs = (relative_position(obj.box, target.box) for obj in found for target in groups[index])
                wrong = next((seen for seen in pairs if relation not in seen), None)
                if wrong is not None:
                    seen = " and ".join(sorted(wrong)) or "no relation"
                    failures.append(Reason("position", f"expected {name} {relation} target, found {seen}"))
        reasons += failures
        groups.append(None if failures else found)
    for unwanted in metadata.get("exclude", []):
        number = len(objects.get(unwanted["class"], []))
        if number >= unwanted["count"]:
            reasons.append(Reason("extra", f"expected {unwanted['class']}<{unwanted['count']}, found {number}"))
    return Verdict(not reasons, tuple(reasons))


def overall(by_task: Mapping[str, float]) -> float:
    """The unweighted mean of the tasks' accuracies."""
    return float(np.mean(list(by_task.values())))


def check_known(row: Mapping, where: str, classes: Sequence[str], colors: Sequence[str]) -> None:
    """Checks that a prompt asks only for classes and colours that can be judged; its format is checked on reading.

    Raises:
        UserError: naming `where`, what was found, and what is expected.
    """
    if "include" not in row:
        raise UserError(f"{where}: found no include, so no prompt of GenEval's; choose another prompt set or evaluator")
    for entry in [*row["include"], *row.get("exclude", [])]:
        if entry["class"] not in classes:
            raise UserError(
                f"{where}: class {entry['class']!r}; this detector knows {', '.join(classes)}: choose another prompt set or detector"
            )
        if entry.get("color", colors[0]) not in colors:
            raise UserError(f"{where}: color {entry['color']!r}; known are {', '.join(colors)}: choose another prompt set or detector")
