"""Prompt files: the committed sets are what the grammar makes, defects are named by line, and GenEval's layout round-trips."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apex.data.prompts import COMMITTED, load_prompts, prompts_sha256, read_layout, write_layout
from apex.data.world import TASKS, all_prompts, prompt_row, prompt_sets
from apex.errors import UserError

SETS = ("val", "test", "unseen")


@pytest.mark.parametrize("name", SETS)
def test_committed_files_are_what_the_grammar_makes(name: str) -> None:
    text = "".join(json.dumps(row) + "\n" for row in prompt_sets()[name])
    path = COMMITTED / f"{name}.jsonl"
    assert path.read_text() == text, f"{name}.jsonl has drifted: python -m apex.data.world --prompts writes it again"
    assert load_prompts(path) == prompt_sets()[name]


def test_sets_share_no_prompt_and_hold_each_task_equally() -> None:
    rows = {name: load_prompts(COMMITTED / f"{name}.jsonl") for name in SETS}
    texts = [row["prompt"] for name in SETS for row in rows[name]]
    assert len(set(texts)) == len(texts)
    tags = {name: collections.Counter(row["tag"] for row in rows[name]) for name in SETS}
    assert tags["val"] == dict.fromkeys(TASKS, 20)
    assert tags["test"] == dict.fromkeys(TASKS, 50)
    assert tags["unseen"] == dict.fromkeys(("colors", "position", "color_attr"), 30)
    assert all(row["seen"] is (name != "unseen") for name in SETS for row in rows[name])


def test_no_text_of_the_grammar_has_two_meanings() -> None:
    for task in TASKS:
        rows = list(all_prompts(task))
        assert len({row["prompt"] for row in rows}) == len(rows)


def test_position_rows_are_as_in_the_official_file() -> None:
    # "a photo of a bench left of a bear": the reference first, then the subject with its relation to entry 0.
    row = prompt_row("position", ("circle", "cross"), relation="left of")
    assert row["prompt"] == "a circle left of a cross"
    assert row["include"] == [{"class": "cross", "count": 1}, {"class": "circle", "count": 1, "position": ["left of", 0]}]


def test_official_lines_are_read(tmp_path: Path) -> None:
    lines = [
        '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}',
        '{"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], "prompt": "clocks"}',
        '{"tag": "color_attr", "include": [{"class": "bus", "count": 1, "color": "red"}, {"class": "cup", "count": 1, "color": "pink"}],'
        ' "prompt": "a photo of a red bus and a pink cup"}',
        '{"tag": "position", "include": [{"class": "bear", "count": 1}, {"class": "bench", "count": 1, "position": ["above", 0]}],'
        ' "prompt": "a photo of a bench above a bear", "more": {"x": 1}}',
    ]
    path = tmp_path / "official.jsonl"
    path.write_text("\n".join(lines) + "\n\n")
    assert load_prompts(path) == [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", SETS)
def test_limit_spreads_over_tasks(name: str) -> None:
    path = COMMITTED / f"{name}.jsonl"
    rows = load_prompts(path)
    tasks = list(dict.fromkeys(row["tag"] for row in rows))
    for limit in (1, 4, len(tasks), 3 * len(tasks), 3 * len(tasks) + 2):
        some = load_prompts(path, limit)
        assert len(some) == limit
        counts = collections.Counter(row["tag"] for row in some)
        assert max(counts.values()) - min(counts[t] for t in tasks) <= 1
        for task in tasks:  # the first ones, in the file's order
            assert [r for r in some if r["tag"] == task] == [r for r in rows if r["tag"] == task][: counts[task]]
    assert load_prompts(path, 10_000) == rows


def test_limit_passes_a_task_that_runs_out_on_to_the_others(tmp_path: Path) -> None:
    rows = [prompt_row("single_object", ("cross",))] + [prompt_row("counting", ("cross",), count=2)] * 5
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert [r["tag"] for r in load_prompts(tmp_path / "p.jsonl", 4)] == ["single_object"] + ["counting"] * 3


GOOD = {"tag": "colors", "include": [{"class": "cross", "count": 1, "color": "blue"}], "prompt": "a blue cross"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("{", "not valid JSON"),
        ('"text"', "expected an object"),
        ({"tag": None}, "tag must be a text"),
        ({"tag": "colour"}, "tag must be one of"),
        ({"prompt": " "}, "prompt must be a text"),
        ({"prompt": 3}, "prompt must be a text"),
        ({"include": []}, "include must be a list"),
        ({"include": {"class": "cross"}}, "include must be a list"),
        ({"include": ["cross"]}, "include[0] needs a class"),
        ({"include": [{"count": 1}]}, "include[0] needs a class"),
        ({"include": [{"class": "cross"}]}, "include[0] needs a count"),
        ({"include": [{"class": "cross", "count": 0}]}, "include[0] needs a count"),
        ({"include": [{"class": "cross", "count": True}]}, "include[0] needs a count"),
        ({"include": [{"class": "cross", "count": 1, "color": 3}]}, "color must be"),
        ({"include": [{"class": "cross", "count": 1, "position": ["above", 0]}]}, "earlier include entry"),
        ({"include": [{"class": "a", "count": 1}, {"class": "b", "count": 1, "position": ["beside", 0]}]}, "relation must be one of"),
        ({"include": [{"class": "a", "count": 1}, {"class": "b", "count": 1, "position": "above"}]}, "[relation, index]"),
        ({"include": [{"class": "a", "count": 1}, {"class": "b", "count": 1, "position": ["above", -1]}]}, "earlier include entry"),
        ({"exclude": "cross"}, "exclude must be a list"),
        ({"exclude": [{"class": "cross"}]}, "exclude[0] needs a count"),
    ],
)
def test_defects_name_file_and_line(change: str | dict, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    bad = change if isinstance(change, str) else json.dumps(GOOD | change)
    path.write_text(f"{json.dumps(GOOD)}\n{bad}\n{json.dumps(GOOD)}\n")
    with pytest.raises(UserError) as caught:
        load_prompts(path)
    text = str(caught.value)
    assert text.startswith(f"{path}, line 2: ")
    assert expected in text
    assert "\n" not in text


@pytest.mark.parametrize("key", ["tag", "include", "prompt"])
def test_missing_key_is_named(key: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({k: v for k, v in GOOD.items() if k != key}) + "\n")
    with pytest.raises(UserError, match=f"line 1: key {key} missing"):
        load_prompts(tmp_path / "p.jsonl")


def test_missing_and_empty_files_and_bad_limit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found"):
        load_prompts(tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match="empty"):
        load_prompts(tmp_path / "p.jsonl")
    with pytest.raises(UserError, match="limit of 0"):
        load_prompts(COMMITTED / "val.jsonl", 0)


def test_sha256_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"abc")
    assert prompts_sha256(tmp_path / "p") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_layout_round_trip(tmp_path: Path) -> None:
    rows = load_prompts(COMMITTED / "val.jsonl", 3)
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3), np.uint8)
    for i in (2, 0, 1):
        write_layout(tmp_path, i, rows[i], images[i])
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())[:5] == [
        "00000/metadata.jsonl",
        *(f"00000/samples/000{k}.png" for k in range(4)),
    ]
    (tmp_path / "made.json").write_text("{}")  # stands beside the prompt folders
    found = list(read_layout(tmp_path))
    assert [i for i, _, _ in found] == [0, 1, 2]
    for i, row, paths in found:
        assert row == rows[i]
        np.testing.assert_array_equal(np.stack([np.asarray(Image.open(p)) for p in paths]), images[i])


def test_defective_layouts(tmp_path: Path) -> None:
    def fails(expected: str) -> None:
        with pytest.raises(UserError, match=expected):
            list(read_layout(tmp_path / "images"))

    fails("no such folder")
    (tmp_path / "images").mkdir()
    fails("no prompt folders")
    (tmp_path / "images" / "00000").mkdir()
    fails(r"metadata.jsonl: not found")
    (tmp_path / "images" / "00000" / "metadata.jsonl").write_text(json.dumps(GOOD))
    fails("no images")
    write_layout(tmp_path / "images", 0, GOOD, [np.zeros((4, 4, 3), np.uint8)])
    assert len(list(read_layout(tmp_path / "images"))) == 1
    (tmp_path / "images" / "00000" / "metadata.jsonl").write_text("{")
    fails("metadata.jsonl: not valid JSON")
