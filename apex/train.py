"""The one training loop. A method brings losses; the loop brings optimisers, EMA, budget, checkpoints and export.

    python -m apex.train --config workflows/config/world.yaml --row apex --seed 0 \\
        --cache results/world/data/cache --out results/world/runs/apex/seed0

The run ends when its training FLOPs reach the profile's budget. The same command continues an interrupted run
from its last saved state, with the same result; the state lies beside --out, keyed by the run's hash.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from apex.command import SEED, THREADS, Parser, whole_number
from apex.errors import run_command


def main() -> None:
    parser = Parser("apex.train", __doc__)
    parser.add_argument("--config", required=True, type=Path, help="a profile, workflows/config/*.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of the profile")
    parser.add_argument("--row", required=True, help="method, or a row of the profile")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--cache", required=True, type=Path, help="latents and captions (apex.data.cache)")
    parser.add_argument("--embeddings", type=Path, help="the captions' embeddings, where data.embeddings is disk (apex.data.embeddings)")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument(
        "--max-steps", type=whole_number(0, 10**9), help="stop after so many steps with the state saved; nothing is exported"
    )
    parser.add_argument(
        "--keep-diverged", action="store_true", help="export the last good state of a run that diverges; its record says so"
    )
    parser.add_argument("--threads", type=THREADS, default=1, help="CPU threads; two one-thread runs beat one two-thread run")
    args = parser.parse_args()

    import torch

    from apex.config import check_params, load, locate
    from apex.data.latents import load_cache
    from apex.gpu import claim
    from apex.kinds import RUN
    from apex.loop import Diverged, Loop

    torch.set_num_threads(args.threads)
    RUN.check(args.out)
    claim()
    config = load(args.config, args.set)
    check_params(config, [args.row])
    run, run_hash = config.run_config(args.row), config.run_hash(args.row)
    resume = args.out.parent / f".resume-{args.out.name}-{run_hash}"

    def make() -> Loop:
        cache = load_cache(args.cache, locate(run.pipeline), config.data.resolution)
        return Loop(run, run_hash, args.seed, cache, resume, config, args.embeddings)

    loop, diverged = make(), None
    try:
        done = loop.fit(args.max_steps)
    except Diverged as error:
        if not args.keep_diverged:
            raise
        diverged = error.with_traceback(None)
    if diverged:
        del loop  # before there is a fresh one: this one's weights are no longer those of a good state
        loop, done = make(), True
        loop.restore()
        loop.stopped = diverged.short
        if loop.main:
            print(f"warning: {diverged}\nwarning: the last good state (step {loop.step}) is exported as it is", flush=True)
    if done:
        loop.export(args.out)
        if loop.main:
            about = {"steps": loop.step, "seconds": round(loop.seconds, 1), "forward_equivalents": round(loop.spent())}
            print(f"{args.out}: {json.dumps(about)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
