"""Cases of a user's own method files: whatever they raise, wherever, ends in a line with their place; the log has the traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from apex import methods
from tests.bad_inputs.case import Case, Command

HEAD = """from apex.methods.fm import FlowMatching


class Mine(FlowMatching):
    name = "mine"
    family = "flow"
    citation = "none"
"""
TAIL = "\n\nMETHOD = Mine\n"


def imported(text: str | bytes) -> Callable[[Path], Callable[[], Any]]:
    """A method file with this content, taken by name, made and asked for its losses."""

    def make(folder: Path) -> Callable[[], Any]:
        file = folder / "mine.py"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

        def main() -> None:
            methods.get("mine", [file])({}).losses(None, None, 0)

        methods._load.cache_clear()
        return Command(main)

    return make


def body(*lines: str) -> Callable[[Path], Callable[[], Any]]:
    """A method of which `losses` or `__init__` is these lines, from line 8 of the file on."""
    return imported(HEAD + "\n" + "".join(f"    {line}\n" for line in lines) + TAIL)


def config_of(text: str) -> Callable[[Path], Callable[[], Any]]:
    """`apex.config` of a profile that names the file."""

    def make(folder: Path) -> Callable[[], Any]:
        from apex import config

        (folder / "mine.py").write_text(text)
        (folder / "p.yaml").write_text(f"profile: p\nmethods: [mine]\nmethod_files: [{folder / 'mine.py'}]\n")
        methods._load.cache_clear()
        return Command(config.main, (folder / "p.yaml",))

    return make


AT = r"mine\.py:10: "
LOSSES = "def losses(self, batch, nets, step):"
ON_IMPORT = [
    ("an import that fails", "import no_such_module_anywhere\n", r"mine\.py:1: .*ModuleNotFoundError: No module named"),
    ("a name that is not there", "x = 1\ny = x + z\n", r"mine\.py:2: .*NameError: name 'z'"),
    ("a syntax error", "x = 1\ndef f(:\n", r"mine\.py:2: .*SyntaxError: invalid syntax"),
    ("no memory", "raise MemoryError\n", r"mine\.py:1: .*MemoryError"),
    ("sys.exit(0)", "import sys\nsys.exit(0)\n", r"mine\.py:2: .*SystemExit: 0"),
    ("a message of many lines", "raise ValueError('one\\ntwo\\nthree')\n", r"mine\.py:1: .*ValueError: one\)"),
    ("an exception of its own", "class Odd(Exception): pass\nraise Odd()\n", r"mine\.py:2: .*Odd"),
]
IN_THE_RUN = [
    ("an exception in losses", (LOSSES, "    raise KeyError('student')"), AT + r"KeyError: 'student'; mend that line"),
    ("no memory in losses", (LOSSES, "    raise MemoryError"), AT + "MemoryError"),
    ("sys.exit(0) in losses", (LOSSES, "    raise SystemExit(0)"), AT + "SystemExit: 0"),
    (
        "a fault of ours that it causes",
        (LOSSES, "    return super().losses(batch, nets, step)"),
        AT + "TypeError: object",
    ),
    ("a missing file in losses", (LOSSES, "    open('/nowhere/weights')"), AT + "FileNotFoundError"),
    ("an exception in __init__", ("def __init__(self, params):", "    raise RuntimeError('no')"), AT + "RuntimeError: no"),
    ("recursion without end", (LOSSES, "    return self.losses(batch, nets, step)"), AT + "RecursionError"),
]


def runs(folder: Path) -> Callable[[], Any]:
    """An ordinary method file, imported and asked for its rates."""
    file = folder / "mine.py"
    file.write_text(HEAD + TAIL)
    methods._load.cache_clear()
    return lambda: methods.get("mine", [file])({})


def is_mine(_: Path, method: Any) -> None:
    assert method.name == "mine" and type(method).__name__ == "Mine"


CASES = [
    *(Case("method files, on import", name, imported(text), says, log=True) for name, text, says in ON_IMPORT),
    Case("method files, on import", "through apex.config", config_of("raise OSError('no')\n"), r"mine\.py:1: .*OSError: no", log=True),
    Case("method files, on import", "bytes that are no Python", imported(b"\xff\xfe\x00"), r"mine\.py.*: .*SyntaxError"),
    Case("method files, on import", "no METHOD", imported("x = 1\n"), r"mine\.py: expected METHOD, a subclass of Method"),
    Case("method files, on import", "an empty file", imported(""), r"mine\.py: expected METHOD"),
    *(Case("method files, in the run", name, body(*lines), says, log=True) for name, lines, says in IN_THE_RUN),
    Case("method files, in the run", "an ordinary file", runs, None, is_mine),
]  # fmt: skip
