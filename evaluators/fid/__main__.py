"""FID and KID of a folder of images.

    python -m evaluators.fid --images results/world/images/apex/nfe1/seed0/test --out fid.json
    python -m evaluators.fid --protocol pytorch-fid --images FOLDER --reference mjhq_512.safetensors --row NAME --nfe 1 --out fid.json

`world`: the embedded world's own features, against fresh renders of the same prompts (evaluators/fid/world.py).

`pytorch-fid`, `clean-fid`: FID's Inception as these two published codes feed it (evaluators/fid/inception.py), against a reference:
a file of `python -m evaluators.fid.reference`, a folder of real images, or a published .npz of mu and sigma. Numbers of the two do not
compare with each other, nor at another resolution or n. docs/evaluators/fid.md says more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from apex.command import whole_number
from apex.errors import UserError, run_command
from evaluators.command import image_parser
from evaluators.fid import PROTOCOLS
from evaluators.fid import VERSION as VERSION  # `evaluators` finds it here
from evaluators.fid.reference import add_arguments
from evaluators.references import add_argument


def main(argv: list[str] | None = None) -> None:
    parser = image_parser("evaluators.fid", __doc__)
    parser.add_argument("--protocol", choices=("world", *PROTOCOLS), default="world", help="whose features and resize (default: world)")
    parser.add_argument(
        "--weights",
        type=Path,
        help="world: folder of the feature network (default: bundled); else FID's Inception (default: the fetched asset inception)",
    )
    parser.add_argument("--reference", type=Path, help="published protocols: statistics (.safetensors, .npz) or a folder of real images")
    parser.add_argument(
        "--jpeg", type=whole_number(1, 100), metavar="QUALITY", help="published protocols: compress the images first; SANA's are .jpg of 75"
    )
    add_arguments(parser)
    add_argument(parser)
    run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    if args.protocol != "world":
        from evaluators.fid import published

        published.run(args)
        return
    for option in ("reference", "resolution", "jpeg"):
        if getattr(args, option) is not None:
            raise UserError(f"--{option}: the world's FID is against fresh renders at their size; give --protocol {' or '.join(PROTOCOLS)}")
    from evaluators.fid import world

    world.run(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
