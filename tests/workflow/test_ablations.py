"""Ablations: what a file of them declares, which cells are one run, and the workflow that runs a small grid and its ends again."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from apex import methods
from apex.ablations import CELL, Plan
from apex.config import check_params, load
from apex.errors import UserError
from paper_tables import published
from paper_tables.ablations import Grid, Trial, printed

GRIDS = """
share: 0.5
grids:
  shift:
    title: the shift
    row: apex
    own: {params.a: -1.0, params.b: 0.0}
    grid: {params.a: [-1.0, 0.5], params.b: [0.0, 1.0]}
    control: {params.a: 1.0}
  order:
    title: the order
    row: apex
    own: {params.order: 1}
    grid: {params.order: [1, 2]}
  rank:
    title: rank and budget
    row: small
    own: {share: 0.5}
    grid: {lora.rank: [1, 2], share: [0.1, 0.5]}
    cells: [{data.captions: shapes, train.learning_rate: 3e-4}]
"""
ROWS = "rows: {small: {method: apex, tuning: lora, lora: {rank: 8}, params: {rho: 2.0}}}\nbudget: {forward_equivalents: 1000}\n"


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Plan]:
    """plan(text): the ablations of a small profile."""

    def make(text: str = GRIDS) -> Plan:
        (tmp_path / "grids.yaml").write_text(text)
        (tmp_path / "mine.yaml").write_text(f"profile: mine\nablations: {tmp_path / 'grids.yaml'}\n{ROWS}")
        return Plan(load(tmp_path / "mine.yaml"))

    make.file = tmp_path / "mine.yaml"
    return make


def test_a_grid_is_crossed_and_equal_cells_are_one_run(plan):
    found = plan()
    assert found.names("shift") == ["apex", "apex,b=1.0", "apex,a=0.5", "apex,a=0.5,b=1.0", "apex,a=1.0"]
    assert found.control("shift") == "apex,a=1.0" and found.control("order") == "apex"
    assert found.names("order") == ["apex", "apex,order=2"]
    assert found.names("rank")[:2] == ["small,rank=1,share=0.1", "small,rank=1"]
    assert len(found.cells) == 5 + 1 + 6  # the order's first cell is the shift's; rank has its control besides


def test_an_absolute_budget_does_not_follow_the_profiles(plan):
    text = GRIDS.replace("share: 0.5\ngrids", "forward_equivalents: 400\ngrids").replace(
        "own: {share: 0.5}", "own: {forward_equivalents: 400}"
    )
    found = plan(text.replace("share: [0.1, 0.5]", "forward_equivalents: [5e1, 400]"))
    assert found.names("rank")[:2] == ["small,forward_equivalents=50.0,rank=1", "small,rank=1"]
    for budget in (1000, 4000):
        resolve = lambda name: load(plan.file, [f"budget.forward_equivalents={budget}", *found.cells[name].changes]).run_config(CELL)  # noqa: E731, B023
        assert resolve("small,rank=1").budget.forward_equivalents == resolve("apex").budget.forward_equivalents == 400
        assert resolve("small,forward_equivalents=50.0,rank=1").budget.forward_equivalents == 50


def test_a_cell_is_the_row_with_its_settings_changed(plan):
    found = plan()
    resolve = lambda name: load(plan.file, found.cells[name].changes).run_config(CELL)  # noqa: E731
    run = resolve("apex,a=0.5,b=1.0")
    assert (run.method, run.params, run.budget.forward_equivalents) == ("apex", {"a": 0.5, "b": 1.0}, 500)
    run = resolve("small,rank=1,share=0.1")
    assert (run.tuning, run.lora.rank, run.params, run.budget.forward_equivalents) == ("lora", 1, {"rho": 2.0}, 100)
    cell = found.cells["small,captions=shapes,learning_rate=0.0003"]
    run = resolve(cell.name)
    assert (run.train.learning_rate, run.data.captions, run.lora.rank) == (3e-4, "shapes", 8)
    assert (cell.data, cell.source) == ("shapes", "") and found.cells["apex"].data == ""


@pytest.mark.parametrize(
    "text, line",
    [
        (
            "grids: {g: {title: t, grid: {a: [1]}}}",
            r"grids\.yaml: grids\.g: unknown setting 'a'; expected forward_equivalents, share, tuning, data\.X",
        ),
        ("grids: {g: {title: t, row: nobody, grid: {share: [1.0]}}}", r"grids\.yaml: grids\.g\.row: unknown row 'nobody'"),
        ("grids: {g: {title: t}}", r"grids\.g: found neither `grid` nor `cells`"),
        ("grids: {g: {title: t, abuot: x, grid: {share: [1.0]}}}", r"grids\.g\.abuot: unknown key 'abuot'; did you mean 'about'\?"),
        ("grids: {g: {title: t, grid: {params.a: []}}}", r"grids\.g\.grid\.params\.a: found \[\]"),
        ("grids: {g: {title: t, cells: [{params.a: '1/2'}, {params.a: 1-2}]}}", r"grids\.g: two cells are called 'apex,a=1-2'"),
        ("share: 2\n", r"grids\.yaml: share: found 2"),
    ],
)
def test_what_cannot_be_meant_is_one_line(plan, text, line):
    with pytest.raises(UserError, match=line):
        plan(text)


def test_a_missing_file_is_one_line(tmp_path):
    (tmp_path / "p.yaml").write_text("profile: p\nablations: nowhere.yaml\n")
    with pytest.raises(UserError, match=r"p\.yaml: ablations: found no file nowhere\.yaml"):
        Plan(load(tmp_path / "p.yaml"))


def test_other_captions_need_the_world(plan):
    plan()
    plan.file.write_text(plan.file.read_text() + "data: {source: photographs}\n")
    with pytest.raises(UserError, match=r"grids\.yaml: cell 'small,captions=shapes,.*' *: data\.captions needs the rendered world"):
        Plan(load(plan.file))


# ------------------------------------------------------------------------------------------------ the shipped ones


@pytest.fixture(scope="module", params=["world", "sana_0_6b", "sana_1_6b", "qwen_image_lora_r64"])
def shipped(root, request) -> tuple[Path, Plan]:
    file = root / "workflows" / "config" / f"{request.param}.yaml"
    return file, Plan(load(file))


def test_every_cell_can_run(shipped):
    file, plan = shipped
    for cell in plan.cells.values():
        check_params(load(file, cell.changes), [CELL])


def test_what_a_grid_calls_the_rows_own_is_the_rows_own(shipped):
    """Else a cell would pass for the row as it is."""
    _, plan = shipped
    for name, ablation in plan.found.grids.items():
        run = plan.config.run_config(ablation.row)
        params = methods.get(run.method)(run.params).params
        for key, value in ablation.own.items():
            where, _, last = key.rpartition(".")
            known = {"params": params, "train": run.train, "lora": run.lora, "data": run.data}
            assert value == (plan.found.share if key == "share" else getattr(known[where], last)), (name, key)


def test_table_5_has_every_number_of_the_papers_beside_a_cell(shipped):
    """Full tuning and LoRA each has its twelve, whatever stands for the data sets."""
    _, plan = shipped
    for name, ablation in plan.found.grids.items():
        if ablation.paper == "table5":
            cells = [Trial(ablation.name(settings), settings, {}, {}, {}) for settings in ablation.settings()]
            grid = Grid(name, ablation, cells, "", plan.found.share, plan.found.nfe)
            found = [(model, value) for cell in grid.cells for model, value in printed(grid, cell, published.load()).items()]
            wanted = [r for r in published.load()["table5"] if ("LoRA" in r["model"]) == (name == "table5_lora")]
            assert sorted(found) == sorted((r["model"].removeprefix("APEX "), r["geneval"]) for r in wanted) and len(found) == 12


def test_a_cell_on_other_images_has_a_folder_and_latents_of_its_own(plan):
    grid = "share: 1.0\ngrids: {g: {title: t, row: small, own: {data.source: mine}, grid: {data.source: [mine, their/pictures]}}}\n"
    plan("grids: {}\n")
    plan.file.write_text(plan.file.read_text() + "data: {source: mine}\n")
    (plan.file.parent / "grids.yaml").write_text(grid)
    found = Plan(load(plan.file))
    assert {name: (cell.data, cell.source) for name, cell in found.cells.items()} == {
        "small": ("", ""), "small,source=their-pictures": ("their-pictures", "their/pictures")
    }  # fmt: skip
    assert load(plan.file, found.cells["small,source=their-pictures"].changes).data.source == "their/pictures"
    (plan.file.parent / "grids.yaml").write_text(grid.replace("own: {data.source: mine}", "own: {data.source: another}"))
    found = Plan(load(plan.file))
    assert {name: cell.source for name, cell in found.cells.items()} == {"small": "", "small,source=their-pictures": "their/pictures"}
    assert found.found.grids["g"].own == {"data.source": "mine"}, "of a profile whose data were changed, they are the row's own"
    drawn = Plan(load(plan.file, ["data={source: teacher, teacher: {prompts: p.txt}}"]))
    cell = drawn.cells["small,source=their-pictures"]
    changed = load(plan.file, ["data={source: teacher, teacher: {prompts: p.txt}}", *cell.changes])
    assert (changed.data.source, changed.data.teacher) == ("their/pictures", None)
    assert load(plan.file, drawn.cells["small"].changes).data.source == "mine"


# ------------------------------------------------------------------------------------------------------ a small one


@pytest.mark.slow
def test_a_grid_is_one_target_and_its_ends_run_again(make_workflow, tmp_path):
    (tmp_path / "grids.yaml").write_text(
        "share: 1.0\nagain: [1]\ngrids:\n"
        "  captions: {title: captions, row: fm, own: {data.captions: full}, grid: {data.captions: [shapes]}}\n"
        "  other: {title: never asked for, row: fm, grid: {share: [0.5]}}\n"
    )
    changes = {"data": {"scenes": 48, "embeddings": "disk"}, "prompts": {"per_task": 1, "images_per_prompt": 2}}
    flow = make_workflow(tmp_path, ablations=str(tmp_path / "grids.yaml"), **changes)
    code, output = flow.run("ablation_captions")
    assert code == 0, output
    folder = flow.results / "ablations"
    lines = list(csv.DictReader((folder / "tables" / "captions.csv").open()))
    assert [(line["data.captions"], line["note"], line["seeds"]) for line in lines] == [("shapes", "", "2"), ("full", "control", "2")]
    assert {path.name for path in folder.glob("fm*")} == {"fm", "fm,captions=shapes"}
    captions = [place / "embeddings-fp32/made.json" for place in (flow.results / "data", folder / "data/shapes")]
    assert len({json.loads(file.read_text())["captions"] for file in captions}) == 2, "cells with other captions have their own"
    assert not list(folder.glob("fm*/seed*/images")), "records and a few pictures are kept of a cell"
    assert {path.parent.relative_to(folder).as_posix() for path in folder.glob("fm*/seed*/pictures.zip")} == {
        "fm/seed0", "fm,captions=shapes/seed0"
    }  # fmt: skip
    assert (folder / "tables" / "captions_pictures.png").is_file()
    assert (folder / "tables" / "captions.png").is_file() and not (folder / "tables" / "other.png").exists()
    code, output = flow.run("ablation_captions")
    assert code == 0 and "Nothing to be done" in output, output
