"""Commands of this package one after the other in one process, each with its options as by hand. Records are read once for all of them.

    python -m paper_tables collect --results R --out R/metrics.csv + audit --out R/audit

A command runs if the one before it succeeded. Commands: ablations, assumptions, audit, build, cards, claims, collect, figures.
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from itertools import groupby

from apex.command import Parser
from apex.errors import run_command
from paper_tables.shared import reading_once

COMMANDS = ("ablations", "assumptions", "audit", "build", "cards", "claims", "collect", "figures")


def main() -> None:
    parser = Parser("paper_tables", __doc__)
    parser.add_argument("command", choices=COMMANDS, help="the first command; its options follow, then + and the next one")
    calls = [list(words) for plus, words in groupby(sys.argv[1:], lambda word: word == "+") if not plus]
    for words in calls or [[]]:
        parser.parse_args(words[:1])
    gc.disable()  # what is read stays until the end, and looking through it again and again takes a fifth of the time
    with reading_once():
        for name, *options in calls:
            sys.argv = [name, *options]
            import_module(f"paper_tables.{name}").main()
            sys.stdout.flush()  # before what the next one says on stderr


if __name__ == "__main__":
    sys.exit(run_command(main))
