"""The one decoder of image files: training data, evaluators, references and external folders read pictures here and nowhere else.

What each kind of picture becomes is the table of docs/pictures.md. 8-bit RGB is as `Image.open(file).convert("RGB")` gives it, which is
what the official scripts do. Where another kind becomes something else than those scripts would see, `Picture.departures` says so.
Only PIL and numpy are imported.
"""

from __future__ import annotations

import hashlib
import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from apex.errors import SPECIAL, UserError

VERSION = 1  # of the policy: kept features and answers depend on it
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # PIL tries these alone; an EPS file would start Ghostscript
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")  # of the formats above, in lower case
LARGEST = 89_478_485  # pixels, PIL's own bound for a warning: 16-bit RGBA of that size takes about 700 MB
EXPECTED = f"a whole {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"

ALPHA, SIXTEEN, FLOAT, TURNED = "alpha composited on white", "16-bit grey scaled", "float scaled", "EXIF orientation applied"
DEPARTURES = (ALPHA, SIXTEEN, FLOAT, TURNED)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # EXIF's tag
_LOW_DEPTH = {"L;2": 85, "L;4": 17}  # PIL widens grey of 2 and 4 bits, but not its transparent value

# Every picture is held against LARGEST below, so PIL's warning about half of its own bound says nothing new.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Truncated File Read", module="PIL")  # an error follows


class PictureError(Exception):
    """A picture that cannot be used. The message says what was found, in a few words."""


class Picture(NamedTuple):
    """`pixels`: uint8 RGB (H, W, 3). `departures`: members of DEPARTURES, where a plain `convert("RGB")` gives other pixels."""

    pixels: np.ndarray
    departures: tuple[str, ...]


def decode(source: Path | bytes) -> Picture:
    """The picture in a file, or in a file's bytes.

    Raises:
        PictureError: no regular file, of another format, an animation, too large, truncated or damaged.
    """
    with _faults(), _opened(source) as image:
        check_pixels(image.size)
        if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:  # MPO: a JPEG with a preview behind it
            raise PictureError(f"an animation of {frames} frames")
        raw = str(image.tile[0][3]) if image.tile else ""
        image.load()
        pixels, alpha, departures = _rgb(image, raw)
        if alpha is not None and (alpha < 255).any():
            weight = alpha[..., None].astype(np.uint32)
            pixels = ((pixels * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)
            departures = (ALPHA, *departures)
        if (turn := _TURNS.get(_orientation(image))) is not None:
            pixels = np.asarray(Image.fromarray(pixels).transpose(turn))
            departures = (*departures, TURNED)
        return Picture(pixels, departures)


def read(source: Path | bytes, where: str | Path) -> Picture:
    """`decode`, with a `UserError` that begins with `where`."""
    try:
        return decode(source)
    except PictureError as error:
        raise UserError(f"{where}: found {error}, expected {EXPECTED}; replace or remove it") from None


def image_of(source: Path | bytes, where: str | Path) -> Image.Image:
    """`read` as a PIL image of mode RGB."""
    return Image.fromarray(read(source, where).pixels)


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 3) -> the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def png_of(path: Path) -> bytes:
    """What others decode by themselves, such as a judge behind an endpoint: a PNG file's own bytes where it has no departures."""
    content = _content(path)
    picture = read(content, path)
    return content if content.startswith(b"\x89PNG") and not picture.departures else encode_png(picture.pixels)


def sha256_of(path: Path) -> str:
    """What a kept answer about an image belongs to: the file's SHA-256, or where it has departures one of the file and this policy."""
    content = _content(path)
    departs = read(content, path).departures
    return hashlib.sha256(content + (f"decoder {VERSION}".encode() if departs else b"")).hexdigest()


def check_pixels(size: tuple[int, int]) -> None:
    """Raises `PictureError` where width x height is above LARGEST."""
    if size[0] * size[1] > LARGEST:
        raise PictureError(f"{size[0]}x{size[1]} pixels, more than {LARGEST:,}")


def check_scaled(size: tuple[int, int], where: str | Path) -> None:
    """Raises `UserError` where a picture, resized to `size` before it is cut to a square, would have more pixels than LARGEST."""
    if size[0] * size[1] > LARGEST:
        raise UserError(
            f"{where}: found a picture so narrow that it is resized to {size[0]}x{size[1]} pixels, expected at most {LARGEST:,}; "
            "crop or remove it"
        )


def check_regular(path: Path) -> None:
    """Raises `PictureError` where a path is no regular file: to open a FIFO would wait for ever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise PictureError(f"no readable file ({error.strerror})") from None
    if not stat.S_ISREG(mode):
        raise PictureError({stat.S_IFDIR: "a folder", **SPECIAL}.get(stat.S_IFMT(mode), "a device"))


def check_readable(path: Path) -> None:
    """`check_regular` with a `UserError`."""
    try:
        check_regular(path)
    except PictureError as error:
        raise UserError(f"{path}: found {error}, expected {EXPECTED}; replace or remove it") from None


def _content(path: Path) -> bytes:
    check_readable(path)
    return path.read_bytes()


@contextmanager
def _faults() -> Iterator[None]:
    """Whatever PIL raises on a damaged file as a `PictureError`."""
    try:
        yield
    except (PictureError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise PictureError("a file of no known format, or a corrupt or truncated image") from None
    except Image.DecompressionBombError:
        raise PictureError(f"more than {LARGEST:,} pixels") from None
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error, ... by format
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PictureError(f"a corrupt or truncated image ({first})") from None


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    if isinstance(source, bytes):
        empty = not source
    else:
        check_regular(source)
        empty = source.stat().st_size == 0
    if empty:
        raise PictureError("an empty image file")
    if ImageFile.LOAD_TRUNCATED_IMAGES:  # a library's import may set it: what is cut off would be grey
        raise PictureError("PIL set to read truncated files (ImageFile.LOAD_TRUNCATED_IMAGES)")
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        yield image


def _rgb(image: Image.Image, raw: str) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """uint8 (H, W, 3), uint8 alpha (H, W) or None, and departures, of an image whose pixels were stored as `raw`."""
    clear = image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        values = np.asarray(image).astype(np.int64)
        alpha = None if clear is None else np.where(values == clear, 0, 255).astype(np.uint8)
        return _grey(values >> 8), alpha, (SIXTEEN,)  # the high byte, as PIL takes it of 16-bit RGB
    if image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise PictureError("float values that are not finite")
        if values.min() < 0 or values.max() > 1:
            raise PictureError(f"float values from {values.min():g} to {values.max():g} (known: 0 to 1)")
        return _grey(np.rint(values * 255.0)), None, (FLOAT,)
    if image.mode == "I":
        raise PictureError("32-bit integers, whose range no file states")
    if clear is not None and raw.startswith("RGB;16"):
        raise PictureError("16-bit RGB with one transparent colour")
    if clear is not None and raw in _LOW_DEPTH:
        image.info["transparency"] = clear * _LOW_DEPTH[raw]
    if clear is not None or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        if image.mode == "La":  # TIFF's premultiplied grey
            image = image.convert("LA")
        values = np.asarray(image.convert("RGBA"))
        return values[..., :3], values[..., 3], ()
    return np.asarray(image.convert("RGB")), None, ()


def _grey(values: np.ndarray) -> np.ndarray:
    """(H, W) in 0..255 -> uint8 (H, W, 3)."""
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=-1)


def _orientation(image: Image.Image) -> int | None:
    """EXIF's orientation, 1 to 8; None where there is none, or EXIF is damaged. TIFF's is applied by PIL on loading."""
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # by how it is damaged; the pixels are whole
        return None
