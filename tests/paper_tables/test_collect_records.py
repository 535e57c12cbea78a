"""Result records to metrics.csv, and one clear line for every record that does not fit."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from paper_tables import collect

ARCHITECTURE = "profile,backbone,method,variant,seed,nfe,metric,value,ci_low,ci_high,n,higher_is_better,hardware,git_commit,config_hash"
ONE = {("apex", 1): 0.5}


def test_metrics_csv_has_every_number_once(made: Path, full_results: Path) -> None:
    with (made / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (made / "metrics.csv").read_text().startswith(ARCHITECTURE + ",row,split,unit,interval,run_hash\n")
    files = [json.loads(path.read_text()) for path in (full_results / "records").rglob("*.json")]
    assert len(rows) == sum(len(record["metrics"]) for record in files)
    wanted = {"row": "apex", "nfe": "2", "seed": "1", "split": "test", "metric": "geneval/overall"}
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    assert (float(found["value"]), float(found["ci_low"]), float(found["ci_high"])) == pytest.approx((0.79, 0.76, 0.82))
    rest = ("profile", "backbone", "method", "n", "higher_is_better", "hardware", "git_commit", "unit", "interval")
    assert [found[key] for key in rest] == [
        "synthetic", "sana", "apex", "1200", "True", "Test CPU, 2 cores", "abcdef012345", "fraction", "bootstrap 95%"
    ]  # fmt: skip


def test_a_number_without_interval_has_empty_bounds(made: Path) -> None:
    with (made / "metrics.csv").open(newline="") as file:
        fids = [row for row in csv.DictReader(file) if row["metric"] == "fid"]
    assert fids
    assert {(row["ci_low"], row["ci_high"], row["interval"]) for row in fids} == {("", "", "")}


def test_equal_records_give_equal_bytes(make_results: Callable[..., Path], run: Callable[..., int], tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(collect.main, "--results", make_results(name, rows=ONE), "--out", tmp_path / f"{name}.csv")
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_half_written_records_are_left_alone(make_results: Callable[..., Path], run: Callable[..., int], tmp_path: Path) -> None:
    results = make_results(rows=ONE)
    (results / "records" / "apex" / "nfe1" / "seed0" / "test" / ".geneval.json.abc.json").write_text("{")
    assert run(collect.main, "--results", results, "--out", tmp_path / "metrics.csv") == 0


def spoil(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


FAULTS = {
    "cut off": (lambda path: path.write_text(path.read_text()[:200]), "not JSON"),
    "empty": (lambda path: path.write_text(""), "not JSON"),
    "key missing": (lambda path: spoil(path, hardware=None), "hardware"),
    "unknown key": (lambda path: spoil(path, colour="blue"), "colour"),
    "no number": (lambda path: spoil(path, metrics=[{"metric": "geneval/overall", "value": "high"}]), "metrics.0.value"),
    "other schema": (lambda path: spoil(path, schema=2), "schema"),
    "another row's": (lambda path: spoil(path, row="fm"), "'row' is 'fm', but the file lies under 'apex'"),
    "another NFE's": (lambda path: spoil(path, nfe=4), "'nfe' is 4, but the file lies under 1"),
    "another seed's": (lambda path: spoil(path, seed=7), "'seed' is 7, but the file lies under 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_record_is_one_line_that_names_the_file(
    fault: str, make_results: Callable[..., Path], run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = make_results(rows=ONE)
    path = results / "records" / "apex" / "nfe1" / "seed0" / "test" / "geneval.json"
    change, says = FAULTS[fault]
    change(path)
    assert run(collect.main, "--results", results, "--out", tmp_path / "metrics.csv") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ") and error.count("\n") == 1
    assert says in error
    assert not (tmp_path / "metrics.csv").exists()


def test_one_number_in_two_records(
    make_results: Callable[..., Path], run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = make_results(rows=ONE)
    path = results / "records" / "apex" / "nfe1" / "seed0" / "test" / "geneval.json"
    (path.parent / "geneval2.json").write_text(path.read_text())
    assert run(collect.main, "--results", results, "--out", tmp_path / "metrics.csv") == 2
    error = capsys.readouterr().err
    assert "geneval2.json" in error and str(path) in error and error.count("\n") == 1


@pytest.mark.parametrize("folder", ["nothing", "results"])
def test_no_records(folder: str, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results" / "records").mkdir(parents=True)
    assert run(collect.main, "--results", tmp_path / folder, "--out", tmp_path / "metrics.csv") == 2
    error = capsys.readouterr().err
    assert str(tmp_path / folder / "records") in error and "expected <row>/nfe<K>/seed<S>" in error and error.count("\n") == 1
