"""Every evaluator's command: a folder in, a record out; and one clear line for everything that can be wrong with the call."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import evaluators.__main__
from apex.errors import run_command
from apex.evaluation import Evaluation
from evaluators.__main__ import MODULES
from evaluators.assets import BUNDLED
from evaluators.command import fresh_renders, is_unseen
from evaluators.result import read_record

METRICS = {
    "geneval": "geneval/overall",
    "fid": "fid/floor",
    "clip_score": "clip_score/shuffled",
    "coverage": "coverage/spread",
}


def run(name: str, *arguments: object) -> int:
    """The command's exit code, run in this process."""
    return run_command(lambda: import_module(MODULES[name]).main([str(a) for a in (*arguments, "--device", "cpu")]))


@pytest.mark.parametrize("name", METRICS)
def test_a_folder_becomes_a_record(name, make_folder, few_rows, tmp_path, capsys):
    out = tmp_path / "records" / f"{name}.json"
    assert run(name, "--images", make_folder(few_rows), "--out", out) == 0
    record = read_record(out)
    assert (record.evaluator, record.row, record.nfe, record.profile) == (name, "real", 0, "test")
    assert record.details["made"]["hardware"] == "a machine" and record.hardware != "a machine"
    assert record.details["images"] == 4 * record.details["prompts"] == 96
    assert record.wall_seconds > 0 and record.peak_memory_mb > 0 and record.versions["torch"]
    assert METRICS[name] in {m.metric for m in record.metrics} and METRICS[name] in capsys.readouterr().out
    for m in record.metrics:
        assert m.ci_low is None or m.ci_low - 1e-9 <= m.value <= m.ci_high + 1e-9, m.metric


def test_two_calls_give_the_same_numbers(make_folder, few_rows, tmp_path):
    folder = make_folder(few_rows)
    for out in ("a", "b"):
        assert run("geneval", "--images", folder, "--out", tmp_path / out, "--threads", "1") == 0
    a, b = (read_record(tmp_path / out) for out in ("a", "b"))
    assert a.metrics == b.metrics and a.details == b.details


def test_seen_and_unseen_prompts_stand_apart(make_folder, tmp_path):
    def color(shape: str, name: str) -> dict:
        return {"tag": "colors", "include": [{"class": shape, "count": 1, "color": name}], "prompt": f"a {name} {shape}"}

    rows = [color("circle", "red"), color("circle", "purple"), color("square", "red")]
    assert [is_unseen(row) for row in rows] == [False, True, False]
    images = fresh_renders(rows, [4] * 3, 32, seed=0)
    images[4:8] = 128  # the unseen one fails
    assert run("geneval", "--images", make_folder(rows, images), "--out", tmp_path / "out.json") == 0
    record = read_record(tmp_path / "out.json")
    assert (record.value("geneval/seen"), record.value("geneval/unseen")) == (1.0, 0.0)
    assert record.value("geneval/colors") == pytest.approx(2 / 3)
    assert [each["correct"] for each in record.details["per_prompt"]] == [4, 0, 4]
    assert record.details["failures"] == {"missing": 4}


def test_several_evaluators_in_one_call(make_folder, few_rows, tmp_path, monkeypatch):
    for split in ("test", "unseen"):
        make_folder(few_rows, name=split, made=False)
    arguments = ["--images", tmp_path / "{split}", "--out", tmp_path / "{split}-{evaluator}.json"]
    arguments += ["--score", "test=geneval,coverage", "unseen=geneval", "--", "--row", "mine", "--nfe", "3", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["evaluators", *map(str, arguments)])
    assert run_command(evaluators.__main__.main) == 0
    written = sorted(path.name for path in tmp_path.glob("*.json"))
    assert written == ["test-coverage.json", "test-geneval.json", "unseen-geneval.json"]
    assert {read_record(tmp_path / name).row for name in written} == {"mine"}


