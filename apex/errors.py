"""How a command ends: errors that a user can mend are one line, and no job outlives the workflow that started it."""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

WORKFLOW = "APEX_WORKFLOW"  # HOST:IDENTITY:FILE of the workflow that started this process (workflows/lock.py)
AT_WORK, STOPPING, GONE = "at work", "stopping", "gone"
WATCH = 0.5  # seconds from one look at the workflow to the next
_watched = False


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


class Terminated(BaseException):
    """SIGTERM came. No `Exception`, so that nothing takes it for a fault of its own; what cleans up does so."""


def run_command(main: Callable[[], None]) -> int:
    """Runs a command line's `main`; a `UserError` becomes one line on stderr and exit code 2, SIGTERM one line and 143."""
    try:
        end_with_workflow()
        with on_sigterm(_terminate):
            main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # A full disk or a read-only folder is the machine's state, not a defect of the code.
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or error}{where}; nothing that existed was changed", file=sys.stderr)
        return 2
    except Terminated:
        print("error: stopped by SIGTERM; nothing that existed was changed: run again", file=sys.stderr)
        return 128 + signal.SIGTERM
    return 0


def _terminate(*_: object) -> None:
    raise Terminated


@contextmanager
def on_sigterm(handler: Callable[..., None]) -> Iterator[None]:
    """`handler` takes SIGTERM while the body runs; in a thread other than the first, which may not set one, what was there does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_workflow() -> None:
    """Ends this process as soon as the workflow that started it is gone; does nothing in a command run by hand.

    After `kill -9` of Snakemake alone its jobs would live on and write beside those of the next `snakemake all`. A thread looks at the
    file that the workflow holds a lock on. It holds the workflow's identity too: a lock that the next workflow has taken is another's.
    If the workflow was asked to stop, this process gets SIGTERM. Importing `apex` calls this before anything heavy is imported.
    """
    global _watched
    host, _, rest = os.environ.get(WORKFLOW, "").partition(":")
    identity, _, name = rest.partition(":")
    if _watched or not name or host != platform.node():  # a cluster's node sees other locks and other processes
        return
    _watched = True

    def watch() -> None:
        told = False
        while (found := workflow_state(Path(name), identity)) != GONE:
            if found == STOPPING and not told:
                told = True
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(WATCH)
        print("error: ended, for the snakemake that started this job is gone; the next one goes on", file=sys.stderr, flush=True)
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def workflow_state(file: Path, identity: str) -> str:
    """AT_WORK, STOPPING or GONE: the workflow that has written `identity` (its process id, and more) to the file that it holds."""
    try:
        with file.open() as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return GONE
            except BlockingIOError:
                first, *more = opened.read().splitlines() or [""]
            if first != identity:
                return GONE
            return STOPPING if more else AT_WORK
    except OSError:  # no such file, or a file system without locks: the process itself is asked
        try:
            os.kill(int(identity.partition("-")[0]), 0)
        except ProcessLookupError:
            return GONE
        except (OSError, ValueError):
            pass
        return AT_WORK
