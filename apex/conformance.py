"""Does a method keep the contract of `apex.methods.base`? One line per check; any method, in the package or at a path.

    python -m apex.conformance                        every method that is found
    python -m apex.conformance lcm my/new_method.py   these alone; a path need not be in any profile

A line is `ok` or `FAIL`, the method, the check, and what was seen or what is wrong with which file. The exit code is 0
where all is well and 2 where it is not. It takes seconds per method and needs no GPU, no teacher and no data.

| check | what holds |
| --- | --- |
| declared | the class says what it is, from where, what it needs |
| params | defaults are valid, every setting is described and of a bounded type |
| step | `losses` gives a scalar with gradient per known role, logs are numbers |
| routing | a role's loss reaches that role's parameters and no others; teacher and running mean stay as they are |
| determinism | the same batch gives the same losses and gradients, whatever the global random state |
| backbones | an optimiser step moves the student, for the Sana and the Qwen-Image family |
| lora | trains adapters alone, or says why it cannot |
| micro-batches | batches of 1, 2 and 3 samples work |
| resume | stopped, saved and restored, a run ends with the same numbers |
| gaussian | where the data are Gaussian one step comes clearly closer to them; a control keeps what it promises |
"""

from __future__ import annotations

import sys
import traceback

from apex.command import Parser
from apex.errors import UserError, run_command


def main() -> None:
    parser = Parser("apex.conformance", __doc__)
    parser.add_argument("methods", nargs="*", metavar="NAME_OR_PATH", help="methods, or Python files that define one; none: all")
    parser.add_argument("--checks", help="those to run, joined by commas (default: all)")
    parser.add_argument("--traceback", action="store_true", help="show where an unexpected error came from")
    args = parser.parse_args()

    import torch

    from apex import methods
    from apex.contract import CHECKS, check, find

    chosen = list(CHECKS) if args.checks is None else args.checks.split(",")
    if unknown := [name for name in chosen if name not in CHECKS]:
        raise UserError(f"--checks: unknown {', '.join(unknown)}; known: {', '.join(CHECKS)}")
    torch.set_num_threads(1)
    failed = 0
    for name in args.methods or methods.available():
        try:
            subject = find(name)
        except UserError as error:
            failed += 1
            print(f"FAIL {name:14} {'found':14} {error}", flush=True)
            continue
        for one in chosen:
            try:
                print(f"ok   {subject.name:14} {one:14} {check(subject, one)}", flush=True)
            except UserError as error:
                failed += 1
                print(f"FAIL {subject.name:14} {one:14} {error}", flush=True)
                if args.traceback and error.__cause__:
                    traceback.print_exception(error.__cause__)
    if failed:
        raise UserError(f"{failed} checks failed")


if __name__ == "__main__":
    sys.exit(run_command(main))
