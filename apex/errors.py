"""How a command ends: errors that a user can mend are one line, and no job outlives the workflow that started it."""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SPECIAL = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
USER_FILES: set[str] = set()  # files of users' own code that this process imports: methods that `method_files` names
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
    if type(found) is not int or found not in known:
        expected = " or ".join(map(str, sorted(known)))
        raise UserError(f"{where}: found {found!r}, expected {expected}: it is of another version of the suite; {mend}")


def special(path: Path) -> str | None:
    """What kind of special file `path` is, which may wait for ever or never end when it is read; None for any other and for none."""
    try:
        return SPECIAL.get(stat.S_IFMT(os.stat(path).st_mode))
    except OSError:
        return None


def refuse_special(path: Path, mend: str) -> None:
    """Raises `UserError` for a FIFO, a socket or a device, before anything opens it."""
    if kind := special(path):
        raise UserError(f"{path}: found {kind}, expected a file; {mend}")


@contextmanager
def readable(path: Path, mend: str) -> Iterator[None]:
    """A `UserError` with `mend` instead of whatever a library raises when it reads a damaged `path`."""
    refuse_special(path, mend)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch, safetensors, tokenizers and json each have their own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read, it is damaged or incomplete ({first}); {mend}") from error


class Terminated(BaseException):
    """SIGTERM came. No `Exception`, so that nothing takes it for a fault of its own; what cleans up does so."""


def place_in_user_code(error: BaseException) -> str | None:
    """`file:line` where an exception left a file of `USER_FILES`, the innermost one; None where none took part."""
    if isinstance(error, SyntaxError) and error.filename in USER_FILES:
        return f"{error.filename}:{error.lineno or 1}"
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return next((f"{file}:{line}" for file, line in reversed(frames) if file in USER_FILES), None)


def described(error: BaseException) -> str:
    """An exception as one line: its type and the first line of what it says."""
    text = getattr(error, "msg", None) if isinstance(error, SyntaxError) else str(error)
    first = next(iter(str(text or "").strip().splitlines()), "")
    return f"{type(error).__name__}: {first[:300]}" if first else type(error).__name__


def run_command(main: Callable[[], None]) -> int:
    """Runs a command line's `main` and returns its exit code.

    A `UserError`, a state of the machine (disk full) and an exception out of a user's own file become one line on stderr and 2;
    for the last one the traceback stands before the line. Ctrl-C is one line and 130, SIGTERM one line and 143. Any other exception is a
    defect of ours and is raised.
    """
    try:
        end_with_workflow()
        with on_sigterm(_terminate):
            main()
            sys.stdout.flush()
    except BrokenPipeError as error:
        if error.filename:
            return _failed(_os_line(error))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered must not fail again at exit
        return _failed("standard output: found it closed, expected a reader until the end; write to a file, or read all of it")
    except KeyboardInterrupt:
        return _failed("stopped by Ctrl-C; what was saved until here is kept, run the command again to go on", 130)
    except Terminated:
        return _failed("stopped by SIGTERM; nothing that existed was changed: run again", 128 + signal.SIGTERM)
    except UserError as error:
        return _failed(str(error), traceback_of=_users_fault(error))
    except BaseException as error:
        if place := place_in_user_code(error):
            return _failed(f"{place}: {described(error)}; mend that line, the traceback is above", traceback_of=error)
        if isinstance(error, OSError):
            return _failed(_os_line(error))
        raise
    return 0


def _users_fault(error: BaseException) -> BaseException | None:
    """The exception out of a user's own file that led to `error`."""
    seen: BaseException | None = error
    while seen := seen.__cause__ or seen.__context__:
        if not isinstance(seen, UserError) and place_in_user_code(seen):
            return seen
    return None


def _failed(line: str, code: int = 2, traceback_of: BaseException | None = None) -> int:
    if traceback_of:
        traceback.print_exception(traceback_of)
    print(f"error: {line}", file=sys.stderr, flush=True)
    return code


def _os_line(error: OSError) -> str:
    """A full disk, a read-only folder or a missing file is the machine's state, not a defect of the code."""
    name = error.filename
    if name and isinstance(error, FileNotFoundError):
        return f"{name}: found nothing, expected a file or folder; check the path, nothing that existed was changed"
    if name and isinstance(error, IsADirectoryError):
        return f"{name}: found a folder, expected a file; give the path of a file, nothing that existed was changed"
    if name and isinstance(error, NotADirectoryError):
        return f"{name}: found a file, expected a folder on this path; check it, nothing that existed was changed"
    return f"{error.strerror or error}{f' ({name})' if name else ''}; nothing that existed was changed"


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
