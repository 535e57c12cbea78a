"""Every defect of training data ends in one clear line that names the place."""

from __future__ import annotations

import json
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from apex.data import shards
from apex.data.shards import Sample, encode_png, load_captions, open_samples, write_shards, write_world
from apex.errors import UserError, run_command

Written = Callable[[str], Path]


def message(path: Path, *parts: str) -> str:
    """Reads all of `path`; the error must be one line that has each of `parts`."""
    with pytest.raises(UserError) as caught:
        list(open_samples(path))
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text
    return text


def test_missing_empty_and_unknown_paths(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        open_samples(tmp_path / "nowhere")  # at once, not when iterated
    message(tmp_path, "empty", str(tmp_path))
    (tmp_path / "notes.md").write_text("x")
    message(tmp_path / "notes.md", "not a data set", ".parquet")


def test_two_kinds_in_one_folder(written: Written) -> None:
    path = written("tars")
    (path / "x.parquet").write_bytes(b"")
    message(path, "both .tar and .parquet")


# ------------------------------------------------------------------------------------------- tars


@pytest.mark.parametrize("keep", [0, 300, 700, 2600, 0.5, -2000])
def test_truncated_tar_without_index(keep: float, written: Written) -> None:
    shard = written("tars_without_index") / "shard-000001.tar"
    data = shard.read_bytes()
    end = len(data.rstrip(b"\0"))  # where the last member's content ends
    size = int(keep * len(data)) if isinstance(keep, float) else keep if keep >= 0 else end + keep
    shard.write_bytes(data[:size])
    message(shard.parent, "truncated or corrupt tar", shard.name)


def test_tar_cut_between_two_members_without_index(written: Written) -> None:
    # tarfile takes this for a complete archive: the samples behind the cut would vanish in silence.
    shard = written("tars_without_index") / "shard-000000.tar"
    with tarfile.open(shard) as tar:
        cut = tar.getmembers()[6].offset
    shard.write_bytes(shard.read_bytes()[:cut])
    message(shard.parent, "truncated or corrupt tar", shard.name)


def test_damaged_header_in_a_tar_without_index(written: Written) -> None:
    shard = written("tars_without_index") / "shard-000000.tar"
    with tarfile.open(shard) as tar:
        place = tar.getmembers()[6].offset
    data = bytearray(shard.read_bytes())
    data[place : place + 4] = b"\xff\xff\xff\xff"
    shard.write_bytes(data)
    message(shard.parent, "truncated or corrupt tar", shard.name)


def test_file_that_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"hello" * 1000)
    message(tmp_path, "truncated or corrupt tar", "x.tar")


