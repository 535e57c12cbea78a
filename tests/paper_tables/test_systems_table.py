"""The speed table: published beside measured, what was not timed says so, and the verdict on 15.33 follows the records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from apex.errors import UserError
from paper_tables import claims, published, systems
from paper_tables.claims_tests import FAILS, HOLDS, NOT_RUN, TESTS, Evidence


@pytest.fixture
def timed(tmp_path: Path) -> Callable[..., Path]:
    """timed(key, seconds, scale=..., failed=...) writes a record and returns the folder."""

    def write(key: systems.Key, seconds: float, scale: str = "full", failed: str = "") -> Path:
        name, side, nfe = key

        def metric(what: str, value: float, unit: str, better: bool = False) -> dict:
            interval = {"ci_low": 0.99 * value, "ci_high": 1.01 * value, "interval": "interquartile range"}
            return {"metric": f"speed/{what}", "value": value, "unit": unit, "n": 9, "higher_is_better": better} | interval

        metrics = [metric(f"latency_b{b}_s", seconds * b, "s") for b in (1, 10)]
        metrics += [metric(f"throughput_b{b}_sps", 1 / seconds, "samples/s", True) for b in (1, 10)]
        metrics += [metric(f"stage/{s}_b1_s", seconds / 3, "s") for s in systems.STAGES]
        metrics += [metric(f"peak_memory_b{b}_mb", 2048.0, "MB") for b in (1, 10)]
        record = {
            "schema": 1, "row": name, "method": name, "nfe": nfe, "parameters": 20430401088, "evaluator": "systems",
            "evaluator_version": "1", "git_commit": "abc", "hardware": "a card", "versions": {}, "wall_seconds": 1.0, "peak_memory_mb": 1.0,
            "metrics": [] if failed else metrics,
            "details": {
                "scale": scale, "resolution": side, "pixels": side if scale == "full" else side // 8, "failed": failed,
                "network_evaluations": nfe * (2 if "teacher" in name else 1),
                "published": ["APEX 20B LoRA r=64", "TwinFlow"] if "lora" in name else [],
            },
        }  # fmt: skip
        path = tmp_path / "speed" / name / f"{side}px" / f"nfe{nfe}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))
        return tmp_path / "speed"

    return write


def lines(folder: Path) -> dict[systems.Key, dict[str, str]]:
    found = systems.Timed.load(folder)
    return dict(zip(systems.keys(found), ({k: c.text for k, c in line.cells.items()} for line in
                    systems.table(found, published.load()).lines), strict=True))  # fmt: skip


def test_published_stands_beside_measured_and_what_is_missing_says_so(timed) -> None:
    timed(systems.STUDENT, 0.25)
    folder = timed(("flux-schnell", 1024, 1), 1.0, failed="its weights do not fit the memory of a card")
    found = lines(folder)
    ours = found[systems.STUDENT]
    assert (ours["published_latency"], ours["latency"], ours["throughput"]) == ("0.39", "0.250 [0.247, 0.253]", "4.00 [3.96, 4.04]")
    assert (ours["memory_b10"], ours["parameters"], ours["scale"]) == ("2.00", "20.4", "published size")
    assert found["flux-schnell", 1024, 1]["latency"] == "not run" and found["pcm", 512, 2]["latency"] == "not run"
    notes = systems.table(systems.Timed.load(folder), published.load()).notes()
    assert "Printed for the same network: TwinFlow 0.40." in notes
    assert "its weights do not fit the memory of a card" in notes and systems.NOT_RUN in notes


def test_small_systems_are_said_to_be_small(timed) -> None:
    folder = timed(systems.STUDENT, 0.25, "small")
    found = systems.Timed.load(folder)
    assert "say nothing about the published ones" in systems.table(found, published.load()).caption
    assert lines(folder)[systems.STUDENT]["pixels"] == "512 (64)" and not found.full()
    assert "say nothing" not in systems.table(systems.Timed.load(timed(systems.STUDENT, 0.25)), published.load()).caption


def test_table_and_figure_are_written(timed, run, tmp_path: Path) -> None:
    timed(systems.STUDENT, 0.25)
    timed(("flux-schnell", 1024, 1), 1.0, failed="does not fit")
    folder = timed(systems.TEACHER, 5.0)
    assert run(systems.main, "--results", folder, "--out", tmp_path / "out") == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"speed.md", "speed.tex", "speed.csv", "speed.html", "speed.png"}
    assert "20.0 [19.6, 20.4]; the paper says 15.33" in (tmp_path / "out/speed.md").read_text()
    assert run(systems.main, "--results", tmp_path / "none", "--out", tmp_path / "out") == 2


@pytest.mark.parametrize(("seconds", "scale", "said"), [(4.0, "full", HOLDS), (3.0, "full", FAILS), (4.0, "small", NOT_RUN)])
def test_the_verdict_on_the_speedup_follows_the_records(timed, seconds: float, scale: str, said: str) -> None:
    timed(systems.STUDENT, 0.25, scale)
    folder = timed(systems.TEACHER, seconds, scale)
    test = next(test for one in claims.read() for test in one.tests if test["kind"] == "system_speedup")
    given = Evidence({}, published.load(), None, Path("none"), Path("none"), {}, folder)
    outcome = TESTS["system_speedup"](test, given)
    assert outcome.verdict == said
    assert said == NOT_RUN or outcome.value == pytest.approx(seconds / 0.25)
    assert TESTS["system_speedup"](test, Evidence({}, published.load(), None, Path("none"), Path("none"))).verdict == NOT_RUN


def test_another_evaluators_record_is_refused(timed) -> None:
    folder = timed(systems.STUDENT, 0.25)
    path = next(folder.rglob("*.json"))
    path.write_text(path.read_text().replace('"evaluator": "systems"', '"evaluator": "speed"'))
    with pytest.raises(UserError, match="evaluator: found 'speed', expected 'systems'"):
        systems.Timed.load(folder)
