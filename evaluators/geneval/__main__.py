"""GenEval on a folder of images: one record with the six tasks' accuracies and their unweighted mean.

    python -m evaluators.geneval --images results/world/images/apex/nfe1/seed0/test --out geneval.json
    python -m evaluators.geneval --images FOLDER --row NAME --nfe 1 --out geneval.json     (a folder without made.json)
    python -m evaluators.geneval --images FOLDER --row NAME --nfe 1 --out geneval.json --detector transformers

The detector: `world`, the embedded world's; `transformers` and `mmdet`, the official Mask2Former by either library, on the official
prompts, with the colours named by OpenAI's CLIP ViT-L/14. Fetch what the official ones need: python -m evaluators.assets fetch
geneval-prompts mask2former-mmdet clip-vit-l-14. They are slow, so their verdicts are kept beside the record: the same call goes on where
it was cut off.

Intervals: bootstrap over prompts within task; the images of a prompt are one cluster. `details.per_prompt` holds
the number of correct images of every prompt, so that two rows can be compared prompt by prompt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from apex.command import BATCH_SIZE
from apex.data import pictures
from apex.errors import readable, run_command
from apex.provenance import file_sha256
from evaluators.assets import BUNDLED, find, registry
from evaluators.command import begin, image_parser, is_unseen, progress, prompt_weights, write_record
from evaluators.geneval import ASSET, self_test
from evaluators.geneval.logic import ColorClassifier, Detector, Reason, Verdict, check_known, judge
from evaluators.geneval.prompts import prompt_set
from evaluators.images import Images, pixels
from evaluators.journal import Journal
from evaluators.result import Metric, compared
from evaluators.statistics import bootstrapped, mean_of_prompts, mean_of_tasks

VERSION = "1"
# Where each is, and images at once; a module is imported only where it is chosen.
DETECTORS = {
    "world": ("evaluators.geneval.world_detector", "WorldDetector", 64),
    "transformers": ("evaluators.geneval.mask2former", "TransformersDetector", 4),
    "mmdet": ("evaluators.geneval.mmdet_detector", "MmdetDetector", 4),
}


def verdicts(images: np.ndarray, rows: list[dict], detector: Detector, classify: ColorClassifier) -> list[Verdict]:
    """Verdicts on a batch of images, uint8 (B, H, W, 3), each with its prompt line."""
    found = detector(images)
    return [
        judge(seen, row, lambda objects, name, image=image: classify(image, objects, name))
        for image, row, seen in zip(images, rows, found, strict=True)
    ]


def key_of(images: Images, prompt: int) -> str:
    """A prompt's name in the journal: its number, and a digest of its line and of its images."""
    digest = hashlib.sha256(json.dumps(images.rows[prompt], sort_keys=True).encode())
    for path in images.files[prompt]:
        digest.update(bytes.fromhex(pictures.sha256_of(path)))
    return f"{prompt} {digest.hexdigest()}"


def score(
    images: Images, detector: Detector, classify: ColorClassifier, batch: int = 64, journal: Journal | None = None
) -> list[list[Verdict]]:
    """Verdicts per prompt, in the folder's order. Those in the journal are taken from there; the others are added as they come."""
    keys = [key_of(images, prompt) for prompt in range(len(images.rows))] if journal is not None else []
    answered = [journal.get(key) for key in keys] if journal is not None else [None] * len(images.rows)
    found = [[Verdict(correct, tuple(Reason(*r) for r in reasons)) for correct, reasons in answer or []] for answer in answered]
    waiting = [(prompt, path) for prompt, files in enumerate(images.files) if answered[prompt] is None for path in files]
    batches = [waiting[start : start + batch] for start in range(0, len(waiting), batch)]
    for chosen in progress(batches, len(batches), f"geneval, batches of {batch} images"):
        rows = [images.rows[prompt] for prompt, _ in chosen]
        judged = verdicts(pixels([path for _, path in chosen]), rows, detector, classify)
        for (prompt, _), verdict in zip(chosen, judged, strict=True):
            found[prompt].append(verdict)
            if journal is not None and len(found[prompt]) == len(images.files[prompt]):
                journal.add(keys[prompt], [[v.correct, [list(r) for r in v.reasons]] for v in found[prompt]])
    return found


