"""Ablations as tables and figures: the paper's numbers beside the right cells, differences from the control, what was not run."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apex.ablations import Plan
from apex.config import load
from apex.errors import UserError
from paper_tables import ablations, grids, pictures, published

WORLD = Path("workflows/config/matrix.yaml")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(load(WORLD))


@pytest.fixture(scope="module")
def data() -> published.Published:
    return published.load()


@pytest.mark.parametrize("name", ["table5_full", "table5_lora", "table6", "table7"])
def test_every_number_of_the_papers_ablations_stands_beside_one_cell(
    plan: Plan, data: published.Published, name: str, tmp_path: Path
) -> None:
    grid = ablations.load_grid(plan, name, tmp_path)
    found = [text for cell in grid.cells for text in ablations.printed(grid, cell, data).values()]
    rows = data[grid.ablation.paper]
    if name == "table6":
        wanted = [row[key] for row in rows for key in ("apex_0_6b", "apex_1_6b", "apex_20b_lora_r32")]
    else:
        wanted = [row["geneval"] for row in rows if name != "table5_full" or "LoRA" not in row["model"]]
        wanted = [row["geneval"] for row in rows if "LoRA" in row["model"]] if name == "table5_lora" else wanted
    assert sorted(found) == sorted(wanted)


def test_the_papers_numbers_are_of_the_same_setting(plan: Plan, data: published.Published, tmp_path: Path) -> None:
    told = {}
    for name in plan.found.grids:
        grid = ablations.load_grid(plan, name, tmp_path)
        told |= {(name, cell.name): ablations.printed(grid, cell, data) for cell in grid.cells}
    assert told["table7", "apex,a=-0.5,b=1.0"] == {"(a, b)": "0.81"}
    assert told["table7", "apex,learn_shift=True"] == told["table7", "apex,a=1.0"] == {}
    assert told["table6", "apex-eq25,mix_weight=0.5"] == {"0.6B": "0.72", "1.6B": "0.71", "20B LoRA": "0.81"}
    assert told["table5_full", "apex,captions=shapes,forward_equivalents=50000.0"] == {"0.6B": "0.37", "1.6B": "0.36"}
    assert told["table5_lora", "apex-lora,forward_equivalents=125000.0,rank=2"] == {"20B LoRA r=64": "0.85"}
    assert told["order", "apex"] == {}


def lines(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / f"{name}.csv").open()))


def test_a_profile_without_renders_has_no_coverage_of_its_cells(data: published.Published, tmp_path: Path) -> None:
    grid = ablations.load_grid(Plan(load(Path("workflows/config/sana_0_6b.yaml"))), "geneval_data", tmp_path)
    assert not {column.key for column in ablations.table(grid, data).columns} & {"spread", "recall"}
    assert not any("coverage" in axes.get_title(loc="left") for axes in ablations.draw(grid, data).axes)


def test_what_was_run_stands_beside_what_was_not(
    plan: Plan, score_cell: Callable[..., None], run: Callable[..., int], tmp_path: Path
) -> None:
    results, out = tmp_path / "ablations", tmp_path / "tables"
    score_cell(results, "apex,a=1.0", 0, 0.4, 0.0)
    for seed in (0, 1, 2):
        score_cell(results, "apex", seed, 0.6, 0.5)
    score_cell(results, "apex,a=0.5", 0, 0.3, 0.02)
    assert run(ablations.main, "--config", WORLD, "--results", results, "--grid", "table7", "--out", out) == 0
    found = {(line["params.a"], line["params.b"], line["params.learn_shift"]): line for line in lines(out, "table7")}
    assert len(found) == 14
    apex, control, half = found["-1", "0", "no"], found["1", "0", "no"], found["0.5", "0", "no"]
    assert (apex["seeds"], half["seeds"], control["note"].split(", ")[0]) == ("3", "1", "control")
    assert float(apex["difference"].split()[0]) == pytest.approx(0.21, abs=0.001)  # seed 1 and 2 score 0.01 and 0.02 more
    assert float(half["difference"].replace("−", "-").split()[0]) == pytest.approx(-0.1, abs=0.001)
    assert (apex["visibility"], half["visibility"], control["visibility"]) == ("0.5", "0.02", "0")
    assert found["-0.5", "1", "no"]["geneval"] == "not run"
    text = (out / "table7.md").read_text()
    assert "snakemake ablation_table7 makes it" in text and "0.81" in text
    assert (out / "table7.png").stat().st_size > 10_000


def test_the_ends_are_the_best_the_worst_and_the_control(
    plan: Plan, score_cell: Callable[..., None], run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, out = tmp_path / "ablations", tmp_path / "ends.json"
    for name, quality in {"apex,rho=0.0": 0.2, "apex,rho=0.5": 0.5, "apex,rho=3.0": 0.7}.items():
        score_cell(results, name, 0, quality)
    call = ("--config", WORLD, "--results", results, "--grid", "guidance", "--ends", out)
    assert run(ablations.main, *call) == 2
    assert "guidance: cell 'apex' has no record yet; `snakemake ablation_guidance` runs it" in capsys.readouterr().err
    score_cell(results, "apex", 0, 0.6)
    assert run(ablations.main, *call) == 0
    assert json.loads(out.read_text()) == ["apex,rho=3.0", "apex,rho=0.0", "apex"]
    score_cell(results, "apex", 0, 0.1)
    assert run(ablations.main, *call) == 0 and json.loads(out.read_text()) == ["apex,rho=3.0", "apex"]
    score_cell(results, "apex", 1, 0.9)  # a second seed does not choose
    assert run(ablations.main, *call) == 0 and json.loads(out.read_text()) == ["apex,rho=3.0", "apex"]


def test_the_pictures_of_a_grid_are_those_of_its_cells(
    score_cell: Callable[..., None], make_results: Callable[..., Path], run: Callable[..., int], tmp_path: Path
) -> None:
    """A line for each cell that keeps pictures, the same prompts across; a cell without is named below."""
    images = make_results(rows={("apex", 1): 0.5, ("lcm", 1): 0.5}, images=True) / "images"
    results, out = tmp_path / "ablations", tmp_path / "out"
    for name, row in {"apex": "apex", "apex,order=1": "lcm", "apex,order=2": ""}.items():
        score_cell(results, name, 0, 0.5)
        if row:
            folder = images / row / "nfe1/seed0/test"
            assert run(pictures.main, "--images", folder, "--out", results / name / "seed0/pictures.zip") == 0
    call = ("--config", WORLD, "--results", results, "--grid", "order", "--out", out)
    assert run(ablations.main, *call) == 0
    sheet = np.asarray(Image.open(out / "order_pictures.png"))
    (results / "apex/seed0/pictures.zip").unlink()
    assert run(ablations.main, *call) == 0
    fewer = np.asarray(Image.open(out / "order_pictures.png"))
    side = grids.cell_side(32)
    assert side <= sheet.shape[0] - fewer.shape[0] < side + 30  # a line of pictures
    shutil.rmtree(results)
    score_cell(results, "apex", 0, 0.5)
    (out / "order_pictures.png").unlink()
    assert run(ablations.main, *call) == 0 and not (out / "order_pictures.png").exists()
    assert run(pictures.main, "--images", tmp_path / "nothing", "--out", out / "p.zip") == 2 and not (out / "p.zip").exists()


def test_an_unknown_grid_is_one_line(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ablations.main, "--config", WORLD, "--results", tmp_path, "--grid", "table8", "--out", tmp_path) == 2
    assert "--grid table8: unknown; workflows/config/matrix.yaml has: table7, table6," in capsys.readouterr().err


def test_a_run_that_diverged_is_marked(plan: Plan, score_cell: Callable[..., None], tmp_path: Path, data: published.Published) -> None:
    score_cell(tmp_path, "apex", 0, 0.1)
    made = tmp_path / "apex/seed0/run/made.json"
    made.write_text(json.dumps({"training": {"stopped": "the loss is nan at step 9"}}))
    grid = ablations.load_grid(plan, "order", tmp_path)
    line = next(line for line in ablations.table(grid, data).lines if line.cells["params.order"].text == "4")
    assert "diverged" in line.cells["note"].text and "seed 0: the loss is nan at step 9" in line.cells["note"].note


def test_the_reader_raises_where_a_record_is_broken(plan: Plan, score_cell: Callable[..., None], tmp_path: Path) -> None:
    score_cell(tmp_path, "apex", 0, 0.1)
    (tmp_path / "apex/seed0/records/geneval.json").write_text("{")
    with pytest.raises(UserError, match=r"apex/seed0/records/geneval\.json"):
        ablations.load_grid(plan, "order", tmp_path)


def test_a_cell_is_named_by_what_tells_it_apart(plan: Plan, tmp_path: Path) -> None:
    named = {}
    for name in ("table7", "eq25_lam", "eq25_reading", "branch"):
        grid = ablations.load_grid(plan, name, tmp_path)
        named |= {cell.name: ablations.label(grid, cell) for cell in grid.cells}
    assert named["apex,b=10.0"] == "a -1, b 10" and named["apex,learn_shift=True"] == "a -1, b 0, learn_shift"
    assert named["apex-eq25,lam=0.0"] == "lam 0" and named["apex-eq25,lam=1.0"] == "lam 1"
    assert named["apex-eq25,x_fake_gradient=False"] == "no x_fake_gradient, weighting t(1-t)"
    assert named["apex,negative_time=True"] == "a -1, negative_time"


def test_grids_of_which_nothing_was_run_are_left_out(
    score_cell: Callable[..., None], run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score_cell(tmp_path, "apex,order=1", 0, 0.5)
    assert run(ablations.main, "--config", WORLD, "--results", tmp_path, "--out", tmp_path / "out") == 0
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"order"}
    assert "table7: not run yet, left out; snakemake ablation_table7 makes it" in capsys.readouterr().out
