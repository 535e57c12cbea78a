"""The suite's methods on a 2-D Gaussian mixture: two classes of four modes, where the truth is known and a run takes seconds.

    python -m apex.mixture --out DIR                                     all rows, three seeds: about 40 CPU minutes
    python -m apex.mixture --out DIR --seeds 0 --rows apex --steps 1000  one row, short

Prints the table and writes DIR/mixture.csv (a line per row and seed), DIR/curves.csv (one-step distance in training),
DIR/push.csv (which way each loss moves the one-step samples) and DIR/mixture.png. For each seed an MLP is trained by
flow matching (the teacher) and then by each row with the unchanged code of `apex.methods`; batch, steps, optimiser and
EMA are the same for all. There is no guidance (rho = 0): the target is the data. Where a method has no r its student
ignores it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from apex.command import COUNT, SEED, Parser
from apex.errors import UserError, run_command
from apex.mixture_rows import ROWS, Recipe


def chosen(names: Iterable[str]) -> list[str]:
    """Rows to run, in the table's order, with those that they start from.

    Raises:
        UserError: unknown row.
    """
    wanted = set(names)
    if unknown := sorted(wanted - set(ROWS)):
        raise UserError(f"--rows: unknown {', '.join(map(repr, unknown))}; known: {', '.join(map(repr, ROWS))}")
    wanted |= {ROWS[name].start for name in wanted}
    return [name for name in ROWS if name in wanted]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("apex.mixture", __doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder for mixture.csv, curves.csv, push.csv and mixture.png")
    parser.add_argument("--seeds", type=SEED, nargs="+", default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), metavar="ROW", help=f"rows (default: all): {', '.join(ROWS)}")
    parser.add_argument(
        "--steps", type=COUNT, default=Recipe.steps, help=f"training steps of the teacher and of every row (default: {Recipe.steps})"
    )
    args = parser.parse_args(arguments)
    rows, seeds = chosen(args.rows), list(dict.fromkeys(args.seeds))

    import torch

    from apex.files import write_atomic
    from apex.mixture_runs import as_csv, draw_figure, run, table

    args.out.mkdir(parents=True, exist_ok=True)  # an error now rather than after the run
    torch.set_num_threads(1)  # the networks are too small for more
    results = run(rows, seeds, Recipe(steps=args.steps))
    write_atomic(args.out / "mixture.csv", as_csv(results.lines))
    write_atomic(args.out / "curves.csv", as_csv(results.curves))
    write_atomic(args.out / "push.csv", as_csv(results.pushes))
    write_atomic(args.out / "mixture.png", draw_figure(results))
    print("\n" + table(results))


if __name__ == "__main__":
    sys.exit(run_command(main))