def metrics(rows: list[dict], correct: np.ndarray, counts: np.ndarray, weights: np.ndarray, divided: bool = True) -> list[Metric]:
    """The record's metrics from correct images and images per prompt, with bootstrap intervals; seen and unseen prompts apart where the
    set is divided so, as the world's is."""
    tasks = np.array([row["tag"] for row in rows])
    unseen = np.array([is_unseen(row) for row in rows])

    def metric(name: str, chosen: np.ndarray, by_task: bool) -> Metric:
        part = (correct[chosen], counts[chosen])
        value, resampled = (
            (mean_of_tasks(*part, tasks[chosen]), mean_of_tasks(*part, tasks[chosen], weights[:, chosen]))
            if by_task
            else (mean_of_prompts(*part), mean_of_prompts(*part, weights[:, chosen]))
        )
        return bootstrapped(f"geneval/{name}", value, resampled, "fraction", int(counts[chosen].sum()))

    found = [metric("overall", np.ones(len(rows), bool), True)]
    found += [metric(task, tasks == task, False) for task in dict.fromkeys(tasks.tolist())]
    for name, chosen in (("seen", ~unseen), ("unseen", unseen)):
        if divided and chosen.any():
            found.append(metric(name, chosen, True))
    return found


def weights_of(path: Path) -> dict[str, Any]:
    """The detector's weights for the record: file, SHA-256, from which file they were converted, and whether that is the official one."""
    file = path / "model.safetensors" if path.is_dir() else path
    about: dict[str, Any] = {"file": file.name, "sha256": file_sha256(file)}
    if (path / "made.json").is_file():
        with readable(path / "made.json", "convert the weights again"):
            about["converted_from"] = json.loads((path / "made.json").read_text()).get("sha256")
    official = str(about.get("converted_from") or about["sha256"]).startswith(registry()[ASSET].sha256)
    return {**about, "official": official}


def main(argv: list[str] | None = None) -> None:
    parser = image_parser("evaluators.geneval", __doc__)
    parser.add_argument("--detector", choices=list(DETECTORS), default="world", help="what finds the objects (default: world)")
    parser.add_argument(
        "--detector-weights",
        type=Path,
        help=f"world: its folder (default: bundled); else mmdet's .pth (default: the fetched {ASSET}) or, for transformers, the folder "
        "that evaluators.geneval.convert made of it",
    )
    parser.add_argument(
        "--clip-weights",
        type=Path,
        help="of the colour check. world: open_clip folder (default: bundled); else OpenAI's ViT-L/14 (default: the fetched clip-vit-l-14)",
    )
    parser.add_argument("--batch", type=BATCH_SIZE, help="images at once (default: 64 for world, else 4)")
    parser.add_argument("--self-test-image", type=Path, metavar="FILE", help="a picture on which the detector has to find ...")
    parser.add_argument("--self-test-class", metavar="NAME", help="... an object of this class, before anything is scored")
    run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    from evaluators.clip_model import Clip, is_official
    from evaluators.geneval.color import ClipColors

    started = time.time()
    is_world = args.detector == "world"
    weights = args.detector_weights or BUNDLED / "detector" if is_world else find(ASSET, args.detector_weights, "--detector-weights")
    clip_weights = args.clip_weights or BUNDLED / "clip" if is_world else find("clip-vit-l-14", args.clip_weights, "--clip-weights")
    images, device = begin(args)
    module, name, batch = DETECTORS[args.detector]
    kind = getattr(import_module(module), name)
    for index, row in enumerate(images.rows):
        check_known(row, f"{images.folder}: prompt {index}", kind.classes, kind.colors)
    detector = kind.load(weights, device)
    clip = Clip(clip_weights, device) if is_world else Clip.openai(clip_weights, device)
    classify = ClipColors(clip, detector.colors)
    tested = self_test.run(detector, classify, weights, args.self_test_image, args.self_test_class)
    about = {"detector": args.detector, "detector_weights": weights_of(weights), "clip": clip.identity}
    kept = Journal(args.out.parent, f"{args.out.stem}-verdicts", {**about, "version": VERSION}) if not is_world else nullcontext()
    with kept as journal:
        found = score(images, detector, classify, args.batch or batch, journal)
    correct = np.array([sum(v.correct for v in each) for each in found], float)
    counts = np.array([len(each) for each in found], float)
    failures = Counter(kind for each in found for v in each for kind in {reason.kind for reason in v.reasons})
    prompts = prompt_set(images.rows)
    differs = {
        "other weights than the detector's": not about["detector_weights"]["official"],
        "another file than OpenAI's CLIP": not is_official(clip),
        f"prompts: {prompts['name']}": prompts["name"] != "official",
    }
    details = {
        **about,
        **({} if is_world else compared(differs)),
        "prompt_set": prompts,
        "self_test": tested,
        "failures": dict(failures.most_common()),
        "per_prompt": [
            {"tag": row["tag"], "prompt": row["prompt"], "correct": int(right), "images": int(n)}
            for row, right, n in zip(images.rows, correct, counts, strict=True)
        ],
    }
    measured = metrics(images.rows, correct, counts, prompt_weights(images, args.seed), divided=is_world)
    write_record(args, images, "geneval", VERSION, measured, details, started)


if __name__ == "__main__":
    sys.exit(run_command(main))
