"""The tables: known records give known cells, the four formats say the same, what is missing says so."""

from __future__ import annotations

import csv
import html
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from apex.config import load
from paper_tables import build, cells, figures, published
from paper_tables.expected import Expected
from paper_tables.render import Cell, Column, Line, Table, html_fragment, tex_escape, to_latex, to_markdown
from paper_tables.stats import Summary
from paper_tables.tables_paper import TABLE1, TABLE2, table3
from paper_tables.view import View

NAMES = ("comparison", "paired", "cost", "stability", "relative", "world", "table1", "table2", "table3", "table4")
KEYS = [
    *(("real", 0), ("mean", 0), ("shuffled", 0), ("noise", 0), ("teacher", 50), ("teacher", 25), ("teacher", 1)),
    *((row, nfe) for row in ("apex", "apex-eq25", "fm") for nfe in (1, 2, 4)),
]
WORDS = {
    "real": "real renders of the prompt",
    "mean": "mean image of the prompt",
    "shuffled": "real renders of another prompt",
    "noise": "uniform noise",
    "teacher": "teacher (guidance 2.5)",
}


def name_of(key: tuple[str, int]) -> tuple[str, str]:
    return WORDS.get(key[0], key[0]), str(key[1]) if key[1] else "–"


def tables_of(results: Path, profile: Path | None = None) -> dict[str, Table]:
    expected = Expected.of(load(profile)) if profile else None
    return {table.name: table for table in build.tables(View.load(results, expected), published.load())}


def line_of(table: Table, key: tuple[str, int]) -> dict[str, Cell]:
    first = "model" if table.name.startswith("table") else "row"
    (found,) = [line.cells for line in table.lines if (line.cells[first].text, line.cells["nfe"].text) == name_of(key)]
    return found


@pytest.fixture(scope="module")
def tables(full_results: Path) -> dict[str, Table]:
    return tables_of(full_results)


# ------------------------------------------------------------------------------------------------------ known cells


def test_every_line_is_there_in_order(tables: dict[str, Table]) -> None:
    assert [(line.cells["row"].text, line.cells["nfe"].text) for line in tables["world"].lines] == [name_of(key) for key in KEYS]
    assert [(line.cells["row"].text, line.cells["nfe"].text) for line in tables["relative"].lines] == [
        name_of(key) for key in KEYS if key != ("teacher", 25)
    ]
    for name in ("table1", "table2"):
        assert [(line.cells["model"].text, line.cells["nfe"].text) for line in tables[name].lines[-len(KEYS) :]] == [
            name_of(key) for key in KEYS
        ]


def test_a_row_with_numbers_of_dpg_stands_beside_the_papers(make_results: Callable[..., Path]) -> None:
    """Its line has them, the paper's rows keep theirs, and a row without such numbers has no line."""
    results = make_results(rows={("apex", 1): 0.5, ("fm", 1): 0.3})
    path = results / "records/apex/nfe1/seed0/test/dpg.json"
    one = json.loads((path.parent / "geneval.json").read_text())
    overall = {"metric": "dpg/overall", "value": 81.5, "unit": "100 x share", "n": 100, "higher_is_better": True}
    path.write_text(json.dumps(one | {"evaluator": "dpg", "metrics": [overall], "details": {}}))
    lines = table3(View.load(results), published.load()).lines
    (ours,) = [line for line in lines if line.cells["model"].text == "apex"]
    assert ours.cells["our_overall"].text == "81.50" and ours.cells["our_global"].text == "not run"
    assert not [line for line in lines if line.cells["model"].text == "fm"]
    theirs = next(line for line in lines if line.cells["model"].text == "APEX 0.6B (1-NFE)")
    assert theirs.cells["nfe"].text == "1" and theirs.cells["pub_overall"].text and theirs.cells["our_overall"].text == "not run"


