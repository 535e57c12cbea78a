"""DPG-Bench on a folder of images: its five categories and the overall score, 0 to 100, in one record.

    python -m evaluators.dpg --images FOLDER --out dpg.json                                     mPLUG, the protocol's judge
    python -m evaluators.dpg --images FOLDER --out dpg.json --judge transformers-vlm --model Qwen/Qwen2.5-VL-7B-Instruct

FOLDER is in GenEval's layout with the images of each prompt, or flat with a 2x2 picture a prompt, ITEM_ID.png. Answers are kept as they
come: the same call again goes on. Intervals: bootstrap over prompts. docs/evaluators/dpg.md says what the numbers mean.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from apex.command import BATCH_SIZE, RESOLUTION
from apex.data.pictures import image_of
from apex.errors import UserError, run_command
from apex.provenance import digest
from evaluators import assets
from evaluators.command import image_parser, progress, write_record
from evaluators.dpg import JUDGES, MPLUG
from evaluators.dpg.questions import Bench, Item, load
from evaluators.dpg.score import malformed, metrics, read_answer, tally
from evaluators.flat import Matched, open_matched
from evaluators.journal import Journal
from evaluators.statistics import bootstrap_weights

if TYPE_CHECKING:
    from evaluators.dpg.judges import Judge

VERSION = "1"
PER_PROMPT = 4  # images, of the protocol
LAYOUTS = ("auto", "geneval", "grid", "single")


def crops(picture: Image.Image, side: int) -> list[Image.Image]:
    """A 2x2 picture as its four, row by row, each `side` pixels wide and high."""
    corners = [(0, 0), (side, 0), (0, side), (side, side)]
    return [picture.crop((x, y, x + side, y + side)) for x, y in corners]


def pictures(matched: Matched, prompt: int, grid: bool) -> list[Image.Image]:
    """The images of one prompt, RGB."""
    found = [image_of(path, path) for path in matched.images.files[prompt]]
    return crops(found[0], matched.images.size[0] // 2) if grid else found


def check_size(matched: Matched, grid: bool, resolution: int | None) -> None:
    width, height = matched.images.size
    if grid and (width != height or width % 2):
        raise UserError(
            f"{matched.images.folder}: pictures of {width}x{height} cannot be cut into 2x2 squares; single ones need --layout single"
        )
    side = width // 2 if grid else width
    if resolution is not None and resolution != side:
        raise UserError(f"--resolution {resolution}: the images are {side} pixels wide ({matched.images.folder})")


def ask(matched: Matched, items: Mapping[str, Item], grid: bool, judge: Judge, journal: Journal) -> dict[str, list[list[str]]]:
    """The judge's answers by item_id, one list an image; those that the journal has are not asked for."""
    answers = {}
    for prompt, name in enumerate(progress(matched.ids, len(matched.ids), "dpg, prompts")):
        asked = [question.text for question in items[name].questions]
        images = pictures(matched, prompt, grid)
        shown = [(hashlib.sha256(image.tobytes()).hexdigest(), image.size) for image in images]
        keys = [[digest([*image, text]) for text in asked] for image in shown]
        open_pairs = [(image, text, key) for image, row in zip(images, keys, strict=True) for text, key in zip(asked, row, strict=True)]
        open_pairs = [pair for pair in open_pairs if pair[2] not in journal]
        if open_pairs:
            given = judge.answer([image for image, _, _ in open_pairs], [text for _, text, _ in open_pairs])
            for (_, _, key), text in zip(open_pairs, given, strict=True):
                journal.add(key, text)
        answers[name] = [[journal.get(key) for key in row] for row in keys]
    return answers


def verdicts(items: Mapping[str, Item], answers: Mapping[str, list[list[str]]], bench: Bench, exact: bool) -> dict[str, np.ndarray]:
    """Yes or not by item_id, (images, questions of `items`), bool."""
    found = {}
    for name, item in items.items():
        if name in answers:
            place = {q.number: k for k, q in enumerate(bench.items[name].questions)}
            chosen = [place[q.number] for q in item.questions]
            yes = np.array([[read_answer(text, exact) is True for text in row] for row in answers[name]])
            found[name] = yes[:, chosen]
    return found


