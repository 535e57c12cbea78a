"""Training data that the workflow makes itself: images of the teacher, captions encoded to disk."""

from __future__ import annotations

import json
import re

import pytest

from apex.data.shards import open_samples


def planned(output: str) -> set[str]:
    """The rules of a dry run."""
    return set(re.findall(r"^(\w+)\s+\d+$", output.partition("Job stats:")[2].partition("total")[0], flags=re.MULTILINE))


@pytest.mark.slow
def test_a_profile_trains_on_what_its_teacher_draws(make_workflow, tmp_path):
    prompts, run = tmp_path / "prompts.txt", "results/tiny/runs/fm/seed0"
    prompts.write_text("a red circle\ntwo blue squares\na green triangle\n")
    data = {"source": "teacher", "embeddings": "disk", "teacher": {"prompts": "prompts.txt", "count": 7, "steps": 2}}
    flow = make_workflow(tmp_path, data=data)
    code, output = flow.run(run)
    assert code == 0, output
    assert len(list(open_samples(flow.results / "data/teacher"))) == 7
    assert json.loads((flow.results / "data/teacher/made.json").read_text())["forward_equivalents"] == 7 * 2 * 2
    assert json.loads((flow.results / "data/embeddings-fp32/made.json").read_text())["count"] == 3
    made = json.loads((tmp_path / run / "made.json").read_text())
    assert made["run"]["data"]["embeddings"] == "disk" and made["run"]["data"]["teacher"]["guidance"] == 2.5
    code, output = flow.run(run)
    assert code == 0 and "Nothing to be done" in output, output
    prompts.write_text(prompts.read_text() + "a grey circle\n")
    code, output = flow.run(run, "--dry-run")
    assert code == 0 and planned(output) == {"synthesise", "cache", "embeddings", "train"}, output
    prompts.unlink()
    code, output = flow.run(run, "--dry-run")
    assert code != 0 and "data.teacher.prompts: found no file prompts.txt; expected a prompt a line" in output


def test_a_profile_that_asks_for_no_images_says_so(make_workflow, tmp_path):
    flow = make_workflow(tmp_path)
    code, output = flow.run("synthesise")
    assert code != 0 and "error: " in output and "data.teacher: found none, expected the prompts to draw there" in output
