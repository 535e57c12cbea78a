"""Cases of training data: shards, folders and caption files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from apex.data.shards import open_samples
from tests.bad_inputs.case import Case


def reads(source: Path) -> Callable[[], Any]:
    """The call that reads all samples of `source`."""
    return lambda: list(open_samples(source))


def a_missing_source(folder: Path) -> Callable[[], Any]:
    return reads(folder / "nowhere")


def two_kinds(folder: Path) -> Callable[[], Any]:
    (folder / "a.tar").write_bytes(b"")
    (folder / "b.parquet").write_bytes(b"")
    return reads(folder)


CASES = [
    Case("training data", "a folder that is not there", a_missing_source, r"nowhere: no such file or folder"),
    Case("training data", "tars and parquet files", two_kinds, r"both \.tar and \.parquet"),
]
