"""Cases of training data: shards, folders of images, caption files and prompt files."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from apex.data import shards
from apex.data.prompts import load_prompts
from apex.data.shards import open_samples
from tests.bad_inputs.case import Case, Command

Files = dict[str, bytes | str]
Making = Callable[[Path], Callable[[], Any]]


@functools.cache
def png(level: int = 90) -> bytes:
    """An image of 16x16 pixels, all of this level."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(members: Files | list[tuple[str, bytes | str]], **links: str) -> bytes:
    """A tar of these members, and of `links`, name -> target."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content in members.items() if isinstance(members, dict) else members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for name, target in links.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.type, info.linkname = tarfile.SYMTYPE, target
            file.addfile(info)
    return buffer.getvalue()


def table(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def put(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def reads(source: Path) -> Callable[[], Any]:
    """The call that reads all samples of `source`."""
    return lambda: list(open_samples(source))


def of(files: Files, source: str = "") -> Making:
    """Writes the files and reads all samples of the folder, or of `source` in it."""

    def make(folder: Path) -> Callable[[], Any]:
        put(folder, files)
        return reads(folder / source)

    return make


def prompts(content: bytes | str) -> Making:
    def make(folder: Path) -> Callable[[], Any]:
        put(folder, {"prompts.jsonl": content})
        return lambda: load_prompts(folder / "prompts.jsonl")

    return make


def special(files: Files, name: str, call: Callable[[Path], Any] = lambda folder: list(open_samples(folder))) -> Making:
    """Beside the files a FIFO of this name; reading it would wait for ever."""

    def make(folder: Path) -> Callable[[], Any]:
        put(folder, files)
        os.mkfifo(folder / name)
        return lambda: call(folder)

    return make


def linked(files: Files, links: dict[str, str], source: str = "data") -> Making:
    """The files, and links (place -> target as it is written), both below the case's folder; `source` is read."""

    def make(folder: Path) -> Callable[[], Any]:
        put(folder, files)
        for name, target in links.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(target)
        return reads(folder / source)

    return make


def checked(files: Files, *more: str) -> Making:
    def make(folder: Path) -> Callable[[], Any]:
        put(folder, files)
        return Command(shards.main, ("check", "--data", folder, *more))

    return make


def gives(*captions: str) -> Callable[[Path, Any], None]:
    """The captions of all samples, in their order."""

    def check(_: Path, samples: Any) -> None:
        assert [one if isinstance(one, str) else one.caption for one in samples] == list(captions)

    return check


def has_prompts(*wanted: str) -> Callable[[Path, Any], None]:
    def check(_: Path, rows: Any) -> None:
        assert [row["prompt"] for row in rows] == list(wanted)

    return check


PAIR = {"a.png": png(), "a.txt": "one"}
TWO = PAIR | {"b.png": png(40), "b.txt": "two"}
LINE_A, LINE_B = '{"file_name": "a.png", "text": "one"}\n', '{"file_name": "b.png", "text": "two"}\n'
LISTED = {"a.png": png(), "metadata.jsonl": LINE_A}
IN_TAR = {"s1.png": png(), "s1.txt": "one"}
SHARE = {"text_to_image.json": json.dumps([{"input_prompt": "one", "output_image": "image/1.png"}])}
HUB = "hub/datasets--x--y"
OUT = r"found a link to .* expected"

LEFT, TARS, LISTS, TEXT = "left out in silence", "members of a shard", "caption lists", "text of captions"
PLAIN, SHARDS, LINKS, PROMPTS, OTHER = "ordinary data", "ordinary shards", "links and FIFOs", "prompt files", "sources"