def test_tar_without_samples(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w"):
        pass
    message(tmp_path, "no samples")


def test_changed_byte_is_seen_by_the_checksum(written: Written) -> None:
    shard = written("tars") / "shard-000001.tar"
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    message(shard.parent, "SHA-256", "index.json", shard.name)
    message(shard, "SHA-256")  # the shard by itself is checked too
    shard.write_bytes(bytes(data[:2000]))
    message(shard.parent, "SHA-256", shard.name)


def test_shards_and_index_disagree(written: Written) -> None:
    path = written("tars")
    (path / "shard-000002.tar").rename(path / "shard-000009.tar")
    message(path, "shard-000002.tar is listed but not there")
    (path / "shard-000009.tar").rename(path / "shard-000002.tar")
    (path / "more.tar").write_bytes((path / "shard-000000.tar").read_bytes())
    message(path, "more.tar is there but not listed")
    for shard in path.glob("*.tar"):
        shard.unlink()
    message(path, "listed but not there")


@pytest.mark.parametrize("text", ["{", "[]", '{"shards": 3}', '{"shards": [{"file": "a.tar"}]}'])
def test_damaged_index(text: str, written: Written) -> None:
    path = written("tars")
    (path / "index.json").write_text(text)
    message(path, "index.json")


def tar_of(path: Path, **parts: bytes) -> Path:
    from webdataset import TarWriter

    with path.open("wb") as file, TarWriter(file, encoder=False, compress=False) as writer:
        writer.write({"__key__": "s1", "png": encode_png_of_nothing(), "txt": b"fine"})
        writer.write({"__key__": "s2", **parts})
    return path


def encode_png_of_nothing() -> bytes:
    import numpy as np

    return encode_png(np.zeros((16, 16, 3), np.uint8))


def test_defective_samples_in_a_tar(tmp_path: Path) -> None:
    good = encode_png_of_nothing()
    message(tar_of(tmp_path / "a.tar", png=good), "a.tar, sample s2", "caption missing")
    message(tar_of(tmp_path / "b.tar", png=good, txt=b" \n"), "b.tar, sample s2", "caption missing or empty")
    message(tar_of(tmp_path / "c.tar", png=good, txt=b"\xff\xfe"), "c.tar, sample s2", "not UTF-8")
    message(tar_of(tmp_path / "d.tar", txt=b"text", cls=b"3"), "d.tar, sample s2", "no image; found cls, txt")
    message(tar_of(tmp_path / "e.tar", png=good, txt=b"x", json=b"{'a': 1}"), "e.tar, sample s2", "JSON")
    message(tar_of(tmp_path / "f.tar", png=good[:-30], txt=b"x"), "f.tar, sample s2", "image")
    message(tar_of(tmp_path / "g.tar", png=b"", txt=b"x"), "g.tar, sample s2", "image")


# ------------------------------------------------------------------------------------- tars with a list


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "text_to_image.json: not valid JSON"),
        ("{}", "text_to_image.json: found a JSON dict, expected a list"),
        ('[{"output_image": "image/1.png"}]', "text_to_image.json, row 0: found output_image; expected input_prompt and output_image"),
        ('[{"input_prompt": " ", "output_image": "image/1.png"}]', "text_to_image.json, row 0: caption missing or empty"),
        (
            '[{"input_prompt": "a", "output_image": "i/1.png"}, {"input_prompt": "b", "output_image": "i/1.png"}]',
            "row 1: output_image i/1 has a",
        ),
        (
            '[{"input_prompt": "a", "output_image": "image/1.png"}]',
            "sample image/00000000: found an image that text_to_image.json",
        ),
    ],
)
def test_defects_in_a_list_of_captions(text: str, expected: str, written: Written) -> None:
    path = written("listed")
    (path / "text_to_image.json").write_text(text)
    message(path, expected)


def test_a_list_without_its_images(written: Written) -> None:
    path = written("listed")
    for tar in path.glob("text_to_image_part_*.tar"):
        tar.unlink()
    message(path, "text_to_image.json without its images; expected text_to_image_part_*.tar beside it")


# ----------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("name", ["text_folder", "metadata_folder"])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_corrupt_image_in_a_folder(name: str, damage: str, written: Written) -> None:
    image = written(name) / "00000003.png"
    data = image.read_bytes()
    middle = len(data) // 2
    image.write_bytes({"cut": data[:middle], "noise": data[: middle - 8] + b"\x55" * 16 + data[middle + 8 :], "empty": b""}[damage])
    message(image.parent, "00000003.png", "an empty image file" if damage == "empty" else "a corrupt or truncated image")


