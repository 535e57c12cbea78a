"""WISE's judge: what it is asked, what its answers say, and the answers kept so that none is paid for twice."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from apex.data.pictures import png_of, sha256_of
from apex.errors import UserError
from apex.provenance import digest, file_sha256
from evaluators.command import progress
from evaluators.journal import Journal
from evaluators.wise.endpoint import Endpoint, messages
from evaluators.wise.versions import Prompt, Version

TEMPERATURE = 0.0
THOUGHT = re.compile(r"<think>.*?</think>|</think>", re.DOTALL)


@dataclass(frozen=True)
class Instruction:
    """What the judge is told, with its file's digest; `ours`: not the benchmark's own wording."""

    system: str
    user: str
    sha256: str
    ours: bool

    @classmethod
    def read(cls, version: Version, given: Path | None = None) -> Instruction:
        """The file given, or the one that comes with this package.

        Raises:
            UserError: it is no YAML with texts `system` and `user`, or `user` has no place for the prompt and its explanation.
        """
        path = given or Path(__file__).with_name(f"instruction-{version.name}.yaml")
        try:
            read = yaml.safe_load(path.read_text(encoding="utf-8"))
            texts = [read[key] for key in ("system", "user")]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--instruction {path}: cannot be read ({reason}); expected YAML with the keys system and user") from error
        if not all(isinstance(t, str) for t in texts) or not all(f"{{{name}}}" in texts[1] for name in ("prompt", "explanation")):
            raise UserError(f"--instruction {path}: system and user must be texts, user with {{prompt}} and {{explanation}} in it")
        return cls(*texts, file_sha256(path), ours=given is None)

    def about(self, prompt: Prompt) -> str:
        """The user's message for one prompt."""
        put_in = {"{prompt}": prompt.text, "{explanation}": prompt.explanation}
        return re.sub(r"\{prompt\}|\{explanation\}", lambda place: put_in[place[0]], self.user)


PARSERS = ("official", "tolerant")


def read_scores(version: Version, text: str, parser: str = PARSERS[0]) -> dict[str, int]:
    """The scores that an answer gives, by the version's names; one that cannot be read is not there.

    Args:
        parser: `official` reads what the benchmark's own script reads. 2025: the name, up to two asterisks, a colon or none, and one digit,
            whichever it is; of several the last. 2026: the first 0 or 1 behind the name, else the only line that is nothing but 0 or 1.
            `tolerant` also reads JSON, bold colons, an underscore or an equals sign; a score out of range, no whole number, or given twice
            with two values, is not there.
    """
    if parser == "tolerant":
        return _read_tolerantly(version, text)
    if version.name == "2026":
        text = THOUGHT.sub("", text)
        found = re.findall(r"score\*{0,2}\s*:?\s*([01])\b", text, re.IGNORECASE)
        return {"score": int(found[0])} if found else _bare_line(text)
    scores = {}
    for name in version.parts:
        if found := re.findall(rf"{name}\*{{0,2}}\s*:?\s*(\d)", text, re.IGNORECASE):
            scores[name] = int(found[-1])
    return scores


def _bare_line(text: str) -> dict[str, int]:
    lines = re.findall(r"(?m)^\s*([01])\s*$", text)
    return {"score": int(lines[0])} if len(lines) == 1 else {}


def _read_tolerantly(version: Version, text: str) -> dict[str, int]:
    text = THOUGHT.sub("", text)
    found: dict[str, set[str]] = {}
    for name in version.parts:
        pattern = name.replace(" ", r"[\s_]+")
        for value in re.findall(rf"(?<!\w){pattern}[\"'*]*\s*[:：=]?[\"'*\s]*(-?\d+(?:\.\d+)?)", text, re.IGNORECASE):
            found.setdefault(name, set()).add(value)
    if version.name == "2026" and not found:
        return _bare_line(text)
    allowed = {str(n): n for n in range(version.best + 1)}
    return {name: allowed[next(iter(values))] for name, values in found.items() if len(values) == 1 and values <= allowed.keys()}


