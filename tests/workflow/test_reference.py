"""What joins the committed reference: of a row that was trained again none of the old numbers stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apex.config import load
from apex.errors import UserError
from workflows import reference

CONFIG = load(Path(__file__).resolve().parents[2] / "workflows" / "config" / "matrix.yaml")
RUN = {row: CONFIG.run_config(row).model_dump(mode="json") for row in ("apex", "rcgm")}


@pytest.fixture
def results(tmp_path):
    """results(name, {"records/...": text}, commit): a folder of results with the runs of seeds 0 and 1 of `apex`, and of `rcgm`."""

    def make(name: str, records: dict[str, str], commits: dict[str, str]) -> Path:
        made = {f"runs/{run}/made.json": {"run": RUN[run.split("/")[0]], "git_commit": commit} for run, commit in commits.items()}
        for path, content in (records | {path: json.dumps(content) for path, content in made.items()}).items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        return tmp_path / name

    return make


def test_old_points_of_a_run_that_was_trained_again_go(results):
    point = "records/{}/nfe{}/seed{}/test/geneval.json".format
    old = {point("apex", 1, 0): "old", point("apex", 20, 0): "old", point("apex", 1, 1): "old", point("rcgm", 1, 0): "old"}
    out = results("reference", old, {"apex/seed0": "old", "apex/seed1": "old", "rcgm/seed0": "old"})
    new = results("new", {point("apex", 1, 0): "new"}, {"apex/seed0": "new", "rcgm/seed0": "old"})
    assert reference.copy(CONFIG, new, out)[1] == {}
    # Of apex, seed 0, NFE 20 was measured on weights that are gone; another seed, and a run that is the same, stay.
    kept = {path.relative_to(out).as_posix(): path.read_text() for path in out.glob("records/**/*.json")}
    assert kept == {point("apex", 1, 0): "new", point("apex", 1, 1): "old", point("rcgm", 1, 0): "old"}


def test_without_results_of_its_own_the_reference_stays_as_it_is(results, tmp_path):
    out = results("reference", {"records/apex/nfe1/seed0/test/geneval.json": "old"}, {"apex/seed0": "old"})
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert reference.copy(CONFIG, tmp_path / "nothing", out) == (0, {})
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="nothing: found no records; make the results first"):
        reference.copy(CONFIG, tmp_path / "nothing", tmp_path / "nowhere")
