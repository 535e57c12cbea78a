"""The one parser of all command lines: a bad option is one line and exit code 2, and numbers have ranges. Imports no torch."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from apex.errors import UserError, special


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number from `least` to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise _expected(text, f"a whole number of at least {least}") from None
        if value < least:
            raise _expected(text, f"a whole number of at least {least}")
        if value > most:
            raise _expected(text, f"a whole number of at most {most}")
        return value

    return read


def number(least: float, most: float, above: bool = False) -> Callable[[str], float]:
    """The type of an option that takes a finite number from `least` to `most`; `above`: `least` itself is refused."""
    low = f"above {least:g}" if above else f"of at least {least:g}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < least or (above and value == least):
            raise _expected(text, f"a number {low}")
        if value > most:
            raise _expected(text, f"a number of at most {most:g}")
        return value

    return read


COUNT = whole_number(1, 10**9)
BATCH_SIZE = whole_number(1, 65_536)
RESOLUTION = whole_number(8, 16_384)
THREADS = whole_number(1, 1024)
SEED = whole_number(0, 2**63 - 1)  # torch takes no more
NFE = whole_number(1, 1000)
GUIDANCE = number(0, 50)  # as in a profile
POSITIVE = number(0, 1e9, above=True)
PRECISIONS = ("fp32", "bf16")  # names of `apex.pipeline.DTYPES`
FAMILIES = ("qwen_image", "sana")  # architectures of a pipeline's transformer
SKIP_LIMIT = 100  # defects of a data set, the default of `data.skip_limit`
REFERENCES = ("real", "shuffled", "noise", "mean")  # rows that no network makes


def filled(template: str, **names: object) -> str:
    """A path with `{split}` and the like, each replaced by its value. Other braces stay."""
    for name, value in names.items():
        template = template.replace(f"{{{name}}}", str(value))
    return template


def json_object(text: str) -> dict[str, Any]:
    """The type of an option that takes a JSON object."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _expected(text, 'a JSON object such as {"key": 1}')
    return found


def path(text: str) -> Path:
    """A path that is no FIFO, socket or device. Every option with `type=Path` is read by this."""
    if not text or "\0" in text:
        raise _expected(text, "a path")
    if kind := special(Path(text)):
        raise argparse.ArgumentTypeError(f"{text}: found {kind}, expected a file or a folder")
    return Path(text)


def _expected(text: str, what: str) -> argparse.ArgumentTypeError:
    shown = text if re.fullmatch(r"[-+\w.]{1,40}", text) else repr(text if len(text) <= 40 else text[:37] + "...")
    return argparse.ArgumentTypeError(f"found {shown}, expected {what}")


class Parser(argparse.ArgumentParser):
    """An empty parser that names the command as one types it and keeps the description's lines.

    Args:
        module: as in `python -m module`.
        description: the module's docstring.
    """

    def __init__(self, module: str = "", description: str | None = None, **settings: Any) -> None:
        settings = {"prog": f"python -m {module}", "formatter_class": argparse.RawDescriptionHelpFormatter, **settings}
        super().__init__(description=description, **settings)
        self.register("type", Path, path)

    def error(self, message: str) -> NoReturn:
        """Raises `UserError` where argparse would print its usage."""
        raise UserError(f"{self._in_one_form(message)}; `{self.prog} --help` lists the options")

    def _in_one_form(self, message: str) -> str:
        """A message of argparse as `option: found ..., expected ...`."""
        message = " ".join(message.split()).removeprefix("argument ")
        if found := re.fullmatch(r"(.+?): invalid choice: (.+) \(choose from (.+)\)", message):
            option, given, known = found.groups()
            return f"{option}: found {given}, expected one of {known}"
        if found := re.fullmatch(r"unrecognized arguments: (.+)", message):
            given = found[1].split()[0].partition("=")[0]
            near = difflib.get_close_matches(given, self._option_string_actions, n=1)
            return f"{given}: found no such option, expected {f'perhaps {near[0]}' if near else 'a known one'}"
        if found := re.fullmatch(r"the following arguments are required: (.+)", message):
            return f"{found[1]}: found nothing, expected a value"
        if found := re.fullmatch(r"one of the arguments (.+) is required", message):
            return f"{found[1]}: found none of them, expected one"
        if found := re.fullmatch(r"(.+?): expected (one argument|at least one argument|\d+ arguments?)", message):
            return f"{found[1]}: found no value, expected {found[2].replace('argument', 'value')}"
        return message
