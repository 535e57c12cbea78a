"""WISE: its arithmetic and the published rows, its files, and a judge at a small server that also misbehaves."""

from __future__ import annotations

import csv
import email.utils
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex.data.prompts import load_prompts
from apex.errors import UserError, run_command
from evaluators.result import Record, read_record
from evaluators.statistics import bootstrap_weights
from evaluators.wise import __main__ as command
from evaluators.wise import prompts as prompts_command
from evaluators.wise.__main__ import metrics, totals
from evaluators.wise.endpoint import Endpoint, messages, retry_after
from evaluators.wise.judge import Instruction, read_scores
from evaluators.wise.versions import VERSIONS, Prompt, load
from paper_tables.checks import WISE_WEIGHTS
from tests.evaluators.chat_server import GOOD, Handler, Server, completion, serving

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = VERSIONS["2025"], VERSIONS["2026"]
KEY = "sk-very-secret-0123456789"

# --------------------------------------------------------------- arithmetic


@given(st.tuples(*[st.integers(0, 2)] * 3))
def test_wiscore_in_closed_form(scores):
    c, r, a = scores
    parts = dict(zip(("consistency", "realism", "aesthetic quality"), scores, strict=True))
    assert OLD.score(parts) == pytest.approx((0.7 * c + 0.2 * r + 0.1 * a) / 2)
    assert (OLD.score({}), OLD.score(dict.fromkeys(parts, 2))) == (0, pytest.approx(1))


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_weights_are_the_categories_shares_of_the_prompts(version):
    sizes = np.diff([0, *version.last.values()])
    assert sum(version.weights.values()) == pytest.approx(1) and sum(version.parts.values()) == pytest.approx(1)
    assert list(version.weights.values()) == pytest.approx((sizes / 1000).tolist(), abs=5e-4)
    assert OLD.weights == WISE_WEIGHTS


def test_the_categories_borders():
    names = {n: OLD.category(n) for n in (1, 400, 401, 567, 568, 700, 701, 800, 801, 900, 901, 1000)}
    assert list(names.values()) == [c for c in OLD.weights for _ in range(2)]
    assert [NEW.category(n) for n in (400, 401, 520, 521, 640, 641, 760, 761, 880, 881)] == [
        "cultural", "time", "time", "space", "space", "biology", "biology", "physics", "physics", "chemistry",
    ]  # fmt: skip


@pytest.mark.parametrize("model", ["SD v1.5", "SDXL"])
def test_published_rows_have_their_overall(model):
    """Two rows of Table 4: the overall of the printed columns, as far as their rounding lets one tell."""
    with (ROOT / "paper_tables/published/table4.csv").open() as file:
        row = next(r for r in csv.DictReader(file) if r["model"] == model)
    computed = OLD.overall({name: float(row[name]) for name in OLD.weights})
    assert computed == pytest.approx(float(row["overall"]), abs=0.005 + 0.005)


def test_a_published_row_of_2026_has_its_overall():
    """QwenImage in the repository's leadboard.md: 0.6275, 0.5250, 0.5583, 0.3417, 0.4833, 0.2500, overall 0.5100."""
    row = dict(zip(NEW.weights, (0.6275, 0.5250, 0.5583, 0.3417, 0.4833, 0.2500), strict=True))
    assert NEW.overall(row) == pytest.approx(0.51, abs=1e-4)


def test_the_overall_weighs_categories_whatever_their_number_of_images():
    categories = np.array([c for c in OLD.weights for _ in range(3)])
    rng = np.random.default_rng(0)
    sums, counts = rng.random(18), np.ones(18)
    made = {m.metric: m for m in metrics(OLD, categories, sums, counts, bootstrap_weights(categories.tolist()))}
    expected = sum(w * sums[categories == c].mean() for c, w in WISE_WEIGHTS.items())
    assert made["wise/overall"].value == pytest.approx(expected)
    assert made["wise/overall"].ci_low < expected < made["wise/overall"].ci_high
    counts[categories == "space"] = 0
    few = {m.metric for m in metrics(OLD, categories, sums, counts, bootstrap_weights(categories.tolist()))}
    assert few == {f"wise/{c}" for c in OLD.weights if c != "space"}, "no overall without all six"


