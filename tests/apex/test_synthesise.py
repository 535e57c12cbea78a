"""The training set that the teacher draws: the images of its row in the tables, resumed after a kill, read as any other data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apex import sample
from apex.config import FromTeacher, fingerprint, load
from apex.data import latents, synthesis, synthesise
from apex.data.prompts import load_prompts
from apex.data.shards import open_samples
from apex.data.synthesis import build, read_prompts
from apex.errors import UserError, run_command
from apex.generator import Generator

WORLD = Path(synthesis.__file__).parent / "prompts/world/test.jsonl"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "SHARD", 3)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Five prompts in GenEval's format."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in load_prompts(WORLD, limit=5)))
    return path


@pytest.fixture
def draw(tiny_profile: Callable[..., Path], prompts: Path, tmp_path: Path) -> Callable[..., Path]:
    """draw("a", count=7, steps=2, guidance=None, seed=0, batch=2): the folder of the images."""

    def make(name: str, *, seed: int = 0, batch: int = 2, steps: int = 2, **settings) -> Path:
        config = load(tiny_profile(sampling={"batch_size": batch}))
        build(config, FromTeacher(prompts=str(prompts), steps=steps, **settings), tmp_path / name, seed=seed)
        return tmp_path / name

    return make


def run(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *line: object) -> int:
    monkeypatch.setattr(sys, "argv", ["x", *map(str, line)])
    return run_command(main)


def drawn(folder: Path) -> dict[tuple[int, int], np.ndarray]:
    """(prompt number, image number) -> image."""
    return {(one.meta["prompt"], one.meta["image"]): one.image for one in open_samples(folder)}


def contents(folder: Path, without: str = "") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != without}


# --------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(("images", "batch", "within"), [(1, 3, 0), (2, 4, 1)])
def test_the_images_are_those_of_the_teachers_row(draw, tiny_profile, prompts, tmp_path, monkeypatch, images: int, batch: int, within: int):
    """Bit for bit where the same are drawn at once, else to last bits: one level of 255."""
    folder = draw("set", count=5 * images, seed=3, batch=batch)
    profile = tiny_profile(sampling={"batch_size": batch}, prompts={"images_per_prompt": images})
    line = ["--config", profile, "--row", "teacher", "--nfe", 2, "--seed", 3, "--prompts", prompts, "--out", tmp_path / "row"]
    assert run(monkeypatch, sample.main, *line) == 0
    found = drawn(folder)
    assert len(found) == 5 * images
    for (prompt, image), picture in found.items():
        row = np.asarray(Image.open(tmp_path / "row" / f"{prompt:05d}" / "samples" / f"{image:04d}.png"))
        assert picture.shape == (32, 32, 3) and np.abs(picture.astype(int) - row).max() <= within


@pytest.mark.parametrize("batch", [1, 7])
def test_an_image_does_not_depend_on_the_batch_size_nor_on_how_many_there_are(draw, batch: int):
    whole, other = drawn(draw("whole", count=7, batch=3)), drawn(draw("other", count=6, batch=batch))
    assert other.keys() < whole.keys()
    assert all(np.abs(whole[place].astype(int) - picture).max() <= 1 for place, picture in other.items())


def test_seed_steps_and_guidance_make_the_images(draw):
    first = drawn(draw("first"))
    for k, changed in enumerate(({"seed": 1}, {"steps": 3}, {"guidance": 1.0})):
        other = drawn(draw(f"other{k}", **changed))
        assert other.keys() == first.keys() and not any(np.array_equal(other[place], first[place]) for place in first)


def test_what_is_written_is_read_as_any_training_data(draw, prompts, tiny_pipeline, tmp_path):
    folder = draw("set", count=7)
    texts = [row["prompt"] for row in load_prompts(prompts)]
    samples = list(open_samples(folder))
    assert [one.caption for one in samples] == [*texts, *texts[:2]]
    assert [one.meta for one in samples] == [{"index": i, "seed": 0, "prompt": i % 5, "image": i // 5} for i in range(7)]
    index = json.loads((folder / "index.json").read_text())
    assert [shard["count"] for shard in index["shards"]] == [3, 3, 1] and index["samples"] == 7
    latents.build(tiny_pipeline, folder, tmp_path / "cache", resolution=32)
    assert latents.load_cache(tmp_path / "cache").captions == texts
    (folder / "shard-000001.tar").write_bytes((folder / "shard-000001.tar").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"shard-000001\.tar: SHA-256"):
        latents.build(tiny_pipeline, folder, tmp_path / "again", resolution=32)


def test_the_record_says_how_they_were_made_and_what_they_cost(draw, prompts, tiny_pipeline):
    made = json.loads((draw("a", count=7, steps=3, seed=2) / "made.json").read_text())
    assert (made["count"], made["steps"], made["guidance"], made["seed"], made["resolution"]) == (7, 3, 2.5, 2, 32)
    assert made["forward_equivalents"] == 7 * 3 * 2 and made["teacher"] == fingerprint(tiny_pipeline)
    assert made["prompts"] == str(prompts) and len(made["prompts_sha256"]) == 64
    assert made["versions"]["torch"] and made["hardware"] and made["git_commit"] and made["wall_seconds"] > 0
    assert json.loads((draw("b", guidance=1.0) / "made.json").read_text())["forward_equivalents"] == 5 * 2


# ------------------------------------------------------------------------------------------------------- resuming


def test_a_killed_call_goes_on_and_ends_with_the_same_bytes(draw, tmp_path, monkeypatch):
    whole, seen, real = draw("whole", count=8), [], Generator.pictures

    def dies(self, prompts, seed, places):
        seen.extend(places)
        if len(seen) == 6:  # in the middle of the second shard
            raise KeyboardInterrupt
        return real(self, prompts, seed, places)

    monkeypatch.setattr(Generator, "pictures", dies)
    with pytest.raises(KeyboardInterrupt):
        draw("set", count=8)
    assert not (tmp_path / "set").exists()
    draw("set", count=8)
    assert seen[6:] == [(3, 0), (4, 0), (0, 1), (1, 1), (2, 1)]  # the first shard is not drawn again
    assert contents(tmp_path / "set", "made.json") == contents(whole, "made.json")
    one, other = (json.loads((folder / "made.json").read_text()) | {"wall_seconds": 0} for folder in (tmp_path / "set", whole))
    assert one == other
    assert not list(tmp_path.glob(".set*"))


def test_a_damaged_shard_is_drawn_again_and_those_of_other_settings_are_not_taken(draw, tmp_path, monkeypatch):
    whole = draw("whole", count=8)
    with monkeypatch.context() as patch:
        patch.setattr("apex.data.parts.replace_folder", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            draw("set", count=8)
    shard = next(tmp_path.glob(".set.parts-*/files/shard-000001.tar"))
    shard.write_bytes(shard.read_bytes()[:-100] + bytes([7]) + shard.read_bytes()[-99:])
    draw("set", count=8)
    assert contents(tmp_path / "set", "made.json") == contents(whole, "made.json")
    other = drawn(draw("set", count=8, seed=1))
    assert not any(np.array_equal(other[place], picture) for place, picture in drawn(whole).items())


def test_a_folder_of_something_else_is_not_replaced(draw, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/mine").write_text("mine")
    with pytest.raises(UserError, match=r"found a folder without made\.json"):
        draw("set")
    assert (tmp_path / "set/mine").read_text() == "mine"


# -------------------------------------------------------------------------------------------------------- prompts


def test_prompts_of_both_formats(tmp_path):
    (tmp_path / "p.txt").write_text('a red circle\n\n  {"prompt": "x"} \na "blue" square, ü\n')
    assert read_prompts(tmp_path / "p.txt") == ["a red circle", '{"prompt": "x"}', 'a "blue" square, ü']
    (tmp_path / "p.jsonl").write_text('{"prompt": " a red circle "}\n\n{"tag": "two", "prompt": "x"}\n')
    assert read_prompts(tmp_path / "p.jsonl") == ["a red circle", "x"]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("p.txt", b"fine\n\xff\n", r"p\.txt, line 2: found b'\\xff' \(UnicodeDecodeError\), expected a prompt in UTF-8"),
        ("p.txt", b"\n \n", r"p\.txt: found no prompts, expected one a line"),
        ("p.jsonl", b'{"prompt": "x"}\n{', r"p\.jsonl, line 2: found b'\{' \(JSONDecodeError\), expected \{\"prompt\": \"a text\"\}"),
        ("p.jsonl", b'{"text": "x"}', r"p\.jsonl, line 1: .*KeyError"),
        ("p.jsonl", b'"x"', r"p\.jsonl, line 1: .*TypeError"),
        ("p.jsonl", b'{"prompt": 3}', r"p\.jsonl, line 1: .*AttributeError"),
        ("p.jsonl", b'{"prompt": ""}', r"p\.jsonl, line 1: .*ValueError"),
    ],
)
def test_prompts_that_are_none(tmp_path, name: str, data: bytes, expected: str):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=expected) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="prompt file not found"):
        read_prompts(tmp_path / "nowhere")


# -------------------------------------------------------------------------------------------- command and profile


def test_the_command_takes_what_is_not_given_from_the_profile(tiny_profile, prompts, tmp_path, monkeypatch, capsys):
    data = {"source": "teacher", "seed": 4, "teacher": {"prompts": str(prompts), "steps": 2, "guidance": 3.0}}
    out = tmp_path / "set"
    assert run(monkeypatch, synthesise.main, "--config", tiny_profile(data=data), "--out", out) == 0
    assert "set: 5 images, 20 passes of the teacher" in capsys.readouterr().out
    made = json.loads((out / "made.json").read_text())
    assert (made["count"], made["steps"], made["guidance"], made["seed"]) == (5, 2, 3.0, 4)
    (tmp_path / "one.txt").write_text("a red circle\n")
    more = ["--prompts", tmp_path / "one.txt", "--steps", 1, "--guidance", 1, "--seed", 0, "--count", 2]
    assert run(monkeypatch, synthesise.main, "--config", tiny_profile(), *more, "--out", out) == 0
    assert [one.caption for one in open_samples(out)] == ["a red circle"] * 2
    for wrong, expected in (
        ([], "data.teacher: found none, expected the prompts to draw there, or --prompts FILE"),
        (["--prompts", prompts, "--count", 0], "--count: found 0, expected a whole number of at least 1"),
        (["--prompts", prompts, "--seed", -1], "--seed: found -1, expected a whole number of at least 0"),
        (["--prompts", tmp_path / "nowhere"], "prompt file not found"),
    ):
        assert run(monkeypatch, synthesise.main, "--config", tiny_profile(), *wrong, "--out", tmp_path / "no") == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1 and not (tmp_path / "no").exists()


def test_a_run_is_another_one_where_the_teachers_images_are(tiny_profile, prompts):
    data = {"source": "teacher", "teacher": {"prompts": str(prompts), "steps": 2}}
    profile = tiny_profile(data=data)
    before = load(profile).run_hash("fm")
    for change in ("data.teacher.steps=3", "data.teacher.guidance=1", "data.teacher.count=2", "guidance=3", "data.seed=1"):
        assert load(profile, [change]).run_hash("fm") != before, change
    assert load(profile, ["guidance=3", "data.teacher.guidance=2.5"]).run_hash("fm") == load(
        profile, ["data.teacher.guidance=2.5"]
    ).run_hash("fm")
    assert load(profile, ["sampling.precision=bf16"]).run_hash("fm") != before == load(profile, ["sampling.batch_size=3"]).run_hash("fm")
    assert load(profile).run_config("fm").data.teacher.guidance == 2.5
    prompts.write_text(prompts.read_text() + '{"prompt": "one more"}\n')
    assert load(profile).run_hash("fm") != before


def test_settings_of_the_teacher_are_there_where_it_is_the_source_and_nowhere_else(tiny_profile, prompts):
    config = load(tiny_profile())
    assert "teacher" not in config.model_dump()["data"] and "teacher" not in config.run_config("fm").model_dump(mode="json")["data"]
    for data, expected in (
        ({"source": "teacher"}, "data: source: found teacher without settings of `teacher`, expected `teacher: {prompts: FILE}` beside it"),
        ({"teacher": {"prompts": "x"}}, "data: source: found world with settings of `teacher`, expected teacher"),
        ({"source": "teacher", "teacher": {}}, "data.teacher.prompts: not given"),
        ({"source": "teacher", "teacher": {"prompts": "x", "step": 2}}, "data.teacher.step: unknown key 'step'; did you mean 'steps'"),
    ):
        with pytest.raises(UserError, match=expected.replace("{", r"\{")):
            load(tiny_profile(data=data))
