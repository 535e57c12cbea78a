"""A folder of images as the official DPG-Bench code takes it: ITEM_ID.png, the four images of a prompt in a 2x2 picture.

python -m evaluators.dpg.grids --images FOLDER --out GRIDS
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from apex.command import Parser
from apex.data import pictures
from apex.errors import UserError, run_command
from apex.files import write_atomic
from evaluators import assets
from evaluators.command import progress
from evaluators.dpg.questions import load
from evaluators.flat import match
from evaluators.images import open_anonymous


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """Four images of one square size as one, row by row."""
    side = images[0].width
    whole = Image.new("RGB", (2 * side, 2 * side))
    for k, image in enumerate(images):
        whole.paste(image, (k % 2 * side, k // 2 * side))
    return whole


def main(argv: list[str] | None = None) -> None:
    parser = Parser("evaluators.dpg.grids", __doc__)
    parser.add_argument("--images", required=True, type=Path, help="folder in GenEval's layout, four images a prompt")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--questions", type=Path, help="dpg_bench.csv (default: the asset dpg-bench)")
    args = parser.parse_args(argv)
    bench = load(assets.find("dpg-bench", args.questions, "--questions"))
    images = open_anonymous(args.images)
    ids = match(images, bench.prompts, "item_id")
    width, height = images.size
    if width != height or len(images.files[0]) != 4:
        raise UserError(f"{args.images}: {len(images.files[0])} images of {width}x{height} a prompt; a grid is of four squares")
    for name, files in zip(progress(ids, len(ids), "grids"), images.files, strict=True):
        buffer = io.BytesIO()
        grid([pictures.image_of(path, path) for path in files]).save(buffer, format="PNG")
        write_atomic(args.out / f"{name}.png", buffer.getvalue())


if __name__ == "__main__":
    sys.exit(run_command(main))