CASES = [
    Case(OTHER, "a folder that is not there", lambda folder: reads(folder / "nowhere"), r"nowhere: no such file or folder"),
    Case(OTHER, "tars and parquet files", of({"a.tar": b"", "b.parquet": b""}), r"both \.tar and \.parquet"),
    Case(OTHER, "an archive as the source", of({"a.zip": b"PK"}, "a.zip"), r"a\.zip: not a data set; expected a \.tar"),
    Case(OTHER, "archives alone", of({"a.tar.gz": b"x", "b.tgz": b"x"}), r"a\.tar\.gz: found an archive, .*tar.* \[and 1 more"),
    Case(OTHER, "a folder of notes", of({"notes.md": "x"}), r"empty; expected \.tar"),
    Case(
        OTHER,
        "an index with a list as name",
        of({"index.json": '{"shards": [{"file": [], "count": 1, "sha256": "x"}]}'}),
        r"index\.json: .*shards",
    ),
    Case(OTHER, "an index whose count is text", of({"index.json": '{"samples": "x", "shards": []}'}), r"index\.json: .*samples"),
    Case(
        OTHER,
        "a table with text that is not UTF-8",
        of({"a.parquet": table([{"image": png(), "caption": b"\xff"}])}),
        r"row 0: caption is not UTF-8",
    ),
    Case(
        OTHER,
        "a table with a list of captions",
        of({"a.parquet": table([{"image": png(), "caption": ["x", "y"]}])}),
        r"row 0: caption: found a list",
    ),
    Case(OTHER, "check: a defect", checked(TWO | {"a.txt": ""}), r"found 1 defect"),
    Case(OTHER, "check: three defects", checked(TWO | {"a.txt": "", "b.png": b"x", "c.txt": "three"}), r"found 3 defects"),
    Case(OTHER, "check: resolution 0", checked(PAIR, "--resolution", "0"), r"--resolution.* 0"),
    # ------------------------------------------------------------------------------- nothing is left out
    Case(LEFT, "an image of unknown kind", of(PAIR | {"b.heic": b"heic"}), r"b\.heic: found a file of unknown kind"),
    Case(LEFT, "a zip beside images", of(PAIR | {"more.zip": b"PK"}), r"more\.zip: found an archive"),
    Case(LEFT, "a compressed tar beside tars", of({"a.tar": tar(IN_TAR), "b.tar.gz": b"x"}), r"b\.tar\.gz: found an archive"),
    Case(LEFT, "images beside tars", of({"a.tar": tar(IN_TAR), "x.png": png()}), r"x\.png: found .*tar"),
    Case(LEFT, "images beside parquet", of({"a.parquet": table([{"image": png(), "caption": "one"}]), "x.png": png()}), r"x\.png: found"),
    Case(LEFT, "an image without a caption", of(PAIR | {"b.png": png()}), r"b\.png: caption missing"),
    Case(LEFT, "a caption without an image", of(PAIR | {"b.txt": "two"}), r"b\.txt: found a caption without an image"),
    Case(LEFT, "an image that the list does not name", of(LISTED | {"b.png": png()}), r"b\.png: found an image that no list names"),
    Case(
        LEFT, "two such images", of(LISTED | {"b.png": png(), "c.png": png()}), r"b\.png: found an image that no list names.*\[and 1 more"
    ),
    Case(LEFT, "a text file beside a list", of(LISTED | {"a.txt": "other"}), r"a\.txt: found"),
    Case(LEFT, "a list of another name", of(PAIR | {"captions.jsonl": LINE_A}), r"captions\.jsonl: found .*metadata\.jsonl"),
    Case(LEFT, "a list as CSV", of(PAIR | {"metadata.csv": "file_name,text\n"}), r"metadata\.csv: found"),
    Case(LEFT, "two images of one name", of(PAIR | {"a.webp": png()}), r"a\.(png|webp): found two images"),
    Case(
        LEFT,
        "published tars with an unnamed image",
        of(SHARE | {"text_to_image_part_0.tar": tar({"image/1.png": png(), "image/2.png": png()})}),
        r"sample image/2: found an image that text_to_image\.json does not name",
    ),
    Case(
        LEFT,
        "published tars that lack an image",
        of(
            {
                "text_to_image.json": json.dumps([{"input_prompt": "x", "output_image": f"image/{i}.png"} for i in (1, 2)]),
                "text_to_image_part_0.tar": tar({"image/1.png": png()}),
            }
        ),
        r"image/2: found a row without an image",
    ),
    # ---------------------------------------------------------------------------------------------- tars
    Case(TARS, "a dot in the key", of({"a.tar": tar({"cat.v2.png": png(), "cat.v2.txt": "one"})}), r"sample cat: .*v2\.png.*dot"),
    Case(TARS, "an image without a caption", of({"a.tar": tar({"s1.png": png()})}), r"sample s1: caption missing"),
    Case(TARS, "a caption without an image", of({"a.tar": tar(IN_TAR | {"s2.txt": "two"})}), r"sample s2: no image"),
    Case(TARS, "a link instead of an image", of({"a.tar": tar(IN_TAR | {"s2.txt": "x"}, s2_png="s1.png")}), r"s2\.png: found a link"),
    Case(TARS, "a member without suffix", of({"a.tar": tar(IN_TAR | {"README": "x"})}), r"README: found .*suffix"),
    Case(
        TARS,
        "members out of order",
        of({"a.tar": tar([("a.png", png()), ("b.png", png()), ("a.txt", "one"), ("b.txt", "two")])}),
        r"sample a: .*(apart|order)",
    ),
    Case(
        TARS, "a member twice", of({"a.tar": tar([("a.png", png()), ("a.txt", "one"), ("a.txt", "two")])}), r"sample a: found a\.txt twice"
    ),
    Case(
        TARS, "two images in a sample", of({"a.tar": tar({"a.png": png(), "a.jpg": png(), "a.txt": "one"})}), r"sample a: found two images"
    ),
    Case(TARS, "an image of unknown kind", of({"a.tar": tar({"a.heic": b"heic", "a.txt": "one"})}), r"sample a: no image; found heic, txt"),
    Case(TARS, "gzip under the name of a tar", of({"a.tar": gzip.compress(tar(IN_TAR))}), r"a\.tar: found a gzip"),
    Case(TARS, "JSON nested too deeply", of({"a.tar": tar(IN_TAR | {"s1.json": "[" * 100_000})}), r"json: not valid JSON"),
    Case(
        TARS,
        "no caption, and JSON without one",
        of({"a.tar": tar({"a.png": png(), "a.json": '{"url": "x"}'})}),
        r"sample a: caption missing",
    ),
    # --------------------------------------------------------------------------------------------- lists
    Case(
        LISTS,
        "a JSON list instead of lines",
        of({"a.png": png(), "metadata.jsonl": f"[{LINE_A.strip()}]"}),
        r"metadata\.jsonl: found one JSON list, expected .*line",
    ),
    Case(
        LISTS,
        "a JSON list over several lines",
        of({"a.png": png(), "metadata.jsonl": f"[\n{LINE_A}]\n"}),
        r"metadata\.jsonl: found one JSON list",
    ),
    Case(
        LISTS, "UTF-16", of({"a.png": png(), "metadata.jsonl": LINE_A.encode("utf-16")}), r"metadata\.jsonl: found UTF-16, expected UTF-8"
    ),
    Case(LISTS, "another suffix than the file's", of({"a.jpg": png(), "metadata.jsonl": LINE_A}), r"'a\.png' not found.*a\.jpg"),
    Case(
        LISTS,
        "numbers from 1",
        of({"1.png": png(), "metadata.jsonl": '{"file_name": "0.png", "text": "x"}\n{"file_name": "1.png", "text": "y"}\n'}),
        r"line 1: image '0\.png' not found",
    ),
    Case(LISTS, "a name that leads out", of({"metadata.jsonl": '{"file_name": "../a.png", "text": "x"}\n'}), r"leads out of the folder"),
    Case(LISTS, "an absolute name", of({"metadata.jsonl": '{"file_name": "/etc/passwd", "text": "x"}\n'}), r"leads out of the folder"),
    Case(LISTS, "a name with a NUL", of({"metadata.jsonl": '{"file_name": "a\\u0000.png", "text": "x"}\n'}), r"line 1: .*file_name"),
    Case(
        LISTS,
        "a lone surrogate",
        of({"a.png": png(), "metadata.jsonl": '{"file_name": "a.png", "text": "x\\ud800"}\n'}),
        r"line 1: caption: found a lone surrogate",
    ),
    Case(
        LISTS,
        "a caption that is a number",
        of({"a.png": png(), "metadata.jsonl": '{"file_name": "a.png", "text": 3}\n'}),
        r"line 1: caption: found a number",
    ),
    Case(LISTS, "nested too deeply", of({"a.png": png(), "metadata.jsonl": "[" * 100_000}), r"metadata\.jsonl.*not valid JSON"),
    Case(
        LISTS,
        "JSON lines instead of a published list",
        of({"text_to_image.json": '{"a": 1}\n{"b": 2}\n', "text_to_image_part_0.tar": tar({"image/1.png": png()})}),
        r"text_to_image\.json: .*JSON lines",
    ),
    Case(
        LISTS,
        "a lone surrogate in a published list",
        of(
            {
                "text_to_image.json": '[{"input_prompt": "\\udc00", "output_image": "image/1.png"}]',
                "text_to_image_part_0.tar": tar({"image/1.png": png()}),
            }
        ),
        r"row 0: caption: found a lone surrogate",
    ),
    # ---------------------------------------------------------------------------------------------- text
    Case(TEXT, "UTF-16", of(PAIR | {"a.txt": "one".encode("utf-16")}), r"a\.txt: caption is not UTF-8 but UTF-16"),
    Case(TEXT, "UTF-16, big end first", of(PAIR | {"a.txt": b"\xfe\xff\0o"}), r"a\.txt: caption is not UTF-8 but UTF-16"),
    Case(TEXT, "UTF-16 without a mark", of(PAIR | {"a.txt": "one".encode("utf-16-le")}), r"a\.txt: caption: found a NUL"),
    Case(TEXT, "Latin-1", of(PAIR | {"a.txt": "café".encode("latin-1")}), r"a\.txt: caption is not UTF-8"),
    Case(TEXT, "a mark and nothing else", of(PAIR | {"a.txt": b"\xef\xbb\xbf\n"}), r"a\.txt: caption missing or empty"),
    Case(TEXT, "a surrogate as bytes", of(PAIR | {"a.txt": b"x\xed\xa0\x80"}), r"a\.txt: caption is not UTF-8"),
    # ------------------------------------------------------------------------------------- ordinary data
    Case(PLAIN, "a mark before the caption", of(PAIR | {"a.txt": b"\xef\xbb\xbfone\n"}), None, gives("one")),
    Case(PLAIN, "a blank last line", of(LISTED | {"metadata.jsonl": LINE_A + "\n\n"}), None, gives("one")),
    Case(PLAIN, "a mark before the list", of(LISTED | {"metadata.jsonl": b"\xef\xbb\xbf" + LINE_A.encode()}), None, gives("one")),
    Case(PLAIN, "lines that end as in Windows", of(LISTED | {"metadata.jsonl": LINE_A.replace("\n", "\r\n")}), None, gives("one")),
    Case(PLAIN, "suffixes in capitals", of({"A.PNG": png(), "A.TXT": "one"}), None, gives("one")),
    Case(PLAIN, "what macOS adds", of(PAIR | {"__MACOSX/._a.png": b"x", "._a.png": b"x", ".DS_Store": b"x"}), None, gives("one")),
    Case(PLAIN, "a README and a licence", of(PAIR | {"README.md": "x", "LICENSE": "x", ".gitattributes": "x"}), None, gives("one")),
    Case(PLAIN, "captions in json", of({"a.png": png(), "a.json": '{"caption": "one"}'}), None, gives("one")),
    Case(PLAIN, "sub-folders", of({"x/a.png": png(), "x/a.txt": "one", "y/a.png": png(), "y/a.txt": "two"}), None, gives("one", "two")),
    Case(
        PLAIN,
        "a list in each sub-folder",
        of({f"x/{n}": c for n, c in LISTED.items()} | {f"y/{n}": c for n, c in LISTED.items()}),
        None,
        gives("one", "one"),
    ),
    Case(
        PLAIN,
        "parquet with its statistics",
        of({"0.parquet": table([{"jpg": png(), "caption": "one", "key": "0"}]), "0_stats.json": "{}"}),
        None,
        gives("one"),
    ),
    Case(
        PLAIN,
        "img2dataset's files",
        of({"00000/0.jpg": png(), "00000/0.txt": "one", "00000/0.json": "{}", "00000.parquet": b"x", "00000_stats.json": "{}"}),
        None,
        gives("one"),
    ),
    Case(PLAIN, "check: no defect", checked(TWO), None),
    Case(
        SHARDS,
        "img2dataset's shards",
        of({"0.tar": tar({"s1.jpg": png(), "s1.txt": "one", "s1.json": "{}"}), "0.parquet": b"x", "0_stats.json": "{}"}),
        None,
        gives("one"),
    ),
    Case(
        SHARDS,
        "img2dataset's captions in json",
        of({"0.tar": tar({"s1.jpg": png(), "s1.json": '{"caption": "one", "url": "x"}'})}),
        None,
        gives("one"),
    ),
    Case(
        SHARDS,
        "what macOS adds",
        of(
            {
                "a.tar": tar(
                    {"__MACOSX/._s1.png": b"x", "._s1.png": b"x", "s1.png": png(), "._s1.txt": b"x", "s1.txt": "one", ".DS_Store": b"x"}
                )
            }
        ),
        None,
        gives("one"),
    ),
    Case(SHARDS, "suffixes in capitals", of({"a.tar": tar({"s1.PNG": png(), "s1.TXT": "one"})}), None, gives("one")),
    Case(SHARDS, "a mark before the caption", of({"a.tar": tar(IN_TAR | {"s1.txt": b"\xef\xbb\xbfone"})}), None, gives("one")),
    Case(SHARDS, "dots in a folder's name", of({"a.tar": tar({"v1.2/s1.png": png(), "v1.2/s1.txt": "one"})}), None, gives("one")),
    Case(
        SHARDS,
        "one published tar of two",
        of(
            {
                "text_to_image.json": json.dumps([{"input_prompt": str(i), "output_image": f"image/{i}.png"} for i in (1, 2)]),
                "text_to_image_part_0.tar": tar({"image/1.png": png()}),
            },
            "text_to_image_part_0.tar",
        ),
        None,
        gives("1"),
    ),
    # ------------------------------------------------------------------------------------ links and FIFOs
    Case(
        LINKS,
        "a hub cache",
        linked(
            {f"{HUB}/blobs/1": png(), f"{HUB}/blobs/2": "one"},
            {f"{HUB}/snapshots/v/a.png": "../../blobs/1", f"{HUB}/snapshots/v/a.txt": "../../blobs/2"},
            f"{HUB}/snapshots/v",
        ),
        None,
        gives("one"),
    ),
    Case(
        LINKS,
        "a hub cache with a list",
        linked(
            {f"{HUB}/blobs/1": png(), f"{HUB}/blobs/2": LINE_A},
            {f"{HUB}/snapshots/v/a.png": "../../blobs/1", f"{HUB}/snapshots/v/metadata.jsonl": "../../blobs/2"},
            f"{HUB}/snapshots/v",
        ),
        None,
        gives("one"),
    ),
    Case(
        LINKS,
        "a hub cache's sub-folder",
        linked({f"{HUB}/blobs/1": tar(IN_TAR)}, {f"{HUB}/snapshots/v/train/0.tar": "../../../blobs/1"}, f"{HUB}/snapshots/v/train"),
        None,
        gives("one"),
    ),
    Case(
        LINKS,
        "another hub cache's blobs",
        linked(
            {"hub/datasets--z/blobs/1": png(), f"{HUB}/blobs/2": "one"},
            {f"{HUB}/snapshots/v/a.png": "../../../datasets--z/blobs/1", f"{HUB}/snapshots/v/a.txt": "../../blobs/2"},
            f"{HUB}/snapshots/v",
        ),
        OUT,
    ),
    Case(LINKS, "a link that leaves the folder", linked({"secret.txt": "key", "data/a.png": png()}, {"data/a.txt": "../secret.txt"}), OUT),
    Case(LINKS, "a link to a shard elsewhere", linked({"x.tar": tar(IN_TAR)}, {"data/a.tar": "../x.tar"}), OUT),
    Case(
        LINKS,
        "a listed link that leaves",
        linked({"x.png": png(), "data/metadata.jsonl": LINE_A}, {"data/a.png": "../x.png"}),
        r"leads out|found a link",
    ),
    Case(
        LINKS,
        "a link inside the folder",
        linked({f"data/{n}": c for n, c in PAIR.items()}, {"data/b.png": "a.png", "data/b.txt": "a.txt"}),
        None,
        gives("one", "one"),
    ),
    Case(
        LINKS,
        "a broken link",
        linked({f"data/{n}": c for n, c in PAIR.items()}, {"data/b.png": "gone.png"}),
        r"b\.png: found a link to nothing",
    ),
    Case(
        LINKS,
        "a linked folder",
        linked({"data/a.png": png(), "data/a.txt": "one", "more/b.png": png(), "more/b.txt": "two"}, {"data/more": "../more"}),
        OUT,
    ),
    Case(LINKS, "a FIFO as an image", special(PAIR, "b.png"), r"b\.png: found a FIFO, expected a file"),
    Case(LINKS, "a FIFO as a caption", special({"a.png": png()}, "a.txt"), r"a\.txt: found a FIFO, expected a file"),
    Case(
        LINKS,
        "a FIFO as the source",
        special({}, "pipe.tar", lambda folder: list(open_samples(folder / "pipe.tar"))),
        r"pipe\.tar: found a FIFO",
    ),
    Case(LINKS, "a FIFO as a list", special({"a.png": png()}, "metadata.jsonl"), r"metadata\.jsonl: found a FIFO"),
    Case(LINKS, "a FIFO as a prompt file", special({}, "p", lambda folder: load_prompts(folder / "p")), r"p: found a FIFO"),
    # ------------------------------------------------------------------------------------------- prompts
    Case(PROMPTS, "a blank last line", prompts('{"prompt": "a"}\n\n\n'), None, has_prompts("a")),
    Case(PROMPTS, "a mark at the beginning", prompts(b'\xef\xbb\xbf{"prompt": "a"}\n'), None, has_prompts("a")),
    Case(PROMPTS, "lines that end as in Windows", prompts('{"prompt": "a"}\r\n{"prompt": "b"}\r\n'), None, has_prompts("a", "b")),
    Case(PROMPTS, "UTF-16", prompts('{"prompt": "a"}\n'.encode("utf-16")), r"prompts\.jsonl: found UTF-16, expected UTF-8"),
    Case(PROMPTS, "a JSON list", prompts('[{"prompt": "a"},\n {"prompt": "b"}]'), r"prompts\.jsonl: found one JSON list, expected .*line"),
    Case(
        PROMPTS, "one JSON object over lines", prompts('{\n "prompt": "a"\n}'), r"prompts\.jsonl: found one JSON object over several lines"
    ),
    Case(PROMPTS, "a lone surrogate", prompts('{"prompt": "a\\udfff"}\n'), r"line 1: prompt: found a lone surrogate"),
    Case(PROMPTS, "a lone surrogate in the tag", prompts('{"prompt": "a", "tag": "\\ud800"}\n'), r"line 1: tag: found a lone surrogate"),
    Case(PROMPTS, "plain text", prompts("a red circle\n"), r"line 1: not valid JSON"),
    Case(PROMPTS, "Latin-1", prompts('{"prompt": "café"}\n'.encode("latin-1")), r"line 1: not UTF-8"),
    Case(PROMPTS, "nested too deeply", prompts('{"prompt": ' + "[" * 100_000), r"line 1: not valid JSON"),
    Case(PROMPTS, "a folder", lambda folder: lambda: load_prompts(folder), r"prompt file not found"),
    Case(PROMPTS, "nothing but blank lines", prompts("\n \n"), r"empty; expected one JSON object a line"),
    Case(PROMPTS, "a caption file as the source", of(PAIR | {"b.png": png()}, "a.txt"), r"a\.txt: not a data set"),
]
