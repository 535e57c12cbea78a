"""Answers of an evaluator kept as they come, so that a call that was cut off goes on where it was, and a rerun costs nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from apex.errors import UserError
from apex.files import saving
from apex.provenance import digest


class Journal:
    """JSON lines: the first says what the answers depend on, each other one is [key, answer].

    `identity` is all that an answer depends on beside its key: the weights, the code's version, the settings. A file of another identity is
    not read and not lost: this one has another name, with the identity's digest in it. The last line of a call that was killed may be
    torn; it is dropped. One process at a time writes it; threads of it may (a line is one write).
    """

    def __init__(self, folder: Path, name: str, identity: dict[str, Any]) -> None:
        self.path = folder / f"{name}-{digest(identity)}.jsonl"
        self._answers: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        whole = self._read(identity) if self.path.exists() else 0
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._file, whole)
        if not whole:
            self._write(identity)

    def _read(self, identity: dict[str, Any]) -> int:
        """Takes up the answers; returns the length of the whole lines, bytes."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        try:
            if lines and json.loads(lines[0]) != json.loads(json.dumps(identity)):
                raise ValueError("its first line names other settings")
            self._answers = {key: answer for key, answer in map(json.loads, lines[1:])}
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.path}: not a journal of this evaluator ({error}); move it away and run again") from error
        return whole

    def _write(self, line: Any) -> None:
        data = json.dumps(line).encode() + b"\n"
        with saving(self.path):
            while data:  # a disk that is nearly full takes a part of it
                data = data[os.write(self._file, data) :]

    def get(self, key: str) -> Any | None:
        return self._answers.get(key)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, key: str, answer: Any) -> None:
        self._answers[key] = answer
        self._write([key, answer])

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
