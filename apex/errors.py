"""Errors that a user can mend: one line each, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message names the file, key or row, what was found, what is expected and how to mend it."""


def run_command(main: Callable[[], None]) -> int:
    """Runs a command line's `main`; a `UserError` becomes one line on stderr and exit code 2."""
    try:
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
