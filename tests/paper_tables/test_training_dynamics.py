"""Training logs as figure and table: the logged numbers, the run that stopped early, the values that are no numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from apex.config import load
from paper_tables import dynamics
from paper_tables.expected import Expected
from paper_tables.logs import read_log, read_logs
from paper_tables.tables_training import stability
from paper_tables.view import View

WHY = "the loss of student is nan at step 51, after 50% of the budget"


def lines(figure: Figure, panel: int, color: str) -> list[tuple[list[float], list[float]]]:
    """(x, y) of the lines of one colour in a panel."""
    found = [line for line in figure.axes[panel].lines if line.get_color() == color and len(line.get_xdata()) > 1]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in found]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [text.get_text() for text in figure.texts]


def log_of(results: Path, row: str, text: str, seed: int = 0, **training: object) -> None:
    """Writes a row's log, and its record with the budget of 1,000."""
    folder = results / "runs" / row / f"seed{seed}"
    folder.mkdir(parents=True)
    (folder / "log.csv").write_text(text)
    settings = {"budget": {"forward_equivalents": 1000}, "train": {"max_grad_norm": 1.0}}
    (folder / "made.json").write_text(json.dumps({"row": row, "seed": seed, "run": settings, "training": {"stopped": "", **training}}))


# ------------------------------------------------------------------------------------------------------------ the log


def test_running_mean_by_hand() -> None:
    found = dynamics.smooth(np.array([1.0, np.nan, 4.0, 7.0]), 3)
    assert found.tolist() == pytest.approx([1.0, 2.5, 5.5, 5.5])
    assert np.isnan(dynamics.smooth(np.array([np.nan, np.nan]), 1)).all()


