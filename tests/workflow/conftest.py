"""Fixtures of the workflow tests: a small profile, and Snakemake as a user calls it, in a folder of its own."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 1800.0  # seconds that a busy machine may take before a test gives up waiting


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


class Workflow:
    """Snakemake with one profile in one folder, and what runs there."""

    def __init__(self, folder: Path, settings: dict[str, Any], environment: dict[str, str] | None = None) -> None:
        self.folder = folder.resolve()
        self.profile = self.folder / "profile.yaml"
        self.results = self.folder / "results" / settings["profile"]
        self.environment = os.environ | (environment or {})
        self.profile.write_text(yaml.safe_dump(settings))
        self.started: list[subprocess.Popen[str]] = []

    def copy(self, folder: Path) -> Workflow:
        """The same workflow with what it has made, in a new folder: a test may change that one."""
        shutil.copytree(self.folder, folder)
        other = Workflow(folder, yaml.safe_load(self.profile.read_text()), self.environment)
        other.started = self.started
        return other

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts Snakemake in a process group of its own."""
        line = [sys.executable, "-m", "snakemake", *arguments, "--cores", "1", "--snakefile", str(ROOT / "Snakefile")]
        line += ["--directory", str(self.folder), "--configfile", str(self.profile)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(line, cwd=self.folder, env=self.environment, start_new_session=True, **pipes)
        self.started.append(process)
        return process

    def run(self, *arguments: str) -> tuple[int, str]:
        """Runs Snakemake to its end; returns exit code and output."""
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, output

    def processes(self) -> list[int]:
        """Every living process that works in the folder."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _works_in(pid, self.folder)]

    def kill_group(self, process: subprocess.Popen[str]) -> None:
        """kill -9 of Snakemake with all its jobs."""
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        wait(lambda: not self.processes())


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder and Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:  # it has ended
        return False


def wait(happened: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """Waits until `happened()` is true and returns its value; fails when `process` ends before."""
    end = time.monotonic() + PATIENCE
    while not (value := happened()):
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)
    return value


@pytest.fixture(scope="session")
def make_workflow(tiny_pipeline: Path) -> Iterator[Callable[..., Workflow]]:
    """make_workflow(folder, environment=None, **settings): Snakemake in `folder` with a small profile, `settings` changed."""
    made: list[Workflow] = []

    def make(folder: Path, environment: dict[str, str] | None = None, **settings: Any) -> Workflow:
        small = {
            "profile": "tiny",
            "pipeline": str(tiny_pipeline),
            "data": {"scenes": 48},
            "prompts": {"per_task": 2, "images_per_prompt": 1},
            "methods": ["fm"],
            "nfe": [1],
            "teacher_nfe": [],
            "references": [],
            "evaluators": ["geneval"],
            "splits": {"test": ["geneval"], "unseen": ["geneval"]},
            "budget": {"forward_equivalents": 300},
            "train": {"batch_size": 4, "warmup_steps": 2, "log_every": 1, "checkpoint_every": 0.05},
            "sampling": {"batch_size": 4},
        }
        made.append(Workflow(folder, small | settings, environment))
        return made[-1]

    yield make
    for flow in made:  # what a failed test has left
        for process in flow.started:
            if process.poll() is None:
                flow.kill_group(process)


@dataclass
class Story:
    """What was seen while one workflow was killed three times and then left to end."""

    flow: Workflow
    step_at_kill: int = 0
    trained_at_kill: bool = True
    orphans_left: bool = True
    first_image: tuple[int, int] = (0, 0)  # inode and time of change
    sampled_at_kill: bool = True
    prompts_at_kill: int = 0
    records_at_kill: tuple[str, ...] = ()
    code: int = -1
    output: str = ""
    metrics: list[dict[str, str]] = field(default_factory=list)  # metrics.csv at the end


@pytest.fixture(scope="session")
def story(make_workflow: Callable[..., Workflow], tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The workflow after it was killed three times and left to end; made once."""
    import torch

    # Long enough that training and sampling are caught in their middle.
    size = {"prompts": {"per_task": 30, "images_per_prompt": 1}, "budget": {"forward_equivalents": 2000}}
    flow = make_workflow(tmp_path_factory.mktemp("killed"), **size)
    seen = Story(flow)
    run, images = flow.results / "runs/fm/seed0", flow.results / "images/fm/nfe1/seed0"

    # While training, Snakemake alone is killed: its job is left behind, and must end by itself.
    process = flow.start("all")
    state = wait(lambda: next(run.parent.glob(".resume-seed0-*/state.pt"), None), process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait(lambda: not flow.processes())
    seen.trained_at_kill = run.exists()
    seen.step_at_kill = torch.load(state, weights_only=True)["step"]

    # While sampling, Snakemake and its job are killed.
    process = flow.start("all")
    first = wait(lambda: next(images.glob(".test-*/00000/metadata.jsonl"), None), process)
    flow.kill_group(process)
    found = (first.parent / "samples/0000.png").stat()
    seen.first_image = (found.st_ino, found.st_mtime_ns)
    seen.sampled_at_kill = (images / "test").exists()
    seen.prompts_at_kill = len(list(first.parent.parent.glob("*/metadata.jsonl")))

    # While evaluating, after the first of two records.
    records = flow.results / "records/fm/nfe1/seed0"
    process = flow.start("all")
    wait((records / "test/geneval.json").exists, process)
    flow.kill_group(process)
    seen.records_at_kill = tuple(str(f.relative_to(records)) for f in records.rglob("*.json"))

    seen.code, seen.output = flow.run("all")
    if seen.code == 0:
        seen.metrics = list(csv.DictReader((flow.results / "metrics.csv").open()))
    return seen
