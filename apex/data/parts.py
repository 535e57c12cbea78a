"""A folder that is made file by file: an interrupted call goes on with the first file that is not done, and it appears when it is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apex.files import Kind, replace_folder, saving, write_atomic
from apex.provenance import digest, file_sha256

MADE = "made.json"


class Parts:
    """The files of `out` in the making, in a hidden folder beside it that is named after what makes them.

    `identity` is all that the files' content depends on: what another identity has left is never taken.
    Raises `UserError` when `out` holds something else.
    """

    def __init__(self, out: Path, identity: dict[str, Any], kind: Kind) -> None:
        kind.check(out)
        self.kind, self.out, self.work = kind, out, out.parent / f".{out.name}.parts-{digest(identity)}"
        self.files = self.work / "files"
        self.files.mkdir(parents=True, exist_ok=True)

    def done(self, name: str) -> dict[str, Any] | None:
        """The record of a file that an earlier call has finished; None without one, and where the file has changed since."""
        try:
            record = json.loads((self.work / f"{name}.json").read_bytes())
            return record if file_sha256(self.files / name) == record["sha256"] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def add(self, name: str, write: Callable[[Path], dict[str, Any]]) -> None:
        """Makes a file: `write(path)` writes it and returns what is to be known of it; its name and SHA-256 are added."""
        temporary = self.work / f"{name}.tmp"
        try:
            with saving(self.out):
                about = write(temporary)
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        temporary.chmod(0o644)  # safetensors makes it private
        record = {"file": name, **about, "sha256": file_sha256(temporary)}
        os.replace(temporary, self.files / name)
        write_atomic(self.work / f"{name}.json", json.dumps(record) + "\n")

    def finish(self, texts: dict[str, str]) -> None:
        """Adds files of these texts, made.json among them, and gives the folder its name."""
        for name, text in texts.items():
            write_atomic(self.files / name, text)
        replace_folder(self.files, self.out, self.kind)
        shutil.rmtree(self.work)
