"""What the world's evaluators measure on fresh renders of a prompt set. It is the same for every row, so the workflow measures it once.

    python -m evaluators.references --config workflows/config/world.yaml --score test=fid,clip_score,coverage \\
        --out 'results/world/references/{split}/{evaluator}.safetensors'

An evaluator reads its file by `--references`. The file counts only if it is of the same prompts, images a prompt, size, seed, network and
kind of device; else, as without the option, the evaluator measures the renders itself. The numbers are the same bits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from apex.command import Parser, filled
from apex.errors import UserError, run_command
from apex.files import write_atomic
from apex.provenance import digest

MODULES = {"fid": "evaluators.fid.world", "clip_score": "evaluators.clip_score", "coverage": "evaluators.coverage"}
KEY = "of"  # in the file's metadata: what the arrays were measured on and by
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Renders:
    """What fresh renders depend on.

    Attributes:
        rows: the prompt lines (P). counts: images of each prompt that a row has (P). side: in pixels. seed: the evaluator's.
    """

    rows: list[dict[str, Any]]
    counts: list[int]
    side: int
    seed: int


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--references", type=Path, metavar="FILE", help="what `evaluators.references` measured on renders (default: measured here)"
    )


def kept(path: Path | None, key: str, measure: Callable[[], Arrays]) -> Arrays:
    """The arrays of the file if it has this key, else what `measure` gives.

    Raises:
        UserError: the file is not safetensors.
    """
    if path is None or not path.is_file():
        return measure()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get(KEY) == key:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: found no safetensors file ({error}); remove it and run the workflow again") from None
    return measure()


def key_of(evaluator: str, version: str, renders: Renders, networks: list[Path], device: str) -> str:
    """Names everything that the measured arrays depend on."""
    from apex.config import fingerprint

    parts = [renders.rows, renders.counts, renders.side, renders.seed, [fingerprint(folder) for folder in networks]]
    return digest([evaluator, version, *parts, device.partition(":")[0]])


def main() -> None:
    parser = Parser("evaluators.references", __doc__)
    parser.add_argument("--config", required=True, type=Path, help="the profile")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of the profile")
    parser.add_argument("--score", required=True, nargs="+", metavar="SPLIT=EVALUATORS", help="of which evaluators, for which prompt sets")
    parser.add_argument("--out", required=True, help="the files' path, with `{split}` and `{evaluator}`")
    args = parser.parse_args()
    from safetensors.numpy import save

    from apex.config import load
    from apex.generator import prompt_rows
    from apex.gpu import pick_device
    from evaluators.__main__ import scores
    from evaluators.command import set_threads

    chosen = [scores(text, MODULES) for text in args.score]
    config, device = load(args.config, args.set), pick_device("auto")
    set_threads(1)
    for split, names in chosen:
        rows = prompt_rows(config, split)
        renders = Renders(rows, [config.images_per_prompt(split)] * len(rows), config.data.resolution, 0)
        for name in names:
            key, measure = import_module(MODULES[name]).references(renders, device)
            out = filled(args.out, split=split, evaluator=name)
            write_atomic(Path(out), save(measure(), {KEY: key}))


if __name__ == "__main__":
    sys.exit(run_command(main))
