"""How a command ends: errors that a user can mend are one line, and no job outlives the workflow that started it."""

from __future__ import annotations

import fcntl
import os
import platform
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

WORKFLOW = "APEX_WORKFLOW"  # HOST:FILE, the file that the workflow which started this process holds a lock on


class UserError(Exception):
    """Bad input. The message names the file, key or row, what was found, what is expected and how to mend it."""


class NotFinite(UserError):
    """A generated image holds NaN or infinity. `place`: its number in the batch."""

    def __init__(self, message: str, place: int = 0) -> None:
        super().__init__(message)
        self.place = place


def check_images(finite: Sequence[bool]) -> None:
    """Raises `NotFinite` at the first image of a batch that is not: as uint8 it would be a black picture."""
    for place, good in enumerate(finite):
        if not good:
            raise NotFinite(f"image {place} of a batch of {len(finite)}: found values that are not finite, expected numbers", place)


@contextmanager
def naming(prompts: Sequence[str], seed: int, places: Sequence[tuple[int, int]]) -> Iterator[None]:
    """A `NotFinite` from inside says which image it is, of `prompts` at `places` = (prompt number, image number)."""
    try:
        yield
    except NotFinite as error:
        (prompt, image), text = places[error.place], prompts[error.place]
        about = f"prompt {prompt} ({text if len(text) <= 60 else text[:57] + '...'!r}), image {image}"
        raise NotFinite(f"seed {seed}, {about}: found values that are not finite, expected numbers", error.place) from None


def check_format(found: object, known: Collection[int], where: str, mend: str) -> None:
    """Checks the format version of a file, which stands at `where`. Raises `UserError` when it is none of `known`."""
    if found not in known or isinstance(found, bool):
        expected = " or ".join(map(str, sorted(known)))
        raise UserError(f"{where}: found {found!r}, expected {expected}: it is of another version of the suite; {mend}")


@contextmanager
def readable(path: Path, mend: str) -> Iterator[None]:
    """A `UserError` with `mend` in the place of whatever a library raises when it reads a damaged `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch, safetensors, tokenizers and json each have their own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read, it is damaged or incomplete ({first}); {mend}") from error


def run_command(main: Callable[[], None]) -> int:
    """Runs a command line's `main`; a `UserError` becomes one line on stderr and exit code 2."""
    try:
        end_with_workflow()
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # A full disk or a read-only folder is the machine's state, not a defect of the code.
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or error}{where}; nothing that existed was changed", file=sys.stderr)
        return 2
    return 0


def end_with_workflow() -> None:
    """Ends this process as soon as the workflow that started it is gone; does nothing in a command run by hand.

    After `kill -9` of Snakemake alone its jobs would live on and write beside those of the next `snakemake all`. The
    workflow holds an exclusive lock; a thread here waits for a shared one, which it gets when the workflow has ended.
    """
    host, _, name = os.environ.get(WORKFLOW, "").partition(":")
    if not name or host != platform.node():  # a cluster's node sees other locks
        return

    def wait() -> None:
        try:
            with open(name) as file:
                fcntl.flock(file, fcntl.LOCK_SH)
        except OSError:
            return
        print("error: ended, for the snakemake that started this job is gone; the next one goes on", file=sys.stderr, flush=True)
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()
