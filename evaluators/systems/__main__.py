"""Speed of one system of Table 1, through its stock diffusers pipeline, with random weights.

    python -m evaluators.systems --list
    python -m evaluators.systems --system flux-schnell --out 'results/speed/flux-schnell/{resolution}px/nfe{nfe}.json'
    python -m evaluators.systems --system qwen-image-teacher --batch 1 --limit 30 --out ...        (where a card's time is short)

A time is of the pipeline's whole call: prompts in, 8-bit images out, noise drawn inside. text: until the captions are encoded; denoise:
until the codec is called; decode: the rest. The device is synchronised there, warm-up is left out, every repeat has other prompts; values
are medians with the interquartile range. A record a number of steps, written as soon as it is measured, at batch 1 and 10. A system
that does not fit the device is a record without numbers that says so.

Without a GPU the same classes are timed built small, in fp32, on images an eighth as wide: the record says so, and its seconds say
nothing of the published ones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from apex.command import BATCH_SIZE, COUNT, NFE, POSITIVE, RESOLUTION, THREADS, Parser, whole_number
from apex.errors import UserError, run_command
from evaluators import BATCH

BATCHES = (1, BATCH)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("evaluators.systems", __doc__)
    parser.add_argument("--list", action="store_true", help="print the systems and end")
    parser.add_argument("--system", help="one of --list")
    parser.add_argument("--resolution", type=RESOLUTION, nargs="+", help="pixels a side (default: the system's own, 512 and 1024)")
    parser.add_argument("--nfe", type=NFE, nargs="+", help="steps (default: the system's own)")
    parser.add_argument("--scale", choices=("auto", "full", "small"), default="auto", help="auto: full on a GPU (default)")
    parser.add_argument("--out", help="the result records (JSON) to write, with `{resolution}` and `{nfe}` in it")
    parser.add_argument("--repeats", type=COUNT, help="counted calls (default: 30 / steps, at least 5)")
    parser.add_argument("--warmup", type=whole_number(0, 10**6), default=3, help="calls before the clock counts (default: 3)")
    parser.add_argument(
        "--batch", type=BATCH_SIZE, nargs="+", choices=BATCHES, default=list(BATCHES), help="images at once (default: 1 10)"
    )
    parser.add_argument("--limit", type=POSITIVE, help="seconds after which no call is counted beyond the third (default: none)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--threads", type=THREADS, default=1, help="CPU threads of this process (default: 1)")
    args = parser.parse_args(argv)
    if args.list:
        from evaluators.systems.known import systems

        for name, what in systems().items():
            print(f"{name:24} {what.pipeline:24} {', '.join(what.published)}")
        return
    if not args.system or not args.out:
        raise UserError("--system and --out: expected both, or --list alone")

    from evaluators.systems.calls import run

    run(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
