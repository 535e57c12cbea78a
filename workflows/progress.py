"""How far a call of Snakemake is and how long it still takes. Plain Python, no Snakemake, no torch.

Every job has a declared cost in seconds. What finished jobs took corrects the costs of those that are left, rule by rule. The time left is
the length of a schedule of these jobs on the given cores, in the order of their priorities, with what each waits for.
"""

from __future__ import annotations

import heapq
import re
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from apex.config import Config

DEFAULT = 10.0  # seconds, of a rule that is not listed below
START = 5.0  # seconds that a process takes to import torch and to load its networks
TRUST = 10.0  # declared seconds that must have run before what they took counts as much as the declaration
OVERDUE = 0.1  # of what an overdue job has taken so far is what it is believed to take yet

# Seconds on one core of an AMD EPYC, after the start.
TRAINED = 4.8e-4  # a forward-equivalent of the budget
FORWARD = 4.8e-4  # a forward pass of one sample
IMAGE = 2e-3  # an image: its noise, its decoding, its file
SCORED = 4.5e-3  # an image through the world's evaluators
SCENE = 7e-4  # a scene that is rendered, or encoded
PRETRAINED = 0.2  # a step of pretraining

NAMES = {  # of a rule whose own name, without underscores, says too little
    "shards": "render the training scenes",
    "cache": "encode the training scenes",
    "embeddings": "embed the captions",
    "sample_at": "sample",
    "sample_checkpoint": "sample",
    "sample_references": "render the reference rows",
    "evaluate_at": "evaluate",
    "evaluate_checkpoint": "evaluate",
    "evaluate_references": "evaluate the reference rows",
    "evaluate_alone": "evaluate",
    "evaluate_external": "evaluate",
    "evaluate_external_alone": "evaluate",
    "calibrate": "calibrate GenEval",
    "time_at": "time",
    "time_checkpoint": "time",
    "references": "measure fresh renders",
    "collect": "collect the records",
    "judge": "judge the claims",
    "audit": "audit the paper's tables",
    "tune_train": "train candidate",
    "tune_score": "score candidate",
    "ablation_train": "train cell",
    "ablation_score": "score cell",
    "tables": "build tables and figures",
    "full": "build tables and figures",
}


@dataclass
class Job:
    """A job of the call.

    Attributes:
        rule, name: the rule, and the job in plain words.
        seconds: the declared cost. cores: how many it takes while it runs; more than there are: all.
        needs: keys of the jobs that it waits for. priority: the higher, the earlier.
        begun, ended: by the clock of `Progress`; None before. dropped: it cannot run, because it or what it needs has failed.
        share, left: what its own log says: the share that is done, and seconds left; None if it says nothing.
        first: (time, share) of its first report in this call: what an earlier call has done is not counted.
    """

    rule: str
    name: str
    seconds: float
    cores: int = 1
    needs: frozenset[Hashable] = frozenset()
    priority: int = 0
    begun: float | None = None
    ended: float | None = None
    dropped: bool = False
    share: float | None = None
    left: float | None = None
    reported: float = 0.0
    first: tuple[float, float] | None = None


