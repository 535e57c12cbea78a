"""Published models as rows, through the workflow."""

from __future__ import annotations

import json
import shutil

import pytest


@pytest.mark.slow
def test_a_given_folder_that_changes_is_drawn_and_timed_again(make_workflow, tiny_stock, tmp_path):
    folder, point = tmp_path / "model", "results/tiny/records/theirs/nfe1/seed0/test"
    shutil.copytree(tiny_stock("qwen_image"), folder)
    flow = make_workflow(tmp_path, checkpoints=[{"row": "theirs", "pipeline": "model", "nfe": [1]}])
    code, output = flow.run(f"{point}/speed.json")
    assert code == 0, output
    assert json.loads((tmp_path / point / "speed.json").read_text())["row"] == "theirs"
    code, output = flow.run(f"{point}/speed.json", "--dry-run")
    assert code == 0 and "Nothing to be done" in output, output
    scheduler = folder / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"shift": 2.0}))
    code, output = flow.run(f"{point}/speed.json", "--dry-run")
    assert code == 0 and "time_checkpoint" in output and "Nothing to be done" not in output, output