def test_world_cells_of_three_seeds(tables: dict[str, Table]) -> None:
    """apex at NFE 1: quality 0.72, 0.73, 0.74 over seeds, so the mean is 0.73 and Student's half-width 4.303 x 0.01 / sqrt(3)."""
    line, seeds = line_of(tables["world"], ("apex", 1)), 4.303 * 0.01 / math.sqrt(3)

    def shown(value: float, half: float) -> str:
        joint = math.hypot(half, seeds)
        return f"{value:.2f} [{value - joint:.2f}, {value + joint:.2f}]"

    assert line["overall"].text == shown(0.73, 0.03) == "0.73 [0.69, 0.77]"
    assert line["counting"].text == shown(0.73 - 0.01, 0.05)
    assert line["color_attr"].text == shown(0.73 + 0.05, 0.05)
    assert line["unseen"].text == shown(0.37, 0.03)  # 0.36, 0.37, 0.38
    # The three unseen tasks of the test set: 0.73 + (0.01 + 0.03 + 0.05) / 3; their intervals of 0.05 join to 0.05 / sqrt(3).
    assert line["seen"].text == shown(0.76, 0.05 / math.sqrt(3))
    assert line["fid"].text == "20.80 [19.81, 21.79]"  # 50 - 40 x 0.73; over seeds alone
    assert line["fid_floor"].text == "3.20"
    assert line["spread"].text == shown(0.73, 0.02)
    assert line["latency"].text == "0.00600 [0.00550, 0.00650]"  # timed at one seed: its quartiles
    assert (line["parameters"].text, line["trainable"].text) == ("1,243,152", "1,243,152")
    assert (line["n"].text, line["seeds"].text, line["hardware"].text) == ("1200", "3", "Test CPU, 2 cores")
    assert (line["train_forwards"].text, line["train_steps"].text, line["train_flops"].text) == ("1.20e5", "4,000", "2.50e15")


def test_relative_to_the_teacher(tables: dict[str, Table]) -> None:
    line = line_of(tables["relative"], ("apex", 1))
    # 72, 73, 74 of 100 against the teacher's 80, 81, 82, as even over prompts as it goes: those add next to nothing, the seeds' parts join.
    seeds = 4.303 * 0.01 / math.sqrt(3)
    half = math.hypot(seeds / 0.81, 0.73 / 0.81 * seeds / 0.81)
    assert line["overall"].summary.value == pytest.approx(0.73 / 0.81)
    assert line["overall"].summary.high - line["overall"].summary.value == pytest.approx(half, rel=1e-3)
    assert line["latency"].text == f"{0.006 / 0.102:.2f}"
    assert line["spread"].summary.value == pytest.approx(0.73 / 0.81)


def test_measured_rows_stand_beside_what_the_paper_says_of_their_method(tables: dict[str, Table]) -> None:
    one = line_of(tables["table1"], ("apex", 1))
    assert (one["pub_geneval"].text, one["our_geneval"].text) == ("0.84–0.89", "0.73 [0.69, 0.77]")
    assert (one["pub_hardware"].text, one["our_hardware"].text) == ("A100", "Test CPU, 2 cores")
    assert (one["pub_latency_s"].text, one["our_latency_s"].text) == ("0.20–0.39", "0.00600")
    assert line_of(tables["table1"], ("apex", 4))["pub_geneval"].text == "–"  # the paper has no four steps
    assert line_of(tables["table1"], ("fm", 1))["pub_geneval"].text == "–"
    assert line_of(tables["table2"], ("apex-eq25", 1))["pub_position"].text == "0.76–0.86"


def test_coverage_n_and_seeds_stand_in_every_table(tables: dict[str, Table]) -> None:
    for name, table in tables.items():
        if name in ("paired", "cost", "stability"):  # of pairs and of runs, not of images
            assert {"n", "seeds"} <= {column.key for column in table.columns} or name != "paired"
            continue
        prefix = "our_" if name.startswith("table") else ""
        for title, columns in table.views():
            keys = {column.key for column in columns}
            assert keys >= {f"{prefix}{key}" for key in ("spread", "precision", "recall", "n", "seeds")}, (name, title)