# --------------------------------------------------------------- answers


# What each text is worth to the script of June 2025, by reading it: the name, at most two asterisks, at most one colon, and a digit.
OFFICIAL_2025 = [
    (GOOD, (2, 1, 1)),
    ("**Consistency**: 2\n**Realism** 1\naesthetic quality:0", (2, 1, 0)),
    ("- Consistency 2, Realism\n1, Inconsistency: 1", (1, 1, None)),  # no border before the name; the last of two
    ("Consistency: 1.5\nRealism: 1\nRealism: 2\nAesthetic Quality: 12", (1, 2, 1)),  # the first digit, whatever follows
    ("Consistency: 7\nRealism: 1\nAesthetic Quality: -1", (7, 1, None)),  # any digit
    ("<think>Realism: 0</think>Consistency: 2", (2, 0, None)),  # thoughts are text
    ("Consistency: 2/2, Realism: 1/2, Aesthetic Quality: 0/2", (2, 1, 0)),
    ("I cannot help with that.", (None, None, None)),
    ("", (None, None, None)),
]
# The script of 2025 gives 0 for each; the tolerant parser reads them.
ZERO_TO_THE_OFFICIAL = [
    ("**Consistency:** 0\n**Realism:** 2\n**Aesthetic Quality:** 1", (0, 2, 1)),
    ('{"consistency": 1, "realism": 0, "aesthetic_quality": 2}', (1, 0, 2)),
    ("Consistency: **1**\nRealism = 2\nAesthetic_Quality: 1", (1, 2, 1)),
    ("Consistency：1\nRealism: '2'\nAesthetic  Quality: 0", (1, 2, 0)),
]


def scores_of(text, parser):
    found = read_scores(OLD, text, parser)
    return tuple(found.get(name) for name in OLD.parts)


@pytest.mark.parametrize(("text", "scores"), OFFICIAL_2025)
def test_the_official_parser_of_2025_is_the_default(text, scores):
    assert scores_of(text, "official") == scores == tuple(read_scores(OLD, text).get(name) for name in OLD.parts)


@pytest.mark.parametrize(("text", "scores"), ZERO_TO_THE_OFFICIAL)
def test_what_the_official_script_scores_0_the_tolerant_parser_reads(text, scores):
    assert scores_of(text, "official") == (None, None, None) and scores_of(text, "tolerant") == scores
    assert totals(OLD, [[text]], zero=True)[0].tolist() == [0]
    assert totals(OLD, [[text]], True, "tolerant")[0][0] == pytest.approx(OLD.score(dict(zip(OLD.parts, scores, strict=True))))


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        (GOOD, (2, 1, 1)),
        ("Consistency: 2/2, Realism: 1/2, Aesthetic Quality: 0/2", (2, 1, 0)),
        ("Consistency: 3\nRealism: 1\nAesthetic Quality: -1", (None, 1, None)),
        ("Consistency: 1.5\nRealism: 1\nRealism: 2\nAesthetic Quality: 1", (None, None, 1)),
        ('{"consistency": 1, "realism"', (1, None, None)),
        ("", (None, None, None)),
    ],
)
def test_the_tolerant_parser_leaves_out_what_is_out_of_range_or_said_twice(text, scores):
    assert scores_of(text, "tolerant") == scores


