"""A finished workflow: what a changed setting makes again, images from elsewhere, the reference copy, tables without torch."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from apex.config import load
from apex.errors import UserError
from tests.workflow.conftest import Workflow
from workflows import reference

pytestmark = pytest.mark.slow


def planned(output: str) -> dict[str, int]:
    """Rule -> number of jobs, from the table that Snakemake prints before it begins."""
    table = output.partition("Job stats:")[2].partition("total")[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", table, flags=re.MULTILINE)}


def contents(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob("*")) if f.is_file()}


def numbers(flow) -> list[dict[str, str]]:
    return list(csv.DictReader((flow.results / "metrics.csv").open()))


@pytest.fixture(scope="module")
def flow(story):
    """The finished workflow. It is left as it is; what changes results does so in a copy."""
    assert story.code == 0, story.output
    return story.flow


@dataclass
class Elsewhere:
    """A copy of the finished workflow, called with images from elsewhere: with a broken one, then with whole ones."""

    flow: Workflow
    setting: str
    before: list[dict[str, str]]  # metrics.csv
    failed: tuple[int, str]
    kept: list[dict[str, str]]  # metrics.csv after the failure
    left: bool  # whether the failure left a record
    done: tuple[int, str]


@pytest.fixture(scope="module")
def elsewhere(flow, tmp_path_factory) -> Elsewhere:
    """The images are the run's own, without the record of who made them."""
    place = tmp_path_factory.mktemp("elsewhere")
    copy, folder = flow.copy(place / "workflow"), place / "images of others"
    shutil.copytree(flow.results / "images/fm/nfe1/seed0/test", folder, ignore=shutil.ignore_patterns("made.json"))
    setting, before = f'external=[{{row: theirs, images: "{folder}", nfe: 3, source: "page 3, theirs"}}]', numbers(copy)
    image = folder / "00003" / "samples" / "0000.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    failed, kept = copy.run("all", "--config", setting), numbers(copy)
    left = (copy.results / "records/theirs/nfe3/seed0/test/geneval.json").exists()
    image.write_bytes(whole)
    return Elsewhere(copy, setting, before, failed, kept, left, copy.run("all", "--config", setting))


def test_nothing_is_made_again_where_nothing_changed(flow, tiny_pipeline):
    """Nor where a clone gives the teacher's files other times."""
    for file in tiny_pipeline.rglob("*"):
        os.utime(file)
    before = (flow.results / "metrics.csv").stat().st_mtime_ns
    code, output = flow.run("all")
    assert code == 0 and "Nothing to be done" in output, output
    assert (flow.results / "metrics.csv").stat().st_mtime_ns == before


def test_another_nfe_samples_and_scores_without_training(flow):
    code, output = flow.run("all", "--dry-run", "--config", "nfe=1,2")
    assert code == 0, output
    drawn = {"collect": 1, "build_tables": 1, "draw_figures": 1, "judge": 1, "write_cards": 1}
    assert planned(output) == {"all": 1, "sample": 1, "evaluate": 1, **drawn}


def test_every_run_has_a_card_with_what_was_measured(flow):
    (value,) = {row["value"] for row in numbers(flow) if (row["split"], row["metric"]) == ("test", "geneval/overall")}
    text = (flow.results / "cards/fm.md").read_text()
    assert re.search(rf"\| GenEval \| 1 \| {float(value):.2g}\d* ", text) and "Not measured yet" not in text


def test_what_takes_the_records_that_are_there_is_not_mixed_with_what_makes_them(flow, tmp_path):
    """It has no inputs, and would run first."""
    flow = flow.copy(tmp_path / "copy")
    code, output = flow.run("cards", "all", "--config", "nfe=1,2")
    assert code != 0 and "cards: of the records that are there, and this call has" in output, output
    assert "ask for the others first, then for `snakemake cards`" in output
    code, output = flow.run("cards", "tables")
    assert code == 0, output


def test_another_budget_trains_again_from_the_same_data(flow):
    code, output = flow.run("all", "--dry-run", "--config", "set=budget.forward_equivalents=3000")
    assert code == 0, output
    assert planned(output) == {
        "all": 1,
        "train": 1,
        "sample": 1,
        "evaluate": 1,
        "collect": 1,
        "build_tables": 1,
        "draw_figures": 1,
        "judge": 1,
        "write_cards": 1,
    }


