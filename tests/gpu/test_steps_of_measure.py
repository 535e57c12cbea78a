"""What `make gpu` does with its steps, on a machine that pretends to have a GPU: order, time, failures, and what is there already."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from apex.config import load
from apex.errors import UserError
from evaluators.systems.known import systems
from evaluators.throughput import EVALUATORS

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("gpu_measure", HERE / "measure.py")
measure = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = measure  # dataclasses look their module up
spec.loader.exec_module(measure)


@pytest.fixture
def run(tmp_path: Path, monkeypatch):
    """run(steps, *arguments): the folder of the records after it."""
    monkeypatch.setattr(measure.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(measure, "hardware", lambda device: "a card")
    monkeypatch.setattr(measure, "claim", lambda: None)

    def run(steps, *arguments: str) -> Path:
        monkeypatch.setattr(measure, "STEPS", steps)
        monkeypatch.setattr(sys, "argv", ["measure.py", "--out", str(tmp_path / "gpu"), *arguments])
        measure.main()
        return tmp_path / "gpu"

    return run


def step(name: str, seconds: float, calls: list[str], fails: str = ""):
    def work(folder: Path) -> None:
        calls.append(name)
        if fails:
            raise UserError(fails)
        (folder / f"{name}.json").write_text("{}")

    return measure.Step(name, seconds, work, (f"{name}.json",))


def test_what_is_there_is_left_out_and_what_would_end_too_late_is_not_begun(run, capsys) -> None:
    calls: list[str] = []
    steps = [step("a", 10, calls), step("b", 100, calls), step("c", 20, calls)]
    folder = run(steps, "--minutes", "1")
    assert calls == ["a", "c"] and "b: about 100 s" in capsys.readouterr().out
    took = json.loads((folder / "gpu" / "took.json").read_text())
    assert set(took["seconds"]) == {"a", "c"} and took["failed"] == [] and took["hardware"] == "a card"
    run(steps)
    assert calls == ["a", "c", "b"] and set(json.loads((folder / "gpu" / "took.json").read_text())["seconds"]) == {"a", "b", "c"}
    run([*steps, step("d", 1, calls), step("e", 1, calls)], "--only", "e")
    assert calls == ["a", "c", "b", "e"]


def test_a_step_that_fails_says_why_and_the_next_ones_run(run, capsys) -> None:
    calls: list[str] = []
    steps = [step("a", 1, calls, fails="the reason"), step("b", 1, calls)]
    with pytest.raises(UserError, match="failed: a; the others are kept, and the same call tries these again"):
        run(steps)
    assert "error: a: the reason" in capsys.readouterr().out
    with pytest.raises(UserError, match="failed: a"):
        run(steps)
    assert calls == ["a", "b", "a"]


def test_what_a_training_step_asks_of_torch_does_not_reach_what_is_timed_next(run) -> None:
    found = []

    def trains(folder: Path) -> None:
        measure.torch.use_deterministic_algorithms(True, warn_only=True)

    run(
        [
            measure.Step("a", 1, trains, ("a.json",)),
            measure.Step("b", 1, lambda _: found.append(measure.torch.are_deterministic_algorithms_enabled()), ("b.json",)),
        ]
    )
    assert found == [False]


def test_every_step_names_what_exists(capsys, monkeypatch) -> None:
    names = [one.name for one in measure.STEPS]
    assert len(set(names)) == len(names)
    monkeypatch.setattr(sys, "argv", ["measure.py", "--out", "nowhere", "--list"])
    measure.main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names
    records = [name for one in measure.STEPS for name in one.done]
    assert len(set(records)) == len(records), "a record of one step is not another's"
    timed = {Path(name).parts[1] for name in records if name.startswith("speed/")}
    assert timed == set(systems()), "every system of the speed table"
    assert {name.split("/")[1].rsplit("_512px")[0] for name in records if name.startswith("throughput/")} == set(EVALUATORS)
    for name in (name for name in records if "/measured/" in name):
        profile = Path(name).parts[0]
        config = load(measure.ROOT / f"workflows/config/{profile}.yaml")
        assert config.profile == profile and config.row(Path(name).stem), "where `snakemake plan` looks for it"


def test_without_a_gpu_it_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr(measure.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["measure.py", "--out", "nowhere"])
    with pytest.raises(UserError, match="no GPU here that torch can use"):
        measure.main()
