"""Files are written whole or not at all; a command's failure is one line and an exit code; what travels with every number."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from apex import files, provenance
from apex.errors import AT_WORK, GONE, STOPPING, WORKFLOW, UserError, run_command, workflow_state
from apex.kinds import IMAGES, OF_RULES
from tests.workflow.rule_texts import rules
from workflows import lock

ROOT = Path(__file__).resolve().parents[2]

ANY = files.Kind("a folder of this test", ("*",))

ROOM = "expected room for it; nothing that existed was changed: free some space, or write to another disk, and run again"


def raise_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# --------------------------------------------------------------------------------------------- apex.files


def test_a_file_is_written_with_its_folders_and_is_readable_by_others(tmp_path):
    path = tmp_path / "a" / "b.json"
    files.write_atomic(path, "text")
    files.write_atomic(path, b"\x00bytes")
    assert path.read_bytes() == b"\x00bytes"
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["b.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, capsys, step):
    path = tmp_path / "state"
    path.write_text("old")
    monkeypatch.setattr(files.os, step, raise_full)
    assert run_command(lambda: files.write_atomic(path, "new")) == 2
    assert capsys.readouterr().err == f"error: {path}: cannot be written: found a full disk, {ROOM}\n"
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["state"]


def test_a_write_that_the_system_refuses_half_way_leaves_the_old_file(tmp_path):
    """A real refusal: the process may write no file above 4 kB."""
    path = tmp_path / "state"
    path.write_text("old")
    code = (
        "import resource, sys; sys.path[:0] = {path!r}; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from pathlib import Path; from apex.errors import run_command; from apex.files import write_atomic\n"
        "sys.exit(run_command(lambda: write_atomic(Path({file!r}), bytes(100_000))))"
    )
    done = subprocess.run([sys.executable, "-c", code.format(path=sys.path, file=str(path))], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {path}: cannot be written: found a limit on the size of files, {ROOM}\n"
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["state"]


def test_a_folder_takes_its_name_when_it_is_complete(tmp_path):
    out = tmp_path / "run"
    with files.atomic_folder(out, ANY) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
    with files.atomic_folder(out, ANY) as folder:
        (folder / "b").write_text("2")
        assert os.listdir(out) == ["a"]
    assert os.listdir(out) == ["b"] and os.listdir(tmp_path) == ["run"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_a_folder_that_fails_half_way_leaves_the_old_one(tmp_path, monkeypatch):
    out = tmp_path / "run"
    out.mkdir()
    (out / "old").write_text("1")
    with pytest.raises(KeyboardInterrupt), files.atomic_folder(out, ANY) as folder:
        (folder / "new").write_text("2")
        raise KeyboardInterrupt
    assert os.listdir(out) == ["old"] and os.listdir(tmp_path) == ["run"]


def test_what_a_kill_left_of_a_file_is_as_foreign_as_the_file(tmp_path):
    """`atomic_file` writes under a name of its own until the file is whole."""
    images = tmp_path / "images"
    record = images / "00000" / "metadata.jsonl"
    files.write_atomic(images / "made.json", '{"prompts_sha256": ""}')
    with files.atomic_file(record):
        assert re.fullmatch(r"\.metadata\.jsonl\.\w{8}", *os.listdir(record.parent)) and IMAGES.foreign(images) == ""
    (record.parent / ".metadata.jsonl.51_ikkkr").touch()
    assert IMAGES.foreign(images) == ""
    (record.parent / ".x.jpg.51_ikkkr").touch()
    assert IMAGES.foreign(images) == "00000/.x.jpg.51_ikkkr"


def test_every_rule_that_writes_a_folder_says_what_such_a_folder_holds():
    """Snakemake empties it before a job, so `onstart` looks at it first."""
    writing = {name for name, rule in rules().items() if "directory(" in rule.body}
    assert {"train", "sample", "ablation_train", "judge", "fetch_lora"} <= writing
    assert writing == OF_RULES.keys()


# --------------------------------------------------------------------------------------------- apex.errors


def test_a_users_error_is_one_line_and_a_defect_is_a_traceback(capsys):
    def fail(error: Exception) -> None:
        raise error

    assert run_command(lambda: None) == 0
    assert run_command(lambda: fail(UserError("a.yaml: x: found 1, expected 2"))) == 2
    assert run_command(lambda: fail(PermissionError(errno.EACCES, "Permission denied", "results/x"))) == 2
    assert capsys.readouterr().err == (
        "error: a.yaml: x: found 1, expected 2\nerror: Permission denied (results/x); nothing that existed was changed\n"
    )
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: fail(ZeroDivisionError()))


JOB = """
import os, signal, sys, time
sys.path[:0] = {path!r}
import apex
from apex.errors import run_command
print("started", flush=True)
{then}
sys.exit(run_command(lambda: time.sleep({seconds})))
"""
ENDS = """
import signal, sys
from apex.errors import run_command
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts pytest in the background has it ignored
def main():
    if sys.argv[1] == "interrupt":
        signal.raise_signal(signal.SIGINT)
    for line in range(100_000 if sys.argv[1] == "much" else 1):
        print(line)
