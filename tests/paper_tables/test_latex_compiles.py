"""What the tables are in LaTeX: a document that compiles, with nothing beyond the page."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from paper_tables.render import Cell, Column, Line, Table, latex_document, tex_escape, to_latex


@pytest.fixture
def compiled(find_program: Callable[..., str]) -> Callable[[Path], tuple[str, str]]:
    """compiled(document): what pdflatex said, and the text of the PDF."""
    latex = find_program("pdflatex", package="texlive-latex-recommended")
    to_text = find_program("pdftotext", package="poppler-utils")

    def run(document: Path) -> tuple[str, str]:
        line = [latex, "-interaction=nonstopmode", "-halt-on-error", document.name]
        done = subprocess.run(line, cwd=document.parent, capture_output=True, text=True, errors="replace")
        assert done.returncode == 0, done.stdout[-3000:]
        pdf = document.with_suffix(".pdf")
        return done.stdout, subprocess.run([to_text, "-layout", pdf, "-"], capture_output=True, text=True, check=True).stdout

    return run


def test_every_table_compiles_and_stays_on_its_page(made: Path, tmp_path: Path, compiled: Callable[[Path], tuple[str, str]]) -> None:
    tables = shutil.copytree(made / "tables", tmp_path / "tables")  # other tests compare all files of `made`
    said, text = compiled(tables / "all.tex")
    assert not re.search(r"Float too large|Overfull|Missing character", said)
    names = re.findall(r"\\input\{(\w+)\.tex\}", (tables / "all.tex").read_text())
    assert len(names) >= 9
    flat = " ".join(text.split()).replace("’", "'")
    for name in names:
        title = (tables / f"{name}.md").read_text().splitlines()[0].removeprefix("## ")
        assert title in flat, name


def test_long_texts_are_wrapped_and_long_tables_go_on(tmp_path: Path, compiled: Callable[[Path], tuple[str, str]]) -> None:
    """Every word of every row is there, on pages that hold it, and the columns are wide enough to read."""
    columns = [Column("claim", "claim", numeric=False), Column("value", "value"), Column("command", "command", numeric=False)]
    table = Table("long", "A long one", "Words.", columns)
    for number in range(40):
        words = " ".join(f"word{number}x{place}" for place in range(20))
        table.lines.append(
            Line({"claim": Cell(words), "value": Cell(str(number)), "command": Cell("snakemake all --configfile a/b_c.yaml")})
        )
    (tmp_path / "long.tex").write_text(to_latex(table))
    (tmp_path / "all.tex").write_text(latex_document(["long"]))
    said, text = compiled(tmp_path / "all.tex")
    assert not re.search(r"Float too large", said)
    assert all(f"word{number}x{place}" in text for number in range(40) for place in range(20))
    assert text.count("\f") >= 4 and "--configfile" in text  # two hyphens, not a dash
    assert max(map(len, text.splitlines())) < 200


@pytest.mark.parametrize("text", ["", "short", "a_b/c"])
def test_only_long_columns_are_wrapped(text: str) -> None:
    table = Table("t", "T", "Words.", [Column("a", "a", numeric=False)], lines=[Line({"a": Cell(text)})])
    assert r"\begin{tabular}{l}" in to_latex(table) and "allowbreak" not in to_latex(table) and tex_escape(text) in to_latex(table)


def test_a_row_higher_than_a_page_has_one_of_its_own() -> None:
    tall = " ".join(["word"] * 2000)
    table = Table(
        "t", "T", "Words.", [Column("a", "a", numeric=False)], lines=[Line({"a": Cell(text)}) for text in ("first", tall, "last")]
    )
    assert to_latex(table).count(r"\begin{tabular}") == 3
