"""Cases of command lines: numbers out of range, options, special files as input, and a judge that misbehaves."""

from __future__ import annotations

import importlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bad_inputs.case import Case, Command
from tests.evaluators.chat_server import GOOD, Handler, completion, serving


def command(module: str, *arguments: object) -> Callable[[Path], Callable[[], Any]]:
    """The command of a module; `{}` in an argument stands for the case's folder."""

    def make(folder: Path) -> Callable[[], Any]:
        main = importlib.import_module(module).main
        return Command(main, tuple(str(one).replace("{}", str(folder)) for one in arguments))

    return make


SAMPLE = ("apex.sample", "--pipeline", "{}/p", "--prompt", "a cat", "--out", "{}/out")
TRAIN = ("apex.train", "--config", "{}/p.yaml", "--row", "fm", "--cache", "{}/cache", "--out", "{}/out")
CLIP = ("evaluators.clip_score", "--images", "{}/images", "--out", "{}/record.json")
WISE = ("evaluators.wise.__main__", "--images", "{}/images", "--out", "{}/record.json")

NUMBERS = [
    ("resolution 0", (*SAMPLE, "--resolution", 0), r"^--resolution: found 0, expected a whole number of at least 8; .*--help"),
    ("resolution -32", ("apex.data.shards", "world", "--out", "{}/w", "--resolution", -32), r"^--resolution: found -32, expected"),
    ("resolution 10^6", (*SAMPLE, "--resolution", 10**6), r"^--resolution: found 1000000, expected a whole number of at most"),
    ("batch 0", (*CLIP, "--batch", 0), r"^--batch: found 0, expected a whole number of at least 1;"),
    ("batch 10^26", (*CLIP, "--batch", 10**26), r"^--batch: found 10+, expected a whole number of at most 65536;"),
    ("batch of 5000 digits", (*CLIP, "--batch", "9" * 5000), r"^--batch: found '9+\.\.\.', expected a whole number"),
    ("threads 0", (*TRAIN, "--threads", 0), r"^--threads: found 0, expected a whole number of at least 1;"),
    ("seed -1", (*TRAIN, "--seed", -1), r"^--seed: found -1, expected a whole number of at least 0;"),
    ("seed 2^64", (*SAMPLE, "--seed", 2**64), r"^--seed: found 18446744073709551616, expected a whole number of at most"),
    ("guidance nan", (*SAMPLE, "--guidance", "nan"), r"^--guidance: found nan, expected a number of at least 0;"),
    ("guidance inf", (*SAMPLE, "--guidance", "inf"), r"^--guidance: found inf, expected a number"),
    ("time-out nan", (*WISE, "--timeout", "nan"), r"^--timeout: found nan, expected a number above 0;"),
    ("NFE 0", (*SAMPLE, "--nfe", 0), r"^--nfe: found 0, expected a whole number of at least 1;"),
    ("steps 2.5", ("apex.mixture", "--out", "{}/m", "--steps", 2.5), r"^--steps: found 2\.5, expected a whole number of at least 1;"),
    ("share of a rate above 1", ("apex.estimate", "--share", 1.5), r"^--share: found 1\.5, expected a number of at most 1;"),
]
OPTIONS = [
    ("an unknown option", (*SAMPLE, "--guidence", 3), r"^--guidence: found no such option, expected perhaps --guidance;"),
    ("an unknown option of the tables", ("paper_tables.build", "--reslts", "x"), r"^--reslts: found no such|^--\w+.*: found nothing"),
    ("required options missing", ("apex.train", "--row", "fm"), r"^--config, --cache, --out: found nothing, expected a value;"),
    ("an option without its value", (*TRAIN, "--seed"), r"^--seed: found no value, expected one value;"),
    ("an unknown choice", (*SAMPLE, "--precision", "fp7"), r"^--precision: found 'fp7', expected one of .*fp32"),
    ("an unknown subcommand", ("apex.data.shards", "wurld"), r"^command: found 'wurld', expected one of .*world.*check"),
    ("a stray word", ("apex.theory", "--out", "{}/t", "stray"), r"^stray: found no such option"),
    ("options of evaluators that are a list", ("evaluators.__main__", "--images", "i", "--out", "o", "--score", "test=fid",
      "--options", "[1]"), r"^--options: found '\[1\]', expected a JSON object"),
    ("options of evaluators that are no JSON", ("evaluators.__main__", "--images", "i", "--out", "o", "--score", "test=fid",
      "--options", "{a"), r"^--options: found '\{a', expected a JSON object"),
    ("an empty path", ("evaluators.clip_score", "--images", "", "--out", "{}/r.json"), r"^--images: found '', expected a path;"),
    ("no profile, schema or defaults", ("apex.config",), r"^give a profile, --schema or --defaults"),
]  # fmt: skip


def special(kind: str, *arguments: object) -> Callable[[Path], Callable[[], Any]]:
    """The command, where `{}/special` is a FIFO, a socket or a device."""

    def make(folder: Path) -> Callable[[], Any]:
        place = folder / "special"
        if kind == "fifo":
            os.mkfifo(place)
        elif kind == "socket":
            here = Path.cwd()
            os.chdir(folder)  # a socket's path is at most 108 bytes long
            try:
                with socket.socket(socket.AF_UNIX) as opened:
                    opened.bind(place.name)
            finally:
                os.chdir(here)
        else:
            place.symlink_to(kind)
        return command(*arguments)(folder)

    return make


