"""A run beside the committed one: what is the same says so, what is not is seen, what may not be compared is not judged."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from paper_tables import build, figures, forest, published, stats
from paper_tables.tables_repeat import beside, repeated
from paper_tables.view import View

ROWS = {("real", 0): 0.95, ("teacher", 25): 0.80, ("apex", 1): 0.70, ("fm", 1): 0.20}


def lines(view: View) -> dict[tuple[str, str], dict[str, str]]:
    """(row, NFE) -> column -> text."""
    return {
        (line.cells["row"].text, line.cells["nfe"].text): {k: c.text for k, c in line.cells.items()}
        for line in repeated(view).lines
        if "nfe" in line.cells
    }


def test_the_same_results_are_the_same(make_results):
    here, there = (make_results(name, rows=ROWS, runs=True) for name in ("here", "there"))
    table = repeated(View.load(here, committed=there))
    readings = {cell.text for line in table.lines for key, cell in line.cells.items() if key.endswith("reading")}
    assert readings == {"the same"}
    assert table.lines[-1].cells["row"].text == "GenEval, 4 cells: 4 the same"
    assert [line.section for line in table.lines if line.section] == ["references and teacher", "self-adversarial", "control", "together"]


@pytest.mark.parametrize(("quality", "said"), [(0.45, "below"), (0.90, "above"), (0.71, "not told apart")])
def test_a_row_that_came_out_otherwise_is_seen(make_results, quality: float, said: str):
    here = make_results("here", rows=ROWS | {("apex", 1): quality})
    there = make_results("there", rows=ROWS, seeds=(0, 1, 2))
    found = lines(View.load(here, committed=there))
    apex = found["apex", "1"]
    assert apex["geneval/overall reading"] == said
    assert float(apex["geneval/overall difference"].partition(" ")[0].replace("−", "-")) == pytest.approx(quality - 0.70, abs=1e-3)
    assert apex["seeds"] == apex["committed"] == "1", "seed 0 is what both have"
    assert found["fm", "1"]["geneval/overall reading"] == "the same"


def test_other_seeds_are_compared_where_none_is_common(make_results):
    here, there = make_results("here", rows=ROWS, seeds=(7,)), make_results("there", rows=ROWS, seeds=(0, 1, 2))
    apex = lines(View.load(here, committed=there))["apex", "1"]
    assert (apex["seeds"], apex["committed"], apex["geneval/overall reading"]) == ("1", "3", "above")  # seed 7 adds 0.07 there


def test_training_noise_is_the_rows_own_where_it_has_three_seeds(make_results):
    rows = ROWS | {("rcgm", 1): 0.5}
    here = make_results("here", rows={k: v + 0.02 for k, v in rows.items()})
    there = make_results("there", rows={k: v for k, v in rows.items() if k[0] != "fm"}, seeds=(0, 1, 2))
    make_results("there", rows={("fm", 1): 0.20})
    both = beside(View.load(here, committed=there))
    (own,) = {round(statistics.stdev(both.committed.by_seed((row, 1), "geneval/overall")), 6) for row in ("apex", "rcgm")}
    assert own == pytest.approx(0.01)
    for row, quantile in (("apex", stats.t_quantile(3)), ("fm", 1.96)):
        found = both.difference((row, 1), "geneval/overall")
        alone = both.here.bare_difference((row, 1), (row, 1), "geneval/overall", of=both.there)
        assert (found.high - found.value) ** 2 == pytest.approx((alone.high - alone.value) ** 2 + (quantile * 0.01) ** 2 * 2, rel=1e-6)
    teacher = both.difference(("teacher", 25), "geneval/overall")
    assert teacher == both.here.bare_difference(("teacher", 25), ("teacher", 25), "geneval/overall", of=both.there), "nothing was trained"


def test_a_row_of_other_settings_is_not_judged_and_says_which(make_results):
    here = make_results("here", rows=ROWS | {("apex", 1): 0.4}, runs=True)
    there = make_results("there", rows=ROWS, runs=True)
    made = here / "runs" / "apex" / "seed0" / "made.json"
    said = json.loads(made.read_text())
    said["run"]["train"] |= {"max_grad_norm": 2.0, "log_every": 7, "new": 1}
    made.write_text(json.dumps(said))
    view = View.load(here, committed=there)
    table = repeated(view)
    (note,) = {cell.note for line in table.lines for cell in line.cells.values() if cell.note}
    assert note == "apex was trained with other settings: train.max_grad_norm: here 2.0, committed 1.0."
    assert lines(view)["apex", "1"]["geneval/overall reading"] == "other settings"
    assert table.lines[-1].cells["row"].text == "GenEval, 4 cells: 3 the same, 1 other settings"


def test_without_a_committed_run_there_is_no_such_table(make_results):
    here, other = make_results("here", rows=ROWS), make_results("other", rows={("lcm", 4): 0.5})
    assert repeated(View.load(here)) is None and forest.repeated(View.load(here)) is None
    view = View.load(here, committed=other)
    assert repeated(view) is None and forest.repeated(view) is None
    assert "repeated" not in {table.name for table in build.tables(view, published.load())}


def test_the_commands_write_table_and_figure(make_results, run, tmp_path: Path):
    here, there = make_results("here", rows=ROWS), make_results("there", rows=ROWS, seeds=(0, 1, 2))
    given = ["--results", here, "--committed", there]
    assert run(build.main, *given, "--out", tmp_path / "tables") == 0
    assert "| apex | 1 | 0.70 | 0.70 | 0.000 | the same |" in (tmp_path / "tables" / "repeated.md").read_text()
    assert run(figures.main, *given, "--out", tmp_path / "figures") == 0
    assert (tmp_path / "figures" / "repeated.png").is_file()
    assert 'id="repeated"' in (tmp_path / "figures" / "index.html").read_text()