def test_published_digits_are_printed_as_they_are(tables: dict[str, Table]) -> None:
    data = published.load()
    for name, columns in (("table1", TABLE1), ("table2", TABLE2)):
        rows = sorted(data[name], key=lambda row: -int(row["nfe"])) if name == "table1" else data[name]
        lines = tables[name].lines[: len(rows)]
        for row, line in zip(rows, lines, strict=True):
            assert line.cells["model"].text.startswith(published.label(row))
            assert [line.cells[f"pub_{column}"].text for column, *_ in columns] == [row[column] or "–" for column, *_ in columns]
            assert line.cells["our_spread"].text == "not run"


# --------------------------------------------------------------------------------------------------- what is missing


def test_what_was_not_measured_says_so_and_why(make_results: Callable[..., Path], profile: Path) -> None:
    rows = {("real", 0): 0.9, ("teacher", 25): 0.8, ("apex", 1): 0.7}
    tables = tables_of(make_results(rows=rows, skip=[("apex", "coverage")]), profile)
    apex, fm, real = (line_of(tables["world"], key) for key in (("apex", 1), ("fm", 2), ("real", 0)))
    assert apex["spread"] == Cell(
        "not run", None, "No coverage record of this row; naming coverage in the profile's evaluators makes it.", merge=True
    )
    assert {fm[key].text for key in fm if key not in ("row", "nfe")} == {"not run"}
    assert fm["overall"].note == "Not run yet; the profile names it, and snakemake full makes it."
    assert "snakemake all" in line_of(tables["world"], ("apex-eq25", 1))["overall"].note
    assert (real["latency"].text, real["parameters"].text, real["train_steps"].text) == ("–", "–", "–")
    teacher = line_of(tables["world"], ("teacher", 25))
    assert (teacher["parameters"].text, teacher["trainable"].text) == ("1,243,152", "–")


def test_without_the_teacher_there_is_nothing_to_compare_with(make_results: Callable[..., Path]) -> None:
    line = line_of(tables_of(make_results(rows={("apex", 1): 0.7}))["relative"], ("apex", 1))
    assert line["overall"].text == "not run"
    assert line["overall"].note == "The guided 25-step teacher has no such number in this results folder."


LORA_ALONE = """
profile: large
methods: [apex-lora, rcgm-lora]
rows: {apex-lora: {method: apex, tuning: lora}, rcgm-lora: {method: rcgm, tuning: lora}}
nfe: [1, 2]
teacher_nfe: [1, 50]
references: []
evaluators: [geneval, speed]
splits: {test: [geneval, speed]}
checkpoints: [{row: teacher-stock, pipeline: teacher, nfe: [50], source: its own pipeline}]
"""


