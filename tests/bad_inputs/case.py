"""What a case of bad input is, and what it comes to.

A case makes its input in a folder of its own, then calls a command or a reader in this process. Wanted is one line,
`error: <where>: found <what>, expected <what>; <how to fix it>`, with exit code 2, and every file as it was. A case
with `says=None` is ordinary input: it must be accepted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apex.errors import UserError, run_command

LIMIT = 20  # seconds after which a case counts as hanging

LINE, ACCEPTED = "one right line", "accepted"  # as wanted
WRONG_LINE, TRACEBACK, IN_SILENCE, HANGING, LOSS = "an unclear line", "traceback", "accepted wrongly", "hanging", "loss"
FAULTS = (WRONG_LINE, TRACEBACK, IN_SILENCE, HANGING, LOSS)


@dataclass(frozen=True)
class Case:
    """One bad or odd input.

    Attributes:
        kind: the kind of fault, which at most 15 cases share. name: what is wrong with this one.
        make: given an empty folder, writes the input and returns the call that meets it: `Command`, or a function that a
            reader is called by. What it leaves in the folder before the call must be there, unchanged, afterwards.
        says: what the line matches (`re.search`, after "error: "); None where the input must be accepted.
        check: of an accepted input, given the folder and what the call returned; raises `AssertionError`.
        writes: names below the folder that the call may make or change, such as its own output.
        log: a traceback must stand before the line: a user's own code raised it.
    """

    kind: str
    name: str
    make: Callable[[Path], Callable[[], Any]]
    says: str | None
    check: Callable[[Path, Any], None] | None = None
    writes: tuple[str, ...] = ()
    log: bool = False

    @property
    def id(self) -> str:
        return f"{self.kind}: {self.name}"


@dataclass(frozen=True)
class Command:
    """A command line of this package, run in this process: `main` as `run_command` runs it, with these arguments."""

    main: Callable[[], Any]
    arguments: tuple[Any, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self) -> None:
        with patched(["command", *map(str, self.arguments)], self.environment):
            code = run_command(self.main)
        if code:
            raise Ended(code)


class Ended(Exception):
    """A command ended with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Hangs(BaseException):
    """The time is up. No `Exception`, so that no handler of the code takes it for its own."""


@contextlib.contextmanager
def patched(arguments: list[str], environment: dict[str, str]) -> Iterator[None]:
    before, kept = sys.argv, {name: os.environ.get(name) for name in environment}
    sys.argv = arguments
    os.environ.update(environment)
    try:
        yield
    finally:
        sys.argv = before
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: Path, but: tuple[str, ...] = ()) -> dict[str, str]:
    """Every file and link below the folder -> its digest or target; FIFOs and sockets by their type alone."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(name == one or name.startswith(f"{one}/") for one in but):
            continue
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not path.is_dir():
            found[name] = "special"
    return found


def outcome(case: Case, folder: Path) -> tuple[str, str]:
    """What the case comes to, and what was said."""
    call = case.make(folder)
    before = contents(folder, case.writes)
    said, returned, ended = io.StringIO(), None, None
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), time_limit(LIMIT):
            returned = call()
    except Hangs:
        return HANGING, said.getvalue()
    except UserError as error:
        ended = f"error: {error}"
    except (Ended, SystemExit) as error:
        if error.code != 2:
            return WRONG_LINE, f"exit code {error.code}: {said.getvalue()}"
        ended = said.getvalue().strip()
    except BaseException:
        return TRACEBACK, traceback.format_exc()
    after = contents(folder, case.writes)
    if lost := [name for name in before if after.get(name) != before[name]]:
        return LOSS, ", ".join(lost)
    if ended is None and case.says is not None:
        return IN_SILENCE, said.getvalue()
    if ended is not None and case.says is None:
        return WRONG_LINE, ended
    if ended is None:
        if case.check:
            try:
                case.check(folder, returned)
            except AssertionError as error:
                return IN_SILENCE, f"something else came out: {error}"
        return ACCEPTED, said.getvalue()
    errors = [line for line in ended.splitlines() if line.startswith("error: ")]
    whole = len(errors) == 1 and ended.splitlines()[-1] == errors[0] and ("Traceback" in ended) == case.log
    if not whole or not re.search(case.says, errors[0].removeprefix("error: ")):
        return WRONG_LINE, ended
    if left := [name for name in after if name not in before]:
        return LOSS, f"left behind: {', '.join(left)}"
    return LINE, errors[0]