SPECIALS = [
    ("a FIFO as profile of a training", "fifo", ("apex.train", "--config", "{}/special", *TRAIN[3:]), r"--config: .*special: found a FIFO"),
    ("a FIFO as pipeline", "fifo", ("apex.sample", "--pipeline", "{}/special", *SAMPLE[3:]), r"special: found a FIFO, expected a file or"),
    ("a FIFO as images", "fifo", ("evaluators.clip_score", "--images", "{}/special", *CLIP[3:]), r"special: found a FIFO"),
    ("a FIFO as the judge's instruction", "fifo", (*WISE, "--instruction", "{}/special"), r"--instruction: .*special: found a FIFO"),
    ("a FIFO as list of MJHQ", "fifo", ("evaluators.fid.mjhq", "prompts", "--meta", "{}/special", "--out", "{}/o"), r"found a FIFO"),
    ("/dev/zero as profile", "/dev/zero", ("apex.config", "{}/special"), r"special: found a device, expected a file or a folder"),
    ("/dev/zero as FID's reference", "/dev/zero", ("evaluators.fid.__main__", *CLIP[1:], "--reference", "{}/special"), r"found a device"),
    ("/dev/null as results of the tables", "/dev/null", ("paper_tables.plan", "--plan", "{}/special"), r"special: found a device"),
    ("a socket as profile", "socket", ("apex.config", "{}/special"), r"special: found a socket, expected a file or a folder"),
    ("a socket as weights", "socket", (*CLIP, "--weights", "{}/special"), r"--weights: .*special: found a socket"),
]  # fmt: skip


def asks(behave: Callable[[int, str], object], timeout: float = 5, tries: int = 2) -> Callable[[Path], Callable[[], Any]]:
    """One question to a judge that behaves in this way; pauses take no time."""

    def make(folder: Path) -> Callable[[], Any]:
        from evaluators.wise.endpoint import Endpoint, messages

        def call() -> str:
            with serving() as server:
                server.behave = behave
                endpoint = Endpoint(server.url, "", timeout, tries)
                endpoint.wait = lambda seconds: None
                return endpoint.chat({"messages": messages("a judge", "score it", b"")}, "a").text

        return call

    return make


def drips(handler: Handler) -> None:
    """A body without an end, a byte at a time: each byte would begin a socket's time-out again."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.02)


def drips_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Wait: ")
    while True:
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.02)


def floods(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * (1 << 20))


def later(seconds: str) -> Callable[[Handler], None]:
    return lambda handler: handler.give(429, b"{}", Retry_After=seconds)


DATE = "Fri, 31 Dec 9999 23:59:59 GMT"
JUDGES = [
    ("a body without an end", drips, r"no answer after 2 tries, the last one: no whole answer within 0.3 s", 0.3),
    ("headers without an end", drips_headers, r"no answer after 2 tries, the last one: no whole answer within 0.3 s", 0.3),
    ("silence", lambda handler: time.sleep(3), r"no answer after 2 tries, the last one: .*(0.3 s|timed out)", 0.3),
    ("an endless flood", floods, r"found an answer of more than 10 MiB, expected a chat completion; check --endpoint", 5),
    ("Retry-After of years", later("99999999"), r"found Retry-After of 1e\+08 s, expected at most 600 s; .* run again later", 5),
    ("Retry-After inf", later("inf"), r"found Retry-After of inf s, expected at most 600 s", 5),
    ("Retry-After in the year 9999", later(DATE), r"found Retry-After of .* s, expected at most 600 s", 5),
    ("JSON nested 100000 deep", lambda h: h.give(200, b"[" * 100_000), r"the last one: not a chat completion", 5),
    ("infinitely many tokens", lambda h: h.give(200, completion("x").replace(b"900", b"Infinity")), r"not a chat completion", 5),
    ("a list as answer", lambda h: h.give(200, b"[1]"), r"not a chat completion: '\[1\]'", 5),
    ("bytes that are no UTF-8", lambda h: h.give(200, b"\xff\xfe{"), r"not a chat completion", 5),
]  # fmt: skip


def answered(folder: Path, text: str) -> None:
    assert text == GOOD


def pipeline_of_rows(folder: Path) -> Callable[[], Any]:
    """`apex.data.world --prompts`: the numbers at the ends of their ranges are accepted."""
    out = folder / "out"
    return command("apex.data.world", "--prompts", out, "--seed", 2**63 - 1, "--resolution", 8)(folder)


def prompts_are_there(folder: Path, _: object) -> None:
    rows = (folder / "out" / "test.jsonl").read_text().splitlines()
    assert all("prompt" in json.loads(row) for row in rows) and rows


def helps(folder: Path) -> Callable[[], Any]:
    def call() -> int:
        with pytest.raises(SystemExit) as ended:
            command("paper_tables.plan", "--help")(folder)()
        return ended.value.code

    return call


def help_is_no_error(_: Path, code: object) -> None:
    assert code == 0


CASES = [
    *(Case("numbers of a command line", name, command(*line), says) for name, line, says in NUMBERS),
    *(Case("options", name, command(*line), says) for name, line, says in OPTIONS),
    Case("options", "--help", helps, None, help_is_no_error),
    Case("options", "numbers at the ends of their ranges", pipeline_of_rows, None, prompts_are_there),
    *(Case("special files", name, special(kind, *line), says) for name, kind, line, says in SPECIALS),
    *(Case("a judge", name, asks(lambda number, text, act=act: act, timeout), says) for name, act, says, timeout in JUDGES),
    Case("a judge", "Retry-After that can be waited for", asks(lambda n, t: later("17") if n == 1 else GOOD), None, answered),
]
