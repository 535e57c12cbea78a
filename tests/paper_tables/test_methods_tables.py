"""The tables of many methods, on twenty synthetic rows: none is missing, what was not run or not trained says so, published numbers
touch nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from apex.config import load
from paper_tables import build, cells, figures, plotting, published, scatter
from paper_tables.expected import Expected
from paper_tables.render import Cell, Table, to_markdown
from paper_tables.view import View

PROFILE_NFE = (1, 2, 4)


def tables_of(view: View) -> dict[str, Table]:
    return {table.name: table for table in build.tables(view, published.load())}


def named(table: Table, row: str, nfe: int | None = None) -> list[dict[str, Cell]]:
    first = "model" if table.name.startswith("table") else "row"
    found = [line.cells for line in table.lines if line.cells[first].text == row]
    return [line for line in found if nfe is None or line["nfe"].text == str(nfe)]


@pytest.fixture(scope="module")
def tables(matrix_view: View) -> dict[str, Table]:
    return tables_of(matrix_view)


# ------------------------------------------------------------------------------------------------------ which lines


def test_every_method_stands_once_at_every_nfe_by_family(tables: dict[str, Table], matrix_view: View) -> None:
    for name in ("comparison", "world", "table1", "table2"):
        for row in matrix_view.rows:
            nfes = {"theirs": (1,), "slower": (8,)}.get(row, PROFILE_NFE)
            assert all(len(named(tables[name], row, nfe)) == 1 for nfe in nfes), (name, row)
    sections = [line.section for line in tables["comparison"].lines if line.section.startswith("NFE 1:")]
    families = ["consistency", "adversarial", "self-adversarial", "regression", "control", "external"]
    assert sections[:6] == [f"NFE 1: {family}" for family in families]
    for name in ("cost", "stability"):
        assert [line.cells["row"].text for line in tables[name].lines] == matrix_view.rows


OTHERS_BENCHMARKS = ("table3", "table4")  # DPG and WISE: only rows with a number of theirs have a line


def test_a_row_that_was_not_run_is_a_line_that_says_so(tables: dict[str, Table], matrix_view: View) -> None:
    assert matrix_view.not_run == ["scm-late"]
    known = {"row", "model", "nfe", "citation", "tuning", "note", "verdict", "unseen_verdict", "baseline", "unseen_baseline"}
    for name, table in tables.items():
        lines = named(table, "scm-late")
        assert lines or name in ("sweep", *OTHERS_BENCHMARKS)
        for line in lines:
            said = {cell.text for key, cell in line.items() if key not in known and not key.startswith("pub_")}
            assert said == {"not run"}, (name, said)
            reasons = {cell.note for cell in line.values() if cell.text == "not run"}
            assert reasons == {"Not run yet; the profile names it, and snakemake full makes it."}


def test_neighbours_that_say_the_same_are_one_cell_with_one_mark(tables: dict[str, Table]) -> None:
    text = to_markdown(tables["cost"])
    (line, _) = [line for line in text.splitlines() if line.startswith("| scm-late ")]
    assert len(re.findall("not run", line)) == 10 and len(re.findall("<sup>", line)) == 4  # shares, run, seeds, hardware


# --------------------------------------------------------------------------------------------------- images from elsewhere


def test_images_from_elsewhere_stand_in_every_table(tables: dict[str, Table]) -> None:
    for name, table in tables.items():
        if name in ("sweep", *OTHERS_BENCHMARKS):
            continue
        assert named(table, "theirs") and named(table, "slower"), name
    line = named(tables["comparison"], "theirs")[0]
    assert line["overall"].text == "0.95 [0.92, 0.98]" and line["citation"].text == "a folder"
    assert {line[key].text for key in ("tuning", "throughput", "latency", "parameters", "trainable")} == {cells.ONLY_IMAGES}
    trained = [key for key in named(tables["world"], "theirs")[0] if key.startswith("train_")] + ["latency", "parameters", "trainable"]
    assert {named(tables["world"], "theirs")[0][key].text for key in trained} == {cells.ONLY_IMAGES}
    cost = named(tables["cost"], "theirs")[0]
    assert {cell.text for key, cell in cost.items() if key not in ("row", "note")} == {cells.ONLY_IMAGES}
    stable = named(tables["stability"], "theirs")[0]
    assert {stable[key].text for key in ("tuning", "outcome", "spent", "loss_last", "norm", "seeds")} == {cells.ONLY_IMAGES}
    assert stable["overall"].text == "0.95 [0.92, 0.98]"
    assert named(tables["relative"], "theirs")[0]["unseen"].text == "–"  # the folder has the test prompts alone


def test_images_from_elsewhere_are_neither_ranked_nor_counted(tables: dict[str, Table]) -> None:
    """`theirs` scores the most, and is not the best of the methods that share a teacher and a budget."""
    line = named(tables["comparison"], "theirs")[0]
    assert not any(cell.strong for cell in line.values())
    assert named(tables["comparison"], "best at NFE 1")[0]["overall"].text == "dmd2"
    assert named(tables["paired"], "theirs", 1)[0]["verdict"].text == "above"
    (together,) = [line for line in tables["paired"].lines if line.section == "NFE 1: together"]
    counted = sum(int(number) for number in re.findall(r"\d+", together.cells["row"].text))
    assert counted == 19  # twenty rows but apex


def test_without_a_profile_a_record_without_training_is_known_as_images(matrix: Path) -> None:
    view = View.load(matrix)
    assert [row for row in view.rows if view.images_only(row)] == ["slower", "theirs"]
    assert view.compared == list(PROFILE_NFE) and view.source("theirs") == "a folder"


def test_images_that_were_not_scored_yet_say_so(make_results: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("{profile: p, methods: [apex], external: [{row: theirs, nfe: 1, images: x, source: a web page}]}")
    view = View.load(make_results(rows={("apex", 1): 0.5}), Expected.of(load(tmp_path / "p.yaml")))
    (line,) = named(tables_of(view)["comparison"], "theirs")
    assert (line["overall"].text, line["latency"].text, line["citation"].text) == ("not run", cells.ONLY_IMAGES, "a web page")
    assert line["overall"].note == "Not run yet; the profile names its images, and snakemake all scores them."


# ------------------------------------------------------------------------------------------------------- published numbers


def test_published_numbers_are_lines_of_their_own_and_touch_nothing_else(
    matrix: Path, tables: dict[str, Table], matrix_view: View, published_numbers: list[dict]
) -> None:
    """Every other line of every table stays as it was; a figure that could show them does not."""
    view = View.load(matrix, Expected.of(load(matrix / "profile.yaml", [f"published={json.dumps(published_numbers)}"])))
    found = tables_of(view)
    for name, table in found.items():
        added = table.lines[len(tables[name].lines) :]
        assert table.lines[: len(tables[name].lines)] == tables[name].lines
        assert len(added) == (2 if name == "comparison" else 0), name
    new, old = (line.cells for line in found["comparison"].lines[-2:])
    assert found["comparison"].lines[-2].section.startswith("Published")
    assert (old["row"].text, old["nfe"].text, old["fid"].text, old["overall"].text) == ("Old (published)", "1", "0.5", "–")
    assert (new["row"].text, new["overall"].text, new["citation"].text) == ("Theirs 0.6B (published)", "0.99", "a paper, Table 3")
    assert new["note"].text == "0.6B, A100; dpg 81.2"  # its setting, and a number of a benchmark that has no column
    assert new["row"].note == "Published, not measured here: a paper, Table 3; 0.6B, A100."
    assert not any(cell.strong for line in (old, new) for cell in line.values())
    assert {new[key].text for key in ("n", "seeds", "tuning", "parameters", "latency", "spread")} == {"–"}
    for draw in (scatter.quality_latency, scatter.coverage_quality):
        assert plotting.png(draw(view)) == plotting.png(draw(matrix_view))


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ('{"row": "a"}', "published: found {'row': 'a'}, expected a valid list"),
        ('[{"row": "a", "nfe": 1, "metric": "fid", "value": "low", "source": "a text"}]', "published.0.value: found 'low'"),
        ('[{"row": "a", "nfe": 1, "metric": "fid", "value": 2, "source": "a text", "wrong": 1}]', "published.0.wrong: unknown key"),
        ('[{"row": "a", "nfe": 1, "metric": "fid", "value": 2}]', "published.0.source: not given"),
        ('[{"row": "apex", "nfe": 1, "metric": "fid", "value": 2, "source": "a text"}]', "name it apart"),
    ],
)
def test_a_broken_list_of_published_numbers_is_one_line(
    numbers: str,
    says: str,
    make_results: Callable[..., Path],
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results, profile = make_results(rows={("apex", 1): 0.5}), tmp_path / "p.yaml"
    profile.write_text(f"{{profile: p, methods: [apex], published: {numbers}}}")
    for command in (build.main, figures.main):
        assert run(command, "--results", results, "--out", tmp_path / "out", "--config", profile) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {profile}: ") and says in error and error.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------- their numbers


def test_the_best_is_bold_only_where_the_interval_parts_it_from_the_second(make_results: Callable[..., Path]) -> None:
    """GenEval of 24 prompts with 100 images each: 0.02 apart the prompts' bootstrap is exact, for every prompt differs alike; the
    intervals of CLIP score, 0.4 wide, part 0.5 and not 0.2."""
    for gap, bold in ((0.05, {"overall", "clip_score", "spread", "precision"}), (0.02, {"overall"})):
        table = tables_of(View.load(make_results(str(gap), rows={("apex", 1): 0.5, ("fm", 1): 0.5 - gap})))["comparison"]
        (apex,), (fm,) = named(table, "apex"), named(table, "fm")
        assert {key for key in ("overall", "clip_score", "spread", "precision", "recall", "fid") if apex[key].strong} == bold
        assert not any(cell.strong for cell in fm.values())


def test_paired_is_the_difference_at_the_same_nfe_with_its_verdict(tables: dict[str, Table], matrix_view: View) -> None:
    for row, nfe, verdict in (("dmd2", 1, "above"), ("fm", 1, "below"), ("scm", 4, "below")):
        (line,) = named(tables["paired"], row, nfe)
        ours, apex = (matrix_view.get((name, nfe), "geneval/overall").value for name in (row, "apex"))
        assert line["difference"].summary.value == pytest.approx(round(100 * ours) / 100 - round(100 * apex) / 100, abs=1e-9)
        assert line["verdict"].text == verdict


def test_paired_without_apex_at_that_nfe_says_so(make_results: Callable[..., Path]) -> None:
    results = make_results(rows={("fm", 8): 0.5, ("fm", 1): 0.5, ("apex", 1): 0.6})
    for path in (results / "records" / "fm" / "nfe8").rglob("*.json"):
        one = json.loads(path.read_text()) | dict.fromkeys(("family", "tuning", "training"))
        target = results / "records" / "theirs" / "nfe8" / "seed0" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(one | {"row": "theirs", "method": "theirs"}))
    (line,) = named(tables_of(View.load(results))["paired"], "theirs", 8)
    assert (line["value"].text, line["baseline"].text, line["difference"].text, line["verdict"].text) == ("0.50", "–", "–", "")
    assert line["difference"].note == "Does not apply: apex is not sampled at this NFE."


def test_cost_adds_up(tables: dict[str, Table], matrix_view: View) -> None:
    for row in matrix_view.rows:
        (line,) = named(tables["cost"], row)
        if line["share_student"].summary is None:
            continue
        shares = [line[f"share_{name}"].summary.value for name in ("student", "teacher", "ema", "extra")]
        assert sum(shares) == pytest.approx(100)
        memory = [line[f"memory_{name}"].summary.value for name in ("student", "teacher", "extra", "ema", "optimizer", "step")]
        assert sum(memory) == pytest.approx(line["memory_total"].summary.value)
    (eq25,), (fm,) = named(tables["cost"], "apex-eq25"), named(tables["cost"], "fm")
    assert (eq25["share_extra"].text, eq25["share_extra"].note) == ("10.0", "apex-eq25: heads 10.0%.")
    assert (eq25["memory_ratio"].text, fm["memory_ratio"].text) == ("1.20", "1.00")  # 120 and 100 MB


def test_the_sweep_has_a_column_for_every_nfe(tables: dict[str, Table]) -> None:
    table = tables["sweep"]
    assert [line.cells["row"].text for line in table.lines] == ["ctm", "meanflow", "scm", "apex", "teacher (guided)"]
    for title, columns in table.views():
        assert [column.head for column in columns[1:-2]] == [str(nfe) for nfe in range(1, 21)], title
    (scm,), (teacher,) = named(table, "scm"), named(table, "teacher (guided)")
    assert [scm[f"overall_{nfe}"].text for nfe in (1, 2, 4, 16)] == ["0.55", "0.60", "0.65", "0.75"]
    assert scm["overall_4"].summary.low == pytest.approx(0.62)  # in the CSV file
    assert (teacher["overall_1"].text, teacher["overall_7"].text) == ("0.08", "–")


def test_no_sweep_no_table(make_results: Callable[..., Path]) -> None:
    assert "sweep" not in tables_of(View.load(make_results(rows={("apex", 1): 0.5, ("apex", 2): 0.5})))
