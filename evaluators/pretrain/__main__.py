"""Trains one of the world's evaluator networks from nothing: minutes on one core, no data but the renderer's.

    python -m evaluators.pretrain detector --out evaluators/pretrained/world/detector
    python -m evaluators.pretrain fid --out evaluators/pretrained/world/fid
    python -m evaluators.pretrain clip --out evaluators/pretrained/world/clip
    python -m evaluators.pretrain detector --steps 20 --out DIR          a trial of the machinery, seconds

The folder holds safetensors (float16), the configuration, and `made.json`: arguments, seed, held-out measures of the
saved file, commit, versions. Scenes are rendered as they are needed, held-out pairs included. Images of another size
than `--resolution` are resized to it by the networks, so one set of weights serves every resolution.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from apex.command import BATCH_SIZE, COUNT, POSITIVE, RESOLUTION, SEED, THREADS, Parser
from apex.errors import UserError, run_command
from apex.files import atomic_folder
from apex.kinds import NETWORK
from evaluators.command import set_threads

# (steps, batch, learning rate): what the bundled networks were made with.
RECIPES = {"detector": (1300, 64, 3e-3), "fid": (1800, 64, 3e-3), "clip": (1800, 128, 2e-3)}


def main() -> None:
    parser = Parser("evaluators.pretrain", __doc__)
    parser.add_argument("network", choices=sorted(RECIPES), help="which of the three")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--steps", type=COUNT, help="optimiser steps (default: the recipe's)")
    parser.add_argument("--batch", type=BATCH_SIZE, help="images a step (default: the recipe's)")
    parser.add_argument("--lr", type=POSITIVE, help="peak learning rate (default: the recipe's)")
    parser.add_argument("--resolution", type=RESOLUTION, default=32, help="side that the network sees, a multiple of 8 (default: 32)")
    parser.add_argument("--seed", type=SEED, default=0, help="of the weights and the scenes (default: 0)")
    parser.add_argument("--threads", type=THREADS, default=1, help="CPU threads of this process (default: 1)")
    args = parser.parse_args()
    asked = zip((args.steps, args.batch, args.lr), RECIPES[args.network], strict=True)
    steps, batch, lr = (default if given is None else given for given, default in asked)
    if batch < 16:
        raise UserError(f"--batch: found {batch}, expected at least 16 images a step")
    if args.resolution < 16 or args.resolution % 8:
        raise UserError(f"--resolution: found {args.resolution}, expected a multiple of 8, at least 16")
    NETWORK.check(args.out)
    set_threads(args.threads)
    from evaluators.networks import save_network
    from evaluators.pretrain import clip, detector, features  # seconds: only once they are needed
    from evaluators.pretrain.loop import write_made

    common = {"steps": steps, "batch": batch, "lr": lr, "seed": args.seed, "resolution": args.resolution}
    with atomic_folder(args.out, NETWORK) as folder:
        if args.network == "clip":
            seconds = clip.train(folder, **common)
            measured = clip.measure(folder)
        else:
            module = {"detector": detector, "fid": features}[args.network]
            net, seconds = module.train(**common)
            save_network(net, folder)
            measured = module.measure(folder)
        write_made(folder, {"network": args.network, **common, "threads": args.threads}, measured, seconds)
        for file in folder.iterdir():
            file.chmod(0o644)
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    sys.exit(run_command(main))
