"""The rules of workflows/rules as text, for tests of what each declares."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parents[2] / "workflows" / "rules"
GROUPS = ("", "_at", "_teacher", "_checkpoint", "_references")  # the ends of rules' names, of workflows.plan.Group
HEAD = re.compile(
    r'^ *(?:use rule (?P<base>\w+) as (?P<new>\w+) with|rule (?P<plain>\w+)|rule:\s+name:\s+f"(?P<group>\w+)\{)', re.MULTILINE
)


class Rule(NamedTuple):
    """base: the rule whose parts it takes where it has none of its own; "" for none. body: its text."""

    base: str
    body: str


def rules() -> dict[str, Rule]:
    """Every rule by name; one that a loop declares for the groups of rows stands once for each group."""
    text = "\n".join(file.read_text() for file in sorted(FOLDER.glob("*.smk")))
    heads = list(HEAD.finditer(text))
    found: dict[str, Rule] = {}
    for head, end in zip(heads, [*(one.start() for one in heads[1:]), len(text)], strict=True):
        names = [head["group"] + suffix for suffix in GROUPS] if head["group"] else [head["new"] or head["plain"]]
        found |= {name: Rule(head["base"] or "", text[head.start() : end]) for name in names}
    del found["time_references"]  # there is no network to time
    return found
