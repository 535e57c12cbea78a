"""What a timing is worth: the cores that other processes used, by readings that the test makes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apex.busy import ATTEMPTS, Reading, between, is_busy, read, timed


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def readings(*others: float):
    """Before and after each of several timings of 2 s: this process uses a whole core, others as many as `others` say."""
    wall = every = own = 0.0
    for used in others:
        yield Reading(wall, every, own)
        wall, every, own = wall + 2, every + 2 * (used + 1), own + 2
        yield Reading(wall, every, own)
        wall += 1  # what lies between two timings does not count
        every += 50


def test_others_are_all_less_this_process_over_the_wall_time():
    assert between(Reading(10, 100, 5), Reading(14, 109, 8)) == {"others": 1.5, "cores": 2, "seconds": 4}
    assert between(Reading(10, 100, 5), Reading(14, 102.99, 8))["others"] == 0, "ticks are coarser than this process's own times"
    assert between(None, Reading(1, 1, 1)) is between(Reading(1, 1, 1), None) is between(Reading(1, 1, 1), Reading(1, 1, 1)) is None
    assert [is_busy({"others": used, "cores": 2}) for used in (0.0, 0.2, 0.21)] == [False, False, True]
    assert is_busy({"others": 0.21, "cores": 64}) is False and is_busy(None) is False


def test_the_counters_are_those_of_the_kernel(tmp_path: Path):
    tick = os.sysconf("SC_CLK_TCK")
    fields = [100, 20, 30, 9999, 8888, 4, 5, 6, 77, 0]  # idle and iowait are no work; guests are in user already
    (tmp_path / "stat").write_text(f"cpu  {' '.join(map(str, fields))}\ncpu0 1 2 3\n")
    before = os.times()
    found = read(tmp_path / "stat")
    assert found.every == (100 + 20 + 30 + 4 + 5 + 6) / tick
    assert found.own >= before.user + before.system
    assert read(tmp_path / "none") is None
    (tmp_path / "stat").write_text("cpu 1 2\n")
    assert read(tmp_path / "stat") is None


@pytest.mark.parametrize(
    ("others", "counts", "attempts", "busy"),
    [
        ([0.1], 0, 1, False),
        ([1.0, 0.05], 1, 2, False),
        ([1.0, 0.6, 0.9], 1, 3, True),
        ([0.5, 0.6, 0.7], 0, 3, True),
    ],
)
def test_a_timing_on_a_busy_machine_is_repeated_then_marked(others: list[float], counts: int, attempts: int, busy: bool):
    source, taken = readings(*others), iter(range(10))
    value, details = timed(lambda: next(taken), reading=lambda: next(source))
    assert value == counts, "the calmest counts"
    assert details == {"load": {"others": others[counts], "cores": 2, "seconds": 2, "attempts": attempts}, "busy": busy}
    assert attempts <= ATTEMPTS == 3


def test_without_counters_a_timing_stands_once_and_says_so():
    taken = iter(range(10))
    assert timed(lambda: next(taken), reading=lambda: None) == (0, {"load": None, "busy": False})
