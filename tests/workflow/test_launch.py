"""One training on several processes: accelerate starts it with the file that the profile names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from apex import launch
from apex.config import load
from apex.errors import UserError

SHIPPED = Path(launch.__file__).parent.parent / "workflows/accelerate"
TWO = {"distributed_type": "FSDP", "num_machines": 1, "num_processes": 2, "use_cpu": True, "fsdp_config": {"fsdp_version": 2}}


def test_those_shipped_are_accelerates_own(tmp_path):
    from accelerate.commands.config.config_args import load_config_from_file

    for name, split in (("ddp", False), ("fsdp2", True)):
        found = launch.read(SHIPPED / f"{name}.yaml", "launch")
        theirs = load_config_from_file(str(SHIPPED / f"{name}.yaml"))
        assert (found.processes, found.split) == (theirs.num_processes, split) and theirs.distributed_type.value == (
            "FSDP" if split else "MULTI_GPU"
        )
        assert found.command == ["accelerate", "launch", "--config_file", f"{SHIPPED / name}.yaml", "-m"]
    assert launch.Launch().command == ["python", "-m"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distributed_type": "DEEPSPEED"}, "distributed_type: found DEEPSPEED, expected one of MULTI_GPU, FSDP"),
        ({"num_processes": 1}, "num_processes: found 1, expected a number of GPUs above 1"),
        ({"num_machines": 2}, "num_machines: found 2, expected 1"),
        ({"fsdp_config": {"fsdp_version": 1}}, "fsdp_config.fsdp_version: found 1, expected 2"),
        ({"fsdp_config": None}, "fsdp_config.fsdp_version: found None, expected 2"),
    ],
)
def test_what_cannot_be_launched_is_one_line(tmp_path, changes: dict, said: str):
    path = tmp_path / "launch.yaml"
    path.write_text(yaml.safe_dump(TWO | changes))
    with pytest.raises(UserError, match=said) as error:
        launch.read(path, "p.yaml: launch")
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    path.unlink()
    with pytest.raises(UserError, match=r"p.yaml: launch: found no file .*; expected one such as workflows/accelerate/fsdp2.yaml"):
        launch.read(path, "p.yaml: launch")


def test_the_number_of_processes_is_part_of_a_runs_identity(tmp_path):
    """They take as many batches in a step; how their weights are kept changes nothing."""
    hashes = set()
    for number, changes in enumerate(({}, {"num_processes": 4}, {"distributed_type": "MULTI_GPU"})):
        path = tmp_path / f"{number}.yaml"
        path.write_text(yaml.safe_dump(TWO | changes))
        config = load("workflows/config/smoke.yaml", [f"launch={path}"])
        hashes.add((config.run_hash("apex"), config.hash()))
    alone = load("workflows/config/smoke.yaml")
    assert len(hashes) == 2 and (alone.run_hash("apex"), alone.hash()) not in hashes


@pytest.mark.slow
def test_a_run_of_two_processes_through_the_workflow(make_workflow, tmp_path):
    run = "results/tiny/runs/fm/seed0"
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(TWO))
    flow = make_workflow(tmp_path, launch="two.yaml")
    code, output = flow.run(run)
    assert code == 0, output
    made = json.loads((tmp_path / run / "made.json").read_text())
    assert made["processes"] == 2 and made["split"] is True
    said = (tmp_path / "results/tiny/logs/train/fm-seed0.log").read_text()
    assert said.count('"forward_equivalents"') == 1  # one of them speaks
    code, output = flow.run(run)
    assert code == 0 and "Nothing to be done" in output, output
