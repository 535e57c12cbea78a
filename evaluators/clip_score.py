"""CLIP score of a folder of images: 100 x mean cosine of image and prompt (Hessel et al. 2021, without their factor 2.5).

    python -m evaluators.clip_score --images results/world/images/apex/nfe1/seed0/test --out clip_score.json
    python -m evaluators.clip_score --protocol openai --images FOLDER --row NAME --nfe 1 --out clip_score.json

`world`: the CLIP is any folder in open_clip's format; the bundled one is small and knows the embedded world, so its numbers
compare with each other alone. It tells colours, numbers and the axis of a place, and not which of two objects is the
upper or the left one: GenEval judges that. Beside the score stand `clip_score/real`, fresh renders with their own prompts, and
`clip_score/shuffled`, the same renders with the prompts of others: the useful range.

`openai`: the published protocol, as SANA's code has it (tools/metrics/clip-score): OpenAI's ViT-L/14, any prompts, cut after 77
tokens. There are no real images; `clip_score/shuffled` is the scored images themselves with the prompts of others.

Intervals: bootstrap over prompts within their `tag` (the task). docs/evaluators/clip_score.md says more.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from apex.command import BATCH_SIZE
from apex.errors import UserError, run_command
from evaluators.assets import BUNDLED, find
from evaluators.command import (
    begin,
    check_world,
    fresh_renders,
    image_parser,
    progress,
    prompt_weights,
    square_side,
    write_record,
)
from evaluators.images import Images
from evaluators.references import Arrays, Renders, add_argument, kept, key_of
from evaluators.result import Metric, compared
from evaluators.statistics import bootstrapped, mean_of_prompts

if TYPE_CHECKING:
    from torch import Tensor

    from evaluators.clip_model import Clip

VERSION = "1"
REFERENCE = 3_000_017  # seed of the renders
BATCH = 64  # images read at once


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
    return bootstrapped(name, mean_of_prompts(sums, counts), mean_of_prompts(sums, counts, weights), "100 x cosine", len(values))


def encode(clip: Clip, batches: Iterable[np.ndarray], total: int, name: str) -> Tensor:
    """Batches of uint8 images (B, H, W, 3) -> unit vectors, float32 (N, D)."""
    import torch

    return torch.cat([clip.encode_images([Image.fromarray(image) for image in batch]) for batch in progress(batches, total, name)])


def encode_folder(clip: Clip, images: Images) -> Tensor:
    return encode(clip, images.batches(BATCH), -(-len(images) // BATCH), f"clip_score, batches of {BATCH} images")


def references(renders: Renders, device: str, weights: Path | None = None, clip: Clip | None = None) -> tuple[str, Callable[[], Arrays]]:
    """The key of what is measured on fresh renders, and how it is: unit vectors, float32 (N, D)."""
    from evaluators.clip_model import Clip as Network

    folder = weights or BUNDLED / "clip"

    def measure() -> Arrays:
        pictures = fresh_renders(renders.rows, renders.counts, renders.side, REFERENCE + renders.seed)
        parts = np.array_split(pictures, max(1, len(pictures) // 64))
        return {
            "renders": encode(clip or Network(folder, device, BATCH), iter(parts), len(parts), "clip_score, batches of renders").numpy()
        }

    return key_of("clip_score", VERSION, renders, [folder], device), measure


def score(images: Images, clip: Clip, weights: np.ndarray, real: Tensor) -> list[Metric]:
    """The world's score with its two references. real: unit vectors of fresh renders, float32 (N, D)."""
    prompts, texts = images.prompt_of, [row["prompt"] for row in images.rows]
    partner = derangement(texts)
    said = clip.encode_texts(texts)
    generated = encode_folder(clip, images)
    return [
        metric("clip_score", cosines(generated, said[prompts]), prompts, weights),
        metric("clip_score/real", cosines(real, said[prompts]), prompts, weights),
        metric("clip_score/shuffled", cosines(real, said[partner[prompts]]), prompts, weights),
    ]


def score_published(images: Images, clip: Clip, weights: np.ndarray) -> tuple[list[Metric], dict]:
    """OpenAI's score with its floor, the same images with the prompts of others; and what the record says beside them."""
    import torch

    prompts, texts = images.prompt_of, [row["prompt"] for row in images.rows]
    details: dict = {"prompts_cut_after_77_tokens": clip.too_long(texts)}
    details["prompts_cut"] = len(details["prompts_cut_after_77_tokens"])
    try:
        partner = derangement(texts)
    except UserError as error:
        partner, details["no_shuffled"] = None, str(error)
    said = torch.cat(
        [
            clip.encode_texts(texts[start : start + 1024])
            for start in progress(range(0, len(texts), 1024), -(-len(texts) // 1024), "clip_score, batches of 1024 prompts")
        ]
    )
    generated = encode_folder(clip, images)
    values = cosines(generated, said[prompts])
    details["per_prompt"] = [round(v, 4) for v in (np.bincount(prompts, values) / np.bincount(prompts)).tolist()]
    found = [metric("clip_score", values, prompts, weights)]
    if partner is not None:
        found.append(metric("clip_score/shuffled", cosines(generated, said[partner[prompts]]), prompts, weights))
    return found, details


def main(argv: list[str] | None = None) -> None:
    parser = image_parser("evaluators.clip_score", __doc__)
    parser.add_argument("--protocol", choices=("world", "openai"), default="world", help="whose CLIP and which prompts (default: world)")
    parser.add_argument(
        "--weights",
        type=Path,
        help="world: open_clip folder (default: bundled); openai: ViT-L-14.pt, its weights as safetensors, or an open_clip folder "
        "(default: the fetched asset clip-vit-l-14)",
    )
    parser.add_argument(
        "--batch", type=BATCH_SIZE, default=BATCH, help=f"images and texts that the network takes at once (default: {BATCH})"
    )
    add_argument(parser)
    run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    import torch

    from evaluators.clip_model import Clip, is_official

    started = time.time()
    published = find("clip-vit-l-14", args.weights, "--weights") if args.protocol == "openai" else None
    images, device = begin(args)
    weights = prompt_weights(images, args.seed)
    if published is None:
        check_world(images)
        clip = Clip(args.weights or BUNDLED / "clip", device, args.batch)
        renders = Renders(images.rows, [len(f) for f in images.files], square_side(images), args.seed)
        real = kept(args.references, *references(renders, device, args.weights, clip))["renders"]
        found, details = score(images, clip, weights, torch.from_numpy(real)), {}
    else:
        clip = Clip.openai(published, device, args.batch)
        found, details = score_published(images, clip, weights)
        details |= {"clip_sha256": clip.sha256, **compared({"another file than OpenAI's CLIP": not is_official(clip)})}
    details = {"protocol": args.protocol, "clip": clip.identity, "code": "open_clip"} | details
    write_record(args, images, "clip_score", VERSION, found, details, started)


if __name__ == "__main__":
    sys.exit(run_command(main))
