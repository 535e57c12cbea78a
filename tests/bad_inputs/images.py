"""Image files of kinds that PIL does not write."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(values: np.ndarray, *, depth: int, colour: int, clear: list[int] | None = None, width: int | None = None) -> bytes:
    """A PNG of rows of samples, (H, W) or (H, W, channels); below 8 bits the rows are packed bytes and `width` is given."""
    rows = values.astype(">u2") if depth == 16 else values.astype(np.uint8)
    header = struct.pack(">IIBBBBB", width or values.shape[1], len(values), depth, colour, 0, 0, 0)
    transparent = b"" if clear is None else _chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear))
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + transparent + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def header_of(width: int, height: int) -> bytes:
    """A PNG that says it is of that size, with next to no data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"\0" * 100)) + _chunk(b"IEND", b"")
