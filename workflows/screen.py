"""What a person sees while Snakemake runs: one line a job and how far the whole call is, instead of every job's files and resources.

A handler of our own replaces Snakemake's on the screen; Snakemake's own log in .snakemake/log keeps everything, commands
included. `-p` and `--verbose` show on the screen what Snakemake shows by itself, and `--quiet` hides what it hides.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

from snakemake.logging import DefaultFilter
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

from workflows.progress import Costs, Job, Progress, duration, line, plain_name, reading, running_words

OF_JOBS = {LogEvent.JOB_INFO, LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED, LogEvent.SHELLCMD}
LEFT_OUT = {LogEvent.PROGRESS, LogEvent.RESOURCES_INFO, LogEvent.WORKFLOW_STARTED, *OF_JOBS}
CHATTER = (
    "Building DAG of jobs", "Using shell:", "Conda environments: ignored", "Select jobs to execute", "Execute ", "Reasons:",
    "Removing temporary output", "Would remove temporary output", "DAG of jobs will be updated", "Elapsed time:",
)  # fmt: skip
TAIL = 40  # lines of a failed job's log
EVERY = {True: 1.0, False: 30.0}  # seconds between two lines, on a terminal and in a log


def install(show_summary: Callable[[], None]) -> Screen | None:
    """Replaces Snakemake's handler for the screen with a `Screen`. Returns None if a logger plugin writes there instead.

    show_summary: called if there is nothing to be done.
    """
    logger = logging.getLogger("snakemake.logging")
    for handler in logger.handlers:
        if handler.name == "DefaultLogFileHandler":  # whoever looks there wants the commands too
            for one in handler.filters:
                one.printshellcmds = True
    shown = next((handler for handler in logger.handlers if handler.name == "DefaultStreamHandler"), None)
    if not isinstance(shown, logging.StreamHandler):
        return None
    screen = Screen(shown, show_summary)
    logger.removeHandler(shown)
    logger.addHandler(screen)
    return screen


class Screen(logging.Handler):
    """Snakemake's messages as a person wants them.

    Attributes:
        progress: of the call's jobs; None before they start.
    """

    def __init__(self, inner: logging.StreamHandler[Any], show_summary: Callable[[], None] = lambda: None) -> None:
        super().__init__(inner.level)
        self.name, self.inner, self.show_summary = inner.name, inner, show_summary
        asked = next((one for one in inner.filters if isinstance(one, DefaultFilter)), None)
        self.quiet = set(asked.quiet) if asked else set()
        self.dry = bool(asked and asked.dryrun)
        self.detailed = bool(asked and (asked.printshellcmds or asked.verbose or asked.debug_dag))
        self.terminal = bool(getattr(inner.stream, "isatty", lambda: False)()) and os.environ.get("TERM") != "dumb"
        self.progress: Progress | None = None
        self.logs: dict[Hashable, tuple[float, list[str]]] = {}  # of running jobs: when it began, by the files' clock, and its logs
        self.talking: set[Hashable] = set()  # running jobs that write to the screen themselves
        self.live = False  # whether the last line is one that is written over
        self.stats_shown = False
        self.said = time.monotonic()
        self.ended = threading.Event()

    # ------------------------------------------------------------------------------------ the call's jobs
    def follow(self, workflow: Any, costs: Costs) -> None:
        """From now on it says how far the call is."""
        self.workflow, self.costs = workflow, costs
        try:
            cores = workflow.cores if workflow.local_exec else workflow.nodes
        except Exception:  # neither is given: a cluster without a limit
            cores = 1_000_000
        with self.lock:
            self.progress = Progress(max(int(cores), 1), time.monotonic())
            self.progress.add(self.jobs())
        threading.Thread(target=self.tick, daemon=True).start()

    def jobs(self) -> dict[Hashable, Job]:
        """What the call still has to run."""
        dag = self.workflow.dag
        open_jobs = [job for job in dag.needrun_jobs() if not job.is_norun]
        keys = {job: dag.jobid(job) for job in open_jobs}
        found: dict[Hashable, Job] = {}
        for job in dag.toposorted(open_jobs):
            for one in sorted(job, key=keys.get):
                rule, wildcards = one.rule.name, dict(one.wildcards_dict)
                needs = frozenset(keys[need] for need in dag.dependencies[one] if need in keys)
                cores = one.threads if self.workflow.local_exec else 1
                priority = one.priority if isinstance(one.priority, int) else 0
                found[keys[one]] = Job(rule, plain_name(rule, wildcards), self.costs.seconds(rule, wildcards), cores, needs, priority)
        return found

    def note(self, record: logging.LogRecord) -> str:
        """Keeps the books; returns what to say of it, '' for nothing."""
        progress, now = self.progress, time.monotonic()
        event, key = getattr(record, "event", None), getattr(record, "jobid", getattr(record, "job_id", None))
        if progress is None or event not in (LogEvent.JOB_INFO, LogEvent.JOB_FINISHED, LogEvent.JOB_ERROR):
            return ""
        if key not in progress.jobs and event == LogEvent.JOB_INFO:  # a checkpoint has brought new ones
            progress.add(self.jobs())
        job = progress.jobs.get(key)
        if job is None:  # `all` and its like, which run nothing
            return ""
        if event == LogEvent.JOB_INFO:
            progress.start(key, now)
            self.logs[key] = (time.time(), list(record.log))
            if "| tee" in (record.shellcmd or "") or ">(tee" in (record.shellcmd or ""):
                self.talking.add(key)
            return f"start: {job.name}" if not self.terminal or self.talking else ""
        self.logs.pop(key, None)
        self.talking.discard(key)
        if event == LogEvent.JOB_FINISHED:
            progress.end(key, now)
            return f"done:  {job.name}, {duration(now - job.begun)}" if job.begun is not None else f"done:  {job.name}"
        progress.fail(key, now)
        return ""

    def read_logs(self) -> None:
        """What running jobs say of themselves."""
        for key, (began, files) in self.logs.items():
            for file in files:
                try:
                    if os.stat(file).st_mtime < began - 1:  # of an earlier call
                        continue
                    with open(file, "rb") as opened:
                        opened.seek(max(0, opened.seek(0, os.SEEK_END) - 2000))
                        share, left = reading(opened.read().decode(errors="replace"))
                        written = time.time() - os.stat(file).st_mtime
                except OSError:
                    continue
                if share is not None:
                    self.progress.report(key, share, left, time.monotonic() - max(written, 0.0))

    def tick(self) -> None:
        """Says from time to time what runs."""
        while not self.ended.wait(EVERY[True]):
            with self.lock:
                self.read_logs()
                if not self.progress.running or (self.talking and self.terminal) or not self.says_progress():
                    continue
                if self.terminal or time.monotonic() - self.said >= EVERY[False]:
                    self.say(running_words(self.progress), live=self.terminal)

    def finish(self) -> None:
        """The call ends: no more lines."""
        self.ended.set()
        with self.lock:
            self.clear()

    # ---------------------------------------------------------------------------------------- the screen
    def says_progress(self) -> bool:
        return not self.quiet & {Quietness.ALL, Quietness.PROGRESS}

    def say(self, what: str, live: bool = False) -> None:
        """A line that says how far the call is; `live`: the next one is written over it."""
        text = line(self.progress, time.monotonic(), what)
        self.clear()
        if live:
            width = shutil.get_terminal_size().columns - 1
            text = text if len(text) <= width else text[: width - 1] + "…"
        self.inner.stream.write(text + ("\r" if live else "\n"))
        self.inner.flush()
        self.live, self.said = live, time.monotonic()

    def clear(self) -> None:
        """Takes the line away that is written over."""
        if self.live:
            self.inner.stream.write("\r\033[K")
            self.inner.flush()
            self.live = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            said = self.note(record)
            passed = self.inner.filter(record)
            if passed and self.shown(record):
                self.clear()
                if getattr(record, "event", None) == LogEvent.JOB_ERROR and not self.detailed:
                    self.inner.stream.write("\n".join(self.failure(record)) + "\n")
                    self.inner.flush()
                else:
                    self.inner.emit(record)
            if said and self.says_progress():
                self.say(said)
            if passed and not self.dry and str(record.msg).startswith("Nothing to be done"):
                self.show_summary()
        except BrokenPipeError:
            raise
        except Exception:
            self.handleError(record)

    def shown(self, record: logging.LogRecord) -> bool:
        """Whether the message is for the screen."""
        event, text = getattr(record, "event", None), str(record.msg or "")
        if self.detailed or (event == LogEvent.JOB_INFO and not self.progress and not self.dry):  # --no-hooks: nothing tells of the jobs
            return True
        if event == LogEvent.RUN_INFO:  # a dry run says it twice
            self.stats_shown, before = True, self.stats_shown
            return not before
        if event == LogEvent.ERROR and "CalledProcessError in file" in text:  # the job's own lines hold the command
            return False
        return event not in LEFT_OUT and (record.levelno > logging.INFO or not text.startswith(CHATTER))

    def failure(self, record: logging.LogRecord) -> Iterator[str]:
        """A job that failed: what it was, its log's last lines, and its command."""
        job = self.progress.jobs.get(record.jobid) if self.progress else None
        yield f"\nError in rule {record.rule_name}: {job.name if job else plain_name(record.rule_name, {})} failed"
        if record.rule_msg:
            yield f"    message: {record.rule_msg}"
        for key, value in record.aux.items():
            yield f"    {key}: {value}"
        for file in record.log:
            yield from log_tail(Path(file))
        if record.shellcmd:
            yield f"    to run it by hand: {record.shellcmd}\n"

    def flush(self) -> None:
        self.inner.flush()

    def close(self) -> None:
        self.finish()
        self.inner.close()
        super().close()


def log_tail(file: Path) -> Iterator[str]:
    """The path of a log and its last lines."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        yield f"    log: {file}, which is not there"
        return
    more = f", the last {TAIL} of {len(lines)} lines" if len(lines) > TAIL else "" if lines else ", which is empty"
    yield f"    log: {file}{more}"
    yield from lines[-TAIL:]
