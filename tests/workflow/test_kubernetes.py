"""What the Kubernetes profile's scripts tell the cluster and Snakemake. `make test-kubernetes` runs the whole workflow through them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster import kube_api

PROFILE = Path(__file__).parents[2] / "profiles/kubernetes"
MADE = "results/world/ablations/apex,a=-0.5/seed0/records/geneval.json"
SUBMIT = ("ablation_score", "2", "64000", "1", "240", MADE, "/apex/.snakemake/tmp.1/snakejob.sh")


@pytest.fixture
def call(tmp_path: Path):
    """call(script, *arguments, answer, code): a script of the profile, finished, where kubectl answers so; what it was called with and its
    stdin are kept in files. A job that is asked for by name alone is there once, where there is a file `left`."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        '#!/bin/sh\necho "$@" >> "$0.called"\n[ "$1" != create ] || cat > "$0.stdin"\n'
        'case "$*" in "get "*" --output name") cat "$0.left" 2> /dev/null; rm -f "$0.left"; exit ;; delete*) exit ;; esac\n'
        'printf "%s" "$ANSWER"\nexit "$CODE"\n'
    )
    kubectl.chmod(0o755)

    def run(script: str, *arguments: str, answer: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ANSWER": answer, "CODE": str(code)}
        return subprocess.run([str(PROFILE / script), *arguments], env=environment, capture_output=True, text=True, check=False)

    return run


def test_a_job_asks_for_what_its_rule_asks_for_and_is_taken(call, tmp_path: Path) -> None:
    assert call("submit.sh", *SUBMIT, answer="job.batch/ablation-score-x7k2p\n").stdout == "ablation-score-x7k2p\n"
    job = yaml.safe_load((tmp_path / "kubectl.stdin").read_text())
    pod = kube_api.Pod(job, {"apex": str(tmp_path)})
    assert pod.asked == {"cpu": 2, "memory": 64e9, "nvidia.com/gpu": 1}
    assert (pod.deadline, pod.command, pod.mounts) == (240 * 60, ["bash", SUBMIT[-1]], [str(tmp_path), "/apex"])
    assert job["spec"]["backoffLimit"] == 0 and "activeDeadlineSeconds" not in job["spec"]  # a job's would count its time in the queue
    kube_api.label(job["metadata"]["name"], "metadata.name")


def test_what_makes_the_same_files_is_one_job(call, tmp_path: Path) -> None:
    """A job that a killed Snakemake left is ended before, pod and all; another output, rule or checkout has another name."""

    def named(*arguments: str) -> str:
        assert call("submit.sh", *arguments, answer="job.batch/x").returncode == 0
        return yaml.safe_load((tmp_path / "kubectl.stdin").read_text())["metadata"]["name"]

    (tmp_path / "kubectl.left").write_text("job.batch/left\n")
    name = named(*SUBMIT)
    asked = f"get job {name} --ignore-not-found --output name"
    calls = (tmp_path / "kubectl.called").read_text().splitlines()
    assert calls[:3] == [f"delete job {name} --ignore-not-found --cascade=foreground --wait=false", asked, asked]
    assert calls[3].startswith("create ") and len(calls) == 4
    assert named(*SUBMIT[:-1], "/apex/.snakemake/tmp.2/snakejob.sh") == name
    assert named(*SUBMIT[:-2], MADE.replace("seed0", "seed1"), SUBMIT[-1]) != name
    assert named("train", *SUBMIT[1:]) != name


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"memory": "1G"}, "Limit must be set"),
        ({"nvidia.com/gpu": "2"}, "Limit must be set"),
        ({"cpu": "1", "nvidia.com/gpu": "1"}, "less than or equal"),
    ],
)
def test_the_stand_in_refuses_what_kubernetes_refuses(call, tmp_path: Path, limits: dict[str, str], message: str) -> None:
    call("submit.sh", *SUBMIT)
    job = yaml.safe_load((tmp_path / "kubectl.stdin").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["resources"] = {"requests": {"cpu": "2", "nvidia.com/gpu": "1"}, "limits": limits}
    with pytest.raises(kube_api.Refused, match=message):
        kube_api.Pod(job, {"apex": str(tmp_path)})


def test_a_job_that_is_refused_fails(call) -> None:
    refused = call("submit.sh", *SUBMIT, code=1)
    assert refused.returncode and not refused.stdout


@pytest.mark.parametrize(
    ("answer", "code", "status"),
    [
        ("train-x7k2p", 0, "running"),
        ("train-x7k2p SuccessCriteriaMet", 0, "running"),
        ("train-x7k2p SuccessCriteriaMet Complete", 0, "success"),
        ("train-x7k2p FailureTarget", 0, "running"),  # its pod may still be writing
        ("train-x7k2p FailureTarget Failed", 0, "failed"),
        ("", 0, "failed"),
        ("", 1, "running"),  # the cluster does not answer
    ],
)
def test_a_job_is_over_when_kubernetes_says_so(call, answer: str, code: int, status: str) -> None:
    asked = call("status.sh", "train-x7k2p", answer=answer, code=code)
    assert (asked.returncode, asked.stdout) == (0, f"{status}\n")
    assert ("is gone" in asked.stderr) == (answer == "" and code == 0)


def test_jobs_are_deleted_together_and_without_waiting(call, tmp_path: Path) -> None:
    """Snakemake gives it two seconds."""
    assert call("cancel.sh", "a", "b").returncode == 0
    assert (tmp_path / "kubectl.called").read_text() == "delete job --ignore-not-found --wait=false a b\n"
