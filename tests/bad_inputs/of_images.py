"""Cases of image files, of folders of images, and of prompts that the embedded world cannot draw."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import apex.sample
import evaluators.geneval.calibrate
from apex.data.pictures import read
from apex.data.prompts import COMMITTED, load_prompts
from apex.data.shards import decode_image
from evaluators.command import begin, image_parser
from evaluators.fid.reference import listed
from evaluators.flat import open_flat
from evaluators.images import Images, open_images
from tests.bad_inputs.case import Case, Command
from tests.bad_inputs.images import header_of, png

Make = Callable[[Path], Callable[[], Any]]
RGB = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
SETTINGS = {"row": "theirs", "nfe": 1}


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------ one file


def file(content: bytes, name: str = "a.png") -> Make:
    def make(folder: Path) -> Callable[[], Any]:
        path = folder / name
        path.write_bytes(content)
        return lambda: read(path, path).pixels

    return make


def special(kind: str) -> Make:
    def make(folder: Path) -> Callable[[], Any]:
        path = folder / "a.png"
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            place = os.getcwd()
            os.chdir(folder)  # a socket's path is short
            try:
                with socket.socket(socket.AF_UNIX) as server:
                    server.bind("a.png")
            finally:
                os.chdir(place)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "folder":
            path.mkdir()
        elif kind == "broken link":
            path.symlink_to("nowhere")
        return lambda: read(path, path)

    return make


def becomes(*values: int) -> Callable[[Path, Any], None]:
    """The first pixel of the picture."""

    def check(_: Path, pixels: np.ndarray) -> None:
        assert pixels[0, 0].tolist() == list(values), pixels[0, 0]

    return check


def frames(kind: str) -> bytes:
    pictures = [Image.new("RGB", (4, 4), (k * 60, 0, 0)) for k in range(3)]
    return saved(pictures[0], kind, save_all=True, append_images=pictures[1:])


def oriented() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[1, 1] = (9, 8, 7)
    return saved(picture, exif=exif)


def narrow(_: Path) -> Callable[[], Any]:
    content = saved(np.zeros((1, 20_000, 3), np.uint8))
    return lambda: decode_image(content, "sample 7", 512)


DAMAGED = "found a (file of no known format, or a )?corrupt or truncated image"
FILES = [
    ("animated PNG", frames("PNG"), "a.png: found an animation of 3 frames"),
    ("animated WebP", frames("WEBP"), "a.png: found an animation of 3 frames"),
    ("animated GIF", frames("GIF"), "a.png: found an animation of 3 frames"),
    ("TIFF of three pages", frames("TIFF"), "a.png: found an animation of 3 frames"),
    ("EPS named .png", saved(RGB, "EPS"), "found a file of no known format"),
    ("PDF named .png", saved(RGB, "PDF"), "found a file of no known format"),
    ("ICO named .png", saved(RGB, "ICO"), "found a file of no known format"),
    ("text named .png", b"not an image", "found a file of no known format"),
    ("empty", b"", "a.png: found an empty image file, expected a whole PNG"),
    ("a bomb of 10^10 pixels", header_of(100_000, 100_000), r"found (100000x100000|more than)"),
    ("one row of 2^31 pixels", header_of(2**31 - 1, 1), "pixels"),
    ("float beyond 1", saved(Image.fromarray(np.full((2, 2), 200.0, np.float32)), "TIFF"), "float values from 200 to 200"),
    ("float that is NaN", saved(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), "not finite"),
    ("32-bit integers", saved(Image.fromarray(np.full((2, 2), 7, np.int32)), "TIFF"), "32-bit integers"),
    ("16-bit RGB with tRNS", png(np.zeros((1, 1, 3), np.uint16), depth=16, colour=2, clear=[0, 0, 0]), "one transparent colour"),
]
CUT = [(kind, part) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF") for part in (0.4, 0.9)]
GOOD = [
    ("8-bit RGB", saved(RGB), RGB[0, 0].tolist()),
    ("a JPEG named .png", saved(Image.new("L", (8, 8), 90), "JPEG"), [90, 90, 90]),
    ("1x1", saved(np.full((1, 1, 3), 5, np.uint8)), [5, 5, 5]),
    ("16-bit grey", png(np.array([[40_000]], np.uint16), depth=16, colour=0), [156, 156, 156]),
    ("16-bit grey with tRNS", png(np.array([[40_000]], np.uint16), depth=16, colour=0, clear=[40_000]), [255, 255, 255]),
    ("float", saved(Image.fromarray(np.full((1, 1), 0.5, np.float32)), "TIFF"), [128, 128, 128]),
    ("RGBA", saved(Image.new("RGBA", (1, 1), (0, 100, 200, 51))), [204, 224, 244]),
    ("LA", saved(Image.new("LA", (1, 1), (100, 51))), [224, 224, 224]),
    ("L", saved(Image.new("L", (1, 1), 77)), [77, 77, 77]),
    ("RGB with tRNS", png(np.array([[[1, 2, 3]]]), depth=8, colour=2, clear=[1, 2, 3]), [255, 255, 255]),
    ("2-bit grey with tRNS", png(np.array([[0b10_01_0000]]), depth=2, colour=0, clear=[2], width=2), [255, 255, 255]),
    ("palette", saved(Image.new("RGB", (1, 1), (10, 200, 30)).convert("P", palette=Image.Palette.ADAPTIVE)), [10, 200, 30]),
    ("CMYK", saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [255, 0, 0]),
    ("EXIF orientation", oriented(), [9, 8, 7]),
    ("GIF of one frame", saved(Image.new("RGB", (1, 1), (10, 20, 30)), "GIF"), [10, 20, 30]),
]

# ------------------------------------------------------------------------------------------- folders


@cache
def layout() -> Path:
    """The world's whole test set in GenEval's layout, one image of 8x8 a prompt, without made.json."""
    root, content = Path(tempfile.mkdtemp()) / "images", saved(RGB)
    for number, row in enumerate(load_prompts(COMMITTED / "test.jsonl")):
        folder = root / f"{number:05d}"
        (folder / "samples").mkdir(parents=True)
        (folder / "samples" / "0000.png").write_bytes(content)
        (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    return root


def spoilt(spoil: Callable[[Path], Any], prompts: int | None = 6, opener: Callable[..., Any] | None = None) -> Make:
    """The folder with its first prompts (None: all), after `spoil`, opened as an evaluator opens it."""

    def make(folder: Path) -> Callable[[], Any]:
        images = folder / "images"
        images.mkdir()
        for prompt in sorted(layout().iterdir())[:prompts]:
            shutil.copytree(prompt, images / prompt.name)
        spoil(images)
        if opener:
            return lambda: opener(images)
        return lambda: open_images(images, **SETTINGS, incomplete=prompts is not None)

    return make


def nothing(_: Path) -> None:
    pass


def put(name: str, content: bytes = b"") -> Callable[[Path], None]:
    def spoil(images: Path) -> None:
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(content or saved(RGB))

    return spoil


def drop(*names: str) -> Callable[[Path], None]:
    return lambda images: [shutil.rmtree(images / name) for name in names]


def rename(names: Callable[[int], str]) -> Callable[[Path], None]:
    def spoil(images: Path) -> None:
        for prompt in sorted(images.iterdir()):
            prompt.rename(images / f"new-{names(int(prompt.name))}")
        for prompt in list(images.iterdir()):
            prompt.rename(images / prompt.name.removeprefix("new-"))

    return spoil


def fifo(name: str) -> Callable[[Path], None]:
    def spoil(images: Path) -> None:
        (images / name).unlink(missing_ok=True)
        os.mkfifo(images / name)

    return spoil


def both_widths(images: Path) -> None:
    shutil.copytree(images / "00003", images / "3")


def counts(prompts: int, **departures: int) -> Callable[[Path, Any], None]:
    def check(_: Path, images: Images) -> None:
        assert len(images.rows) == prompts and len(images.departures) == len(departures)

    return check


def in_order(_: Path, images: Images) -> None:
    assert [row["prompt"] for row in images.rows] == [row["prompt"] for row in load_prompts(COMMITTED / "test.jsonl")]


def says_how_many(images: Path) -> None:
    (images / "made.json").write_text(json.dumps({"row": "a", "method": "a", "nfe": 1, "prompts_total": 7}))


def from_command_line(images: Path) -> Any:
    arguments = ["--images", str(images), "--out", str(images.parent / "o.json"), "--row", "a", "--nfe", "1", "--device", "cpu"]
    return begin(image_parser("evaluators.geneval", "").parse_args(arguments))


def whole_made(images: Path) -> Any:
    return open_images(images, incomplete=False)


LEFT_OUT = "images, archives or folders that would be left out, expected NNNNN/samples/NNNN.png alone: "
LAYOUT = [
    ("images beside the prompts", put("a.png"), "found 1 " + LEFT_OUT + "a.png;"),
    ("an archive beside the prompts", put("00006.zip"), "found 1 " + LEFT_OUT + "00006.zip;"),
    ("a folder of another name", put("prompt7/samples/0000.png"), "found 1 " + LEFT_OUT + "prompt7/;"),
    ("a JPEG among the samples", put("00001/samples/0001.jpg"), LEFT_OUT + "00001/samples/0001.jpg;"),
    ("a sample without a number", put("00001/samples/best.png"), LEFT_OUT + "00001/samples/best.png;"),
    ("a suffix in capitals", put("00001/samples/0001.PNG"), LEFT_OUT + "00001/samples/0001.PNG;"),
    ("an image beside samples/", put("00001/extra.png"), LEFT_OUT + "00001/extra.png;"),
    ("an archive among the samples", put("00001/samples/rest.tar"), LEFT_OUT + "00001/samples/rest.tar;"),
    ("one prompt in two widths", both_widths, "found 2 names that share a number"),
    ("one image in two widths", put("00001/samples/0.png"), "found 2 names that share a number"),
    ("numbers from 1", drop("00000"), "00000/ is missing"),
    ("a gap", drop("00002", "00003"), "2 images missing or unusable: 00002/ is missing; 00003/ is missing"),
]
SPECIAL = [
    ("an image", fifo("00001/samples/0000.png"), "00001/samples/0000.png is a FIFO"),
    ("a prompt's line", fifo("00001/metadata.jsonl"), "metadata.jsonl: found a FIFO, expected a file"),
]


def prompt_set_cases() -> list[Case]:
    kind, lacks = "prompt sets", "of the 300 prompts of the world's test set, expected all: lacks"
    return [
        Case(kind, "the last prompts are missing", spoilt(drop("00298", "00299"), None), f"found 298 {lacks}"),
        Case(kind, "the last one is missing, unpadded", spoilt(both(drop("00299"), rename(str)), None), f"found 299 {lacks}"),
        Case(kind, "the last one is missing, in three digits", spoilt(both(drop("00299"), rename("{:03d}".format)), None), "found 299"),
        Case(kind, "six prompts on a command line", spoilt(nothing, 6, from_command_line), f"found 6 {lacks}"),
        Case(kind, "fewer than made.json says", spoilt(says_how_many, 6, whole_made), "found 6 prompts, expected 7 as made.json says"),
        Case(kind, "whole", spoilt(nothing, None), None, counts(300)),
        Case(kind, "whole, unpadded", spoilt(rename(str), None), None, in_order),
        Case(kind, "whole, in three digits", spoilt(rename("{:03d}".format), None), None, in_order),
    ]


def both(first: Callable[[Path], Any], second: Callable[[Path], Any]) -> Callable[[Path], None]:
    def spoil(images: Path) -> None:
        first(images)
        second(images)

    return spoil


def flat(spoil: Callable[[Path], Any]) -> Make:
    def make(folder: Path) -> Callable[[], Any]:
        for name in ("a", "b"):
            (folder / f"{name}.png").write_bytes(saved(RGB))
        spoil(folder)
        return lambda: open_flat(folder, {"a": "a cat", "b": "a dog"}, "id", source=None, **SETTINGS)

    return make


def real(spoil: Callable[[Path], Any]) -> Make:
    def make(folder: Path) -> Callable[[], Any]:
        for name in ("a", "b"):
            (folder / f"{name}.png").write_bytes(saved(RGB))
        spoil(folder)
        return lambda: listed(folder)

    return make


# ------------------------------------------------------------------------------------------- prompts


def row_of(**changes: Any) -> dict[str, Any]:
    one = {"class": "circle", "count": 1}
    return {"tag": "single_object", "include": [one], "prompt": "a circle", **changes}


UNDRAWABLE = [
    ("another class", row_of(include=[{"class": "dog", "count": 1}]), "found class 'dog', expected one of circle"),
    ("another colour", row_of(include=[{"class": "circle", "count": 1, "color": "pink"}]), "found color 'pink'"),
    ("five objects", row_of(include=[{"class": "circle", "count": 5}]), "found 5 objects, expected at most 4"),
    ("another background", row_of(background="striped"), "found background 'striped'"),
    (
        "a position among three",
        row_of(
            tag="position",
            include=[{"class": "circle", "count": 2}, {"class": "cross", "count": 1, "position": ["above", 0]}],
        ),
        "found a position among 3 objects",
    ),
    ("no objects", {"prompt": "a poem"}, "found no include"),
]


def calibrates(row: dict[str, Any]) -> Make:
    def make(folder: Path) -> Command:
        (folder / "p.jsonl").write_text(json.dumps(row) + "\n")
        return Command(evaluators.geneval.calibrate.main, ("--prompts", folder / "p.jsonl", "--out", folder / "out", "--device", "cpu"))

    return make


def references(kind: str) -> Make:
    def make(folder: Path) -> Command:
        (folder / "p.jsonl").write_text(json.dumps(UNDRAWABLE[2][1]) + "\n")
        arguments = ("--config", "workflows/config/world.yaml", "--row", kind, "--nfe", "0", "--prompts", folder / "p.jsonl")
        return Command(apex.sample.main, (*arguments, "--out", folder / "out", "--device", "cpu"))

    return make


CASES = [
    *(Case("image files", name, file(content), says) for name, content, says in FILES),
    *(
        Case("cut image files", f"{kind} at {part:.0%}", file((whole := saved(RGB, kind))[: int(len(whole) * part)]), DAMAGED)
        for kind, part in CUT
    ),
    *(Case("good image files", name, file(content), None, becomes(*first)) for name, content, first in GOOD),
    Case("special files among images", "a FIFO", special("fifo"), "a.png: found a FIFO, expected a whole PNG"),
    Case("special files among images", "a socket", special("socket"), "a.png: found a socket"),
    Case("special files among images", "a device", special("device"), "a.png: found a device"),
    Case("special files among images", "a folder", special("folder"), "a.png: found a folder"),
    Case("special files among images", "a broken link", special("broken link"), "a.png: found no readable file"),
    *(Case("special files among images", f"a FIFO for {name}", spoilt(spoil), says) for name, spoil, says in SPECIAL),
    Case("image files' sizes", "so narrow that resizing would explode", narrow, "sample 7: found a picture so narrow"),
    *(Case("folders of images", name, spoilt(spoil), says) for name, spoil, says in LAYOUT),
    Case("good folders of images", "plain", spoilt(nothing), None, counts(6)),
    Case("good folders of images", "the official grid.png", spoilt(put("00001/grid.png")), None, counts(6)),
    Case("good folders of images", "what macOS leaves", spoilt(both(put("__MACOSX/x"), put("00001/samples/._0000.png"))), None, counts(6)),
    Case("good folders of images", "a README", spoilt(put("README.md", b"text")), None, counts(6)),
    *prompt_set_cases(),
    Case("flat folders", "a JPEG beside", flat(put("c.jpg")), "found 1 images, archives or folders .* expected ID.png"),
    Case("flat folders", "an archive beside", flat(put("rest.zip")), "rest.zip"),
    Case("flat folders", "a folder beside", flat(put("more/c.png")), "more/"),
    Case("flat folders", "plain", flat(nothing), None),
    Case("folders of real images", "an archive beside", real(put("rest.zip")), "rest.zip; rename them"),
    Case("folders of real images", "a FIFO beside", real(fifo("x")), "found 1 images, archives or folders"),
    Case("folders of real images", "a list beside", real(put("list.txt", b"a")), None),
    *(Case("prompts to calibrate on", name, calibrates(row), f"p.jsonl: prompt 1: {says}") for name, row, says in UNDRAWABLE),
    *(Case("prompts of references", kind, references(kind), "p.jsonl: prompt 1: found 5 objects") for kind in ("real", "shuffled", "mean")),
]
