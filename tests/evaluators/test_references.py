"""What evaluators measure on fresh renders is kept for all rows: the same numbers, and never those of other prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from apex.config import load
from apex.generator import prompt_rows
from evaluators import __main__ as all_of_them
from evaluators import references

SMALL = ["prompts.per_task=3", "prompts.images_per_prompt=4"]
EVALUATORS = ("fid", "clip_score", "coverage")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of three evaluators, as the workflow's rule makes them."""
    folder = tmp_path_factory.mktemp("references")
    words = ["--config", "workflows/config/world.yaml", *(word for one in SMALL for word in ("--set", one))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["x", *words, "--score", f"test={','.join(EVALUATORS)}", "--out", f"{folder}/{{split}}-{{evaluator}}"])
        references.main()
    return folder


@pytest.fixture
def images(make_folder) -> Path:
    return make_folder(prompt_rows(load(Path("workflows/config/world.yaml"), SMALL), "test"))


def scored(images: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, list[dict]]:
    words = ["--images", str(images), "--out", f"{out}/{{split}}-{{evaluator}}.json", "--score", f"test={','.join(EVALUATORS)}", *more]
    monkeypatch.setattr("sys.argv", ["x", *words])
    all_of_them.main()
    return {name: json.loads((out / f"test-{name}.json").read_text())["metrics"] for name in EVALUATORS}


def test_with_kept_references_every_number_is_the_same(kept, images, tmp_path, monkeypatch):
    with_them = scored(images, tmp_path / "with", monkeypatch, "--references", f"{kept}/{{split}}-{{evaluator}}")
    assert with_them == scored(images, tmp_path / "without", monkeypatch)


def test_the_files_are_what_a_row_is_compared_with(kept, images, tmp_path, monkeypatch):
    """With other numbers under the same key every record changes: the workflow's key is that of the row's images."""
    changed = tmp_path / "changed"
    changed.mkdir()
    for name in EVALUATORS:
        with safe_open(kept / f"test-{name}", framework="numpy") as file:
            about = file.metadata()
        arrays = load_file(kept / f"test-{name}")
        if name == "fid":
            arrays = {"reference": arrays["second"], "second": arrays["reference"]}
        elif name == "clip_score":
            arrays = {"renders": arrays["renders"][::-1].copy()}
        else:
            arrays["size/variance"] *= 1.5
        save_file(arrays, changed / f"test-{name}", about)
    right, wrong = (
        scored(images, tmp_path / where.name, monkeypatch, "--references", f"{where}/{{split}}-{{evaluator}}") for where in (kept, changed)
    )
    assert all(right[name] != wrong[name] for name in EVALUATORS)


def test_a_file_of_other_prompts_is_left_aside(kept, make_folder, few_rows, tmp_path, monkeypatch):
    other = make_folder(few_rows)
    ours = scored(other, tmp_path / "with", monkeypatch, "--references", f"{kept}/{{split}}-{{evaluator}}")
    assert ours == scored(other, tmp_path / "without", monkeypatch)


def test_what_is_no_safetensors_file_is_one_line(images, tmp_path, monkeypatch):
    (tmp_path / "test-fid").write_text("{}")
    with pytest.raises(references.UserError, match=r"test-fid: found no safetensors file .*; remove it and run the workflow again"):
        scored(images, tmp_path, monkeypatch, "--references", f"{tmp_path}/{{split}}-{{evaluator}}")