@pytest.mark.parametrize(
    ("text", "official", "tolerant"),
    [
        ("Score: 1", 1, 1),
        ("**Score**: 0", 0, 0),
        ("**Score:** 1", None, 1),
        ("1\n", 1, 1),
        ("<think>Score: 0?</think>\nScore: 1", 1, 1),
        ("Score: 1\nScore: 0", 1, None),  # the first of two
        ("Score: 2", None, None),
        ("Score: 10", None, None),
        ("0\n1", None, None),
        ("yes", None, None),
    ],
)
def test_answers_of_2026(text, official, tolerant):
    assert read_scores(NEW, text).get("score") == official and read_scores(NEW, text, "tolerant").get("score") == tolerant


def test_what_an_unreadable_answer_counts_for():
    texts = [[GOOD], ["Consistency: 2"], ["no"]]
    assert totals(OLD, texts, zero=True)[0].tolist() == pytest.approx([0.85, 0.7, 0]) and totals(OLD, texts, zero=True)[1].sum() == 3
    sums, counts = totals(OLD, texts, zero=False)
    assert (sums.tolist(), counts.tolist()) == (pytest.approx([0.85, 0, 0]), [1, 0, 0])


def test_the_instruction_is_filled_in_once_whatever_the_prompt_says(tmp_path):
    for version in VERSIONS.values():
        own = Instruction.read(version)
        said = own.about(Prompt(1, "say {explanation}", "a {prompt}", "cultural"))
        assert 'PROMPT: "say {explanation}"' in said and 'EXPLANATION: "a {prompt}"' in said and own.ours
        assert all(name in said.lower() for name in version.parts)
    (tmp_path / "mine.yaml").write_text("system: s\nuser: 'P {prompt} E {explanation}'\n")
    given = Instruction.read(OLD, tmp_path / "mine.yaml")
    assert not given.ours and given.about(Prompt(1, "a", "b", "time")) == "P a E b"
    (tmp_path / "mine.yaml").write_text("system: s\nuser: 'P {prompt}'\n")
    with pytest.raises(UserError, match=r"user with \{prompt\} and \{explanation\}"):
        Instruction.read(OLD, tmp_path / "mine.yaml")


# --------------------------------------------------------------- files


@pytest.fixture(scope="module")
def texts() -> dict[int, dict]:
    return {
        n: {"Prompt": f"riddle {n}", "Explanation": f"answer {n}", "Category": "c", "Subcategory": "s", "prompt_id": n}
        for n in range(1, 1001)
    }


@pytest.fixture
def sets(texts, tmp_path) -> Callable[..., Path]:
    """sets(version, change) writes the three files."""

    def write(version=OLD, change=lambda rows: rows) -> Path:
        folder = tmp_path / f"sets{version.name}"
        folder.mkdir(exist_ok=True)
        borders = [0, 400, 700 if version is OLD else 640, 1000]
        for name, first, last in zip(version.files.values(), borders, borders[1:], strict=False):
            (folder / name).write_text(json.dumps(change([dict(texts[n]) for n in range(first + 1, last + 1)])))
        return folder

    return write


def test_the_files_are_read_and_become_a_prompt_file(sets, tmp_path):
    found, digests = load(OLD, sets())
    assert list(found) == [str(n) for n in range(1, 1001)] and len(digests) == 3
    prompts_command.main(["--prompts", str(sets()), "--out", str(tmp_path / "p.jsonl")])
    rows = load_prompts(tmp_path / "p.jsonl")
    assert {r["prompt_id"]: (r["prompt"], r["tag"]) for r in rows} == {p.number: (p.text, p.category) for p in found.values()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda rows: rows[1:], "3 of 1000 prompts are missing, the first is prompt_id 1"),
        (lambda rows: [*rows, rows[0]], "prompt_id 1 is given twice"),
        (lambda rows: [{**rows[0], "prompt_id": 2000}], "entry 0 needs a Prompt"),
        (lambda rows: [{**rows[0], "Explanation": ""}], "entry 0 needs a Prompt, an Explanation"),
        (lambda rows: {"rows": rows}, "expected a list of prompts, found dict"),
    ],
)
def test_files_that_are_not_the_benchmarks_are_refused(sets, change, named):
    with pytest.raises(UserError, match=named):
        load(OLD, sets(OLD, change))


