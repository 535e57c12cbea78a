"""How far a call is: laws of the schedule and of its shares, on made-up jobs; what the screen shows of Snakemake's messages."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest
from snakemake.logging import DefaultFilter, DefaultFormatter
from snakemake_interface_logger_plugins.common import LogEvent

from apex.config import load
from workflows.progress import DEFAULT, Costs, Job, Progress, duration, line, plain_name, reading
from workflows.screen import TAIL, Screen

WORLD = Path(__file__).parents[2] / "workflows/config/world.yaml"


def call(cores: int, jobs: dict[str, Job]) -> Progress:
    found = Progress(cores, begun=0.0)
    found.add(jobs)
    return found


def job(seconds: float, needs: str = "", cores: int = 1, rule: str = "work") -> Job:
    return Job(rule, rule, seconds, cores, frozenset(needs.split()))


@pytest.mark.parametrize(("jobs", "cores", "left"), [(3, 1, 30), (3, 2, 20), (4, 2, 20), (3, 8, 10)])
def test_equal_jobs_fill_the_cores(jobs: int, cores: int, left: float) -> None:
    assert call(cores, {str(k): job(10) for k in range(jobs)}).left(0) == left


def test_a_job_that_needs_all_cores_runs_alone() -> None:
    assert call(2, {"a": job(10), "b": job(10), "alone": job(5, cores=2)}).left(0) == 15
    assert call(2, {"alone": job(5, cores=16)}).left(0) == 5, "more than there are: all of them"


def test_what_waits_for_another_comes_after_it() -> None:
    chain = {"a": job(10), "b": job(10, "a"), "c": job(10, "b"), "other": job(3)}
    assert call(8, chain).left(0) == 30
    assert call(1, chain).left(0) == 33


def run(progress: Progress, factor: float, order: str) -> list[tuple[float, float, float]]:
    """Runs the jobs one after another; each takes `factor` times its declared seconds. (time, share, left) at every tenth of a job."""
    seen, now = [], 0.0
    for key in order.split():
        progress.start(key, now)
        took = progress.jobs[key].seconds * factor
        seen += [
            (now + took * tenth / 10, progress.share(now + took * tenth / 10), progress.left(now + took * tenth / 10))
            for tenth in range(10)
        ]
        now += took
        progress.end(key, now)
    return [*seen, (now, progress.share(now), progress.left(now))]


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_the_share_never_falls_is_one_only_at_the_end_and_the_estimate_converges(factor: float) -> None:
    jobs = {f"{kind}{k}": job(100.0, rule=kind) for kind in "ab" for k in range(10)}
    seen = run(call(1, jobs), factor, " ".join(jobs))
    shares, end = [share for _, share, _ in seen], seen[-1][0]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1 and max(shares[:-1]) < 1
    assert seen[-1][2] == 0
    now, share, left = seen[100]  # half of the jobs are done, of one rule of the two
    assert now + left == pytest.approx(end, rel=0.02) and share == pytest.approx(0.5, abs=0.02)
    assert seen[0][2] == 2000, "before anything ran: as declared"


def test_a_job_that_says_what_is_left_is_believed_and_tells_of_its_rule() -> None:
    progress = call(1, {"a": job(100), "b": job(100, "a")})
    progress.start("a", 0)
    progress.report("a", 0.4, 300, now=10)  # an earlier call has done 40%: this is the first report
    progress.report("a", 0.7, 150, now=160)
    assert progress.left(170) == pytest.approx(140 + 100 * 5, rel=0.2), "0.3 of 100 declared seconds took 150"


def test_what_cannot_run_does_not_count_and_the_call_still_ends() -> None:
    progress = call(2, {"a": job(10), "b": job(10, "a"), "c": job(10, "b"), "d": job(10)})
    progress.start("a", 0)
    progress.start("d", 0)
    progress.fail("a", 5)
    assert progress.counts == (0, 4, 3) and progress.left(5) == pytest.approx(5)
    progress.end("d", 10)
    assert progress.share(10) == 1
    progress.start("a", 20)  # a cluster tries again
    assert progress.counts == (1, 4, 2)


def test_jobs_that_a_checkpoint_adds_count_and_what_is_known_stays() -> None:
    progress = call(1, {"a": job(10), "gone": job(50)})
    progress.start("a", 0)
    progress.end("a", 10)
    progress.add({"new": job(10)})
    assert set(progress.jobs) == {"a", "new"} and progress.counts == (1, 2, 0) and progress.left(10) == pytest.approx(10)


def test_costs_follow_budget_steps_and_images_and_an_unknown_rule_has_the_default() -> None:
    few, many = (Costs(load(WORLD, [f"budget.forward_equivalents={budget}"])) for budget in ("1e6", "3e6"))
    start = few.seconds("train", {"row": "apex"}) * 1.5 - many.seconds("train", {"row": "apex"}) / 2
    assert 0 < start < 20 and many.seconds("train", {"row": "apex"}) > 2.5 * few.seconds("train", {"row": "apex"})
    one, two, four = (few.seconds("sample", {"row": "apex", "nfe": nfe}) for nfe in "124")
    assert four - two == pytest.approx(2 * (two - one)) and one > 0
    assert few.seconds("sample_teacher", {"nfe": "2"}) == pytest.approx(four), "guidance asks the network twice"
    cells = Costs(load(WORLD), {"x": ["budget.forward_equivalents=5e4", "rows.cell={}"]})
    assert cells.seconds("ablation_train", {"cell": "x"}) < few.seconds("train", {"row": "apex"}) / 10
    assert few.seconds("something_else", {}) == DEFAULT


def test_words() -> None:
    assert plain_name("train", {"row": "apex", "seed": "0"}) == "train apex, seed 0"
    assert plain_name("sample_teacher", {"nfe": "25", "seed": "1"}) == "sample teacher at NFE 25, seed 1"
    assert plain_name("tune_train", {"method": "lcm", "k": "2"}) == "train candidate lcm 2"
    assert plain_name("new_rule", {}) == "new rule"
    assert [duration(seconds) for seconds in (3, 59.6, 600, 7500)] == ["3 s", "1 min", "10 min", "2 h 5 min"]
    assert reading("x: step 9, 10.0% of the budget, loss –, 90 s left\nx: step 91, 39.5% of the budget, loss 1.66, 30 s left\n") == (
        0.395,
        30,
    )
    assert reading("codec step 5/20 psnr 2 dB, 0.1 s a step, 1.5 min left") == (0.25, 90)
    assert reading("nothing") == (None, None)
    progress = call(1, {"a": job(60), "b": job(60)})
    assert line(progress, 0, "x") == "  0 %      2 min left  0 of 2 jobs  x"


# ------------------------------------------------------------------------------------------------- the screen


def screen(terminal: bool = False, printshellcmds: bool = False, dry: bool = False) -> tuple[Screen, io.StringIO]:
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    inner = logging.StreamHandler(stream)
    inner.addFilter(DefaultFilter(None, False, False, dry, printshellcmds))
    inner.setFormatter(DefaultFormatter())
    shown = Screen(inner)
    shown.progress = call(1, {0: Job("train", "train apex, seed 0", 10)})
    return shown, stream


def record(event: LogEvent | None, message: str = "", level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    found = logging.LogRecord("snakemake", level, "", 0, message, None, None)
    found.__dict__.update(extra, **({"event": event} if event else {}))
    return found


def of_job(event: LogEvent, log: Path, **extra: object) -> logging.LogRecord:
    about = {"rule_name": "train", "rule_msg": None, "input": ["/a/long/path"], "output": [], "log": [str(log)], "aux": {}, "msg": ""}
    about |= {"shellcmd": "python -m apex.train --seed 0", "wildcards": {}, "resources": {}, "priority": 0, "threads": 1, "conda_env": None}
    about |= {"local": False, "is_checkpoint": False, "reason": "", "benchmark": None, "indent": False, "jobid": 0, "job_id": 0}
    return record(event, **about | extra)


def test_a_job_is_a_line_when_it_begins_and_one_when_it_ends(tmp_path: Path) -> None:
    shown, stream = screen()
    for event in (LogEvent.JOB_INFO, LogEvent.SHELLCMD, LogEvent.JOB_FINISHED, LogEvent.PROGRESS):
        shown.handle(of_job(event, tmp_path / "log"))
    shown.handle(record(None, "Select jobs to execute..."))
    shown.handle(record(None, "Select nothing like it", logging.WARNING))
    first, second, third = stream.getvalue().splitlines()
    assert first.endswith("0 of 1 jobs  start: train apex, seed 0")
    assert re.fullmatch(r"100 % +done  1 of 1 jobs  done:  train apex, seed 0, 0 s", second)
    assert third == "Select nothing like it"


def test_a_failed_job_shows_the_end_of_its_log_and_its_command(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {k}\n" for k in range(1000)) + "error: the disk is full\n")
    shown, stream = screen()
    shown.handle(of_job(LogEvent.JOB_INFO, log))
    shown.handle(of_job(LogEvent.JOB_ERROR, log))
    said = stream.getvalue()
    assert "Error in rule train: train apex, seed 0 failed" in said and "\nerror: the disk is full\n" in said
    assert f"log: {log}, the last {TAIL} of 1001 lines" in said and f"line {1000 - TAIL}\n" not in said and f"line {1001 - TAIL}\n" in said
    assert "to run it by hand: python -m apex.train --seed 0" in said and "/a/long/path" not in said
    assert shown.progress.counts == (0, 1, 1)


def test_on_a_terminal_the_line_of_what_runs_is_written_over(tmp_path: Path) -> None:
    shown, stream = screen(terminal=True)
    shown.handle(of_job(LogEvent.JOB_INFO, tmp_path / "log"))
    assert stream.getvalue() == ""
    shown.say("train apex, seed 0", live=True)
    shown.handle(of_job(LogEvent.JOB_FINISHED, tmp_path / "log"))
    live, rest = stream.getvalue().split("\r\033[K")
    assert live.endswith("train apex, seed 0\r") and "\n" not in live and rest.endswith("done:  train apex, seed 0, 0 s\n")


def test_p_shows_what_snakemake_shows_and_a_dry_run_its_table_once(tmp_path: Path) -> None:
    shown, stream = screen(printshellcmds=True)
    shown.handle(of_job(LogEvent.JOB_INFO, tmp_path / "log"))
    shown.handle(record(LogEvent.SHELLCMD, cmd="python -m apex.train"))
    assert "input: /a/long/path" in stream.getvalue() and "python -m apex.train" in stream.getvalue()
    shown, stream = screen(dry=True)
    shown.progress = None
    for _ in range(2):
        shown.handle(record(LogEvent.RUN_INFO, "Job stats:"))
        shown.handle(of_job(LogEvent.JOB_INFO, tmp_path / "log"))
    assert stream.getvalue() == "Job stats:\n"