def flat_texts(answers: Mapping[str, list[list[str]]]) -> Iterator[str]:
    for rows in answers.values():
        for row in rows:
            yield from row


def _percent(score: float | None) -> float | None:
    """0 to 100, rounded for the record; None: the official code leaves the prompt out."""
    return None if score is None else round(100 * float(score), 4)


def main(argv: list[str] | None = None) -> None:
    parser = image_parser("evaluators.dpg", __doc__)
    parser.add_argument("--questions", type=Path, help="dpg_bench.csv (default: the asset dpg-bench)")
    parser.add_argument("--judge", choices=JUDGES, default="mplug", help="who answers (default: mplug, the protocol's)")
    parser.add_argument("--model", help="its model, a folder or a name on its hub (mplug: the protocol's)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the judge (default: float32)")
    parser.add_argument("--batch", type=BATCH_SIZE, default=16, help="questions asked at once (default: 16)")
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="auto",
        help="geneval, or flat: 2x2 pictures or single ones (default: what is there; grid if flat)",
    )
    parser.add_argument("--resolution", type=RESOLUTION, help="side of an image in pixels, checked (default: what is there)")
    parser.add_argument("--partial", action="store_true", help="score a folder that lacks prompts")
    parser.add_argument("--answers", type=Path, help="folder of the answers kept (default: answers, beside the record)")
    run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    from evaluators.dpg import judges

    started = time.time()
    bench = load(assets.find("dpg-bench", args.questions, "--questions"))
    matched = open_matched(args, bench.prompts, "item_id", None if args.layout == "auto" else args.layout != "geneval")
    grid = matched.flat and args.layout != "single"
    check_size(matched, grid, args.resolution)
    for oddity in bench.oddities:
        print(f"dpg: {oddity}", file=sys.stderr)
    judge = judges.JUDGES[args.judge](args.model, matched.device, args.precision, args.batch)
    with Journal(args.answers or args.out.parent / "answers", "dpg", {"version": VERSION, **judge.identity}) as journal:
        answers = ask(matched, bench.items, grid, judge, journal)
    official, left_out = bench.official()
    left_out = [name for name in left_out if name in answers]
    readings = {
        "dpg": tally(official, verdicts(official, answers, bench, judge.exact), last_image_only=True),
        "dpg_all": tally(bench.items, verdicts(bench.items, answers, bench, judge.exact), last_image_only=False),
    }
    found = []
    for prefix, reading in readings.items():
        if reading.ids:
            found += metrics(reading, prefix, bootstrap_weights([""] * len(reading.ids), seed=args.seed))
    official_scores = dict(zip(readings["dpg"].ids, readings["dpg"].scores, strict=True))
    strange = [text for text in flat_texts(answers) if read_answer(text, judge.exact) is None]
    per_prompt = 4 if grid else len(matched.images.files[0])
    details = {
        "protocol": "DPG-Bench",
        "judge": judge.identity,
        "comparable": judge.identity.get("model", "").endswith(MPLUG.split("/")[1]) and per_prompt == PER_PROMPT and matched.whole,
        "questions_sha256": bench.sha256,
        "questions": sum(1 for _ in flat_texts(answers)),
        "images_per_prompt": per_prompt,
        "resolution": matched.images.size[0] // (2 if grid else 1),
        "prompts_missing": len(matched.missing),
        "prompts_rewritten": len(matched.rewritten),
        "left_out_by_the_official_code": left_out,
        "oddities": bench.oddities,
        "malformed": malformed(strange),
        "finer": {prefix: reading.details for prefix, reading in readings.items()},
        "per_prompt": [
            {"item_id": name, "score": _percent(score), "official": _percent(official_scores.get(name))}
            for name, score in zip(readings["dpg_all"].ids, readings["dpg_all"].scores, strict=True)
        ],
    }
    if strange:
        print(f"dpg: {len(strange)} answers are neither yes nor no and count as no, such as {strange[0][:60]!r}", file=sys.stderr)
    write_record(args, matched.images, "dpg", VERSION, found, details, started)


if __name__ == "__main__":
    sys.exit(run_command(main))