def test_a_profile_without_renders_and_without_apex_itself_has_its_own_columns_and_rows(
    make_results: Callable[..., Path], tmp_path: Path, run: Callable[..., int]
) -> None:
    """As those of the paper's largest model: no coverage, no unseen prompts, no references; the teacher at 50 steps, `apex-lora`."""
    (tmp_path / "large.yaml").write_text(LORA_ALONE)
    scores = {("apex-lora", 1): 0.6, ("apex-lora", 2): 0.7, ("rcgm-lora", 1): 0.3, ("teacher", 50): 0.8, ("teacher", 1): 0.1}
    scores |= {("teacher-stock", 50): 0.85}
    rows = ("apex-lora", "rcgm-lora", "teacher", "teacher-stock")
    results = make_results(rows=scores, skip=[(row, name) for row in rows for name in ("coverage", "fid", "clip_score")])
    for unseen in results.glob("records/*/*/*/unseen"):
        shutil.rmtree(unseen)
    found = tables_of(results, tmp_path / "large.yaml")
    for table in found.values():
        keys = {column.key.removeprefix("our_") for column in table.columns}
        assert not keys & {"spread", "precision", "recall", "seen", "unseen", "unseen_value"}, table.name
        assert {key for _, shown in table.panels for key in shown} <= {column.key for column in table.columns}
        assert "Spread" not in table.caption and "Unseen" not in table.caption, table.name
    assert not {line.cells["row"].text for line in found["world"].lines} & {*WORDS.values()} - {"teacher (guidance 2.5)"}
    assert line_of(found["relative"], ("apex-lora", 1))["overall"].summary.value == pytest.approx(0.6 / 0.8)
    assert found["relative"].title == "Against the guided 50-step teacher"
    assert found["paired"].title == "Every method against apex-lora"
    assert line_of(found["paired"], ("rcgm-lora", 1))["difference"].summary.value == pytest.approx(-0.3)
    levels = [line.cells["row"].text for line in found["comparison"].lines[:2]]
    assert levels == ["teacher (guidance 2.5)", "teacher-stock"] and found["comparison"].lines[2].section.startswith("NFE 1:")
    assert [line.cells["row"].text for line in found["comparison"].lines].count("teacher-stock") == 1
    out = tmp_path / "figures"
    assert run(figures.main, "--results", results, "--out", out, "--config", tmp_path / "large.yaml") == 0
    assert {"paired.png", "relative.png", "tasks.png"} <= {path.name for path in out.iterdir()}
    assert "of the guided 50-step teacher's" in (out / "index.html").read_text()


def test_a_missing_seed_is_counted(make_results: Callable[..., Path]) -> None:
    results = make_results(rows={("apex", 1): 0.7, ("fm", 1): 0.2}, seeds=(0, 1, 2))
    (results / "records" / "apex" / "nfe1" / "seed1" / "test" / "geneval.json").unlink()
    table = tables_of(results)["world"]
    assert [line_of(table, (row, 1))["seeds"].text for row in ("apex", "fm")] == ["2", "3"]
    assert line_of(table, ("apex", 1))["overall"].summary.value == pytest.approx(0.71)  # seeds 0 and 2


def test_one_seed_has_the_prompts_interval(make_results: Callable[..., Path]) -> None:
    line = line_of(tables_of(make_results(rows={("apex", 1): 0.7}))["world"], ("apex", 1))
    assert (line["overall"].text, line["fid"].text, line["seeds"].text) == ("0.70 [0.67, 0.73]", "22.00", "1")


def test_any_row_and_nfe_finds_its_line(make_results: Callable[..., Path]) -> None:
    tables = tables_of(make_results(rows={("teacher", 4): 0.5, ("apex-lora", 8): 0.6, ("mine", 1): 0.3}))
    lines = [(line.cells["row"].text, line.cells["nfe"].text) for line in tables["world"].lines]
    assert {("teacher (guidance 2.5)", "4"), ("apex-lora", "8"), ("mine", "1")} <= set(lines)
    assert line_of(tables["table2"], ("apex-lora", 8))["our_overall"].text == "0.60 [0.57, 0.63]"


def test_images_named_like_the_papers_row_fill_the_papers_line(
    make_results: Callable[..., Path], bring_images: Callable[..., None]
) -> None:
    results = make_results(rows={("apex", 1): 0.5})
    bring_images(results, "sana-sprint-0.6b", 2, 0.7)
    tables = tables_of(results)
    (line,) = [x.cells for x in tables["table1"].lines if (x.cells["model"].text, x.cells["nfe"].text) == ("Sana-Sprint 0.6B", "2")]
    assert (line["pub_geneval"].text, line["our_geneval"].text) == ("0.76", "0.70 [0.67, 0.73]")
    assert not any(x.cells["model"].text == "sana-sprint-0.6b" for x in tables["table1"].lines)


