"""Scores the images of a row by several evaluators in one process: the networks' libraries take longer to load than to run.

    python -m evaluators --each nfe=1,2,4 --images 'results/world/images/apex/nfe{nfe}/seed0/{split}' \\
        --out 'results/world/records/apex/nfe{nfe}/seed0/{split}/{evaluator}.json' \\
        --score test=geneval,fid,clip_score,coverage unseen=geneval

The same as `python -m evaluators.geneval`, `.fid`, ... one after the other, at their defaults or with `--options`. Where the images could
not be made (`python -m apex.sample --keep-failed`), each record says so instead of a number. A set that is
not whole is scored, as with `--incomplete`: the tables mark such rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection
from importlib import import_module
from itertools import product
from pathlib import Path

from apex.command import Parser, filled, json_object
from apex.errors import UserError, run_command
from apex.evaluation import command_line
from evaluators.command import write_failed
from evaluators.images import failure
from evaluators.references import MODULES as OF_RENDERS

MODULES = {name: f"evaluators.{name}" for name in ("clip_score", "coverage")}
MODULES |= {name: f"evaluators.{name}.__main__" for name in ("geneval", "fid", "dpg", "wise")}


def scores(text: str, known: Collection[str] = MODULES) -> tuple[str, list[str]]:
    """`test=geneval,fid` to ("test", ["geneval", "fid"])."""
    split, equals, names = text.partition("=")
    evaluators = names.split(",")
    if not equals or not split or any(name not in known for name in evaluators):
        raise UserError(f"--score {text}: expected SPLIT=EVALUATOR,... with evaluators of {', '.join(sorted(known))}")
    return split, evaluators


def values(text: str) -> tuple[str, list[str]]:
    """`nfe=1,2,4` to ("nfe", ["1", "2", "4"])."""
    name, equals, found = text.partition("=")
    if not equals or not name.isidentifier() or name in ("split", "evaluator") or not all(found.split(",")):
        raise UserError(f"--each {text}: expected NAME=VALUE,... such as nfe=1,2,4; `{{nfe}}` in --images and --out stands for each value")
    return name, found.split(",")


def main() -> None:
    parser = Parser("evaluators", __doc__)
    parser.add_argument("--images", required=True, help="folder in GenEval's layout; `{split}` stands for the prompt set")
    parser.add_argument("--out", required=True, help="the records' path, with `{split}` and `{evaluator}`")
    parser.add_argument("--score", required=True, nargs="+", metavar="SPLIT=EVALUATORS", help="which evaluators score which prompt set")
    parser.add_argument(
        "--each", nargs="+", default=[], metavar="NAME=VALUES", help="score several folders: `{NAME}` in --images and --out is each value"
    )
    parser.add_argument("--references", help="files of evaluators.references, with `{split}` and `{evaluator}`")
    parser.add_argument("--options", type=json_object, default={}, metavar="JSON", help='evaluator -> option -> value, as {"fid": {...}}')
    parser.add_argument(
        "rest", nargs=argparse.REMAINDER, metavar="-- ...", help="passed on to every evaluator, as in -- --row mine --nfe 1"
    )
    args = parser.parse_args()
    chosen, each = [scores(text) for text in args.score], dict(values(text) for text in args.each)
    for name, found in each.items():
        if len(found) > 1 and not (f"{{{name}}}" in args.images and f"{{{name}}}" in args.out):
            raise UserError(f"--each {name}={','.join(found)}: several values need `{{{name}}}` in --images and in --out")
    for point in product(*each.values()):
        here = dict(zip(each, point, strict=True))
        for split, evaluators in chosen:
            images = Path(filled(args.images, split=split, **here))
            for evaluator in evaluators:
                out = filled(args.out, split=split, evaluator=evaluator, **here)
                rest = [*command_line(args.options.get(evaluator, {})), *(a for a in args.rest if a != "--")]
                if args.references and evaluator in OF_RENDERS:
                    rest = ["--references", filled(args.references, split=split, evaluator=evaluator), *rest]
                module = import_module(MODULES[evaluator])
                if made := failure(images):
                    write_failed(made, evaluator, module.VERSION, Path(out))
                else:
                    module.main(["--images", str(images), "--out", out, "--incomplete", *rest])


if __name__ == "__main__":
    sys.exit(run_command(main))