def test_a_failed_job_shows_its_own_error_and_leaves_what_was_there(elsewhere):
    code, output = elsewhere.failed
    assert code != 0
    assert re.search(
        r"^error: .*images of others: 1 images missing or unusable: 00003/samples/0000\.png is a corrupt", output, re.MULTILINE
    ), output
    assert elsewhere.kept == elsewhere.before and not elsewhere.left


def test_images_from_elsewhere_stand_in_the_tables_as_a_row(elsewhere):
    flow, (code, output) = elsewhere.flow, elsewhere.done
    assert code == 0, output
    assert planned(output).get("train") is None
    ours, theirs = (
        {row["metric"]: row["value"] for row in numbers(flow) if row["row"] == name and row["split"] == "test"} for name in ("fm", "theirs")
    )
    assert ours == theirs and "geneval/overall" in theirs
    assert {row["nfe"] for row in numbers(flow) if row["row"] == "theirs"} == {"3"}
    assert "theirs" in (flow.results / "tables/world.csv").read_text()
    record = json.loads((flow.results / "records/theirs/nfe3/seed0/test/geneval.json").read_text())
    assert "page 3, theirs" in json.dumps(record["details"])


def test_the_reference_holds_the_small_files_and_tables_come_from_it_without_torch(elsewhere, make_workflow, tmp_path):
    flow = elsewhere.flow
    code, output = flow.run("reference", "--config", elsewhere.setting)
    assert code == 0, output
    copied = flow.folder / "results" / "reference" / "tiny"
    files = contents(copied)
    assert {"metrics.csv", "records/fm/nfe1/seed0/test/geneval.json", "records/theirs/nfe3/seed0/test/geneval.json"} <= files.keys()
    assert {"runs/fm/seed0/log.csv", "runs/fm/seed0/made.json", "tables/world.md", "audit/audit.md", "figures/index.html"} <= files.keys()
    assert {Path(name).suffix for name in files} <= {".csv", ".json", ".md", ".tex", ".html", ".png", ".zip", ".rst"}
    assert {name.split("/")[0] for name in files if name.endswith(".png")} == {"figures", "claims"}
    assert {name for name in files if name.endswith(".zip")} == {f"pictures/{row.name}.zip" for row in (flow.results / "images").iterdir()}

    # A clone that has the reference and nothing else, and an environment without torch.
    (tmp_path / "blocked" / "torch").mkdir(parents=True)
    (tmp_path / "blocked" / "torch" / "__init__.py").write_text("raise ImportError('torch is not installed')")
    clone = make_workflow(tmp_path, {"PYTHONPATH": str(tmp_path / "blocked")})
    shutil.copy(flow.profile, clone.profile)
    shutil.copytree(copied, tmp_path / "results/reference/tiny")
    code, output = clone.run("tables")
    assert code == 0, output
    assert contents(tmp_path / "results/reference/tiny") == files
    for name in ("metrics.csv", "tables/world.csv", "tables/table1.tex", "audit/audit.csv"):
        assert (clone.results / name).read_bytes() == (copied / name).read_bytes()
    assert {f.name for f in (clone.results / "figures").iterdir()} == {f.name for f in (copied / "figures").iterdir()}


def test_a_reference_is_not_made_of_nothing(flow, tmp_path):
    out = tmp_path / "reference"
    out.mkdir()
    (out / "metrics.csv").write_text("old")
    with pytest.raises(UserError, match=r"results: found no records; make the results first: snakemake all"):
        reference.copy(load(flow.profile), tmp_path / "results", out)
    assert (out / "metrics.csv").read_text() == "old"


def test_a_sitting_of_ablations_alone_joins_the_reference(flow, tmp_path):
    config, out, cell = load(flow.profile), tmp_path / "reference", Path("ablations/fm/seed0/records/geneval.json")
    point = flow.results / "records/fm/nfe1/seed0/test/geneval.json"
    kept = out / point.relative_to(flow.results)
    for path in (tmp_path / "results" / cell, kept):
        path.parent.mkdir(parents=True)
        shutil.copy(point, path)
    reference.copy(config, tmp_path / "results", out)
    assert (out / cell).read_bytes() == point.read_bytes() and kept.is_file()


