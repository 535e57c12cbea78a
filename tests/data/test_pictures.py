"""The table of docs/pictures.md by value."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apex.data.pictures import ALPHA, FLOAT, LARGEST, SIXTEEN, TURNED, PictureError, decode, encode_png, png_of, sha256_of
from apex.provenance import file_sha256
from tests.bad_inputs.images import header_of, png

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(content: bytes) -> np.ndarray:
    """What the official scripts read."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_eight_bit_rgb_is_as_the_official_scripts_read_it(kind):
    content = saved(Image.fromarray(RGB), kind)
    pixels, departures = decode(content)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, plain(content)) and departures == ()


def test_lossless_pixels_come_back():
    for kind in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(decode(saved(Image.fromarray(RGB), kind)).pixels, RGB)


@pytest.mark.parametrize(
    ("mode", "kind"), [("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("L", "JPEG")]
)
def test_other_opaque_modes_are_as_pillow_converts_them(mode, kind):
    content = saved(Image.fromarray(RGB).convert(mode), kind)
    assert np.array_equal(decode(content).pixels, plain(content)) and decode(content).departures == ()


def test_cmyk_is_not_inverted():
    assert decode(saved(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF")).pixels[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled(kind):
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    pixels, departures = decode(saved(Image.fromarray(values), kind))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255] and departures == (SIXTEEN,)
    assert (pixels == pixels[..., :1]).all()


def test_sixteen_bit_rgb_and_grey_of_the_same_values_are_the_same():
    values = RNG.integers(0, 65536, (3, 4), dtype=np.uint16)
    rgb = decode(png(np.repeat(values[..., None], 3, -1), depth=16, colour=2))
    assert np.array_equal(rgb.pixels, decode(png(values, depth=16, colour=0)).pixels) and rgb.departures == ()


def test_float_in_0_to_1_is_scaled_and_other_floats_are_refused():
    values = np.array([[0.0, 0.25, 0.5, 1.0]], np.float32)
    pixels, departures = decode(saved(Image.fromarray(values), "TIFF"))
    assert pixels[0, :, 1].tolist() == [0, 64, 128, 255] and departures == (FLOAT,)
    for bad, found in ((values * 255, "from 0 to 255"), (values - 1, "from -1 to 0"), (values * np.nan, "not finite")):
        with pytest.raises(PictureError, match=found):
            decode(saved(Image.fromarray(bad), "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_alpha_is_composited_on_white(kind):
    alpha = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
    pixels, departures = decode(saved(Image.fromarray(np.dstack([RGB, alpha])), kind))
    part = alpha[..., None] / 255
    assert np.array_equal(pixels, np.floor(RGB * part + 255 * (1 - part) + 0.5)) and departures == (ALPHA,)


def test_opaque_alpha_changes_nothing():
    content = saved(Image.fromarray(np.dstack([RGB, np.full((5, 7), 255, np.uint8)])))
    assert np.array_equal(decode(content).pixels, RGB) and decode(content).departures == ()


def test_grey_with_alpha_and_palette_with_alpha():
    assert decode(saved(Image.new("LA", (1, 1), (100, 51)))).pixels.tolist() == [[[224] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert decode(saved(palette, transparency=bytes([0, 255]))).pixels[0].tolist() == [[255] * 3, [40, 50, 60]]


@pytest.mark.parametrize(
    ("depth", "colour", "values", "clear", "expected"),
    [
        (8, 0, [10, 20], [20], [10, 255]),
        (8, 2, [[1, 2, 3], [4, 5, 6]], [4, 5, 6], [1, 255]),
        (16, 0, [256, 257], [257], [1, 255]),
        (2, 0, [0b01_10_0000], [2], [85, 255]),
        (4, 0, [0x35], [5], [51, 255]),
        (1, 0, [0b0100_0000], [1], [0, 255]),
        (1, 0, [0b0100_0000], [0], [255, 255]),
    ],
)
def test_the_transparent_colour_becomes_white(depth, colour, values, clear, expected):
    content = png(np.array([values], np.uint16 if depth == 16 else np.uint8), depth=depth, colour=colour, clear=clear, width=2)
    pixels, departures = decode(content)
    assert pixels[0, :, 0].tolist() == expected and ALPHA in departures


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    up = np.zeros((16, 24, 3), np.uint8)
    up[:8, :8] = (250, 0, 0)
    stored = {
        1: up,
        2: up[:, ::-1],
        3: up[::-1, ::-1],
        4: up[::-1],
        5: up.transpose(1, 0, 2),
        6: np.rot90(up, 1),
        7: up.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(up, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, departures = decode(saved(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, quality=95))
    assert pixels.shape == up.shape and np.abs(pixels.astype(int) - up).mean() < 8
    assert departures == ((TURNED,) if orientation > 1 and kind != "TIFF" else ())


def test_damaged_exif_leaves_the_pixels():
    content = saved(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0garbage")
    assert np.array_equal(decode(content).pixels, RGB)


def test_the_size_is_bounded_by_the_header():
    side = int(LARGEST**0.5) + 1
    for width, height in ((side, side), (2**31 - 1, 1), (2**20, 2**20)):
        with pytest.raises(PictureError, match="pixels"):
            decode(header_of(width, height))
    assert decode(saved(Image.fromarray(RGB[:1, :1]))).pixels.shape == (1, 1, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_file_cut_anywhere_is_refused(kind):
    content = saved(Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)), kind)
    for share in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(PictureError):
            decode(content[: int(len(content) * share)])


def test_no_program_is_started_for_an_eps_file(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: started.append(a))
    eps = tmp_path / "picture.png"
    Image.fromarray(RGB).save(eps, "EPS")
    with pytest.raises(PictureError, match="no known format"):
        decode(eps)
    assert not started


def test_what_is_no_regular_file_is_refused_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        for name, found in (
            ("fifo", "a FIFO"),
            ("s", "a socket"),
            (".", "a folder"),
            ("no", "no readable file"),
            ("/dev/zero", "a device"),
        ):
            with pytest.raises(PictureError, match=found):
                decode(tmp_path / name)


def test_what_a_judge_is_sent(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(Image.fromarray(RGB), optimize=True))
    assert png_of(path) == path.read_bytes()
    Image.new("LA", (1, 1), (100, 51)).save(path)
    assert png_of(path) == encode_png(np.full((1, 1, 3), 224, np.uint8))


def test_a_kept_answer_is_of_the_file_and_of_the_policy_only_if_that_matters(tmp_path):
    """Answers about plain images, kept before there was a policy, stay; those about images that it reads otherwise do not."""
    plain, clear = tmp_path / "plain.png", tmp_path / "clear.png"
    Image.new("RGB", (4, 4), (9, 8, 7)).save(plain)
    Image.new("RGBA", (4, 4), (9, 8, 7, 100)).save(clear)
    assert sha256_of(plain) == file_sha256(plain) and sha256_of(clear) != file_sha256(clear)
    assert sha256_of(clear) == hashlib.sha256(clear.read_bytes() + b"decoder 1").hexdigest()


def test_the_module_is_light():
    code = "import sys, apex.data.pictures; assert not {'torch', 'torchvision', 'cv2', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
