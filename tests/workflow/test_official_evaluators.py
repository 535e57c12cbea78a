"""The official evaluators as a profile asks for them: prompts of other benchmarks in, one sampling, records and the paper's tables out.

DPG-Bench by a tiny model of transformers' own class, WISE by a server on this machine, FID by Inception at its real size with random
weights. CLIP score and GenEval by their official networks stay in tests/evaluators: both need CLIP ViT-L/14, which has one size.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apex.provenance import file_sha256
from evaluators.dpg import prompts as dpg_prompts
from evaluators.dpg.questions import COLUMNS
from evaluators.fid.inception import build as build_inception
from evaluators.result import Record, read_record
from evaluators.wise.versions import VERSIONS
from paper_tables import published
from tests.evaluators.chat_server import Server, serving
from tests.evaluators.tiny_vqa import build as build_vqa

pytestmark = pytest.mark.slow
QUESTIONS = [  # item, text, number, dependency, category, question
    ("whoops1", "a red circle on a square", 1, "0", "entity - whole (circle)", "is there a circle?"),
    ("whoops1", "a red circle on a square", 2, "1", "attribute - color (red)", "is the circle red?"),
    ("drawtext1", "two blue squares", 1, "0", "entity - whole (squares)", "are there squares?"),
    ("drawtext1", "two blue squares", 2, "1", "other - count (two)", "are there 2 squares?"),
    ("7", "a green circle left of a square", 1, "0", "global - (a)", "is there a green?"),
    ("7", "a green circle left of a square", 2, "0", "relation - spatial (left of)", "is the circle left of the square?"),
]
WISE_IDS = [3, 450, 600, 720, 850, 950]  # one of each category


def json_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def questions(folder: Path) -> Path:
    with (folder / "dpg_bench.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *QUESTIONS])
    return folder / "dpg_bench.csv"


def riddles(folder: Path) -> Path:
    """WISE's three files, their thousand prompts made up."""
    borders = [0, 400, 700, 1000]
    for name, first, last in zip(VERSIONS["2025"].files.values(), borders, borders[1:], strict=False):
        rows = [{"Prompt": f"riddle {n}", "Explanation": f"answer {n}", "prompt_id": n} for n in range(first + 1, last + 1)]
        (folder / name).write_text(json.dumps(rows))
    return folder