def test_another_sitting_joins_the_reference(flow, tmp_path):
    """Rows that the new results lack stay, if the profile trains them as they were trained; a point that is made again is the new one."""
    config = load(flow.profile, ["rows.slow={method: fm, train: {learning_rate: 1e-4}}", "methods=fm,slow"])
    point = "records/{}/nfe1/seed0/test/geneval.json"

    def results(name: str, row: str, rate: float, geneval: float) -> Path:
        folder = tmp_path / name
        record = json.loads((flow.results / point.format("fm")).read_text()) | {"row": row, "wall_seconds": geneval}
        made = json.loads((flow.results / "runs/fm/seed0/made.json").read_text()) | {"row": row}
        made["run"] |= {"row": row, "train": made["run"]["train"] | {"learning_rate": rate}}
        made["run"]["variant"] = "" if row == "fm" else row
        del made["run"]["method_files"]  # records from before that setting
        for path, content in ((point.format(row), record), (f"runs/{row}/seed0/made.json", made)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(json.dumps(content))
        shutil.copytree(flow.results / "images/fm", folder / "images" / row)
        return folder

    def seconds(row: str) -> float | None:
        path = tmp_path / "reference" / point.format(row)
        return json.loads(path.read_text())["wall_seconds"] if path.is_file() else None

    out, usual = tmp_path / "reference", config.train.learning_rate
    reference.copy(config, results("first", "fm", usual, 1.0), out)
    assert reference.copy(config, results("second", "slow", 1e-4, 2.0), out)[1] == {}
    assert (seconds("fm"), seconds("slow")) == (1.0, 2.0)
    assert {path.stem for path in (out / "pictures").iterdir()} == {"fm", "slow"}
    reference.copy(config, results("third", "fm", usual, 3.0), out)
    assert (seconds("fm"), seconds("slow")) == (3.0, 2.0)
    # The profile trains `slow` at another rate now, and has forgotten it at last.
    changed = load(flow.profile, ["rows.slow={method: fm, train: {learning_rate: 3e-4}}", "methods=fm,slow"])
    assert reference.copy(changed, tmp_path / "third", out)[1] == {"slow": "it was trained with another train.learning_rate"}
    assert (seconds("fm"), seconds("slow")) == (3.0, None) and not (out / "runs/slow").exists()
    assert [path.stem for path in (out / "pictures").iterdir()] == ["fm"]
    reference.copy(config, tmp_path / "second", out)
    assert reference.copy(load(flow.profile), tmp_path / "third", out)[1] == {"slow": "the profile has no such row"}


# --------------------------------------------------------------------------------------------- what goes wrong


def test_an_edited_profile_with_a_mistake_stops_before_any_job(flow, tmp_path):
    flow = flow.copy(tmp_path / "copy")
    text, before = flow.profile.read_text(), contents(flow.results)
    flow.profile.write_text(text.replace("batch_size: 4\n", "batch_sise: 4\n"))
    code, output = flow.run("all")
    assert code != 0
    said = r"^error: profile\.yaml: \w+\.batch_sise: unknown key 'batch_sise'; did you mean 'batch_size'\?"
    assert re.search(said, output, re.MULTILINE), output
    assert contents(flow.results) == before


@pytest.mark.parametrize(
    "setting, line",
    [
        ("methods=fmm", r"--config methods: unknown method 'fmm'; did you mean 'fm'\?"),
        ("pipeline=nowhere", r"--config pipeline: found no nowhere/transformer/config\.json"),
        ("external=[{row: a, images: nowhere, nfe: 1}]", r"--config external\.0\.images: found no folder nowhere"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(flow, setting, line):
    code, output = flow.run("all", "--config", setting)
    assert code != 0 and re.search(f"^error: {line}", output, re.MULTILINE), output
    assert "Traceback" not in output


def test_a_results_folder_in_the_way_is_named(make_workflow, tmp_path):
    blocked = make_workflow(tmp_path)
    (tmp_path / "results").write_text("a file in the way")
    code, output = blocked.run("all")
    assert code != 0 and "Traceback" not in output
    assert "results/tiny: cannot be written" in output, output
    assert (tmp_path / "results").read_text() == "a file in the way"
