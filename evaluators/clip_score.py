"""CLIP score of a folder of images: 100 x mean cosine of image and prompt (Hessel et al. 2021, without their factor 2.5).

    python -m evaluators.clip_score --images results/world/images/apex/nfe1/seed0/test --out clip_score.json

The CLIP is any folder in open_clip's format; the bundled one is small and knows the embedded world, so its numbers
compare with each other alone. It tells colours, numbers and the axis of a place, and not which of two objects is the
upper or the left one: GenEval judges that. Beside the score stand `clip_score/real`, fresh renders with their own prompts, and
`clip_score/shuffled`, the same renders with the prompts of others: the useful range. Intervals: bootstrap over prompts
within task.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from apex.errors import UserError, run_command
from evaluators.clip_model import Clip
from evaluators.command import begin, check_world, fresh_renders, image_parser, progress, prompt_weights, square_side, write_record
from evaluators.images import Images
from evaluators.networks import BUNDLED
from evaluators.result import Metric
from evaluators.statistics import interval, mean_of_prompts

VERSION = "1"
REFERENCE = 3_000_017  # seed of the renders


def derangement(texts: list[str]) -> np.ndarray:
    """For each prompt the index of another one with another text: a fixed rotation of the sorted texts, (prompts,).

    Raises:
        UserError: one text makes up more than half of the prompts.
    """
    order = np.argsort(np.array(texts), kind="stable")
    most = max(texts.count(t) for t in set(texts))
    if 2 * most > len(texts):
        raise UserError(f"{most} of {len(texts)} prompts say the same; shuffled pairs need other prompts")
    partner = np.empty(len(texts), int)
    partner[order] = np.roll(order, -most)
    return partner


def cosines(images: Tensor, texts: Tensor) -> np.ndarray:
    """100 x cosine of each image with its text; unit vectors (n, D) both."""
    return 100 * (images * texts).sum(1).numpy().astype(np.float64)


def metric(name: str, values: np.ndarray, prompts: np.ndarray, weights: np.ndarray) -> Metric:
    sums, counts = np.bincount(prompts, values), np.bincount(prompts).astype(float)
    low, high = interval(mean_of_prompts(sums, counts, weights))
    return Metric(
        metric=name,
        value=float(mean_of_prompts(sums, counts)),
        unit="100 x cosine",
        n=len(values),
        ci_low=low,
        ci_high=high,
        higher_is_better=True,
        interval="bootstrap 95%",
    )


def score(images: Images, clip: Clip, weights: np.ndarray, seed: int) -> list[Metric]:
    """The score with its two references."""
    prompts, texts = images.prompt_of, [row["prompt"] for row in images.rows]
    partner = derangement(texts)
    said = clip.encode_texts(texts)

    def encode(batches, total: int, name: str) -> np.ndarray:
        parts = [clip.encode_images([Image.fromarray(image) for image in batch]).numpy() for batch in progress(batches, total, name)]
        return np.concatenate(parts)

    generated = torch.from_numpy(encode(images.batches(64), (len(images) + 63) // 64, "clip_score, batches of 64 images"))
    renders = fresh_renders(images.rows, [len(f) for f in images.files], square_side(images), REFERENCE + seed)
    parts = np.array_split(renders, max(1, len(renders) // 64))
    real = torch.from_numpy(encode(iter(parts), len(parts), "clip_score, batches of renders"))
    return [
        metric("clip_score", cosines(generated, said[prompts]), prompts, weights),
        metric("clip_score/real", cosines(real, said[prompts]), prompts, weights),
        metric("clip_score/shuffled", cosines(real, said[partner[prompts]]), prompts, weights),
    ]


def main(argv: list[str] | None = None) -> None:
    parser = image_parser("evaluators.clip_score", __doc__)
    parser.add_argument("--weights", type=Path, default=BUNDLED / "clip", help="open_clip folder (default: bundled)")
    run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    started = time.time()
    images, device = begin(args)
    check_world(images)
    clip = Clip(args.weights, device)
    found = score(images, clip, prompt_weights(images, args.seed), args.seed)
    write_record(args, images, "clip_score", VERSION, found, {"clip": clip.identity, "code": "open_clip"}, started)


if __name__ == "__main__":
    sys.exit(run_command(main))