@dataclass
class Progress:
    """The jobs of a call on so many cores; `begun` is when it started, in seconds by any clock that never goes back."""

    cores: int
    begun: float
    jobs: dict[Hashable, Job] = field(default_factory=dict)
    _most: float = 0.0

    def add(self, jobs: Mapping[Hashable, Job]) -> None:
        """Jobs that are new; what is known of the others stays. Those that the call no longer has and that never began are gone."""
        gone = [key for key, job in self.jobs.items() if key not in jobs and job.begun is None]
        for key in gone:
            del self.jobs[key]
        for key, job in jobs.items():
            self.jobs.setdefault(key, job).needs = job.needs

    def start(self, key: Hashable, now: float) -> None:
        job = self.jobs[key]
        job.begun, job.ended, job.dropped, job.share, job.left, job.first = now, None, False, None, None, None

    def report(self, key: Hashable, share: float | None, left: float | None, now: float) -> None:
        """What a running job says of itself."""
        job = self.jobs[key]
        if share is not None and job.first is None:
            job.first = (now, share)
        job.share, job.left, job.reported = share, left, now

    def end(self, key: Hashable, now: float) -> None:
        job = self.jobs[key]
        job.ended, job.dropped = now, False

    def fail(self, key: Hashable, now: float) -> None:
        """The job has failed: what needs it cannot run."""
        self.jobs[key].ended = now
        lost = [key]
        while lost:
            one = lost.pop()
            self.jobs[one].dropped = True
            lost += [other for other, job in self.jobs.items() if one in job.needs and not job.dropped and job.ended is None]

    # ----------------------------------------------------------------------------------- what is asked
    @property
    def running(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.begun is not None and job.ended is None and not job.dropped]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Jobs done, jobs in all, and of these the jobs that cannot run."""
        done = sum(job.ended is not None and not job.dropped for job in self.jobs.values())
        return done, len(self.jobs), sum(job.dropped for job in self.jobs.values())

    def rates(self, now: float) -> Callable[[str], float]:
        """What a declared second of a rule takes here: of its own jobs, as far as they tell, else of all."""
        sums: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
        for job in self.jobs.values():
            if job.begun is None or (job.dropped and job.ended is not None):
                continue
            since, share = job.first or (job.begun, 0.0)
            done = 1.0 - share if job.ended is not None else (job.share or 0.0) - share
            took = (job.reported if job.ended is None else job.ended) - since
            if done > 0 and took >= 0:
                declared, taken = sums[job.rule]
                sums[job.rule] = declared + job.seconds * done, taken + took
        declared, taken = (sum(column) for column in zip(*sums.values(), strict=True)) if sums else (0.0, 0.0)
        overall = (taken + TRUST) / (declared + TRUST)

        def rate(rule: str) -> float:
            declared, taken = sums.get(rule, (0.0, 0.0))
            return (taken + TRUST * overall) / (declared + TRUST)

        return rate

    def left(self, now: float) -> float:
        """Seconds until the last job ends."""
        rate = self.rates(now)
        seconds: dict[Hashable, float] = {}
        for key, job in self.jobs.items():
            if job.ended is not None or job.dropped:
                continue
            if job.begun is None:
                seconds[key] = job.seconds * rate(job.rule)
            elif job.left is not None:
                seconds[key] = max(job.left - (now - job.reported), 0.0)
            else:
                took = now - job.begun
                seconds[key] = max(job.seconds * rate(job.rule) - took, OVERDUE * took)
        return self._length(seconds)

    def share(self, now: float) -> float:
        """How much of the call is done, 0 to 1, by time: it never falls, and is 1 only at the end."""
        if not any(job.ended is None and not job.dropped for job in self.jobs.values()):
            self._most = 1.0
        else:
            spent, left = now - self.begun, self.left(now)
            self._most = max(self._most, min(spent / (spent + left), 0.99) if spent > 0 else 0.0)
        return self._most

    def _length(self, seconds: Mapping[Hashable, float]) -> float:
        """The length of a schedule of jobs with these seconds; what runs already goes on."""
        jobs = {key: self.jobs[key] for key in seconds}
        missing = {key: len(job.needs & jobs.keys()) for key, job in jobs.items()}
        waited: dict[Hashable, list[Hashable]] = defaultdict(list)
        for key, job in jobs.items():
            for need in job.needs & jobs.keys():
                waited[need].append(key)
        order = {key: at for at, key in enumerate(jobs)}
        ready: list[tuple[int, float, int, Hashable]] = []
        ends: list[tuple[float, int, Hashable]] = []
        free, clock = self.cores, 0.0

        def begin(key: Hashable) -> None:
            nonlocal free
            free -= self._width(jobs[key])
            heapq.heappush(ends, (clock + seconds[key], order[key], key))

        for key, job in jobs.items():
            if job.begun is not None:
                begin(key)
            elif not missing[key]:
                insort(ready, (-job.priority, -seconds[key], order[key], key))
        while ends or ready:
            for one in list(ready):
                if free <= 0:
                    break
                if self._width(jobs[one[-1]]) <= free:
                    ready.remove(one)
                    begin(one[-1])
            clock, _, key = heapq.heappop(ends)
            free += self._width(jobs[key])
            for other in waited[key]:
                missing[other] -= 1
                if not missing[other] and jobs[other].begun is None:
                    insort(ready, (-jobs[other].priority, -seconds[other], order[other], other))
        return clock

    def _width(self, job: Job) -> int:
        return min(job.cores, self.cores)


# ------------------------------------------------------------------------------------------- in words


def plain_name(rule: str, wildcards: Mapping[str, str]) -> str:
    """A job in plain words: `train apex, seed 0`, `sample teacher at NFE 25, seed 0`."""
    known = {"row", "nfe", "seed", "split", "evaluator"}
    words = [NAMES.get(rule, rule.replace("_", " ")), wildcards.get("row", "")]
    words += [str(value) for key, value in wildcards.items() if key not in known]
    if "nfe" in wildcards and wildcards["nfe"] != "0":
        words.append(f"at NFE {wildcards['nfe']}")
    after = [wildcards[key] for key in ("split", "evaluator") if key in wildcards and "evaluator" in wildcards]
    after += [f"seed {wildcards['seed']}"] if "seed" in wildcards else []
    return ", ".join([" ".join(filter(None, words)), *after])


def duration(seconds: float) -> str:
    """`40 s`, `9 min`, `2 h 5 min`."""
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


SAID = re.compile(r"(?:([\d.]+)% of the budget|(?:step|levels) (\d+)/(\d+)).*?([\d.]+) (s|min) left")


def reading(text: str) -> tuple[float | None, float | None]:
    """(share done, seconds left) of the last line of a job's log that says so; None each if none does."""
    found = None
    for found in SAID.finditer(text):  # noqa: B007 - the last one
        pass
    if not found:
        return None, None
    percent, step, steps, number, unit = found.groups()
    share = float(percent) / 100 if percent else int(step) / max(int(steps), 1)
    return min(share, 1.0), float(number) * (60 if unit == "min" else 1)


