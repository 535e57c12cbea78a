"""Reading a folder of images: order, identity, and every fault named in one error."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from apex.errors import UserError
from evaluators.images import open_images


def test_prompts_images_and_identity(make_folder, few_rows):
    images = np.random.default_rng(0).integers(0, 256, (len(few_rows) * 2, 8, 8, 3), dtype=np.uint8)
    found = open_images(make_folder(few_rows, images, per_prompt=2))
    assert found.rows == few_rows and len(found) == 2 * len(few_rows) and found.size == (8, 8)
    assert found.identity.row == "real" and found.made["hardware"] == "a machine"
    assert np.array_equal(np.concatenate(list(found.batches(5))), images), "in order, whatever the batch"
    assert np.array_equal(found.load(3), images[6:8])
    assert found.prompt_of.tolist() == np.repeat(np.arange(len(few_rows)), 2).tolist()


def test_an_image_that_changed_since_it_was_read_is_read_again(make_folder, few_rows):
    folder = make_folder(few_rows[:1])
    found = open_images(folder)
    before, path = found.load(0), found.files[0][1]
    Image.fromarray(255 - before[1]).save(path)
    assert np.array_equal(found.load(0)[1], 255 - before[1]) and np.array_equal(found.load(0)[0], before[0])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"unusable: 00000/samples/0001\.png"):
        open_images(folder)


def test_folders_without_identity_take_it_from_the_command_line(make_folder, few_rows):
    folder = make_folder(few_rows[:2], made=False)
    with pytest.raises(UserError, match="--row NAME and --nfe K"):
        open_images(folder)
    found = open_images(folder, row="theirs", nfe=4, source="a paper")
    assert (found.identity.row, found.identity.nfe, found.made) == ("theirs", 4, {"source": "a paper"})


def test_identity_must_not_contradict(make_folder, few_rows):
    with pytest.raises(UserError, match="--nfe says 2"):
        open_images(make_folder(few_rows[:1]), nfe=2)


def test_every_fault_is_named_and_counted(make_folder, few_rows):
    folder = make_folder(few_rows[:6])
    (folder / "00000/samples/0001.png").unlink()
    (folder / "00001/samples/0002.png").write_bytes(b"")
    whole = (folder / "00002/samples/0003.png").read_bytes()
    (folder / "00002/samples/0003.png").write_bytes(whole[: len(whole) // 2])
    (folder / "00003/samples/0000.png").write_bytes(b"no image at all")
    Image.new("RGB", (16, 16)).save(folder / "00004/samples/0000.png")
    with pytest.raises(UserError) as caught:
        open_images(folder)
    text = str(caught.value)
    assert "5 images missing or unusable" in text
    for name in (
        "00000/samples/0001.png is missing",
        "00001/samples/0002.png is an empty image file",
        "00002/samples/0003.png is a corrupt",
    ):
        assert name in text
    assert "00003/samples/0000.png is a file of no known format" in text and "00004/samples/0000.png is 16x16" in text and "\n" not in text


def test_a_flipped_byte_is_found(make_folder, few_rows):
    folder = make_folder(few_rows[:1])
    path = folder / "00000/samples/0000.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match="corrupt"):
        open_images(folder)


def test_a_missing_prompt_folder_and_long_lists(make_folder, few_rows):
    folder = make_folder(few_rows[:8])
    for index in (1, 3):
        for file in (folder / f"{index:05d}").rglob("*.png"):
            file.unlink()
        (folder / f"{index:05d}/metadata.jsonl").unlink()
        (folder / f"{index:05d}/samples").rmdir()
        (folder / f"{index:05d}").rmdir()
    with pytest.raises(UserError, match=r"2 images missing or unusable: 00001/ is missing; 00003/ is missing\."):
        open_images(folder)
    for file in (folder / "00000/samples").iterdir():
        file.write_bytes(b"")
    for file in (folder / "00002/samples").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"10 images missing or unusable: .*and 5 more"):
        open_images(folder)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "not valid JSON|not JSON"),
        ('{"tag": "colors", "prompt": "x"}', "include"),
        ('{"tag": "weather", "include": [], "prompt": "x"}', "tag"),
    ],
)
def test_a_bad_prompt_line_is_named(make_folder, few_rows, content, named):
    folder = make_folder(few_rows[:2])
    (folder / "00001/metadata.jsonl").write_text(content)
    with pytest.raises(UserError, match=named) as caught:
        open_images(folder)
    assert "00001" in str(caught.value)


@pytest.mark.parametrize(("content", "named"), [("{", "not JSON"), (json.dumps({"row": "x"}), "method"), ("[]", "made.json")])
def test_a_bad_made_json_is_named(make_folder, few_rows, content, named):
    folder = make_folder(few_rows[:1])
    (folder / "made.json").write_text(content)
    with pytest.raises(UserError, match=named):
        open_images(folder)


def test_no_folder_and_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_images(tmp_path / "nothing", row="x", nfe=1)
    with pytest.raises(UserError, match="no prompt folders"):
        open_images(tmp_path, row="x", nfe=1)
