"""GenEval on a folder of images: one record with the six tasks' accuracies and their unweighted mean.

    python -m evaluators.geneval --images results/world/images/apex/nfe1/seed0/test --out geneval.json
    python -m evaluators.geneval --images FOLDER --row NAME --nfe 1 --out geneval.json     (a folder without made.json)

Intervals: bootstrap over prompts within task; the images of a prompt are one cluster. `details.per_prompt` holds
the number of correct images of every prompt, so that two rows can be compared prompt by prompt.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from apex.errors import run_command
from evaluators.clip_model import Clip
from evaluators.command import begin, image_parser, is_unseen, progress, prompt_weights, write_record
from evaluators.geneval.color import ClipColors
from evaluators.geneval.logic import ColorClassifier, Detector, Verdict, check_known, judge
from evaluators.geneval.world_detector import WorldDetector
from evaluators.images import Images
from evaluators.networks import BUNDLED
from evaluators.result import Metric
from evaluators.statistics import interval, mean_of_prompts, mean_of_tasks

VERSION = "1"
DETECTORS = {"world": WorldDetector}


def verdicts(images: np.ndarray, rows: list[dict], detector: Detector, classify: ColorClassifier) -> list[Verdict]:
    """Verdicts on a batch of images, uint8 (B, H, W, 3), each with its prompt line."""
    found = detector(images)
    return [
        judge(seen, row, lambda objects, name, image=image: classify(image, objects, name))
        for image, row, seen in zip(images, rows, found, strict=True)
    ]


def score(images: Images, detector: Detector, classify: ColorClassifier) -> list[list[Verdict]]:
    """Verdicts per prompt, in the folder's order."""
    rows = [images.rows[p] for p in images.prompt_of]
    flat: list[Verdict] = []
    batches = (len(images) + 63) // 64
    for batch in progress(images.batches(64), batches, "geneval, batches of 64 images"):
        flat += verdicts(batch, rows[len(flat) : len(flat) + len(batch)], detector, classify)
    ends = np.cumsum([len(f) for f in images.files])
    return [flat[end - len(f) : end] for end, f in zip(ends, images.files, strict=True)]


def metrics(rows: list[dict], correct: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> list[Metric]:
    """The record's metrics from correct images and images per prompt, with bootstrap intervals."""
    tasks = np.array([row["tag"] for row in rows])
    unseen = np.array([is_unseen(row) for row in rows])

    def metric(name: str, chosen: np.ndarray, by_task: bool) -> Metric:
        part = (correct[chosen], counts[chosen])
        value, resampled = (
            (mean_of_tasks(*part, tasks[chosen]), mean_of_tasks(*part, tasks[chosen], weights[:, chosen]))
            if by_task
            else (mean_of_prompts(*part), mean_of_prompts(*part, weights[:, chosen]))
        )
        low, high = interval(resampled)
        return Metric(
            metric=f"geneval/{name}",
            value=float(value),
            unit="fraction",
            n=int(counts[chosen].sum()),
            ci_low=low,
            ci_high=high,
            higher_is_better=True,
            interval="bootstrap 95%",
        )

    found = [metric("overall", np.ones(len(rows), bool), True)]
    found += [metric(task, tasks == task, False) for task in dict.fromkeys(tasks.tolist())]
    for name, chosen in (("seen", ~unseen), ("unseen", unseen)):
        if chosen.any():
            found.append(metric(name, chosen, True))
    return found


def main(argv: list[str] | None = None) -> None:
    parser = image_parser("evaluators.geneval", __doc__)
    parser.add_argument("--detector", choices=sorted(DETECTORS), default="world", help="what finds the objects (default: world)")
    parser.add_argument("--detector-weights", type=Path, default=BUNDLED / "detector", help="its folder (default: bundled)")
    parser.add_argument(
        "--clip-weights", type=Path, default=BUNDLED / "clip", help="open_clip folder of the colour check (default: bundled)"
    )
    run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    started = time.time()
    images, device = begin(args)
    detector = DETECTORS[args.detector].load(args.detector_weights, device)
    for index, row in enumerate(images.rows):
        check_known(row, f"{images.folder}: prompt {index}", detector.classes, detector.colors)
    clip = Clip(args.clip_weights, device)
    found = score(images, detector, ClipColors(clip, detector.colors))
    correct = np.array([sum(v.correct for v in each) for each in found], float)
    counts = np.array([len(each) for each in found], float)
    failures = Counter(kind for each in found for v in each for kind in {reason.kind for reason in v.reasons})
    details = {
        "detector": args.detector,
        "clip": clip.identity,
        "failures": dict(failures.most_common()),
        "per_prompt": [
            {"tag": row["tag"], "prompt": row["prompt"], "correct": int(right), "images": int(n)}
            for row, right, n in zip(images.rows, correct, counts, strict=True)
        ],
    }
    write_record(
        args, images, "geneval", VERSION, metrics(images.rows, correct, counts, prompt_weights(images, args.seed)), details, started
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