def line(progress: Progress, now: float, what: str) -> str:
    """The one line: how far, how long, how many jobs, and what."""
    done, total, lost = progress.counts
    share, left = progress.share(now), progress.left(now)
    how_long = "done" if share == 1 else f"{duration(left)} left" if left >= 1 else "almost done"
    failed = f", {lost} cannot run" if lost else ""
    return f"{100 * share:3.0f} %  {how_long:>14}  {done:{len(str(total))}} of {total} jobs{failed}  {what}"


def running_words(progress: Progress) -> str:
    """What runs now, with a job's own progress where it says so."""
    return "; ".join(f"{job.name} ({100 * job.share:.0f} %)" if job.share else job.name for job in progress.running)


# --------------------------------------------------------------------------------------- declared costs


class Costs:
    """Declared seconds of a profile's jobs, by rule and wildcards. A rule that is not known here costs `DEFAULT`."""

    def __init__(self, config: Config, cells: Mapping[str, Iterable[str]] | None = None) -> None:
        """cells: by name the `key=value` changes of every ablation cell."""
        self.config, self.cells = config, cells or {}
        self._images: dict[str, int] = {}

    def images(self, splits: Iterable[str]) -> int:
        """How many images a point has on these prompt sets; 0 of a file that is not there."""
        for split in splits:
            if split not in self._images:
                file, per_task = self.config.prompts_path(split), self.config.prompts.per_task
                prompts = sum(1 for _ in file.open("rb")) if file.is_file() else 0
                self._images[split] = (min(prompts, 6 * per_task) if per_task else prompts) * self.config.images_per_prompt(split)
        return sum(self._images[split] for split in splits)

    def seconds(self, rule: str, wildcards: Mapping[str, str]) -> float:
        """The declared cost of one job."""
        parts = set(rule.split("_"))
        if parts & {"pretrain", "pretrained"}:
            return self._pretraining(parts)
        if "train" in parts:
            return START + TRAINED * self._budget(rule, wildcards)
        if "score" in parts:
            images = self.images(["val" if rule.startswith("tune") else "test"])
            return 2 * START + images * (IMAGE + FORWARD + SCORED)
        if parts & {"sample", "evaluate", "row"} and not parts & {"time", "measure"}:
            return self._point(parts, wildcards)
        if "references" in parts:
            return START + self.images(["test"]) * SCORED
        if parts & {"shards", "synthesise"}:
            return 1 + SCENE * self.config.data.scenes
        if "cache" in parts:
            return START + SCENE * self.config.data.scenes
        fixed = {"time": 8, "calibrate": 17, "figures": 8, "tables": 8, "full": 15, "collect": 1, "audit": 1, "cards": 1, "judge": 2}
        return float(next((cost for part, cost in fixed.items() if part in parts), DEFAULT))

    def _budget(self, rule: str, wildcards: Mapping[str, str]) -> float:
        if rule.startswith("tune"):
            return self.config.tuning_budget
        changes = dict(change.partition("=")[::2] for change in self.cells.get(wildcards.get("cell", ""), ()))
        return float(changes.get("budget.forward_equivalents", self.config.budget.forward_equivalents))

    def _point(self, parts: set[str], wildcards: Mapping[str, str]) -> float:
        """Images of a point, their scores, or both; of all the row's NFEs if the job has none of its own."""
        teacher = "teacher" in parts or wildcards.get("row") == "teacher"
        config, images = self.config, self.images(self.config.sampled)
        nfes = [int(wildcards["nfe"])] if "nfe" in wildcards else config.teacher_nfe if teacher else config.nfe
        if "references" in parts:
            nfes = [0] * len(config.references)
        found = START
        if not parts & {"evaluate"}:
            found += sum(images * (IMAGE + FORWARD * nfe * (2 if teacher else 1)) for nfe in nfes)
        if not parts & {"sample"}:
            found += images * SCORED * len(nfes)
        return found

    def _pretraining(self, parts: set[str]) -> float:
        asked = self.config.pretraining
        if "shards" in parts or "cache" in parts:
            return START + SCENE * asked.scenes
        steps = {"codec": asked.codec_steps + asked.decoder_steps, "text": asked.text_encoder_steps, "teacher": asked.teacher_steps}
        return START + PRETRAINED * next((count for part, count in steps.items() if part in parts), asked.evaluator_steps or 0)
