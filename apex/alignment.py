"""Which way the methods' gradients point on the 2-D mixture: against the true gradient of the KL divergence, step by step.

    python -m apex.alignment --out DIR                                   all rows, seeds 0 to 2
    python -m apex.alignment --out DIR --seeds 0 --rows apex --steps 400

For one-step samples x = z - F(z, 1, 0, c) the gradient of KL(p_s || q_s), both diffused to time s and s uniform, is
E[(1 - s) (score of p_s - score of q_s)(x_s) dx/dtheta]. The data's score is known in closed form, the samples' is that of a large
set of them, exactly. The paper says that its gradient is aligned with that of a GAN with a constant weight (its abstract and
Section 3), and that discriminators' gradients vanish. DIR/alignment.csv has, for each row and moment of training: the cosine of
the method's own parameter gradient with that gradient, the norms of both, and how far the samples are from the data.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from apex.command import COUNT, SEED, THREADS, Parser
from apex.errors import run_command
from apex.mixture_rows import WATCHED, Recipe


def main() -> None:
    parser = Parser("apex.alignment", __doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder for alignment.csv")
    parser.add_argument("--seeds", type=SEED, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--rows", nargs="+", default=list(WATCHED), choices=list(WATCHED), metavar="ROW", help=", ".join(WATCHED))
    parser.add_argument("--steps", type=COUNT, default=Recipe.steps, help="of the teacher and of every row")
    parser.add_argument("--threads", type=THREADS, default=1)
    args = parser.parse_args()

    import torch

    from apex.files import write_atomic
    from apex.kl_gradient import watch_row
    from apex.mixture_runs import as_csv, make_teacher

    torch.set_num_threads(args.threads)
    lines: list[dict[str, Any]] = []
    for seed in args.seeds:
        recipe = Recipe(steps=args.steps)
        teacher = make_teacher(recipe, seed)
        for name in args.rows:
            found = watch_row(name, teacher, recipe, seed)
            lines += found
            last = [line for line in found if line["part"] == "whole"]
            print(f"seed {seed} {name:14}", "  ".join(f"{line['step']}: {line['cosine']:+.2f}" for line in last), flush=True)
            write_atomic(args.out / "alignment.csv", as_csv(lines))


if __name__ == "__main__":
    sys.exit(run_command(main))