def test_several_folders_in_one_call_have_the_records_of_single_calls(make_folder, few_rows, tmp_path, monkeypatch):
    for nfe, level in ((1, 0), (2, 255)):
        make_folder(few_rows, fresh_renders(few_rows, [4] * len(few_rows), 32, seed=0) | level, name=f"nfe{nfe}", made=False)
    common = ["--score", "test=geneval", "--", "--row", "mine", "--nfe", "1", "--device", "cpu"]
    for each, images, out in ((["--each", "nfe=1,2"], "nfe{nfe}", "all-{nfe}"), ([], "nfe1", "one-1"), ([], "nfe2", "one-2")):
        words = [*each, "--images", str(tmp_path / images), "--out", str(tmp_path / f"{out}.json"), *common]
        monkeypatch.setattr(sys, "argv", ["evaluators", *words])
        assert run_command(evaluators.__main__.main) == 0
    scores = [read_record(tmp_path / f"{name}.json").value("geneval/overall") for name in ("all-1", "all-2", "one-1", "one-2")]
    assert scores[:2] == scores[2:] and scores[0] > scores[1]


@pytest.mark.parametrize(
    ("each", "said"),
    [
        ("nfe", "--each nfe: expected NAME=VALUE"),
        ("nfe=1,,2", "--each nfe=1,,2: expected NAME=VALUE"),
        ("split=a,b", "--each split=a,b: expected NAME=VALUE"),
        ("nfe=1,2", "--each nfe=1,2: several values need `{nfe}` in --images and in --out"),
    ],
)
def test_folders_without_names_of_their_own_are_refused(each, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluators", "--each", each, "--images", "x{nfe}", "--out", "y", "--score", "test=geneval"])
    assert run_command(evaluators.__main__.main) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("wish", ["test", "=geneval", "test=geneval,beauty"])
def test_an_unknown_evaluator_is_named(wish, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluators", "--images", "x", "--out", "y", "--score", wish])
    assert run_command(evaluators.__main__.main) == 2
    assert f"--score {wish}: expected SPLIT=EVALUATOR" in capsys.readouterr().err


# What a profile does not set, for it changes no number: the folder and who made it, the machine, where things are kept, checks.
OF_EVERY_CALL = {"help", "images", "out", "row", "nfe", "incomplete", "source", "device", "threads", "seed"}
OF_THE_MACHINE = {
    "geneval": {"batch", "self_test_image", "self_test_class"},
    "fid": {"batch", "keep", "references"},
    "clip_score": {"batch", "references"},
    "dpg": {"batch", "layout", "resolution", "answers"},  # a check alone, like the layout, which is GenEval's in a workflow
    "wise": {"workers", "tries", "timeout", "layout", "answers", "dry_run"},
}


@pytest.mark.parametrize("name", OF_THE_MACHINE)
def test_a_profile_has_every_option_that_changes_a_number(name, capsys):
    with pytest.raises(SystemExit):
        import_module(MODULES[name]).main(["--help"])
    options = {found.replace("-", "_") for found in re.findall(r"^  (?:-h, )?--([a-z-]+)", capsys.readouterr().out, re.MULTILINE)}
    settings = set(type(getattr(Evaluation(), name)).model_fields)
    assert options - OF_EVERY_CALL - OF_THE_MACHINE[name] == settings


# ---------------------------------------------------------------------------------------- what can be wrong


def truncate(folder: Path) -> None:
    file = folder / "00001/samples/0001.png"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def unlink(folder: Path) -> None:
    (folder / "00001/samples/0001.png").unlink()


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def flatten(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.rename(folder / f"{file.parts[-3]}-{file.name}")
    for prompt in folder.glob("0*/"):
        if prompt.is_dir():
            shutil.rmtree(prompt)


def anonymous(folder: Path) -> None:
    (folder / "made.json").unlink()


def another_world(folder: Path) -> None:
    row = {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a cow"}
    (folder / "00001/metadata.jsonl").write_text(json.dumps(row))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (truncate, ["00001/samples/0001.png is a file of no known format, or a corrupt", "sample again"]),
        (unlink, ["00001/samples/0001.png is missing", "sample again"]),
        (empty, ["no prompt folders", "NNNNN/metadata.jsonl"]),
        (flatten, ["no prompt folders", "NNNNN/samples/*.png"]),
        (shutil.rmtree, ["no such folder", "GenEval's layout"]),
        (anonymous, ["made.json: missing", "--row NAME and --nfe K"]),
        (another_world, ["prompt 1", "'cow'", "circle", "choose another prompt set"]),
    ],
)
def test_bad_images_are_one_clear_line(name, spoil, named, make_folder, few_rows, tmp_path, capsys):
    images = np.zeros((8 * 2, 8, 8, 3), np.uint8)
    folder = make_folder(few_rows[:8], images, per_prompt=2)
    spoil(folder)
    one_line(run(name, "--images", folder, "--out", tmp_path / "out.json"), capsys, str(folder), *named)
    assert not (tmp_path / "out.json").exists()


def one_line(code: int, capsys: pytest.CaptureFixture[str], *named: str) -> None:
    lines = [
        line for line in capsys.readouterr().err.splitlines() if not line.startswith(("fid: ", "geneval, ", "coverage, ", "clip_score, "))
    ]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    for text in named:
        assert text in lines[0]


def test_images_that_are_not_square_are_refused(make_folder, few_rows, tmp_path, capsys):
    folder = make_folder(few_rows, np.zeros((96, 8, 12, 3), np.uint8))
    code = run("clip_score", "--images", folder, "--out", tmp_path / "out.json")
    one_line(code, capsys, str(folder), "images of 12x8", "square")


def test_the_outs_place_is_checked_before_any_work(make_folder, few_rows, tmp_path, capsys):
    folder = make_folder(few_rows[:2], np.zeros((2, 8, 8, 3), np.uint8), per_prompt=1)
    (tmp_path / "file").write_text("")
    one_line(
        run("fid", "--images", folder, "--out", tmp_path / "file/out.json"), capsys, "file/out.json: cannot be written", "another --out"
    )
    one_line(run("fid", "--images", folder, "--out", tmp_path), capsys, str(tmp_path), "is a folder")
    one_line(run("fid", "--images", folder, "--out", tmp_path / "x", "--threads", "0"), capsys, "--threads: found 0", "at least 1")


# The networks' folders: (evaluator, option, bundled folder, its weights)
NETWORKS = [
    ("geneval", "--detector-weights", "detector", "model.safetensors"),
    ("geneval", "--clip-weights", "clip", "open_clip_model.safetensors"),
    ("fid", "--weights", "fid", "model.safetensors"),
    ("clip_score", "--weights", "clip", "open_clip_model.safetensors"),
    ("coverage", "--weights", "fid", "model.safetensors"),
]


@pytest.mark.parametrize(
    "fault", ["no folder", "no weights", "no config", "cut off", "noise", "another network", "lacking", "left over", "not finite"]
)
@pytest.mark.parametrize(("name", "option", "network", "weights"), NETWORKS)
def test_bad_weights_are_one_clear_line(name, option, network, weights, fault, make_folder, few_rows, tmp_path, capsys, caplog):
    given, named = tmp_path / "weights", []
    if fault == "another network":
        given = BUNDLED / ("detector" if network != "detector" else "fid")
    elif fault != "no folder":
        shutil.copytree(BUNDLED / network, given)
        content = (given / weights).read_bytes()
        if fault == "no weights":
            (given / weights).unlink()
        elif fault == "no config":
            (given / ("open_clip_config.json" if network == "clip" else "config.json")).unlink()
        elif fault in ("lacking", "left over", "not finite"):
            state = load_file(given / weights)
            tensor = sorted(name for name in state if name.endswith(".weight"))[-1]
            if fault == "lacking":
                del state[tensor]
            elif fault == "left over":
                state["one.more"], tensor = state[tensor].clone(), "one.more"
            else:
                state[tensor].view(-1)[0] = torch.nan
            save_file(state, given / weights, metadata={"format": "pt"})
            named = [tensor]
        else:
            (given / weights).write_bytes(content[: len(content) // 2] if fault == "cut off" else b"\xff" * 4000)
    folder = make_folder(few_rows[:2], np.zeros((4, 8, 8, 3), np.uint8), per_prompt=2)
    code = run(name, "--images", folder, "--out", tmp_path / "out.json", option, given)
    one_line(code, capsys, str(given), "python -m evaluators.pretrain", "name another folder", *named)


def test_the_exit_code_reaches_the_shell(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "evaluators.fid", "--images", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out.json")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "nowhere: no such folder" in done.stderr


def test_jpegs_are_no_images_of_the_layout(make_folder, few_rows, tmp_path, capsys):
    folder = make_folder(few_rows[:2], np.zeros((4, 8, 8, 3), np.uint8), per_prompt=2)
    for file in folder.rglob("*.png"):
        Image.open(file).save(file.with_suffix(".jpg"))
        file.unlink()
    code = run("fid", "--images", folder, "--out", tmp_path / "o.json")
    one_line(code, capsys, "4 images, archives or folders", "00000/samples/0000.jpg")
