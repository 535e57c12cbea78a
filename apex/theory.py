"""The paper's identities, checked where the truth is known in closed form: one number and one bound a check.

    python -m apex.theory --out DIR        DIR/theory.json, seconds

Every check states what is compared, the error found and the error allowed. `holds` is their comparison, nothing else. In float64.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from apex.command import Parser
from apex.errors import run_command


def main() -> None:
    parser = Parser("apex.theory", __doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder for theory.json")
    args = parser.parse_args()

    import torch

    from apex import provenance
    from apex.files import write_atomic
    from apex.identities import CHECKS

    torch.set_num_threads(1)
    found = [check() for check in CHECKS]
    about = {"git_commit": provenance.git_commit(), "hardware": provenance.hardware("cpu"), "versions": provenance.versions()}
    content = {"schema": 1, **about, "checks": [asdict(one) | {"holds": one.holds} for one in found]}
    write_atomic(args.out / "theory.json", json.dumps(content, indent=1) + "\n")
    for one in found:
        print(f"{one.id:22} {one.value:10.3g} {'<=' if one.holds else '>'} {one.bound:g}  {one.says}")


if __name__ == "__main__":
    sys.exit(run_command(main))