def photographs(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        small.resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def inception(path: Path) -> Path:
    """pytorch-fid's file with random weights, large enough that the signal does not die out."""
    torch.manual_seed(0)
    torch.save({name: 6**0.5 * v if name.endswith("conv.weight") else v for name, v in build_inception().state_dict().items()}, path)
    return path


@dataclass
class Outcome:
    """A finished workflow, and the server that judged."""

    flow: object
    server: Server
    files: dict[str, Path]
    output: str
    sampled: dict[str, int]

    def record(self, split: str, name: str) -> Record:
        return read_record(self.flow.results / "records/fm/nfe1/seed0" / split / f"{name}.json")

    def made(self) -> dict[str, int]:
        """When each record and each folder of images was made."""
        root = self.flow.results
        files = [
            *root.glob("records/fm/nfe1/seed0/*/*.json"),
            *root.glob("images/fm/nfe1/seed0/*/made.json"),
            root / "runs/fm/seed0/made.json",
        ]
        return {str(file.relative_to(root)): file.stat().st_mtime_ns for file in files}


@pytest.fixture(scope="module")
def outcome(make_workflow, tmp_path_factory):
    given = tmp_path_factory.mktemp("given")
    files = {
        "vqa": build_vqa("vilt", given / "vqa"),
        "questions": questions(given),
        "riddles": riddles(given),
        "inception": inception(given / "inception.pth"),
        "photographs": photographs(given / "photographs", 5),
    }
    dpg_prompts.main(["--questions", str(files["questions"]), "--out", str(given / "dpg.jsonl")])
    sets = {
        "mjhq": {"file": json_lines(given / "mjhq.jsonl", [{"prompt": f"a picture of {n} trees"} for n in range(4)])},
        "dpg": {"file": str(given / "dpg.jsonl"), "images_per_prompt": 2},
        "wise": {"file": json_lines(given / "wise.jsonl", [{"prompt": f"riddle {n}", "prompt_id": n} for n in WISE_IDS])},
    }
    with serving() as server:
        evaluation = {
            "fid": {
                "protocol": "pytorch-fid", "reference": str(files["photographs"]), "weights": str(files["inception"]),
                "resolution": 24, "jpeg": 75,
            },
            "dpg": {"judge": "transformers-vqa", "model": str(files["vqa"]), "questions": str(files["questions"])},
            "wise": {"endpoint": server.url, "model": "a-judge", "prompts": str(files["riddles"]), "key_variable": "", "partial": True},
        }  # fmt: skip
        flow = make_workflow(
            tmp_path_factory.mktemp("official"),
            prompts={"per_task": 6, "images_per_prompt": 1, "sets": sets},
            evaluators=["geneval", "clip_score", "fid", "dpg", "wise"],
            splits={"test": ["geneval", "clip_score"], "mjhq": ["fid"], "dpg": ["dpg"], "wise": ["wise"]},
            evaluation=evaluation,
        )
        code, output = flow.run("all")
        assert code == 0, output
        images = flow.results / "images/fm/nfe1/seed0"
        yield Outcome(flow, server, files, output, {folder.name: len(list(folder.glob("*/samples/*.png"))) for folder in images.iterdir()})


def jobs(output: str) -> dict[str, int]:
    """Rule -> number of jobs, from the table that Snakemake prints before it begins."""
    table = output.partition("Job stats:")[2].partition("total")[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", table, flags=re.MULTILINE)}


DRAWN = {"all": 1, "collect": 1, "build_tables": 1, "draw_figures": 1, "judge": 1, "write_cards": 1}  # of every new record


def test_every_benchmark_is_sampled_once_and_scored_by_a_job_of_its_own(outcome):
    assert outcome.sampled == {"test": 36, "mjhq": 4, "dpg": 6, "wise": 6}
    found = jobs(outcome.output)
    assert (found["train"], found["sample"], found["evaluate"], found["evaluate_alone"]) == (1, 1, 1, 3)
    assert {path.name for path in (outcome.flow.results / "records/fm/nfe1/seed0").glob("*/*.json")} == {
        f"{name}.json" for name in ("geneval", "clip_score", "fid", "dpg", "wise")
    }


def test_a_record_says_by_which_protocol_and_by_whom(outcome):
    fid, dpg, wise = (outcome.record(*place) for place in (("mjhq", "fid"), ("dpg", "dpg"), ("wise", "wise")))
    assert {(r.row, r.nfe, r.seed, r.profile) for r in (fid, dpg, wise)} == {("fm", 1, 0, "tiny")}
    assert (fid.details["protocol"], fid.details["resolution"], fid.details["jpeg"]) == ("pytorch-fid", 24, 75)
    assert fid.details["weights_sha256"] == file_sha256(outcome.files["inception"])
    assert fid.details["reference"]["n"] == 5 and fid.details["images_and_reference"]["all"] == [4, 5]
    judge = dpg.details["judge"]
    assert (dpg.details["protocol"], judge["judge"], judge["class"]) == ("DPG-Bench", "transformers-vqa", "ViltForQuestionAnswering")
    assert judge["weights_sha256"] == file_sha256(outcome.files["vqa"] / "model.safetensors")
    assert dpg.details["questions_sha256"] == file_sha256(outcome.files["questions"]) and dpg.details["questions"] == 12
    assert (wise.details["protocol"], wise.details["judge"]["model"], wise.details["requests"]) == ("WISE 2025", "a-judge", 6)
    assert wise.value("wise/overall") == pytest.approx(0.85) and wise.details["prompts_missing"] == 994
    assert {record.details["comparable"] for record in (fid, dpg, wise)} == {False}


@pytest.mark.parametrize(
    ("table", "split", "name", "column", "metric", "how"),
    [
        ("table1", "mjhq", "fid", "fid", "fid", "other weights than FID's; 4 images; against 5 images"),
        ("table1", "test", "geneval", "geneval", "geneval/overall", None),
        ("table3", "dpg", "dpg", "overall", "dpg/overall", "here by vqa"),
        ("table3", "dpg", "dpg", "relation", "dpg/relation", "here by vqa"),
        ("table4", "wise", "wise", "overall", "wise/overall", "here by a-judge"),
    ],
)
def test_the_papers_tables_show_it_beside_the_published_numbers(outcome, table, split, name, column, metric, how):
    rows = list(csv.DictReader((outcome.flow.results / "tables" / f"{table}.csv").open()))
    record, theirs = outcome.record(split, name), published.load()[table]
    (ours,) = [row for row in rows if row["model"] == "fm"]
    assert float(ours[f"our_{column}"]) == pytest.approx(record.value(metric), rel=1e-4)
    assert [remark for remark in ours["remarks"].split("; our_") if f"({how})" in remark] or how is None
    assert (f"our_{column}" in ours["remarks"] and "measured alike" in ours["remarks"]) == (how is not None)
    if table != "table1":  # whose n is GenEval's
        assert ours["our_n"] == str(next(m.n for m in record.metrics if m.metric.endswith("/overall")))
        assert ours["section"] == f"Measured here, {split} set"
    assert sorted(row[f"pub_{column}"] for row in rows if row["section"].startswith("Published")) == sorted(
        row[column] or "–" for row in theirs
    )


def test_a_finished_workflow_has_nothing_to_do(outcome):
    asked, before = len(outcome.server.requests), outcome.made()
    code, output = outcome.flow.run("all")
    assert code == 0 and "Nothing to be done" in output, output
    assert len(outcome.server.requests) == asked and outcome.made() == before


def test_changed_settings_ask_for_their_own_evaluators_alone(outcome):
    """Of an official FID, and of a GenEval that was the world's and shared its job with CLIP score; nothing is trained or sampled."""
    code, output = outcome.flow.run(
        "all", "--dry-run", "-p", "--config", "set=evaluation.fid.jpeg=90 evaluation.geneval.detector=transformers"
    )
    assert code == 0 and jobs(output) == DRAWN | {"evaluate_alone": 2}, output
    assert sorted(re.findall(r"^ +output: .*/records/fm/nfe1/seed0/(.*)$", output, re.MULTILINE)) == ["mjhq/fid.json", "test/geneval.json"]


def test_what_is_missing_is_one_line_before_anything_is_trained(outcome):
    """In a profile of another name, so that all is to do. tests/workflow/test_profiles.py has the other lines."""
    code, output = outcome.flow.run("all", "--config", "set=profile=other evaluation.geneval.detector=transformers")
    said = r"^error: profile\.yaml: results/assets/mask2former/.*\.pth: not found; .* or give evaluation\.geneval\.detector_weights PATH$"
    assert code != 0 and len(re.findall(said, output, re.MULTILINE)) == 1 and "Traceback" not in output, output
    assert not list((outcome.flow.folder / "results/other").glob("*/**/*")), "nothing was begun"


@pytest.fixture
def changed(outcome, tmp_path, monkeypatch):
    """The workflow in a copy; its file of questions and its server are as before after the test."""
    kept = shutil.copy2(outcome.files["questions"], tmp_path)
    monkeypatch.setattr(outcome.server, "behave", outcome.server.behave)
    yield replace(outcome, flow=outcome.flow.copy(tmp_path / "copy"))
    shutil.copy2(kept, outcome.files["questions"])


def test_a_changed_file_scores_again_alone_and_a_judge_that_fails_takes_no_other_record_with_it(changed):
    """And the tables show what there is."""
    outcome = changed
    outcome.server.behave = lambda number, text: lambda handler: handler.give(400, b'{"error": {"message": "no such model"}}')
    file, before = outcome.files["questions"], outcome.made()
    file.write_text(file.read_text().replace("is there a green?", "is there a circle?"))
    code, output = outcome.flow.run("all", "--config", "set=evaluation.wise.model=another")
    assert code != 0 and re.search("^error: 127.0.0.1: HTTP 400: no such model$", output, re.MULTILINE), output
    after = outcome.made()
    assert before.keys() - after.keys() == {"records/fm/nfe1/seed0/wise/wise.json"}
    assert {file for file, time in after.items() if before[file] != time} == {"records/fm/nfe1/seed0/dpg/dpg.json"}
    assert outcome.record("dpg", "dpg").details["questions_sha256"] == file_sha256(file)
    rows = {table: list(csv.DictReader((outcome.flow.results / f"tables/{table}.csv").open())) for table in ("table3", "table4")}
    assert [any(row["model"] == "fm" for row in found) for found in rows.values()] == [True, False]
