"""The published tables as data: complete, printed digits kept, consistent with each other; errors name file, row and column."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from apex.errors import UserError
from paper_tables import audit, published
from paper_tables.published import GENEVAL_TASKS, NUMERIC, PUBLISHED, Published, half_unit, label, slug

ROWS = {"table1": 33, "table2": 22, "table3": 28, "table4": 18, "table5": 24, "table6": 5, "table7": 12, "sana_sprint": 17, "other": 21}


@pytest.fixture(scope="module")
def data() -> Published:
    return published.load()


def test_every_table_is_complete(data: Published) -> None:
    assert {name: len(rows) for name, rows in data.tables.items()} == ROWS
    for name, rows in data.tables.items():
        keys = ("nfe", "dataset", "steps", "benchmark", "metric", "setting")
        names = [(label(row), *(row.get(key) for key in keys)) for row in rows]
        assert len(set(names)) == len(names), name
        assert all(row["citation"] and row["source"] for row in rows), name


def test_numbers_lie_where_such_numbers_lie(data: Published) -> None:
    for name, keys in (("table2", NUMERIC["table2"]), ("table4", NUMERIC["table4"]), ("table5", ["geneval"]), ("table7", ["geneval"])):
        assert all(0 < float(row[key]) <= 1 for row in data[name] for key in keys if row[key]), name
    assert all(50 < float(row[key]) < 100 for row in data["table3"] for key in NUMERIC["table3"] if row[key])
    assert all(0.2 < float(row["geneval"]) < 1 and 6 < float(row["fid"]) < 80 and 20 < float(row["clip"]) < 30 for row in data["table1"])


@pytest.mark.parametrize(
    ("table", "where", "column", "value"),
    [
        ("table1", {"method": "APEX 20B LoRA r=64", "nfe": "1"}, "geneval", "0.89"),
        ("table1", {"method": "FLUX-schnell", "nfe": "1"}, "clip", "28.49"),
        ("table1", {"method": "RCGM", "nfe": "1"}, "fid", "11.38"),
        ("table2", {"model": "HiDream-I1-Full"}, "single_object", "1.00"),
        ("table3", {"model": "APEX 20B full (1-NFE)"}, "overall", "84.59"),
        ("table4", {"model": "GPT-4o"}, "overall", "0.80"),
        ("table5", {"model": "APEX 1.6B", "dataset": "BLIP-3o", "steps": "2000"}, "geneval", "0.27"),
        ("table6", {"label": "L_fake only"}, "apex_20b_lora_r32", "0.42"),
        ("table7", {"a": "0.5", "b": "0.0"}, "geneval", "0.29"),
    ],
)
def test_cells_as_printed(data: Published, table: str, where: dict[str, str], column: str, value: str) -> None:
    (row,) = published.find(data[table], where)
    assert row[column] == value


def test_tasks_and_names(data: Published) -> None:
    assert set(GENEVAL_TASKS) == set(NUMERIC["table2"]) - {"overall"}
    assert slug("APEX 20B LoRA r=32") == "apex-20b-lora-r-32"
    assert len({(slug(label(row)), row["nfe"]) for row in data["table1"]}) == 33
    assert [half_unit(text) for text in ("0.84", "87.5", "20")] == pytest.approx([0.005, 0.05, 0.5])


def test_find_by_values_and_prefix(data: Published) -> None:
    assert len(published.find(data["table1"], {"prefix": "APEX 20B", "nfe": "1"})) == 3
    assert len(published.find(data["table5"], {"steps": ["400", "1000"]})) == 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(PUBLISHED, tmp_path / "published")


FAULTS = {
    "missing file": (lambda folder: (folder / "table3.csv").unlink(), "table3.csv: not found"),
    "no number": (
        lambda folder: _replace(folder / "table2.csv", "0.95,0.52", "0.95,high"),
        "table2.csv: row 'Show-o', column 'two_object': found 'high'",
    ),
    "missing column": (lambda folder: _replace(folder / "table4.csv", ",overall,", ",total,"), "table4.csv: column 'overall' is missing"),
    "missing row": (
        lambda folder: _replace(folder / "table3.csv", "Qwen-Image,", "Qwen,"),
        "table3.csv: 0 rows with {'model': 'Qwen-Image'}",
    ),
}


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_table_is_one_line(
    fault: str, folder: Path, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, says = FAULTS[fault]
    change(folder)
    assert run(audit.main, "--out", tmp_path / "audit", "--published", folder) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("- {id: teacher, location: abstract, verbatim: true, says: in short, better}", "saying teacher: better: unknown key 'better'"),
        ("- {id: teacher, location: abstract, says: something}", "saying teacher: verbatim: not given"),
        ("{id: teacher}", "found dict, expected a list of sayings"),
        ("- {id: teacher, id: other}", " line 1: not valid YAML: key 'id' is given twice"),
    ],
)
def test_a_saying_with_an_unknown_or_missing_key_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "text_claims.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        published.load(claims=path)
    assert str(error.value).startswith(f"{path}:") and line in str(error.value) and "\n" not in str(error.value)
