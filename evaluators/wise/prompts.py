"""WISE's prompts as a prompt file for `apex.sample`; and its images as the official code takes them, PROMPT_ID.png.

python -m evaluators.wise.prompts --out wise.jsonl
python -m evaluators.wise.prompts --images FOLDER --out-images FLAT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from apex.command import Parser
from apex.errors import UserError, run_command
from apex.files import write_atomic
from evaluators.flat import match
from evaluators.images import open_anonymous
from evaluators.wise.versions import VERSIONS, load


def main(argv: list[str] | None = None) -> None:
    parser = Parser("evaluators.wise.prompts", __doc__)
    parser.add_argument("--version", choices=sorted(VERSIONS), default="2025", help="of the benchmark (default: 2025)")
    parser.add_argument("--prompts", type=Path, help="folder of its three files (default: the assets)")
    parser.add_argument("--out", type=Path, help="prompt file to write: JSON lines with prompt, tag (the category) and prompt_id")
    parser.add_argument("--images", type=Path, help="folder in GenEval's layout, one image a prompt")
    parser.add_argument("--out-images", type=Path, help="folder to write its images to as PROMPT_ID.png")
    args = parser.parse_args(argv)
    if (args.images is None) != (args.out_images is None) or (args.out is None and args.images is None):
        raise UserError("give --out FILE for the prompts, or --images FOLDER with --out-images FOLDER")
    prompts, _ = load(VERSIONS[args.version], args.prompts)
    if args.out is not None:
        lines = [json.dumps({"prompt": p.text, "tag": p.category, "prompt_id": p.number}) for p in prompts.values()]
        write_atomic(args.out, "\n".join(lines) + "\n")
        print(f"{len(lines)} prompts")
    if args.images is not None:
        images = open_anonymous(args.images)
        if len(images.files[0]) != 1:
            raise UserError(f"{args.images}: {len(images.files[0])} images a prompt; the official code takes one")
        for name, files in zip(match(images, {n: p.text for n, p in prompts.items()}, "prompt_id"), images.files, strict=True):
            write_atomic(args.out_images / f"{name}.png", files[0].read_bytes())


if __name__ == "__main__":
    sys.exit(run_command(main))
