"""Numbers of benchmarks with prompts of their own, MJHQ-30K, DPG-Bench and WISE, stand in the paper's tables beside its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from paper_tables import build, paper_plots, published
from paper_tables.render import Line, Table
from paper_tables.view import View

DPG = {"global": 84.12, "entity": 90.5, "attribute": 88.03, "relation": 91.0, "other": 80.25, "overall": 82.66}
WISE = {"cultural": 0.41, "time": 0.5, "space": 0.49, "biology": 0.44, "physics": 0.46, "chemistry": 0.28, "overall": 0.44}


def metrics(prefix: str, numbers: dict[str, float], unit: str) -> list[dict]:
    return [{"metric": f"{prefix}/{name}", "value": v, "unit": unit, "n": 40, "higher_is_better": True} for name, v in numbers.items()]


@pytest.fixture
def judged(make_results: Callable[..., Path]) -> Path:
    """Results whose row apex, NFE 1, has records on three more prompt sets."""
    results = make_results(rows={("apex", 1): 0.5, ("fm", 1): 0.1}, skip=[("apex", "fid"), ("fm", "fid")])
    place = results / "records" / "apex" / "nfe1" / "seed0"
    about = json.loads((place / "test" / "geneval.json").read_text()) | {"details": {}}
    fid = [{"metric": "fid", "value": 7.25, "unit": "squared feature distance", "n": 30000, "higher_is_better": False}]
    for split, name, found in (
        ("dpg", "dpg", metrics("dpg", DPG, "100 x share")),
        ("wise", "wise", metrics("wise", WISE, "score")),
        ("mjhq", "fid", fid),
        ("mjhq", "clip_score", metrics("clip_score", {"shuffled": 12.0}, "100 x cosine")),
    ):
        (place / split).mkdir(exist_ok=True)
        (place / split / f"{name}.json").write_text(json.dumps(about | {"evaluator": name, "metrics": found}))
    return results


@pytest.fixture
def tables(judged: Path) -> dict[str, Table]:
    return {table.name: table for table in build.tables(View.load(judged), published.load())}


def ours(table: Table, name: str) -> list[Line]:
    return [line for line in table.lines if line.cells["model"].text == name]


@pytest.mark.parametrize(("name", "numbers", "digits"), [("table3", DPG, 2), ("table4", WISE, 2)])
def test_a_judged_row_has_its_line_under_its_prompt_sets_name(tables, name: str, numbers: dict[str, float], digits: int) -> None:
    (line,) = ours(tables[name], "apex")
    assert {key: line.cells[f"our_{key}"].text for key in numbers} == {key: f"{value:.{digits}f}" for key, value in numbers.items()}
    assert line.section == f"Measured here, {'dpg' if name == 'table3' else 'wise'} set"
    assert not ours(tables[name], "fm")
    assert len(tables[name].lines) == len(published.load()[name]) + 1


def test_a_metric_that_the_main_prompts_have_not_comes_from_the_benchmark(tables) -> None:
    (line,) = ours(tables["table1"], "apex")
    assert line.cells["our_fid"].text == "7.25"
    assert [one.section for one in tables["table1"].lines if "Measured" in one.section] == ["Measured here, mjhq and test set"]


def test_a_metric_of_the_main_prompts_stays_theirs(judged: Path) -> None:
    """The fixture's clip_score/shuffled on `test` is 21.5, on mjhq 12; and unseen prompts never stand in for the main ones."""
    view = View.load(judged)
    assert view.get(("apex", 1), "clip_score/shuffled").value == 21.5
    assert view.get(("apex", 1), "clip_score/shuffled", "mjhq").value == 12.0
    assert view.home("geneval/unseen") == "test" and view.get(("apex", 1), "geneval/unseen") is None


@pytest.mark.parametrize(("draw", "table", "numbers"), [(paper_plots.table3, "table3", DPG), (paper_plots.table4, "table4", WISE)])
def test_the_figure_shows_the_judged_row_below_the_published_ones(judged: Path, draw: Callable, table: str, numbers: dict) -> None:
    figure = draw(View.load(judged), published.load())
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[-1] == "apex, NFE 1" and len(names) == len(published.load()[table]) + 1
    level = axes.get_yticks()[-1]
    shown = [text.get_text() for text in axes.texts if text.get_position()[1] == level]
    assert shown == [f"{value:.2f}".removeprefix("0") for value in numbers.values()]


def test_a_number_of_another_judge_says_so_and_the_protocols_own_does_not(judged: Path) -> None:
    path = judged / "records/apex/nfe1/seed0/dpg/dpg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"details": {"comparable": False, "judge": {"model": "small-vlm"}}}))
    made = {table.name: table for table in build.tables(View.load(judged), published.load())}
    notes = [cell.note for key, cell in ours(made["table3"], "apex")[0].cells.items() if key in {f"our_{name}" for name in DPG}]
    assert len(notes) == len(DPG) and all("here by small-vlm" in note for note in notes)
    assert "small-vlm" not in "".join(cell.note for cell in ours(made["table4"], "apex")[0].cells.values())