sys.exit(run_command(main))
"""


def end(how: str, **more: Any) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-c", ENDS, how], stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}, **more
    )


@pytest.mark.parametrize("amount", ["much", "a line"])  # one fails in print, the other when what is buffered is written
def test_a_closed_output_is_one_line(amount: str):
    reading, writing = os.pipe()
    os.close(reading)
    done = end(amount, stdout=writing)
    os.close(writing)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output: found it closed, expected a reader") and done.stderr.count("\n") == 1


def test_ctrl_c_is_one_line_and_130():
    done = end("interrupt")
    assert done.returncode == 130
    assert done.stderr == "error: stopped by Ctrl-C; what was saved until here is kept, run the command again to go on\n"


def job(file: Path, seconds: float, host: str | None = None, identity: str = "1-1", then: str = "") -> subprocess.Popen[str]:
    """A command that sleeps, started as if by a workflow that holds `file`. then: what it does between its imports and its work."""
    environment = os.environ | {WORKFLOW: f"{host or platform.node()}:{identity}:{file}"}
    line = [sys.executable, "-c", JOB.format(path=sys.path, seconds=seconds, then=then)]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def held(tmp_path):
    """The file of a workflow that is at work, as `workflows.lock.hold` leaves it; closing it ends the workflow."""
    with (tmp_path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("1-1\n")
        file.flush()
        yield file


def test_a_job_ends_with_the_workflow_that_started_it(held):
    left, short = job(Path(held.name), 1000), job(Path(held.name), 0.2)
    assert short.wait(120) == 0, "a job ends as it likes while its workflow lives"
    assert left.poll() is None
    held.close()
    assert left.wait(120) == 3
    assert "the snakemake that started this job is gone" in left.stderr.read()


def test_a_job_that_still_imports_ends_with_its_workflow(held):
    importing = job(Path(held.name), 0, then="time.sleep(1000)  # as long as torch takes")
    assert importing.stdout.readline() == "started\n"
    held.close()
    assert importing.wait(120) == 3


def test_a_job_does_not_take_the_next_workflows_lock_for_its_own(held):
    late = job(Path(held.name), 1000, identity="1-0")
    assert late.wait(120) == 3, "the workflow that holds the file has another identity"
    assert workflow_state(Path(held.name), "1-1") == AT_WORK and workflow_state(Path(held.name), "2-1") == GONE


def test_without_locks_the_workflows_process_is_asked(held, monkeypatch):
    monkeypatch.setattr("apex.errors.fcntl.flock", raise_full)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert workflow_state(Path(held.name), f"{gone.pid}-5") == GONE
    assert workflow_state(Path(held.name), f"{os.getpid()}-5") == AT_WORK


def test_a_job_gets_sigterm_when_its_workflow_is_asked_to_stop(held):
    left = job(Path(held.name), 1000)
    assert left.stdout.readline() == "started\n"
    held.write("stopping\n")
    held.flush()
    assert left.wait(120) == 128 + signal.SIGTERM
    assert left.stderr.read() == "error: stopped by SIGTERM; nothing that existed was changed: run again\n"


def test_sigterm_leaves_no_temporary_file_and_the_handler_that_was_there(tmp_path, capsys):
    def killed_while_writing() -> None:
        with files.atomic_file(tmp_path / "state") as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    assert run_command(killed_while_writing) == 143 and os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_job_on_another_machine_does_not_ask_for_a_lock(tmp_path):
    file = tmp_path / ".lock"
    file.touch()
    assert job(file, 0.5, host="another-machine").wait(120) == 0


# --------------------------------------------------------------------------------------------- workflows.lock


@pytest.fixture
def hold(monkeypatch):
    """`lock.hold` as in a process of its own, without patience."""
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    monkeypatch.setattr(lock, "_held", [])
    monkeypatch.setenv(WORKFLOW, "")
    before = signal.getsignal(signal.SIGTERM)
    yield lock.hold
    signal.signal(signal.SIGTERM, before)


def test_a_results_folder_is_held_by_one_workflow_at_a_time(hold, tmp_path):
    root = tmp_path / "results" / "mine"
    hold(root)
    host, identity, file = os.environ[WORKFLOW].split(":")
    assert (host, file) == (platform.node(), str(root / ".lock")) and identity.startswith(f"{os.getpid()}-")
    assert workflow_state(Path(file), identity) == AT_WORK
    with pytest.raises(UserError, match="mine: another snakemake is at work there"):
        hold(root)
    hold(tmp_path / "results" / "other")
    lock._held.clear()  # the process ends
    hold(root)


def test_the_next_workflow_waits_until_the_jobs_of_a_killed_one_have_ended(hold, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 60)
    root = tmp_path / "results"
    root.mkdir()
    left = (root / ".lock").open("w")
    fcntl.flock(left, fcntl.LOCK_SH)
    slept = []
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: (slept.append(seconds), left.close()))
    hold(root)
    assert len(slept) == 1


def test_sigterm_asks_the_jobs_to_stop_and_then_does_what_it_did(hold, tmp_path):
    came = []
    signal.signal(signal.SIGTERM, lambda *_: came.append("snakemake's own handler"))
    hold(tmp_path / "results")
    _, identity, file = os.environ[WORKFLOW].split(":")
    os.kill(os.getpid(), signal.SIGTERM)
    assert came == ["snakemake's own handler"]
    assert workflow_state(Path(file), identity) == STOPPING


def test_a_file_system_without_locks_is_a_warning(hold, tmp_path, monkeypatch, capsys):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    hold(tmp_path)
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}: this file system has no locks (No locks available): two runs at once may collide there; "
        "start one at a time\n"
    )
    assert os.environ[WORKFLOW].endswith(str(tmp_path / ".lock")), "jobs still end with their workflow"


@pytest.mark.parametrize(
    ("mount", "alone"),
    [
        ("server:/a {at} nfs4 rw,vers=4.2,local_lock=none 0 0", False),
        ("server:/a {at} nfs rw,vers=3,nolock,local_lock=all 0 0", True),
        ("server:/a {at} nfs rw,vers=3,local_lock=flock 0 0", True),
        ("server:/a {at} lustre rw,localflock 0 0", True),
        ("/dev/a {at} ext4 rw,nolock 0 0", False),
        ("server:/a {at}/elsewhere nfs rw,nolock 0 0", False),
    ],
)
def test_locks_that_other_machines_do_not_see_are_a_warning(tmp_path, mount, alone):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/root / ext4 rw 0 0\n{mount.format(at=tmp_path)}\n")
    assert lock.of_this_machine_alone(tmp_path / "results", mounts) == (str(tmp_path) if alone else "")


def test_a_results_folder_that_cannot_be_written_is_named(hold, tmp_path):
    (tmp_path / "results").write_text("a file in the way")
    with pytest.raises(UserError, match=r"results/mine: cannot be written: .*--directory"):
        hold(tmp_path / "results" / "mine")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_results_folder_without_permission_is_named(hold, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="results: cannot be written: Permission denied"):
        hold(tmp_path / "results")
    tmp_path.chmod(0o700)


# --------------------------------------------------------------------------------------------- apex.provenance


def test_a_commit_says_when_the_tree_differs_from_it(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.delenv("APEX_COMMIT", raising=False)
    assert provenance.git_commit(tmp_path) == "unknown"
    monkeypatch.setenv("APEX_COMMIT", "of a copy")
    assert provenance.git_commit(tmp_path) == "of a copy"
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    clean = provenance.git_commit(tmp_path)
    (tmp_path / "untracked").write_text("1")
    assert provenance.git_commit(tmp_path) == clean and len(clean) == 12 and int(clean, 16) >= 0
    (tmp_path / "a").write_text("2")
    assert provenance.git_commit(tmp_path) == f"{clean}-dirty"


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert provenance.digest({"a": 1, "b": [1, 2]}) == provenance.digest({"b": [1, 2], "a": 1})
    assert provenance.digest({"a": 1, "b": [1, 2]}) != provenance.digest({"a": 1, "b": [2, 1]})


def test_hardware_versions_and_memory_are_known():
    assert f"{len(os.sched_getaffinity(0))} cores" in provenance.hardware()
    assert json.loads(json.dumps(provenance.versions()))["python"] == platform.python_version()
    before = provenance.peak_memory_mb()
    block = bytearray(100 * 2**20)
    assert provenance.peak_memory_mb() >= before >= 1 and len(block) > 0
    assert time.time() > 0