@pytest.mark.parametrize(("row", "label"), [("pcm", "PCM"), ("rcgm", "RCGM (LoRA r=64)"), ("twinflow", "TwinFlow (LoRA r=64)")])
def test_the_suites_row_of_a_method_does_not_fill_the_papers_line_of_that_name(
    row: str, label: str, make_results: Callable[..., Path]
) -> None:
    """The paper's PCM is a model on SDXL; `pcm` stands below it, with what the paper says of its method beside it."""
    tables = tables_of(make_results(rows={(row, 1): 0.7}))
    (theirs,) = [x.cells for x in tables["table1"].lines if (x.cells["model"].text, x.cells["nfe"].text) == (label, "1")]
    ours = line_of(tables["table1"], (row, 1))
    assert (theirs["our_geneval"].text, ours["our_geneval"].text) == ("not run", "0.70 [0.67, 0.73]")
    assert theirs["pub_geneval"].text == ours["pub_geneval"].text


# ------------------------------------------------------------------------------------------------------ four formats


def markdown_rows(text: str) -> list[list[str]]:
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [
        [html.unescape(re.sub(r" <sup>\w+</sup>", "", cell)).strip().removeprefix("**").removesuffix("**") for cell in row] for row in rows
    ]


def html_rows(text: str) -> list[list[str]]:
    rows = []
    for row in re.findall(r"<tr(?: class=\"s\")?>(.*?)</tr>", text):
        found = []
        for attributes, inner in re.findall(r"<td([^>]*)>(.*?)</td>", row):
            span = re.search(r'colspan="(\d+)"', attributes)
            found += [html.unescape(re.sub(r"<sup>.*?</sup>|</?b>", "", inner))] * (int(span[1]) if span else 1)
        rows += [found] if found else []
    return rows


def tex_rows(text: str) -> list[list[str]]:
    """Cells of every data line, \\multicolumn spelled out; still escaped."""
    rows = []
    for line in text.splitlines():
        if line.endswith(r" \\") and "&" in line:
            found = []
            for cell in re.split(r"(?<!\\)&", line.removesuffix(r" \\")):
                cell = re.sub(r"\\textsuperscript\{\w+\}", "", cell.strip())
                cell = re.sub(r"\\textbf\{(.*)\}", r"\1", cell)
                span = re.fullmatch(r"\\multicolumn\{(\d+)\}\{c\}\{(.*)\}", cell)
                found += [span[2]] * int(span[1]) if span else [cell]
            rows.append(found)
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_markdown_html_and_latex_show_the_same_cells(name: str, tables: dict[str, Table], made: Path) -> None:
    table = tables[name]
    wanted = [[table.cell(line, column.key).text for column in columns] for _, columns in table.views() for line in table.lines]
    heads = {column.head for column in table.columns}
    sections = {line.section for line in table.lines}
    texts = {suffix: (made / "tables" / f"{name}.{suffix}").read_text() for suffix in ("md", "html", "tex")}
    shown = [row for row in markdown_rows(texts["md"]) if not set(row[0]) <= set(": -") and row[0].strip("*") not in sections]
    assert [row for row in shown if row[0] not in heads] == wanted
    assert [row for row in html_rows(texts["html"]) if row[0] not in sections] == wanted
    escaped = [[tex_escape(text) for text in row] for row in wanted]
    assert [row for row in tex_rows(texts["tex"]) if row in escaped] == escaped


