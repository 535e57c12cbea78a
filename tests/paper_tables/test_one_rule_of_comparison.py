"""Above, below, not told apart: one rule and one set of words in every table, figure, sentence and claim."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from apex.ablations import Plan
from apex.config import load
from paper_tables import forest, page, published, stats, tables_methods, tables_world
from paper_tables.claims_tests import FAILS, HOLDS, TESTS, UNDECIDED, Evidence
from paper_tables.expected import Expected
from paper_tables.stats import ABOVE, APART, BELOW, Summary
from paper_tables.view import View

REFERENCE = Path("results/reference/matrix")
SAYS = {HOLDS: ABOVE, FAILS: BELOW, UNDECIDED: APART}


@pytest.fixture(scope="module")
def world() -> View:
    return View.load(REFERENCE, Expected.of(load(Path("workflows/config/matrix.yaml"))))


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.1, 0.3, ABOVE), (-0.3, -0.1, BELOW), (-0.1, 0.1, APART), (0.0, 0.1, APART), (None, None, "")]
)
def test_the_words(low: float | None, high: float | None, word: str) -> None:
    assert stats.reading(Summary(0.0 if low is None else (low + high) / 2, low, high)) == word
    assert (ABOVE, BELOW, APART) == ("above", "below", "not told apart") and stats.reading(None) == ""


def test_training_noise_joins_the_interval_by_the_root_of_squares() -> None:
    found = Summary(0.1, 0.07, 0.15, 1200, 1, stats.PAIRED)
    wide = stats.with_noise(found, [0.02, 0.01], (2.0, 3.0))
    extra = 1.96 * math.hypot(0.02 * 2, 0.01 * 3)
    assert (wide.low, wide.high) == (pytest.approx(0.1 - math.hypot(0.03, extra)), pytest.approx(0.1 + math.hypot(0.05, extra)))
    assert (wide.noise, stats.with_noise(found, [0.02, None]).noise, stats.with_noise(found, [0.0, 0.0])) == (0.02, None, found)
    assert stats.with_noise(Summary(0.1), [0.02, 0.02]) == Summary(0.1), "no interval, nothing to widen"


def test_a_row_with_one_seed_borrows_and_the_teacher_does_not(make_results: Callable[..., Path]) -> None:
    """apex has seeds 0.01 apart: a standard deviation of 0.01. A ratio a/b changes by 1/b with a, and by a/b^2 with b."""
    make_results(rows={("apex", 1): 0.6, ("teacher", 25): 0.8}, seeds=(0, 1, 2))
    view = View.load(make_results(rows={("fm", 1): 0.5, ("dmd2", 1): 0.4, ("teacher", 1): 0.1}))
    metric = "geneval/overall"
    assert [view.noise_of(key, metric) for key in (("fm", 1), ("apex", 1), ("teacher", 1))] == [pytest.approx(0.01), 0.0, 0.0]
    for key, other, count in ((("fm", 1), ("dmd2", 1), 2), (("fm", 1), ("apex", 1), 1), (("fm", 1), ("teacher", 1), 1)):
        bare, found = view.bare_difference(key, other, metric), view.difference(key, other, metric)
        extra = 1.96 * 0.01 * math.sqrt(count)
        assert found.high - found.value == pytest.approx(math.hypot(bare.high - bare.value, extra))
    assert view.difference(("teacher", 25), ("teacher", 1), metric) == view.bare_difference(("teacher", 25), ("teacher", 1), metric)
    bare = stats.paired_ratio(*(view._per_prompt(key, "test") for key in (("fm", 1), ("dmd2", 1))))
    found = view.ratio(("fm", 1), ("dmd2", 1), metric)
    extra = 1.96 * 0.01 * math.hypot(1 / 0.4, 0.5 / 0.4**2)
    assert found.high - found.value == pytest.approx(math.hypot(bare.high - bare.value, extra), rel=1e-6)


# ------------------------------------------------------------------------------------------------ the committed world


def test_every_word_of_the_paired_table_is_the_claims_verdict(world: View) -> None:
    given = Evidence({"world": world}, published.load(), Plan(load(Path("workflows/config/matrix.yaml"))), Path(), Path())
    read, table = 0, tables_methods.paired(world)
    for line in table.lines:
        if not line.cells.get("verdict") or not line.cells["verdict"].text:
            continue
        key = line.cells["row"].text, int(line.cells["nfe"].text)
        test = {"kind": "difference", "row": key[0], "nfe": key[1], "versus": world.baseline, "metric": "geneval/overall"}
        outcome = TESTS["difference"](test, given)
        assert line.cells["verdict"].text == SAYS[outcome.verdict], key
        summary = line.cells["difference"].summary
        assert (summary.value, summary.low, summary.high) == (outcome.value, outcome.low, outcome.high), key
        read += 1
    assert read > 60
    assert not re.search(r"\b(win|loss|tie)s?\b", " ".join([table.caption, *(c.text for line in table.lines for c in line.cells.values())]))


# Minus apex, by prompts and apex's seeds, as committed with commit e45fe35; the largest training noise at one step was 0.017957.
COMMITTED = {"progressive": (0.040556, 0.005515, 0.074491), "twinflow-lora": (-0.043611, -0.079991, -0.008198)}


@pytest.mark.parametrize("row", COMMITTED)
def test_two_rows_that_prompts_alone_tell_from_apex_are_not_told_apart(world: View, row: str) -> None:
    bare = Summary(*COMMITTED[row], 1200, 1, stats.PAIRED)
    assert stats.reading(bare) == (ABOVE if bare.value > 0 else BELOW)
    assert stats.reading(stats.with_noise(bare, [0.017957, 0.0])) == APART
    found, alone = (ask((row, 1), ("apex", 1), "geneval/overall") for ask in (world.difference, world.bare_difference))
    assert found.low < alone.low < alone.high < found.high and found.noise == world.training_noise("geneval/overall", 1)


def test_figures_and_sentences_show_the_same_intervals(world: View) -> None:
    """The forest figure's bar of `progressive` at one step, and the table and the sentence of a row with one seed over the teacher."""
    found = world.difference(("progressive", 1), ("apex", 1), "geneval/overall")
    bars = [line.get_xdata() for line in forest.paired(world).axes[0].lines]
    assert any(len(ends) == 2 and list(ends) == [found.low, found.high] for ends in bars)
    share = world.ratio(("progressive", 1), world.teacher, "geneval/overall")
    assert share.noise > 0
    (line,) = [
        one.cells for one in tables_world.relative(world).lines if (one.cells["row"].text, one.cells["nfe"].text) == ("progressive", "1")
    ]
    assert (line["overall"].summary.low, line["overall"].summary.high) == (share.low, share.high)
    assert f"<b>progressive</b> at NFE 1: GenEval 0.73, {share.value:.2f} [{share.low:.2f}, {share.high:.2f}]" in page.headline(world)
