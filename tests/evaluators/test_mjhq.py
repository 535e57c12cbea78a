"""MJHQ-30K: its archive unpacked without leaving the folder, its prompts as a prompt file that sampling reads."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from apex.data.prompts import load_prompts
from apex.errors import UserError, run_command
from evaluators.assets import registry
from evaluators.fid import mjhq
from evaluators.fid.mjhq import image_files, read_meta, unpack

META = {
    "b2": {"category": "people", "prompt": "a woman, café --ar 1:1"},
    "a1": {"category": "animals", "prompt": "a dog"},
    "c3": {"category": "people", "prompt": "a crowd"},
}


@pytest.fixture
def meta(tmp_path) -> Path:
    path = tmp_path / "given" / "meta_data.json"
    path.parent.mkdir()
    path.write_text(json.dumps(META))
    return path


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


WHOLE = {f"{row['category']}/{name}.jpg": name.encode() for name, row in META.items()}


def run(*arguments: object) -> int:
    return run_command(lambda: mjhq.main([str(a) for a in arguments]))


def test_the_prompts_become_a_prompt_file_in_their_order(meta, tmp_path):
    out = tmp_path / "mjhq.jsonl"
    assert run("prompts", "--meta", meta, "--out", out) == 0
    rows = load_prompts(out)
    assert [row["id"] for row in rows] == list(META)
    assert rows[0] == {"tag": "people", "id": "b2", "prompt": "a woman, café --ar 1:1"}
    assert run("prompts", "--meta", meta, "--out", out, "--limit", 2) == 0
    assert [row["id"] for row in load_prompts(out)] == ["b2", "a1"]
    assert run("prompts", "--meta", meta, "--out", out, "--limit", 4) == 2


@pytest.mark.parametrize("inside", ["", "mjhq30k_imgs/", "imgs/"])
def test_the_archive_is_unpacked_and_its_images_found(inside, meta, tmp_path):
    given = archive(tmp_path / "x.zip", {inside + name: content for name, content in WHOLE.items()})
    out = tmp_path / "out"
    assert run("unpack", "--archive", given, "--meta", meta, "--out", out) == 0
    assert [p.read_bytes() for p in image_files(out, read_meta(out / "meta_data.json"))] == [name.encode() for name in META]


def test_unpacking_goes_on_where_it_was(meta, tmp_path):
    given, out = archive(tmp_path / "x.zip", WHOLE), tmp_path / "out"
    unpack(given, out)
    kept, torn = out / "people/b2.jpg", out / "animals/a1.jpg"
    torn.write_bytes(b"")
    before = kept.stat().st_mtime_ns
    assert unpack(given, out) == 3
    assert kept.stat().st_mtime_ns == before and torn.read_bytes() == b"a1"


@pytest.mark.parametrize("name", ["../evil.jpg", "people/../../evil.jpg", "/evil.jpg", "..\\evil.jpg", "c:/evil.jpg"])
def test_no_member_leaves_the_folder(name, tmp_path):
    given, out = archive(tmp_path / "x.zip", WHOLE | {name: b"x"}), tmp_path / "in" / "out"
    with pytest.raises(UserError, match="leads out of the folder"):
        unpack(given, out)
    assert not list(tmp_path.rglob("*evil*")) and not out.exists()


def test_a_link_is_refused(tmp_path):
    link = zipfile.ZipInfo("people/link.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        unpack(tmp_path / "x.zip", tmp_path / "out")


def test_a_damaged_archive_is_named(tmp_path):
    given = archive(tmp_path / "x.zip", WHOLE)
    content = given.read_bytes()
    given.write_bytes(content.replace(b"a1PK", b"a2PK"))
    with pytest.raises(UserError, match=r"x\.zip: could not be unpacked"):
        unpack(given, tmp_path / "out")
    assert not (tmp_path / "out/animals/a1.jpg").exists()
    given.write_bytes(b"no archive")
    with pytest.raises(UserError, match="could not be unpacked"):
        unpack(given, tmp_path / "out")


def test_an_archive_without_some_images_is_named(meta, tmp_path, capsys):
    given = archive(tmp_path / "x.zip", {k: v for k, v in WHOLE.items() if "c3" not in k})
    assert run("unpack", "--archive", given, "--meta", meta, "--out", tmp_path / "out") == 2
    assert "1 of 3 images of meta_data.json are not there: people/c3.jpg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ("{}", "expected an object"),
        ('{"x": {"category": "a"}}', "x: prompt missing"),
        ('{"x": {"category": "a", "prompt": " "}}', "x: prompt missing"),
        ('{"x": 3}', "x: category missing"),
        ('{"../x": {"category": "a", "prompt": "b"}}', "not a plain name"),
        ('{"x": {"category": "..", "prompt": "b"}}', "not a plain name"),
    ],
)
def test_a_bad_meta_data_is_one_clear_line(content, named, tmp_path):
    path = tmp_path / "meta_data.json"
    path.write_text(content)
    with pytest.raises(UserError, match=named) as error:
        read_meta(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_its_files_are_among_the_assets(meta, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("APEX_ASSETS", str(tmp_path / "assets"))
    assert run("unpack", "--meta", meta, "--out", tmp_path / "out") == 2
    assert "mjhq30k_imgs.zip: not found" in capsys.readouterr().err
    assert registry()["mjhq-images"].url.endswith("playgroundai/MJHQ-30K/resolve/main/mjhq30k_imgs.zip")
