"""Model cards of a profile's runs with what was measured: one <row>.md each, to put beside exported weights as README.md.

python -m paper_tables.cards --config workflows/config/world.yaml --results results/world --out results/world/cards
"""

from __future__ import annotations

import sys
from pathlib import Path

from apex import card
from apex.command import Parser
from apex.errors import UserError, run_command
from apex.files import read_object, write_atomic
from paper_tables import expected, records
from paper_tables.cells import significant
from paper_tables.view import View

METRICS = {
    "geneval/overall": "GenEval",
    "fid": "FID",
    "clip_score": "CLIP score",
    "dpg/overall": "DPG-Bench",
    "wise/overall": "WISE",
    "coverage/recall": "coverage, recall",
    "speed/latency_b1_s": "seconds an image, batch 1",
}


def numbers(view: View, row: str) -> list[dict[str, str]]:
    """Every metric of the row at every NFE, as `apex.card.numbers_table` takes it."""
    found = []
    for metric, name in METRICS.items():
        for key in (key for key in view.methods if key[0] == row):
            if one := view.get(key, metric):
                ends = f" [{significant(one.low)}, {significant(one.high)}]" if one.low is not None and one.high is not None else ""
                found.append(
                    {
                        "metric": name,
                        "NFE": str(key[1]),
                        "value": f"{significant(one.value)}{ends}",
                        "n": f"{one.n:,}" if one.n else "",
                        "seeds": str(one.seeds),
                    }
                )
    return found


def main() -> None:
    parser = Parser("paper_tables.cards", __doc__)
    parser.add_argument("--results", type=Path, required=True, help="results/<profile>, or the committed ones")
    parser.add_argument("--out", type=Path, required=True, help="folder for the cards")
    expected.add_arguments(parser)
    args = parser.parse_args()
    view, made = View.load(args.results, expected.from_arguments(args)), {}
    for row, seed, path in records.runs(args.results, "made.json"):
        made.setdefault(row, (seed, path))
    if not made:
        raise UserError(f"{args.results}: found no runs, expected runs/<row>/seed<S>/made.json; run `snakemake all`")
    for row, (_, path) in made.items():
        about, recipe = read_object(path), read_object(path.parent / "sampling.json")
        remarks = " ".join(filter(None, (view.origin_words, view.note(row))))
        write_atomic(args.out / f"{row}.md", card.text(about, recipe, numbers=numbers(view, row), remarks=remarks))
    print(f"{args.out}: {', '.join(f'{row}.md' for row in made)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
