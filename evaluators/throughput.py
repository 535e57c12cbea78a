"""What the official evaluators cost on this machine: their networks at the official sizes with random weights. Nothing is fetched.

    python -m evaluators.throughput --out cost.json                                   (all of them)
    python -m evaluators.throughput --evaluator geneval --images 64 --batch 8 --out cost.json

The evaluators' own code runs on drawn images: the detector of transformers with CLIP's colours, each image asked for the colour of what was
found in it, so an upper bound of a set that asks so in some prompts alone (geneval); CLIP ViT-L/14, images and texts (clip_score); PNGs
from disk through FID's Inception with the resize of pytorch-fid (fid); a question an image to ViLT-b32 and BLIP-base, no mPLUG (dpg). A
random network is sure of nothing: the detector's last layers are scaled up, so that detections pass the thresholds. One batch comes
before the clock counts; the record has the median over batches and the interquartile range.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from apex.command import BATCH_SIZE, COUNT, RESOLUTION, THREADS, Parser
from apex.errors import UserError, run_command

EVALUATORS = ("geneval", "clip_score", "fid", "dpg")  # as `evaluators.cost` has them


def main(argv: list[str] | None = None) -> None:
    parser = Parser("evaluators.throughput", __doc__)
    parser.add_argument("--evaluator", nargs="+", choices=EVALUATORS, default=list(EVALUATORS), help="default: all")
    parser.add_argument("--images", type=COUNT, default=48, help="how many are drawn (default: 48)")
    parser.add_argument("--resolution", type=RESOLUTION, default=512, help="pixels a side (default: 512)")
    parser.add_argument("--batch", type=BATCH_SIZE, default=16, help="images at once (default: 16)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--threads", type=THREADS, default=1, help="CPU threads; fid reads that many images at once (default: 1)")
    parser.add_argument("--out", required=True, type=Path, help="the record, a JSON file")
    run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    if args.images < 2 * args.batch:
        raise UserError(f"--images {args.images}, --batch {args.batch}: expected two batches at least, the first of which is not counted")
    if args.resolution < 64:
        raise UserError(f"--resolution {args.resolution}: expected 64 or more")

    from apex.files import write_atomic
    from apex.gpu import pick_device
    from apex.provenance import git_commit, hardware, versions
    from evaluators.command import check_out, set_threads
    from evaluators.cost import measure, pictures

    check_out(args.out)
    set_threads(args.threads)
    device = pick_device(args.device)
    images, found = pictures(args.images, args.resolution), {}
    for name in args.evaluator:
        print(f"{name}: {args.images} images of {args.resolution} px, {args.batch} at once", file=sys.stderr, flush=True)
        found[name] = measure(name, device, images, args.batch, args.threads)
        about = {
            "weights": "random", "resolution": args.resolution, "git_commit": git_commit(), "hardware": hardware(device),
            "versions": versions(), "evaluators": found,
        }  # fmt: skip
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.out, json.dumps(about, indent=1) + "\n")
        for metric, value in found[name].items():
            if "/" in metric:
                print(f"{metric}: {value['value']:.3g} [{value['ci_low']:.3g}, {value['ci_high']:.3g}], n = {value['n']}")


if __name__ == "__main__":
    sys.exit(run_command(main))
