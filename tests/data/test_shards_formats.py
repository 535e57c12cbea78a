"""The one data path: what is written comes back the same from every format, and the same arguments give the same bytes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apex.data import shards
from apex.data.readers import Skipped, detect
from apex.data.shards import Sample, checksum, encode_png, load_captions, load_images, open_samples, scene_from, world_sample, write_world
from apex.data.world import PromptSampler, render
from apex.errors import UserError

ALL = ["tars", "tars_without_index", "text_folder", "metadata_folder", "parquet", "hugging_face_parquet"]


@pytest.mark.parametrize("name", ALL)
def test_every_format_gives_the_same_samples(name: str, written: Callable[[str], Path], scenes: list[Sample]) -> None:
    found = list(open_samples(written(name)))
    assert [s.key for s in found] == [s.key for s in scenes]
    assert [s.caption for s in found] == [s.caption for s in scenes]
    for a, b in zip(found, scenes, strict=True):
        assert a.image.dtype == np.uint8
        np.testing.assert_array_equal(a.image, b.image)
        if "parquet" in name:  # its tables carry one further column
            assert a.meta == {"index": b.meta["index"]}
        else:
            assert a.meta == json.loads(json.dumps(b.meta))


@pytest.mark.parametrize("name", ALL)
def test_one_file_or_limit(name: str, written: Callable[[str], Path], scenes: list[Sample]) -> None:
    path = written(name)
    images = load_images(path, limit=3)
    assert tuple(images.shape) == (3, 3, 16, 16)
    np.testing.assert_array_equal(images[2].permute(1, 2, 0).numpy(), scenes[2].image)
    assert load_captions(path, limit=5) == [s.caption for s in scenes[:5]]
    if "tar" in name or "parquet" in name:
        single = detect(path).files[0]
        assert [s.key for s in open_samples(single)] == [s.key for s in scenes[: 4 if "tar" in name else 5]]


def test_images_in_tars_and_their_captions_in_a_list(written: Callable[[str], Path], scenes: list[Sample], capsys) -> None:
    """ShareGPT-4o-Image as it is published; the images of its other task lie in the same folder."""
    path = written("listed")
    found = sorted(open_samples(path))
    assert [s.key for s in found] == [f"image/{s.key}" for s in scenes]
    for a, b in zip(found, scenes, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert (a.caption, a.meta) == (b.caption, {"index": b.meta["index"]})
    assert not capsys.readouterr().err
    one = list(open_samples(path / "text_to_image_part_1.tar"))
    assert {s.key for s in one} == {f"image/{s.key}" for s in scenes[6:]}

    source = detect(path)
    before = checksum(source)
    for file in (path / "text_to_image.json", path / "text_to_image_part_0.tar"):
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        assert checksum(source) != before
        file.write_bytes(content)
    (path / "text_and_image_to_image.json").unlink()
    assert checksum(detect(path)) == before


def test_images_that_the_list_does_not_name_are_refused_or_counted(written: Callable[[str], Path]) -> None:
    path = written("listed")
    listing = path / "text_to_image.json"
    rows = json.loads(listing.read_text())
    listing.write_text(json.dumps([*rows[2:], {"input_prompt": "nothing", "output_image": "image/none.png"}]))
    with pytest.raises(UserError, match=r"sample image/00000000: found an image that text_to_image.json does not name"):
        list(open_samples(path))
    skipped = Skipped()
    assert len(list(open_samples(path, skipped=skipped))) == 8
    assert [re.search("an image that|a row without", line)[0] for line in skipped.lines] == ["an image that"] * 2 + ["a row without"]
    with pytest.raises(UserError, match=r"image/none.*: found 3 defects, expected 2 at most \(data.skip_limit\)"):
        list(open_samples(path, skipped=Skipped(2)))


def test_poorer_captions_are_of_the_same_scenes(tmp_path: Path) -> None:
    full, shapes = ({"scenes": 40, "resolution": 16, "seed": 3, "captions": kind} for kind in ("full", "shapes"))
    write_world(tmp_path / "full", **full)
    write_world(tmp_path / "shapes", **shapes)
    a, b = (list(open_samples(tmp_path / name)) for name in ("full", "shapes"))
    for rich, poor in zip(a, b, strict=True):
        np.testing.assert_array_equal(rich.image, poor.image)
        named = [shape for shape in ("circle", "square", "triangle", "cross") if shape in rich.caption]
        assert sorted(poor.caption.replace("a ", "").split(" and ")) == sorted(named)
    assert any(rich.caption != poor.caption for rich, poor in zip(a, b, strict=True))


def test_shards_are_the_same_bytes_and_scenes_do_not_depend_on_their_number(tmp_path: Path) -> None:
    a = write_world(tmp_path / "a", scenes=9, resolution=32, seed=3, shard_size=4)
    write_world(tmp_path / "b", scenes=9, resolution=32, seed=3, shard_size=4)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["index.json", "shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert [s["count"] for s in a["shards"]] == [4, 4, 1]
    for shard in a["shards"]:
        assert hashlib.sha256((tmp_path / "a" / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
    assert {k: a[k] for k in ("source", "resolution", "seed", "scenes", "samples")} == {
        "source": "world",
        "resolution": 32,
        "seed": 3,
        "scenes": 9,
        "samples": 9,
    }
    write_world(tmp_path / "c", scenes=4, resolution=32, seed=3, shard_size=4)
    assert (tmp_path / "c" / "shard-000000.tar").read_bytes() == (tmp_path / "a" / "shard-000000.tar").read_bytes()
    other = write_world(tmp_path / "d", scenes=4, resolution=32, seed=4, shard_size=4)
    assert other["shards"][0]["sha256"] != a["shards"][0]["sha256"]


def test_a_sample_can_be_drawn_again_from_its_number_or_from_its_metadata(tmp_path: Path, sampler: PromptSampler) -> None:
    write_world(tmp_path / "w", scenes=12, resolution=32, seed=5)
    for i, sample in enumerate(open_samples(tmp_path / "w")):
        np.testing.assert_array_equal(sample.image, world_sample(i, seed=5, resolution=32, sampler=sampler).image)
        np.testing.assert_array_equal(sample.image, render(scene_from(sample.meta), 32))
        assert sample.caption == sample.meta["prompt"]["prompt"]


def test_checksum_sees_every_file_that_is_read(written: Callable[[str], Path]) -> None:
    for name in ALL:
        path = written(name)
        before = checksum(detect(path))
        assert checksum(detect(path)) == before
        for file in sorted(p for p in path.iterdir() if p.name != "index.json"):
            content = file.read_bytes()
            file.write_bytes(content + b" ")
            assert checksum(detect(path)) != before, f"{name}: {file.name}"
            file.write_bytes(content)
        assert checksum(detect(path)) == before


@pytest.mark.parametrize(("width", "height"), [(48, 20), (20, 48), (10, 10), (16, 16)])
def test_resolution_resizes_the_shorter_side_and_cuts_the_centre(width: int, height: int, tmp_path: Path) -> None:
    # Red left and top borders, blue right and bottom ones, green in the middle square.
    side = min(width, height)
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 0] = 255
    top, left = (height - side) // 2, (width - side) // 2
    image[top : top + side, left : left + side] = (0, 255, 0)
    (tmp_path / "a.png").write_bytes(encode_png(image))
    (tmp_path / "a.txt").write_text("a caption")
    (sample,) = open_samples(tmp_path, resolution=16)
    assert sample.image.shape == (16, 16, 3)
    assert (sample.image[1:-1, 1:-1] == (0, 255, 0)).all()


def test_images_of_other_modes_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "CMYK"):
        Image.new("RGB", (8, 8), (204, 204, 204)).convert(mode).save(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
        (tmp_path / f"{mode}.txt").write_text(mode)
    assert load_images(tmp_path).shape == (4, 3, 8, 8)
    assert (np.abs(load_images(tmp_path).numpy().astype(int) - 204) <= 3).all()


def test_a_failed_write_leaves_the_old_shards_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_world(tmp_path / "w", scenes=3, resolution=16, seed=1)
    before = {p.name: p.read_bytes() for p in (tmp_path / "w").iterdir()}

    def full_disk(path: Path) -> str:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(shards, "file_sha256", full_disk)
    with pytest.raises(UserError, match="w: cannot be written: found a full disk"):
        write_world(tmp_path / "w", scenes=5, resolution=16, seed=1)
    assert {p.name: p.read_bytes() for p in (tmp_path / "w").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_progress_prints_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(shards.progress(range(3), 3, "scenes", every=0.0)) == [0, 1, 2]
    assert capsys.readouterr().out.splitlines()[-1] == "scenes: 3/3, 0 s left"