def test_defects_in_a_text_folder(written: Written) -> None:
    path = written("text_folder")
    (path / "00000002.txt").write_text("")
    message(path, "00000002.txt", "caption missing or empty")
    (path / "00000002.txt").unlink()
    message(path, "00000002.png", "caption missing", "metadata.jsonl")
    (path / "00000001.json").write_text("nonsense")
    message(path, "00000001.json", "not valid JSON")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{broken", "not valid JSON"),
        ("[1]", "expected an object"),
        ('{"text": "a"}', "file_name missing"),
        ('{"file_name": "00000000.png"}', "caption missing"),
        ('{"file_name": "00000000.png", "text": ""}', "caption missing or empty"),
        ('{"file_name": "gone.png", "text": "a"}', "'gone.png' not found"),
        ('{"file_name": "../secret.png", "text": "a"}', "leads out of the folder"),
        ("", "not valid JSON"),
    ],
)
def test_defects_in_a_metadata_file(line: str, expected: str, written: Written) -> None:
    path = written("metadata_folder")
    (path.parent / "secret.png").write_bytes((path / "00000000.png").read_bytes())
    lines = (path / "metadata.jsonl").read_text().splitlines()
    lines[4] = line
    (path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    message(path, "metadata.jsonl, line 5", expected)


def test_images_of_different_sizes(scenes: list[Sample], tmp_path: Path) -> None:
    mixed = [scenes[0], scenes[1]._replace(image=scenes[1].image[:12])]
    write_shards(mixed, tmp_path / "w", {})
    message(tmp_path / "w", scenes[1].key, "16x12", "16x16", "resolution")
    assert [s.image.shape for s in open_samples(tmp_path / "w", resolution=16)] == [(16, 16, 3)] * 2


# ----------------------------------------------------------------------------------------- parquet


def test_defects_in_parquet(scenes: list[Sample], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    png = encode_png(scenes[0].image)

    def table(name: str, rows: list[dict]) -> Path:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
        return tmp_path / name

    good = {"image": png, "caption": "a"}
    message(table("a.parquet", [{"picture": png, "caption": "a"}]), "image column missing; found picture, caption")
    message(table("b.parquet", [{"image": png, "title": "a"}]), "caption column missing; found image, title")
    message(table("c.parquet", [good, {"image": png, "caption": None}]), "c.parquet, row 1", "caption missing")
    message(table("d.parquet", [good, {"image": None, "caption": "a"}]), "d.parquet, row 1", "holds no image")
    message(table("e.parquet", [{"image": {"bytes": None, "path": "x.png"}, "caption": "a"}]), "e.parquet, row 0", "holds no image")
    message(table("f.parquet", [good, good | {"image": png[:40]}]), "f.parquet, row 1", "a corrupt or truncated image")
    message(table("g.parquet", [{"image": "text", "caption": "a"}]), "g.parquet, row 0", "holds no image")
    message(table("h.parquet", []), "h.parquet", "column missing")
    empty = tmp_path / "i.parquet"
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}), empty)
    message(empty, "no samples")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_parquet(keep: float, written: Written) -> None:
    file = written("parquet") / "b.parquet"
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data))])
    message(file.parent, "b.parquet", "truncated or corrupt parquet")


def test_captions_alone_do_not_decode_images(written: Written) -> None:
    path = written("text_folder")
    (path / "00000003.png").write_bytes(b"no image")
    assert len(load_captions(path)) == 10


# ------------------------------------------------------------------------------------ the commands


def test_arguments_out_of_range_and_foreign_folders(tmp_path: Path) -> None:
    for arguments, name in (({"scenes": 0}, "--scenes"), ({"resolution": 8}, "--resolution"), ({"seed": -1}, "--seed")):
        with pytest.raises(UserError, match=re.escape(name)):
            write_world(tmp_path / "w", **({"scenes": 1, "resolution": 16, "seed": 0} | arguments))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(UserError, match="found a folder without"):
        write_world(tmp_path / "thesis", scenes=1, resolution=16, seed=0)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


def test_commands_report_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["shards", *arguments])
        return run_command(shards.main)

    assert call("world", "--out", str(tmp_path / "w"), "--scenes", "3", "--resolution", "16", "--seed", "2") == 0
    assert json.loads((tmp_path / "w" / "index.json").read_text())["samples"] == 3
    assert call("check", "--data", str(tmp_path / "w")) == 0
    assert capsys.readouterr().out.endswith("3 samples, no defect\n")
    shard = tmp_path / "w" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    assert call("check", "--data", str(tmp_path / "w")) == 2
    bad = capsys.readouterr()
    assert bad.out.startswith(f"{shard}: SHA-256") and bad.out.count("\n") == 1
    assert bad.err.startswith(f"error: {tmp_path / 'w'}: found 1 defect beside 0 good samples")
    assert bad.err.count("\n") == 1
