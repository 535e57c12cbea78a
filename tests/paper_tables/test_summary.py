"""The lines at the end of `snakemake all`: the main rows, whether the run agrees with the committed one, where to look."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from paper_tables import build, summary

ROWS = {("real", 0): 0.95, ("teacher", 25): 0.80, ("apex", 1): 0.70, ("fm", 1): 0.20, ("lcm", 1): 0.60, ("lcm", 4): 0.75}


@pytest.fixture
def said(make_results, run, tmp_path: Path, capsys):
    """said(here, committed=None): the lines for results with these rows beside committed ones."""

    def lines(here: dict, committed: dict | None = None, **settings) -> list[str]:
        results, there = make_results("here", rows=here), tmp_path / "none"
        given = ["--results", results, "--out", results / "tables"]
        if committed is not None:
            there = make_results("there", rows=committed, seeds=(0, 1, 2))
            given += ["--committed", there]
        assert run(build.main, *given) == 0
        profile = tmp_path / "profile.yaml"
        profile.write_text(yaml.safe_dump({"profile": "mine", "methods": ["fm"], **settings}))
        capsys.readouterr()
        assert run(summary.main, "--config", profile, "--results", results, "--committed", there) == 0
        return capsys.readouterr().out.splitlines()

    return lines


def test_the_main_rows_at_the_fewest_steps(said) -> None:
    about, scores, beside, where = said(ROWS, description="Numbers of this mean nothing.")
    assert about == "Profile mine: Numbers of this mean nothing."
    assert scores.startswith("GenEval at 1 step: apex 0.70 [") and "; the best other of 2 rows, lcm, 0.60 [" in scores
    assert "; the teacher at 25 steps 0.80 [" in scores and "real" not in scores and "0.75" not in scores
    assert "No run of this profile is committed" in beside
    assert "here/tables/comparison.html" in where


def test_the_same_run_agrees_to_the_last_digit(said) -> None:
    assert "it agrees: GenEval of all 6 rows and steps is the same to the last digit" in said(ROWS, ROWS)[2]


def test_a_run_within_the_noise_agrees_and_one_beyond_it_does_not(said) -> None:
    near = said(ROWS | {("apex", 1): 0.71}, ROWS)[2]
    assert "it agrees within the noise: of 6 rows and steps 5 are the same to the last digit, 1 within the noise" in near
    far = said(ROWS | {("apex", 1): 0.30}, ROWS)[2]
    assert "it differs: of 6" in far and "1 beyond it (apex at NFE 1 is below)" in far


def test_results_without_records_are_the_committed_ones(tmp_path: Path) -> None:
    lines = summary.summary(tmp_path / "here", tmp_path / "there", "", "mine")
    assert lines[0] == "Profile mine" and "no row has a number" in lines[1] and "These are the committed results" in lines[2]