@dataclass(frozen=True)
class Job:
    """An image to be scored."""

    prompt: Prompt
    path: Path
    key: str


def jobs_of(prompts: Iterable[Prompt], files: Iterable[list[Path]]) -> list[Job]:
    """The images of a folder. A job's key is the digest of prompt, explanation and image."""
    return [
        Job(prompt, path, digest([prompt.text, prompt.explanation, sha256_of(path)]))
        for prompt, mine in zip(prompts, files, strict=True)
        for path in mine
    ]


class Judge:
    """Asks a model about images, several at once, and writes every answer down as it comes.

    The answers depend on the model's name and the host that serves it, on the instruction, and on the request's settings: a name says
    nothing about who answers to it, so another host's answers are not taken. `parser` reads them, so that both may read the same answers.
    """

    def __init__(self, version: Version, instruction: Instruction, model: str, attempts: int, parser: str = PARSERS[0]) -> None:
        self.version, self.instruction, self.model, self.attempts, self.parser = version, instruction, model, attempts, parser

    def identity(self, host: str) -> dict[str, Any]:
        return {
            "benchmark": f"WISE {self.version.name}",
            "model": self.model,
            "host": host,
            "instruction_sha256": hashlib.sha256(f"{self.instruction.system}\0{self.instruction.user}".encode()).hexdigest(),
            "temperature": TEMPERATURE,
            "max_tokens": self.version.tokens,
            "request": dict(self.version.request),
        }

    def is_open(self, job: Job, journal: Journal) -> bool:
        """Whether an image is still to be asked about: there is no answer, or one that cannot be read and was asked for too few times."""
        answer = journal.get(job.key)
        return answer is None or (not self.is_whole(answer["text"]) and answer["attempts"] < self.attempts)

    def is_whole(self, text: str) -> bool:
        return read_scores(self.version, text, self.parser).keys() == self.version.parts.keys()

    def ask(self, jobs: list[Job], endpoint: Endpoint, journal: Journal, workers: int) -> None:
        """Asks about all jobs that are open; images that are equal are asked about once.

        Raises:
            UserError: the server refuses, or does not answer; what was answered until then is in the journal.
        """
        todo = list({job.key: job for job in jobs if self.is_open(job, journal)}.values())
        if not todo:
            return
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(self._ask_one, job, endpoint, journal) for job in todo]
            try:
                for future in progress(as_completed(futures), len(futures), "wise, images"):
                    future.result()
            except BaseException:
                endpoint.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask_one(self, job: Job, endpoint: Endpoint, journal: Journal) -> None:
        body = {
            "model": self.model,
            "messages": messages(self.instruction.system, self.instruction.about(job.prompt), png_of(job.path)),
            "temperature": TEMPERATURE,
            "max_tokens": self.version.tokens,
            **self.version.request,
        }
        before = journal.get(job.key) or {"attempts": 0, "tokens": [0, 0]}
        tokens = before["tokens"]
        for attempt in range(before["attempts"] + 1, self.attempts + 1):
            reply = endpoint.chat(body, f"{job.key} {attempt}")
            tokens = [a + b for a, b in zip(tokens, reply.tokens, strict=True)]
            journal.add(job.key, {"text": reply.text, "end": reply.end, "model": reply.model, "attempts": attempt, "tokens": tokens})
            if self.is_whole(reply.text):
                return


def malformed(version: Version, jobs: list[Job], answers: list[dict[str, Any]], parser: str = PARSERS[0]) -> dict[str, Any]:
    """How many answers lack a score, why, and some of them."""
    found = []
    for job, answer in zip(jobs, answers, strict=True):
        lacking = [name for name in version.parts if name not in read_scores(version, answer["text"], parser)]
        if lacking:
            found.append((job, answer, lacking))
    return {
        "count": len(found),
        "why": dict(Counter(answer["end"] or "stop" for _, answer, _ in found)),
        "examples": [
            {"prompt_id": job.prompt.number, "lacks": lacking, "answer": answer["text"][:200]} for job, answer, lacking in found[:5]
        ],
    }