def test_empty_cells_are_no_fault_and_nan_and_inf_are_counted(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss,d_real\n1,,0.5\n2,nan,inf\n3,2,-inf\n")
    log = read_log(tmp_path / "log.csv")
    assert log.bad == {"loss": 1, "d_real": 2}
    assert (log.known("loss").tolist(), log.known("d_real").tolist(), log.known("other").tolist()) == ([2.0], [0.5], [])
    assert len(log["loss"]) == len(log) == 3


def test_logs_are_found_by_row_and_seed(tmp_path: Path) -> None:
    for seed in (0, 3):
        log_of(tmp_path, "apex", f"step,loss\n1,{seed}\n2,1\n", seed)
    log_of(tmp_path, "fm", "step,loss\n1,1\n")  # one line is no curve
    log_of(tmp_path, ".half", "step,loss\n1,1\n2,1\n")
    found = read_logs(tmp_path)
    assert {row: list(seeds) for row, seeds in found.items()} == {"apex": [0, 3]}
    assert found["apex"][3]["loss"][0] == 3


# --------------------------------------------------------------------------------------------------------- the figure


def test_training_has_a_line_of_panels_per_row_with_the_logs_numbers(full_results: Path) -> None:
    view = View.load(full_results)
    figure = dynamics.training(view)
    heads = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    roles, logits = ["student", "discriminator"], ["real", "fake"]
    assert [head[: 1 + len(names)] for head, names in zip(heads, ([], [], ["base"], roles, roles, logits, [], []), strict=True)] == [
        ["loss"], ["gradient norm"], ["diagnostics", "base"], ["loss", *roles], ["gradient norm", *roles], ["logits", *logits],
        ["loss"], ["gradient norm"],
    ]  # fmt: skip
    assert [text.get_text() for text in figure.texts if text.get_fontweight() == "bold"] == ["apex", "apex-eq25", "fm"]
    log = view.logs["apex"][0]
    drawn = lines(figure, 0, dynamics.TINTS[0])
    assert len(drawn) == 3  # a line per seed
    assert (drawn[0][0], drawn[0][1]) == (list(log["forward_equivalents"]), list(dynamics.smooth(log["loss"], 3)))
    assert all(line.get_color() != dynamics.STOP for axes in figure.axes for line in axes.lines)


def test_a_role_that_skips_steps_is_one_line_over_its_own_steps(make_results: Callable[..., Path]) -> None:
    results = make_results(rows={("dmd2", 1): 0.5})
    log_of(results, "dmd2", "step,loss,loss/fake\n1,,3\n2,2,3\n3,,3\n4,2,3\n5,,3\n")
    figure = dynamics.training(View.load(results))
    assert [list(line.get_xdata()) for line in figure.axes[0].lines] == [[2, 4], [1, 2, 3, 4, 5]]


def test_a_run_that_stopped_is_drawn_to_its_end_within_the_whole_budget(make_results: Callable[..., Path]) -> None:
    """A cross at its last value; the panel is as wide as that of the run that came to the end."""
    results = make_results(rows={("apex", 1): 0.5, ("ladd", 1): 0.2})
    head = "step,forward_equivalents,loss,grad_norm,d_real\n"
    log_of(results, "apex", head + "".join(f"{k},{10 * k},1,0.5,\n" for k in range(1, 101)))
    log_of(results, "ladd", head + "".join(f"{k},{10 * k},{k},0.5,{'nan' if k == 50 else 1}\n" for k in range(1, 51)), stopped=WHY)
    figure = dynamics.training(View.load(results))
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert figure.axes[0].get_xlim()[1] == pytest.approx(1020)
    marked = [axes for axes in figure.axes if any(line.get_color() == dynamics.STOP for line in axes.lines)]
    assert len(marked) == 3  # loss, gradient norm and logit of ladd
    crosses = [line.get_xdata()[0] for axes in marked for line in axes.lines if line.get_color() == dynamics.STOP]
    assert crosses == [500, 500, 490]  # the last logit is no number
    (said,) = [text for text in words(figure) if "diverged: " in text]
    assert "after 50% of the budget" in said and said.startswith("1 nan or inf logged; ")


def test_the_bound_of_gradients_is_drawn_where_gradients_are(make_results: Callable[..., Path]) -> None:
    results = make_results(rows={("apex", 1): 0.5})
    log_of(results, "apex", "step,loss,grad_norm\n1,1,0.8\n2,1,1.6\n3,1,0.9\n")
    figure = dynamics.training(View.load(results))
    assert [[list(line.get_ydata()) for line in axes.lines if line.is_dashed()] for axes in figure.axes] == [[], [[1.0, 1.0]]]


def test_rows_without_a_log_are_named(make_results: Callable[..., Path], profile: Path) -> None:
    results = make_results(rows={("apex", 1): 0.5})
    log_of(results, "apex", "step,loss\n1,1\n2,1\n")
    figure = dynamics.training(View.load(results, Expected.of(load(profile))))
    assert "no training log yet: apex-eq25, fm" in words(figure)


# ---------------------------------------------------------------------------------------------------------- the table


@pytest.fixture
def cells_of(make_results: Callable[..., Path], profile: Path) -> dict[str, dict[str, str]]:
    """The stability table of a sound row, one that stopped, one whose pictures are at the floor, and one that was not run."""
    results = make_results(rows={("shuffled", 0): 0.1, ("apex", 1): 0.7, ("ladd", 1): 0.4, ("apex-eq25", 1): 0.1})
    for path in (results / "records").rglob("*.json"):  # what the runs say of themselves is in made.json
        one = json.loads(path.read_text())
        path.write_text(json.dumps(one | {"training": None}))
    head = "step,loss,grad_norm,d_real,d_fake\n"
    log_of(results, "apex", head + "".join(f"{k},{k},{k / 10},,\n" for k in range(1, 21)), forward_equivalents=1000)
    text = head + "".join(f"{k},1,0.5,{k},{-k}\n" for k in range(1, 10)) + "10,1,0.5,nan,inf\n"
    log_of(results, "ladd", text, forward_equivalents=500, stopped=WHY)
    log_of(results, "ladd", head + "1,3,0.5,1,1\n2,3,0.5,1,1\n", seed=1, forward_equivalents=1000)
    table = stability(View.load(results, Expected.of(load(profile))))
    return {line.cells["row"].text: {key: cell.text for key, cell in line.cells.items()} for line in table.lines}


def test_stability_by_hand(cells_of: dict[str, dict[str, str]]) -> None:
    apex = cells_of["apex"]
    # Losses 1..20: a tenth is two lines. Norms 0.1..2: the median is 1.05, ten of twenty exceed the bound of 1.
    assert (apex["outcome"], apex["spent"], apex["bad"], apex["seeds"]) == ("to its end", "100", "0", "1")
    assert (apex["loss_first"], apex["loss_last"]) == ("1.50", "19.5")
    assert (apex["norm"], apex["norm_most"], apex["clipped"]) == ("1.05", "2.00", "50")
    assert (apex["d_real"], apex["overall"], apex["floor"]) == ("–", "0.70 [0.67, 0.73]", "above")


def test_a_run_that_diverged_is_a_line_with_what_it_did(cells_of: dict[str, dict[str, str]]) -> None:
    ladd = cells_of["ladd"]
    assert ladd["outcome"] == "diverged at 50% of the budget (1 of 2 seeds)"
    assert (ladd["spent"], ladd["bad"], ladd["seeds"]) == ("75", "2", "2")
    assert (ladd["loss_first"], ladd["loss_last"]) == ("2.00", "2.00")  # 1 and 3
    assert (ladd["d_real"], ladd["d_fake"]) == ("5.00", "−4.00")  # the last finite ones, 9 and -9, beside 1 and 1
    assert ladd["overall"] == "0.40 [0.37, 0.43]"


def test_a_generator_at_the_floor_says_so_and_a_row_not_run_too(cells_of: dict[str, dict[str, str]]) -> None:
    assert cells_of["apex-eq25"]["floor"] == "not told apart"
    assert {text for key, text in cells_of["fm"].items() if key not in ("row", "tuning")} == {"not run"}
