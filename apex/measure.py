"""The training step of a row on this machine, at the profile's own size and with random weights. `snakemake measure`.

    python -m apex.measure --config workflows/config/qwen_image_lora_r64.yaml --row apex-lora --steps 3 --out FILE.json

Nothing is fetched: speed and memory do not depend on the values. The training loop's own steps are run, on random latents and on captions
of full length, and set beside what `apex.estimate` says. Hours are those of the profile's whole budget at the pace that was seen; codec
and text encoder are not in memory, as they are not while a run reads latents and embeddings from disk, but for the codec.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from apex.command import COUNT, Parser
from apex.errors import run_command


def main(argv: list[str] | None = None) -> None:
    parser = Parser("apex.measure", __doc__)
    parser.add_argument("--config", required=True, type=Path, help="a profile, workflows/config/*.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of the profile")
    parser.add_argument("--row", required=True, help="method, or a row of the profile")
    parser.add_argument("--steps", type=COUNT, default=3, help="optimiser steps to time, after one that is not (default: 3)")
    parser.add_argument("--out", required=True, type=Path, help="the record, a JSON file")
    args = parser.parse_args(argv)

    import torch

    from apex.config import check_params, load
    from apex.files import write_atomic
    from apex.gpu import claim
    from apex.provenance import git_commit, hardware, versions
    from apex.step_timing import measure

    torch.set_num_threads(1)
    claim()
    config = load(args.config, [*args.set, "data.embeddings=memory"])
    check_params(config, [args.row])
    # What the run is called by is the profile's own hash: where captions are kept changes no step.
    identity = load(args.config, args.set).run_hash(args.row, teacher=False)
    found = measure(config, args.row, args.steps)
    about = {
        "profile": config.profile, "row": args.row, "weights": "random", "run_hash": identity, "git_commit": git_commit(),
        "hardware": hardware(found["device"]), "versions": versions(),
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out, json.dumps(about | found, indent=1) + "\n")
    print(
        f"{args.row}: {found['seconds_median']:.3g} s a step of {found['samples_a_step']} samples, {found['tflops']:.3g} TFLOP/s, "
        f"{100 * found['share']:.0f}% of {found['matrix_tflops']:.3g}; {found['memory_gb']:.3g} GB, planned "
        f"{found['planned_memory_gb']:.3g}; {found['hours']:.3g} hours for the budget"
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
