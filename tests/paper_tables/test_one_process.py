"""`python -m paper_tables`: the commands of a target in one process make the same files as one by one, and read what is there now."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from paper_tables import __main__ as program
from paper_tables import assumptions, build, cards, claims, collect, figures


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def chain(*calls: list[object]) -> list[object]:
    """The words of several commands in one line."""
    return [word for call in calls for word in ("+", *call)][1:]


def test_one_process_makes_the_same_bytes_as_the_commands_one_by_one(
    full_results: Path, made: Path, profile: Path, run: Callable[..., int], tmp_path: Path, monkeypatch
) -> None:
    """`made` is of the four commands of `snakemake tables`; those of `claims`, `cards` and a comparison with other results come here."""
    committed = shutil.copytree(full_results, tmp_path / "committed", ignore=shutil.ignore_patterns("images"))
    for path in (committed / "runs").glob("*/seed*"):
        (path / "sampling.json").write_text("{}")
    about, beside = ["--config", profile], ["--committed", committed]
    monkeypatch.setattr(cards.card, "text", lambda about, recipe, numbers, remarks: json.dumps([about["row"], numbers, remarks]))

    def calls(out: Path) -> list[tuple[Callable[[], None], list[object]]]:
        return [
            (build.main, ["build", "--results", full_results, "--out", out / "tables", *about, *beside]),
            (figures.main, ["figures", "--results", full_results, "--out", out / "figures", *about, *beside]),
            (claims.main, ["claims", "--results", full_results, *about, "--theory", tmp_path, "--out", out / "claims"]),
            (assumptions.main, ["assumptions", "--results", full_results / "ablations", *about, "--out", out / "claims"]),
            (cards.main, ["cards", "--results", committed, *about, "--out", out / "cards"]),
        ]

    for main, (_, *options) in calls(tmp_path / "single"):
        assert run(main, *options) == 0
    assert run(program.main, *chain(*(words for _, words in calls(tmp_path / "shared")))) == 0
    assert content(tmp_path / "shared") == content(tmp_path / "single") and len(content(tmp_path / "shared")) > 60

    results, first = ["--results", full_results], tmp_path / "first"
    tables = [["collect", *results, "--out", first / "metrics.csv"], ["build", *results, "--out", first / "tables"]]
    tables += [["audit", "--out", first / "audit"], ["figures", *results, "--out", first / "figures"]]
    assert run(program.main, *chain(*tables)) == 0
    assert content(first) == content(made)


def test_the_next_call_reads_what_is_there_then(make_results: Callable[..., Path], run: Callable[..., int], tmp_path: Path) -> None:
    """What one call of a process has read is of no later one."""
    out = tmp_path / "out"
    for quality in (0.3, 0.6):
        results = make_results(rows={("apex", 1): quality, ("real", 0): 0.9})
        calls = [["collect", "--results", results, "--out", out / "m.csv"], ["build", "--results", results, "--out", out / "tables"]]
        assert run(program.main, *chain(*calls)) == 0
        assert f"geneval/overall,{quality}" in (out / "m.csv").read_text()
        assert f"{quality:.2f} [" in (out / "tables" / "comparison.md").read_text()


def test_a_command_that_fails_ends_the_call_with_its_line(
    make_results: Callable[..., Path], run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, out = make_results(rows={("apex", 1): 0.5}), tmp_path / "out"
    single, shared = (run(main, *words) for main, words in (
        (collect.main, ["--results", tmp_path / "none", "--out", out / "n.csv"]),
        (program.main, chain(["audit", "--out", out / "audit"], ["collect", "--results", tmp_path / "none", "--out", out / "n.csv"],
                             ["collect", "--results", results, "--out", out / "m.csv"])),
    ))  # fmt: skip
    told = capsys.readouterr().err.splitlines()
    assert single == shared == 2 and len(told) == 2 and told[0] == told[1]
    assert (out / "audit" / "audit.md").is_file() and not (out / "m.csv").exists()


@pytest.mark.parametrize("words", [[], ["paint"], ["collect", "--help", "+", "paint"], ["+"]])
def test_an_unknown_command_is_refused_before_any_runs(
    words: list[str], run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(program.main, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: command: found ") and error.count("\n") == 1
    assert all(name in error for name in program.COMMANDS) or not "".join(words).strip("+")
