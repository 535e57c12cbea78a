"""What tuning tried: every candidate is a line and a dot, the chosen one is marked, one that diverged says when."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from paper_tables import tuning
from paper_tables.plotting import looks
from paper_tables.render import Table


@pytest.fixture
def tuned(make_results: Callable[..., Path]) -> Path:
    return make_results(rows={("apex", 1): 0.5}, tuning=True) / "tune"


def test_every_candidate_is_a_line_with_its_settings_and_the_chosen_is_bold(tuned: Path) -> None:
    table: Table = tuning.table(tuning.read(tuned / "tuning.json"))
    shown = [[line.cells[key].text for key in ("method", "candidate", "settings", "geneval", "note")] for line in table.lines]
    assert shown == [
        ["apex", "1", "the defaults", "0.400 [0.370, 0.430]", ""],
        ["apex", "2", "order 1", "0.550 [0.520, 0.580]", "chosen"],
        ["apex", "3", "order 2, learning_rate 0.0003", "0.410 [0.380, 0.440]", "diverged"],
        ["fm", "1", "the defaults", "0.050 [0.030, 0.070]", "chosen"],
    ]
    assert [line.cells["geneval"].strong for line in table.lines] == [False, True, False, True]
    assert [line.section for line in table.lines] == ["self-adversarial", "", "", "control"]
    assert "after 40% of the budget" in table.lines[2].cells["note"].note
    assert "1 to 3 candidates" in table.caption


def test_every_candidate_is_a_dot_at_its_score_and_the_chosen_is_filled(tuned: Path) -> None:
    figure: Figure = tuning.draw(tuning.read(tuned / "tuning.json"))
    (axes,) = figure.axes
    color = looks({"apex": "self-adversarial"})["apex"].color
    dots = {line.get_xdata()[0]: (line.get_markerfacecolor(), line.get_marker()) for line in axes.lines
            if len(line.get_xdata()) == 1 and line.get_markeredgecolor() == color}  # fmt: skip
    assert dots == {0.4: ("white", "o"), 0.55: (color, "o"), 0.41: ("white", "X")}
    assert {"1, 3", "2"} <= {text.get_text() for text in axes.texts}  # candidates 1 and 3 score nearly the same


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"methods": {"apex": {"candidates": [], "chosen": 0}}}, "methods.apex.candidates"),
        ({"methods": {"apex": {"candidates": [{"geneval": 0.5}], "chosen": 3}}}, "methods.apex.chosen: found 3, expected a number below 1"),
        ({"budget": "much"}, "budget: found 'much'"),
    ],
)
def test_a_broken_record_is_one_line(
    change: dict, says: str, tuned: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads((tuned / "tuning.json").read_text())
    (tuned / "tuning.json").write_text(json.dumps(found | change))
    assert run(tuning.main, "--results", tuned, "--out", tuned / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tuned / 'tuning.json'}: ") and says in error and error.count("\n") == 1
    assert not (tuned / "out").exists()


def test_the_command_writes_the_table_in_four_formats_and_the_figure(tuned: Path, run: Callable[..., int]) -> None:
    assert run(tuning.main, "--results", tuned, "--out", tuned / "out") == 0
    assert {path.name for path in (tuned / "out").iterdir()} == {f"tuning.{suffix}" for suffix in ("md", "tex", "csv", "html", "png")}
