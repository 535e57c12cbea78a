"""A training set that the guided teacher draws: prompts in, images as WebDataset shards out, which `apex.data.cache` reads as any other.

    python -m apex.data.synthesise --config PROFILE --out DIR [--prompts FILE] [--count N] [--steps 50] [--guidance W] [--seed S]

FILE has a prompt a line, or, with the ending .jsonl, an object with `prompt` a line, as GenEval's. What is not given is taken from
`data.teacher` of the profile; its teacher, resolution, precision and batch size are those of its tables. Image i is that of prompt
i mod P (P prompts) and image number i div P, and is the image that the teacher's row has for them at this seed and so many steps: it
depends on the seed and the two numbers alone, but for last bits, which the batch size may change. DIR holds

    shard-NNNNNN.tar   SHARD samples each: `png`, `txt` (the prompt), `json` (index, seed, numbers of prompt and image)
    index.json         the shards' counts and SHA-256
    made.json          teacher, prompts, settings, versions, and what it cost

Shards are written as they are done; the same command continues after a kill. The cost, `forward_equivalents` passes of the teacher for
one sample each, is not part of any row's budget: every row trains on the same images.
"""

from __future__ import annotations

import sys
from pathlib import Path

from apex.command import COUNT, GUIDANCE, SEED, Parser
from apex.errors import UserError, run_command


def main() -> None:
    parser = Parser("apex.data.synthesise", __doc__)
    parser.add_argument("--config", required=True, type=Path, help="the profile whose teacher draws")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of the profile")
    parser.add_argument("--prompts", help="a prompt a line, or .jsonl with `prompt`")
    parser.add_argument("--count", type=COUNT, help="images (default: one of every prompt)")
    parser.add_argument("--steps", type=COUNT, help="Euler steps (default: 50)")
    parser.add_argument("--guidance", type=GUIDANCE, help="default: the profile's; 1: none")
    parser.add_argument("--seed", type=SEED, help="of the noise (default: data.seed)")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    import torch
    from pydantic import ValidationError

    from apex.config import FromTeacher, load
    from apex.data.synthesis import build
    from apex.gpu import pick_device
    from apex.strict import explain

    config = load(args.config, args.set)
    values = config.data.teacher.model_dump() if config.data.teacher else {}
    values |= {key: value for key in FromTeacher.model_fields if (value := getattr(args, key)) is not None}
    if "prompts" not in values:
        raise UserError(f"{args.config}: data.teacher: found none, expected the prompts to draw there, or --prompts FILE")
    try:
        settings = FromTeacher.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, FromTeacher, "command line", prefix="--")) from None
    seed = config.data.seed if args.seed is None else args.seed
    if seed < 0:
        raise UserError(f"--seed {seed}: expected 0 or more")
    device = pick_device(args.device)
    if device == "cpu":
        torch.set_num_threads(1)  # two jobs of one thread beat one of two
    made = build(config, settings, args.out, seed=seed, device=device)
    print(f"{args.out}: {made['count']} images, {made['forward_equivalents']:,} passes of the teacher")


if __name__ == "__main__":
    sys.exit(run_command(main))
