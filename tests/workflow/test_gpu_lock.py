"""One GPU a job on a box with several: what is taken is not taken twice, and is given back however its holder ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from apex import gpu
from tests.workflow.rule_texts import rules

ROOT = Path(gpu.__file__).parents[1]
# Modules that run on a GPU where there is one.
ON_A_GPU = {
    *("apex.train", "apex.measure", "apex.sample", "apex.data.cache", "apex.data.embeddings", "apex.data.synthesise"),
    *("apex.pretrain.teacher", "evaluators", "evaluators.speed", "evaluators.systems"),
}
HOLDER = """
import sys, time
from pathlib import Path
from apex import gpu
print(gpu.claim([0, 1], Path(sys.argv[1]), 0.02), flush=True)
time.sleep(600)
"""


@pytest.fixture
def hold(tmp_path: Path):
    """hold(): starts a process that claims one of two GPUs and keeps it; (process, what it was given)."""
    started: list[subprocess.Popen[str]] = []
    environment = {k: v for k, v in os.environ.items() if k not in (gpu.VISIBLE, "WORLD_SIZE")} | {"PYTHONPATH": os.getcwd()}

    def start(wait: bool = True):
        line = [sys.executable, "-c", HOLDER, str(tmp_path)]
        started.append(subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1], started[-1].stdout.readline().strip() if wait else None

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_two_jobs_get_two_gpus_and_a_third_waits_until_one_is_killed(hold) -> None:
    (first, a), (_, b) = hold(), hold()
    assert {a, b} == {"0", "1"}
    third, _ = hold(wait=False)
    assert third.stderr.readline().startswith("waiting for one of 2 GPUs; jobs at once: snakemake --resources gpu=2")
    assert third.poll() is None
    first.send_signal(signal.SIGKILL)
    assert third.stdout.readline().strip() == a


@pytest.mark.parametrize(("found", "variable"), [([], ""), ([0], ""), ([0, 1], gpu.VISIBLE), ([0, 1], "WORLD_SIZE")])
def test_nothing_is_claimed_where_there_is_no_choice_or_another_chose(tmp_path: Path, monkeypatch, found: list[int], variable: str) -> None:
    for name in (gpu.VISIBLE, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    assert gpu.claim(found, tmp_path) is None
    assert os.environ.get(gpu.VISIBLE) == ("1" if variable == gpu.VISIBLE else None) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("device", "asked"), [("cpu", False), ("cuda", True), ("cuda:1", True)])
def test_on_a_gpu_sums_are_asked_for_in_one_order(monkeypatch, device: str, asked: bool, strict: bool) -> None:
    """Else a run that was interrupted ends with other weights, and one seed has two results."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what is set here is taken back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    filled = torch.utils.deterministic.fill_uninitialized_memory
    try:
        gpu.repeatable(device, strict=strict)
        assert torch.are_deterministic_algorithms_enabled() is asked
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if asked else None)
        assert torch.is_deterministic_algorithms_warn_only_enabled() is (asked and not strict)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled


def test_on_a_cluster_every_rule_that_can_use_a_gpu_gets_one():
    """`set-resources` names rules: one that is forgotten there runs on a node without a GPU, or on one that another job has."""
    found = rules()
    called = {name: set(re.findall(r"(?:python -m|\{params\.start(?::q)?\}) ([\w.]+)", rule.body)) for name, rule in found.items()}
    wanted = {name for name, rule in found.items() if ON_A_GPU & called[rule.base or name]}
    wanted -= {"sample_references"}  # it renders
    slurm, kubernetes = (
        yaml.safe_load((ROOT / f"profiles/{cluster}/config.yaml").read_text())["set-resources"] for cluster in ("slurm", "kubernetes")
    )
    assert {name for name, resources in slurm.items() if resources.get("gpu")} == wanted
    assert kubernetes == slurm