# --------------------------------------------------------------- a server


def status(code: int, message: str = "", **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.give(code, json.dumps({"error": {"message": message}}).encode(), **headers)


def close(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def truncate(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(completion(GOOD)[:40])
    handler.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


def asks(server: Server, tries: int = 4, timeout: float = 5, key: str = KEY) -> tuple[Endpoint, list[float]]:
    """An endpoint that does not sleep, and the pauses that it would have made."""
    endpoint, pauses = Endpoint(server.url, key, timeout, tries), []
    endpoint.wait = pauses.append
    return endpoint, pauses


BODY = {"model": "m", "messages": messages("s", "u", b"png")}


@pytest.mark.parametrize("fault", [status(429), status(500), status(503), close, truncate, b"<html>", b'{"choices": []}', b'{"error": {}}'])
def test_what_may_pass_by_itself_is_tried_again(server, fault):
    server.behave = lambda number, text: fault if number < 3 else GOOD
    endpoint, pauses = asks(server)
    assert endpoint.chat(BODY, "a").text == GOOD and len(server.requests) == 3
    assert len(pauses) == 2 and 0.5 <= pauses[0] <= 1 <= pauses[1] <= 2
    again, same = asks(server)
    server.requests.clear()
    again.chat(BODY, "a")
    assert same == pauses, "the jitter is seeded"


def test_a_server_that_is_silent_is_left_after_the_time_out(server):
    release = threading.Event()
    server.behave = lambda number, text: (lambda handler: release.wait(30)) if number == 1 else GOOD
    endpoint, _ = asks(server, timeout=0.3)
    assert endpoint.chat(BODY, "a").text == GOOD and len(server.requests) == 2
    release.set()


def test_retry_after_is_honoured(server):
    server.behave = lambda number, text: status(429, Retry_After="17") if number == 1 else GOOD
    endpoint, pauses = asks(server)
    endpoint.chat(BODY, "a")
    assert pauses == [17]
    assert retry_after(email.utils.formatdate(time.time() + 100)) == pytest.approx(100, abs=20)
    assert (retry_after(None), retry_after("soon"), retry_after("-3")) == (0, 0, 0)


def test_a_server_that_never_answers_ends_the_call_in_one_line(server):
    server.behave = lambda number, text: status(500, f"key {KEY}")
    endpoint, pauses = asks(server, tries=3)
    with pytest.raises(UserError, match="no answer after 3 tries, the last one: HTTP 500; what was answered is kept"):
        endpoint.chat(BODY, "a")
    assert (len(server.requests), len(pauses)) == (3, 2)


@pytest.mark.parametrize(
    ("code", "named"), [(400, "HTTP 400: no such model"), (401, "HTTP 401, the key is missing, wrong"), (404, "HTTP 404: no such")]
)
def test_any_other_refusal_stops_at_once_without_the_key(server, code, named):
    server.behave = lambda number, text: status(code, f"no such model for {KEY}\n")
    endpoint, pauses = asks(server)
    with pytest.raises(UserError, match=named) as caught:
        endpoint.chat(BODY, "a")
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)
    assert (len(server.requests), pauses) == (1, [])


def test_a_redirect_does_not_carry_the_key_away(server):
    with serving() as thief:
        server.behave = lambda number, text: status(302, Location=thief.url + "/chat/completions")
        with pytest.raises(UserError, match="HTTP 302"):
            asks(server)[0].chat(BODY, "a")
        assert thief.requests == []


@pytest.mark.parametrize(
    ("url", "key", "named"),
    [
        ("ftp://host", "", "expected a URL"),
        ("host/v1", "", "expected a URL"),
        ("https://me:pw@host/v1", "", "no password and no query"),
        ("https://host/v1?key=1", "", "no password and no query"),
        ("http://host/v1", KEY, "unencrypted"),
        ("https://host/v1", KEY + "\nX", "blanks or characters"),
    ],
)
def test_an_endpoint_that_is_none_or_unsafe_is_refused(url, key, named):
    with pytest.raises(UserError, match=named) as caught:
        Endpoint(url, key, 1, 1)
    assert "pw@" not in str(caught.value) and KEY not in str(caught.value)


# --------------------------------------------------------------- the command

IDS = (3, 17, 450, 451, 600, 601, 720, 850, 950, 951)


@pytest.fixture
def folder(make_folder) -> Path:
    """One image of ten prompts in all six categories; the first is found by its text alone."""
    rows = [{"prompt": f"riddle {n}", "prompt_id": n} for n in IDS]
    del rows[0]["prompt_id"]
    return make_folder(rows, images=np.arange(10, dtype=np.uint8)[:, None, None, None] + np.zeros((10, 8, 8, 3), np.uint8), per_prompt=1)


@pytest.fixture
def score(server, sets, tmp_path, monkeypatch) -> Callable[..., Record | None]:
    """score(folder, *more) runs the command against the server and gives the record; it never sleeps."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(
        threading.Event, "wait", lambda self, timeout=None, wait=threading.Event.wait: wait(self, timeout and min(timeout, 0.01))
    )

    def run(folder: Path, *more: object, version=OLD) -> Record | None:
        out = tmp_path / "wise.json"
        out.unlink(missing_ok=True)
        arguments = ["--images", folder, "--out", out, "--prompts", sets(version), "--endpoint", server.url, "--partial", "--device", "cpu"]
        command.main([str(a) for a in (*arguments, "--version", version.name, *more)])
        return read_record(out) if out.exists() else None

    return run


def by_number(number: int, text: str) -> str:
    """An answer that depends on the prompt alone, whatever the order of the requests."""
    n = int(text.split('PROMPT: "riddle ')[1].split('"')[0])
    return f"Consistency: {n % 3}\nRealism: {n % 2}\nAesthetic Quality: {n % 3}"


def expected(n: int) -> float:
    return (0.7 * (n % 3) + 0.2 * (n % 2) + 0.1 * (n % 3)) / 2


def test_a_folder_becomes_a_record(score, server, folder, tmp_path, capsys):
    server.behave = by_number
    record = score(folder, "--workers", "3")
    means = {c: np.mean([expected(n) for n in IDS if OLD.category(n) == c]) for c in OLD.weights}
    assert {m.metric: m.value for m in record.metrics} == pytest.approx(
        {f"wise/{c}": v for c, v in means.items()} | {"wise/overall": sum(WISE_WEIGHTS[c] * v for c, v in means.items())}
    )
    assert {p["prompt_id"]: p["score"] for p in record.details["per_prompt"]} == pytest.approx({n: expected(n) for n in IDS}, abs=1e-4)
    assert record.details["judge"]["reported"] == {"judge-2024": 10} and record.details["malformed"]["count"] == 0
    assert (record.details["requests"], record.details["tokens"], record.details["prompts_missing"]) == (10, {"in": 9000, "out": 200}, 990)
    assert record.details["comparable"] is False and record.details["instruction"]["ours"] is True
    body = server.requests[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == (OLD.model, 0.0, 2000)
    assert body["messages"][1]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert set(server.keys) == {f"Bearer {KEY}"}
    assert score(folder).metrics == record.metrics and len(server.requests) == 10, "a rerun asks nothing"


def test_the_key_is_nowhere_but_in_the_header(score, server, folder, tmp_path, capsys):
    server.behave = lambda number, text: f"{GOOD} {KEY}" if number % 2 else f"no, {KEY}"
    score(folder, "--attempts", "1")
    server.behave = lambda number, text: status(400, f"your key {KEY} is fine")
    assert run_command(lambda: score(folder, "--attempts", "2")) == 2
    said = capsys.readouterr()
    assert "[key]" in said.err and KEY not in said.out + said.err
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


def test_a_call_that_was_cut_off_goes_on_and_pays_for_nothing_twice(score, server, folder):
    server.behave = by_number
    whole = score(folder)
    for path in (folder.parent / "answers").iterdir():
        path.unlink()
    server.requests.clear()
    server.behave = lambda number, text: by_number(number, text) if number <= 6 else status(402, "no credit left")
    with pytest.raises(UserError, match="HTTP 402: no credit left"):
        score(folder, "--workers", "1")
    server.behave = by_number
    server.requests.clear()
    again = score(folder)
    assert len(server.requests) == 4
    assert again.metrics == whole.metrics and again.details["per_prompt"] == whole.details["per_prompt"]


def answering(seen: dict[int, int], bad: dict[int, object]) -> Callable[[int, str], object]:
    """GOOD, but of these prompts, and of prompt 17 at its first question."""

    def behave(number: int, text: str) -> object:
        n = int(text.split('PROMPT: "riddle ')[1].split('"')[0])
        seen[n] = seen.get(n, 0) + 1
        return "Let me see ..." if n == 17 and seen[n] == 1 else bad.get(n, GOOD)

    return behave


def test_by_default_one_answer_is_asked_for_and_read_as_the_official_script_does(score, server, folder):
    seen: dict[int, int] = {}
    bad = {3: "**Consistency:** 2\n**Realism:** 1\n**Aesthetic Quality:** 1", 720: "Consistency: 0\nConsistency: 2.5\nRealism: 1"}
    server.behave = answering(seen, bad)
    record = score(folder, "--workers", "1")
    assert seen == dict.fromkeys(IDS, 1), "a second question could turn a 0 into a score"
    assert record.details["parser"] == "official" and record.details["malformed"]["count"] == 3
    assert record.value("wise/cultural") == pytest.approx(0), "the two of the category lack all scores to the script"
    assert record.value("wise/biology") == pytest.approx((0.7 * 2 + 0.2) / 2), "the last digit"
    other = record.details["by_the_other_parser"]
    assert (other["parser"], other["answers_read_otherwise"], other["wise/biology"]) == ("tolerant", 2, pytest.approx(0.2 / 2))
    assert other["wise/cultural"] == pytest.approx(0.85 / 2)
    tolerant = score(folder, "--workers", "1", "--parser", "tolerant", "--attempts", "1")
    assert tolerant.value("wise/cultural") == pytest.approx(0.85 / 2) and seen == dict.fromkeys(IDS, 1), "of the same answers"
    said = [set(one.details["differs"]) for one in (record, tolerant)]
    assert said[1] - said[0] == {"tolerant parser"} and not said[0] - said[1]
    assert score(folder, "--attempts", "2").details["differs"][2] == "up to 2 attempts where the official script makes 1"


def test_a_judge_that_leaves_the_scale_is_one_line_and_its_answers_are_kept(score, server, folder, capsys):
    server.behave = lambda number, text: "Consistency: 7\nRealism: 1\nAesthetic Quality: 1" if 'riddle 720"' in text else GOOD
    assert run_command(lambda: score(folder)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: wise/biology: found up to 2.6, expected at most 1: the judge gave digits above 2,")
    record = score(folder, "--parser", "tolerant", "--attempts", "1")
    assert record.value("wise/biology") == pytest.approx((0.2 + 0.1) / 2) and len(server.requests) == 10


def test_the_tolerant_parser_asks_again_for_what_it_cannot_read(score, server, folder):
    half, refusal = "Consistency: 2", completion(None, refusal="I cannot judge this.")
    bad = {3: half, 450: refusal, 720: "Consistency: 7\nRealism: 1\nAesthetic Quality: 1"}
    seen: dict[int, int] = {}
    server.behave = answering(seen, bad)
    given = ("--parser", "tolerant", "--attempts", "3")
    record = score(folder, "--workers", "1", *given)
    assert seen == {n: 3 if n in bad else 2 if n == 17 else 1 for n in IDS}
    found = record.details["malformed"]
    assert (found["count"], found["why"], found["rule"]) == (3, {"stop": 2, "refused": 1}, "counted_as_0")
    assert [e["lacks"] for e in found["examples"]] == [["realism", "aesthetic quality"], list(OLD.parts), ["consistency"]]
    assert record.value("wise/cultural") == pytest.approx((0.7 + 0.85) / 2) == found["counted_as_0"]["wise/cultural"]
    assert found["left_out"]["wise/cultural"] == pytest.approx(0.85) and "wise/biology" not in found["left_out"]
    assert record.value("wise/biology") == pytest.approx((0.2 + 0.1) / 2) and record.value("wise/time") == pytest.approx(0.85 / 2)
    score(folder, *given)
    assert sum(seen.values()) == 10 + 2 * 3 + 1, "nor are they asked for again by the next call"
    score(folder, "--parser", "tolerant", "--attempts", "4")
    assert sum(seen.values()) == 17 + 3, "but once more when asked to"


def test_the_version_of_2026_has_its_own_names_and_rules(score, server, folder):
    server.behave = lambda number, text: "hm" if 'riddle 450"' in text else f"<think>\n</think>Score: {int('riddle 17' in text)}"
    record = score(folder, version=NEW)
    assert {m.metric for m in record.metrics} == {f"wise2026/{c}" for c in (*NEW.weights, "overall")}
    assert record.value("wise2026/cultural") == 0.5 and record.value("wise2026/overall") == pytest.approx(0.2)
    assert record.details["malformed"]["rule"] == "left_out" and record.details["malformed"]["count"] == 1
    assert next(m.n for m in record.metrics if m.metric == "wise2026/time") == 1, "450 is left out, 451 is there"
    body = server.requests[0]
    assert (body["chat_template_kwargs"], body["max_tokens"], body["model"]) == ({"enable_thinking": False}, 500, NEW.model)


def test_other_settings_do_not_take_the_answers(score, server, folder, tmp_path):
    score(folder)
    (tmp_path / "mine.yaml").write_text("system: s\nuser: 'PROMPT {prompt} EXPLANATION {explanation}'\n")
    for more in (("--model", "other"), ("--instruction", tmp_path / "mine.yaml")):
        server.requests.clear()
        score(folder, *more)
        assert len(server.requests) == 10, more


def test_a_flat_folder_scores_as_the_layout_does(score, server, folder, sets, tmp_path):
    server.behave = by_number
    first = score(folder)
    prompts_command.main(["--prompts", str(sets()), "--images", str(folder), "--out-images", str(tmp_path / "flat")])
    assert sorted(int(p.stem) for p in (tmp_path / "flat").iterdir()) == list(IDS)
    flat = score(tmp_path / "flat", "--row", "real", "--nfe", "0")
    assert flat.metrics == first.metrics and len(server.requests) == 10, "the same images are not asked about again"


def test_a_dry_run_sends_nothing_and_needs_no_key(score, server, folder, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert score(folder, "--dry-run") is None and server.requests == []
    assert "10 images of 10 prompts, 0 answered or equal to another; 10 requests to gpt-4o-2024-05-13" in capsys.readouterr().err


def test_without_a_key_or_with_prompts_missing_nothing_is_sent(score, folder, sets, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    arguments = ["--images", folder, "--out", tmp_path / "r.json", "--prompts", sets(), "--device", "cpu"]
    assert run_command(lambda: command.main([str(a) for a in (*arguments, "--partial")])) == 2
    assert "error: OPENAI_API_KEY: not set, and api.openai.com may need a key" in capsys.readouterr().err
    assert run_command(lambda: command.main([str(a) for a in arguments])) == 2
    assert "990 of 1000 prompts have no image: 1; 2; 4; 5; 6; and 985 more" in capsys.readouterr().err