@pytest.mark.parametrize("name", NAMES)
def test_csv_has_the_numbers_in_full_with_their_intervals(name: str, tables: dict[str, Table], made: Path) -> None:
    with (made / "tables" / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(tables[name].lines)
    compared = 0
    for row, line in zip(rows, tables[name].lines, strict=True):
        for key, cell in line.cells.items():
            if cell.summary is None:
                assert row[key] == cell.text
                continue
            assert float(row[key]) == pytest.approx(cell.summary.value, rel=1e-5)
            if cell.summary.low is not None:
                bounds = (float(row[f"{key}_ci_low"]), float(row[f"{key}_ci_high"]))
                assert bounds == pytest.approx((cell.summary.low, cell.summary.high), rel=1e-5, abs=1e-9)
                compared += 1
        reasons = {cell.note for cell in line.cells.values() if cell.note}
        assert all(reason in row["remarks"] for reason in reasons)
    assert compared > {"paired": 30, "cost": -1, "stability": 5, "table3": -1, "table4": -1}.get(name, 50)


@pytest.mark.parametrize("name", NAMES)
def test_latex_is_well_formed(name: str, made: Path) -> None:
    """Braces balance, environments close, and every line of a tabular has as many cells as the tabular has columns."""
    text = (made / "tables" / f"{name}.tex").read_text()
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert re.findall(r"\\begin\{(\w+)\}", text).count("table") == text.count(r"\end{table}") > 0
    for spec, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, re.S):
        lines = [line for line in body.splitlines() if line.endswith(r" \\")]
        assert lines
        for line in lines:
            cells = re.split(r"(?<!\\)&", line)
            width = sum(int(span[1]) if (span := re.search(r"\\multicolumn\{(\d+)\}", cell)) else 1 for cell in cells)
            assert width == len(spec), line
    assert text.isascii() or not re.search("[↑↓−–×]", text)
    assert f"\\input{{{name}.tex}}" in (made / "tables" / "all.tex").read_text()


def test_special_characters_are_escaped_in_every_format() -> None:
    nasty = r"50% & $x_1$ #{a}~b^c\d [1] <i> | α≥λ"
    table = Table("t", "T", nasty, [Column("a", nasty, numeric=False), Column("b", "b")])
    table.lines.append(Line({"a": Cell(nasty), "b": Cell("not run", None, nasty)}, section=nasty))
    assert tex_escape(nasty) == (
        r"50\% \& \$x\_1\$ \#\{a\}\textasciitilde{}b\textasciicircum{}c\textbackslash{}d {[}1{]} \textless{}i\textgreater{} "
        r"\textbar{} $\alpha$$\ge$$\lambda$"
    )
    assert to_latex(table).replace(r"\allowbreak{}", "").count(tex_escape(nasty)) == 5  # caption, head, section, cell, footnote
    assert [row[0] for row in markdown_rows(to_markdown(table))][::3] == [nasty.replace("\\", r"\\").replace("|", r"\|")] * 2
    assert "<i>" not in to_markdown(table)
    assert "<i>" not in html_fragment(table) and html.escape(nasty) in html_fragment(table)
    assert tex_escape("1 °漢") == "1 °?"


DIGITS = {
    0.0: "0", 0.00012: "0.000120", 0.00612: "0.00612", 0.0124999: "0.0125", 0.9996: "1.00", 1.0: "1.00", 75.04: "75.0", 300.0: "300",
    1234.5: "1,230", 2.5e15: "2.50e15", 1.2e-7: "1.20e-7", -0.0421: "-0.0421",
}  # fmt: skip


@pytest.mark.parametrize(("value", "text"), DIGITS.items())
def test_three_significant_digits(value: float, text: str) -> None:
    assert cells.significant(value) == text


def test_a_number_and_its_interval() -> None:
    assert cells.number(Summary(0.8449, 0.81, 0.875)).text == "0.84 [0.81, 0.88]"
    assert cells.number(Summary(-0.004, -0.5, 0.3)).text == "0.00 [−0.50, 0.30]"  # no minus zero
    assert cells.number(Summary(0.5, 0.4, 0.6), interval=False).text == "0.50"


def test_broken_record_stops_the_tables_with_one_line(
    make_results: Callable[..., Path], run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = make_results(rows={("apex", 1): 0.7})
    path = results / "records" / "apex" / "nfe1" / "seed0" / "test" / "fid.json"
    path.write_text(json.dumps({"schema": 1}))
    assert run(build.main, "--results", results, "--out", tmp_path / "tables") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ") and error.count("\n") == 1
    assert not (tmp_path / "tables").exists()
