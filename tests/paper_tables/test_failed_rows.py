"""A row whose images could not be made, among good ones: its cells say so, no mean holds it, and all else is as it was."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from apex.ablations import Plan
from apex.config import load
from paper_tables import ablations, build, claims, collect, figures, published, tuning
from paper_tables.cells import note_cell
from paper_tables.claims_tests import TESTS, UNDECIDED, Evidence
from paper_tables.expected import Expected
from paper_tables.view import View

REASON = "seed {}, prompt 3 ('a red circle'), image 1: found values that are not finite, expected numbers"
WORLD = Path("workflows/config/matrix.yaml")


def fail(results: Path, row: str, nfe: int, seed: int) -> None:
    """The records of one point as the evaluators write them where the images could not be made."""
    for path in (results / "records" / row / f"nfe{nfe}" / f"seed{seed}").rglob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"metrics": [], "details": {"failed": REASON.format(seed)}}))


def line_of(table, row: str, nfe: int) -> dict:
    (found,) = [one.cells for one in table.lines if (one.cells["row"].text, one.cells["nfe"].text) == (row, str(nfe))]
    return found


def tables_of(results: Path, profile: Path) -> dict:
    view = View.load(results, Expected.of(load(profile)))
    return {table.name: table for table in build.tables(view, published.load())}


def test_a_failed_row_says_so_and_the_others_keep_their_numbers(make_results: Callable[..., Path], profile: Path) -> None:
    before = tables_of(make_results("whole"), profile)
    results = make_results("failed")
    fail(results, "fm", 1, 0)
    after = tables_of(results, profile)
    line = line_of(after["world"], "fm", 1)
    assert {line[name].text for name in ("overall", "fid", "n")} == {"failed: not finite"}
    assert REASON.format(0) in line["overall"].note
    note = line_of(after["comparison"], "fm", 1)["note"]
    assert note.text == "images not finite at NFE 1" and REASON.format(0) in note.note
    for row, nfe in (("apex", 1), ("apex", 4), ("apex-eq25", 1)):
        assert line_of(after["world"], row, nfe) == line_of(before["world"], row, nfe)
    assert line_of(after["world"], "fm", 2)["overall"] == line_of(before["world"], "fm", 2)["overall"]
    assert line_of(after["paired"], "fm", 1)["difference"].text == "failed: not finite"


def test_of_three_seeds_with_one_failed_the_mean_is_of_two_and_says_so(make_results: Callable[..., Path], profile: Path) -> None:
    results = make_results(rows={("apex", 1): 0.7, ("fm", 1): 0.2}, seeds=(0, 1, 2))
    fail(results, "apex", 1, 1)
    view = View.load(results, Expected.of(load(profile)))
    found = view.get(("apex", 1), "geneval/overall")
    assert (found.value, found.seeds) == (pytest.approx((0.70 + 0.72) / 2), 2)
    assert note_cell(view, "apex").text == "images not finite at NFE 1 (1 of 3 seeds)"
    assert view.difference(("fm", 1), ("apex", 1), "geneval/overall").value == pytest.approx(0.21 - 0.71)


def test_the_whole_report_is_made(make_results: Callable[..., Path], run: Callable[..., int], profile: Path, tmp_path: Path) -> None:
    results = make_results(images=True, runs=True, calibration=True)
    for nfe in (1, 2, 4):
        fail(results, "fm", nfe, 0)
    for split in ("test", "unseen"):  # as `apex.sample --keep-failed` leaves them
        folder = results / "images" / "fm" / "nfe1" / "seed0" / split
        for prompt in folder.iterdir():
            for file in sorted(prompt.rglob("*"), reverse=True):
                file.unlink() if file.is_file() else file.rmdir()
            prompt.rmdir()
        (folder / "made.json").write_text(json.dumps({"row": "fm", "nfe": 1, "failed": REASON.format(0)}))
    out = tmp_path / "out"
    assert run(collect.main, "--results", results, "--out", out / "metrics.csv") == 0
    with (out / "metrics.csv").open() as file:
        rows = {line["row"] for line in csv.DictReader(file)}
    assert "apex" in rows and "fm" not in rows
    assert run(build.main, "--results", results, "--out", out / "tables", "--config", profile) == 0
    assert "failed: not finite" in (out / "tables" / "world.md").read_text()
    assert run(figures.main, "--results", results, "--out", out / "figures", "--config", profile) == 0
    assert {"grid.png", "paired.png", "tasks.png"} <= {path.name for path in (out / "figures").iterdir()}
    written = run(claims.main, "--results", results, "--theory", tmp_path / "no", "--out", out / "claims", "--config", WORLD)
    assert written == 0


def test_a_claim_about_a_failed_row_is_undecided_and_says_why(make_results: Callable[..., Path], tmp_path: Path) -> None:
    results = make_results()
    fail(results, "fm", 1, 0)
    given = Evidence(
        {"world": View.load(results)}, published.load(), Plan(load(WORLD)), tmp_path / "ablations", tmp_path / "theory", {"world": 2.5}
    )
    test = {"kind": "difference", "row": "apex", "versus": "fm", "nfe": 1, "metric": "geneval/overall"}
    outcome = TESTS["difference"](test, given)
    assert outcome.verdict == UNDECIDED
    assert outcome.effect == "the images of fm are not finite at NFE 1, so nothing was scored"


def test_a_failed_cell_of_an_ablation(score_cell: Callable[..., None], tmp_path: Path) -> None:
    plan, data = Plan(load(WORLD)), published.load()
    name = "table7"
    cells = [cell.name for cell in ablations.load_grid(plan, name, tmp_path).cells]
    for at, cell in enumerate(cells):
        score_cell(tmp_path, cell, 0, 0.3 + 0.05 * at)
    worst = cells[0]
    for evaluator in ("geneval", "coverage"):
        path = tmp_path / worst / "seed0" / "records" / f"{evaluator}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": [], "details": {"failed": REASON.format(0)}}))
    grid = ablations.load_grid(plan, name, tmp_path)
    table = ablations.table(grid, data)
    line = next(line.cells for line, cell in zip(table.lines, grid.cells, strict=True) if cell.name == worst)
    assert line["geneval"].text == "failed: not finite" and REASON.format(0) in line["geneval"].note
    assert worst not in ablations.ends(grid, [0]) or worst == grid.control
    ablations.draw(grid, data)


def test_a_candidate_of_tuning_whose_images_failed(tmp_path: Path, run: Callable[..., int]) -> None:
    good = {"geneval": 0.4, "geneval_low": 0.3, "geneval_high": 0.5, "params": {}, "train": {}, "failed": ""}
    bad = dict.fromkeys(("geneval", "geneval_low", "geneval_high", "spread", "recall")) | {
        "params": {"order": 4},
        "failed": REASON.format(0),
    }
    found = {"split": "val", "nfe": 1, "budget": 100.0, "methods": {"apex": {"candidates": [good, bad], "chosen": 0}}}
    (tmp_path / "tuning.json").write_text(json.dumps(found))
    lines = tuning.table(tuning.read(tmp_path / "tuning.json")).lines
    assert [line.cells["geneval"].text for line in lines] == ["0.400 [0.300, 0.500]", "failed: not finite"]
    assert run(tuning.main, "--results", tmp_path, "--out", tmp_path / "out") == 0
