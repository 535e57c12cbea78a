"""DPG-Bench's prompts, as a prompt file for `apex.sample`, or as the official folder of ITEM_ID.txt.

python -m evaluators.dpg.prompts --out dpg.jsonl
python -m evaluators.dpg.prompts --out-texts FOLDER
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from apex.command import Parser
from apex.errors import UserError, run_command
from apex.files import write_atomic
from evaluators import assets
from evaluators.dpg.questions import load


def tag(item_id: str) -> str:
    """The collection that a prompt is from, which its id begins with: partiprompts97 is of partiprompts."""
    return re.match(r"[A-Za-z]*", item_id)[0] or "numbered"


def main(argv: list[str] | None = None) -> None:
    parser = Parser("evaluators.dpg.prompts", __doc__)
    parser.add_argument("--questions", type=Path, help="dpg_bench.csv (default: the asset dpg-bench)")
    parser.add_argument("--out", type=Path, help="prompt file to write: JSON lines with prompt, tag and item_id")
    parser.add_argument("--out-texts", type=Path, help="folder to write with ITEM_ID.txt, as the benchmark keeps its prompts")
    args = parser.parse_args(argv)
    if args.out is None and args.out_texts is None:
        raise UserError("nothing to write: give --out FILE, --out-texts FOLDER or both")
    prompts = load(assets.find("dpg-bench", args.questions, "--questions")).prompts
    if args.out is not None:
        lines = [json.dumps({"prompt": text, "tag": tag(name), "item_id": name}) for name, text in prompts.items()]
        write_atomic(args.out, "\n".join(lines) + "\n")
    if args.out_texts is not None:
        for name, text in prompts.items():
            write_atomic(args.out_texts / f"{name}.txt", text)
    print(f"{len(prompts)} prompts")


if __name__ == "__main__":
    sys.exit(run_command(main))
