"""The result record: what is written is what is read, and what is wrong is named."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from apex.errors import UserError
from evaluators.result import Metric, Record, read_record

METRIC = {"metric": "fid", "value": 1.5, "unit": "d", "n": 10, "higher_is_better": False}
BASE = {
    "row": "apex",
    "method": "apex",
    "nfe": 1,
    "evaluator": "fid",
    "evaluator_version": "1",
    "git_commit": "abc",
    "hardware": "cpu",
    "versions": {"python": "3.11"},
    "wall_seconds": 1.0,
    "peak_memory_mb": 100.0,
}


def test_what_is_written_is_read(tmp_path):
    record = Record(**BASE, metrics=[Metric(**METRIC)], details={"made": {"seed": 3}})
    record.write(tmp_path / "a" / "fid.json")
    assert read_record(tmp_path / "a" / "fid.json") == record
    assert json.loads((tmp_path / "a" / "fid.json").read_text())["schema"] == 1
    assert record.value("fid") == 1.5
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["fid.json"], "no temporary file is left"


@pytest.mark.parametrize(
    "change",
    [
        {"value": float("nan")},
        {"value": float("inf")},
        {"ci_low": 1.0},
        {"ci_low": 2.0, "ci_high": 1.0, "interval": "bootstrap 95%"},
        {"ci_low": 1.0, "ci_high": 2.0},
        {"interval": "bootstrap 95%"},
        {"n": "many"},
        {"colour": "red"},
    ],
)
def test_a_bad_number_is_no_metric(change):
    with pytest.raises(ValidationError):
        Metric(**METRIC | change)


def test_a_metric_stands_once():
    with pytest.raises(ValidationError, match="named twice: fid"):
        Record(**BASE, metrics=[Metric(**METRIC)] * 2)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "no such result record"),
        ("{", "not a JSON"),
        ("[]", "record"),
        (json.dumps({**BASE, "schema": 2, "metrics": []}), "schema: found '2'"),
        (json.dumps({**BASE, "schema": 1, "metrics": [METRIC | {"value": "x"}]}), r"metrics.0.value: found 'x'"),
        (json.dumps({k: v for k, v in BASE.items() if k != "row"} | {"schema": 1, "metrics": []}), "row"),
    ],
)
def test_a_broken_file_is_named_with_its_key(tmp_path, content, named):
    path = tmp_path / "record.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=named) as caught:
        read_record(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_reading_needs_no_torch():
    code = "import sys, evaluators.result, evaluators.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
