"""The assumptions log: every entry names an ablation that exists, and says what that ablation found."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from apex.ablations import Plan
from apex.config import load
from apex.errors import UserError
from paper_tables import assumptions

WORLD = Path("workflows/config/matrix.yaml")


def test_every_entry_names_an_ablation_that_there_is() -> None:
    grids = set(Plan(load(WORLD)).found.grids)
    log = assumptions.read()
    assert len(log) >= 20 and len({one.id for one in log}) == len(log)
    assert {one.grid for one in log if one.grid} <= grids
    # Every ablation beyond the paper's own tables is there because something is left open.
    assert {name for name in grids if not name.startswith(("table5", "table6"))} <= {one.grid for one in log}


def test_what_the_ablation_found_stands_beside_the_choice(score_cell: Callable[..., None], run: Callable[..., int], tmp_path: Path) -> None:
    for name, quality in {"apex,rho=0.0": 0.2, "apex,rho=3.0": 0.7}.items():
        score_cell(tmp_path / "ablations", name, 0, quality)
    call = ("--config", WORLD, "--results", tmp_path / "ablations", "--out", tmp_path / "out")
    assert run(assumptions.main, *call) == 0
    lines = {line["open"].split(";")[0]: line["matters"] for line in csv.DictReader((tmp_path / "out/assumptions.csv").open())}
    assert lines["guidance in the target"] == "0.20 (rho 0) to 0.70 (rho 3); 2 of 4 cells were run"
    assert lines["order N of the recursion"] == "not run"
    assert "snakemake ablation_order makes it" in (tmp_path / "out/assumptions.md").read_text()


def test_a_broken_log_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "log.yaml"
    path.write_text(json.dumps([{"id": "a", "open": "something", "chosen": "x", "why": "because", "grids": "order"}]))
    with pytest.raises(UserError, match=r"log\.yaml: entry a: grids: unknown key 'grids'; did you mean 'grid'"):
        assumptions.read(path)


def test_a_profile_without_the_ablation_says_so(tmp_path: Path) -> None:
    cell = assumptions.sensitivity(Plan(load("workflows/config/smoke.yaml")), "order", tmp_path)
    assert cell.text == "not run" and "The profile has no ablation order" in cell.note
