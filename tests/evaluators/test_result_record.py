"""The result record: what is written is what is read, and what is wrong is named."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from apex.errors import UserError
from evaluators.result import Metric, Record, read_record

METRIC = {"metric": "fid", "value": 1.5, "unit": "squared feature distance", "n": 10, "higher_is_better": False}
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
        {"n": 10.5},
        {"n": 0},
        {"n": -3},
        {"value": "1.5"},
        {"value": True},
        {"value": -0.5},
        {"unit": "percent"},
        {"higher_is_better": 1},
        {"colour": "red"},
    ],
)
def test_a_bad_number_is_no_metric(change):
    with pytest.raises(ValidationError):
        Metric(**METRIC | change)


@pytest.mark.parametrize(
    ("name", "unit", "inside", "outside"),
    [
        ("geneval/overall", "fraction", (0, 1), (7.5, -0.01)),
        ("coverage/recall", "fraction", (0, 1), (1.01,)),
        ("coverage/spread", "share of the renderer's standard deviation", (0, 1), (1.2,)),
        ("coverage/place", "share of the renderer's standard deviation", (0, 1.4), (-0.1,)),
        ("clip_score", "100 x cosine", (-10.5, 73.0), (101.0, -101.0)),
        ("fid", "squared feature distance", (-1e-9, 312.0), (-1.0,)),
        ("fid/infinity", "squared feature distance", (-2.0, 20.0), ()),
        ("kid", "squared MMD", (-0.02, 144.0), (-5.0,)),
        ("speed/latency_b1_s", "s", (0.01,), (0.0, -1.0)),
        ("speed/throughput_b10_sps", "samples/s", (300.0,), (0.0,)),
        ("dpg_all/entity", "100 x share", (0, 100), (101.0,)),
        ("wise2026/overall", "score", (0, 1), (2.0,)),
        ("somebody's/own", "smiles", (-1e9, 1e9), ()),
    ],
)
def test_a_number_stands_on_its_metrics_scale(name, unit, inside, outside):
    given = {"metric": name, "unit": unit, "n": 3, "higher_is_better": True}
    for value in inside:
        assert Metric(value=value, **given).value == value
    for value in outside:
        with pytest.raises(ValidationError, match="expected"):
            Metric(value=value, **given)


def test_an_interval_of_resampled_values_stands_on_the_scale_too():
    bounds = {"ci_low": -0.2, "ci_high": 0.4}
    share = {"metric": "geneval/overall", "value": 0.1, "unit": "fraction", "n": 9, "higher_is_better": True}
    with pytest.raises(ValidationError, match=r"ci_low -0\.2"):
        Metric(**share, **bounds, interval="bootstrap 95%")
    assert Metric(**METRIC | bounds, interval="delta method 95%").ci_low == -0.2, "a normal interval of a distance may reach below 0"


def test_nothing_may_be_measured_of_an_open_attribute_alone():
    spread = {"value": 0.0, "unit": "share of the renderer's standard deviation", "n": 0, "higher_is_better": True}
    assert Metric(metric="coverage/color", **spread).n == 0
    with pytest.raises(ValidationError, match="found n 0, expected at least 1"):
        Metric(metric="coverage/spread", **spread)


def outcomes(**correct: int) -> list[dict]:
    """Two prompts a task with ten images each; the task's correct images are on the first."""
    return [
        {"tag": tag, "prompt": f"{tag} {k}", "correct": right if not k else 0, "images": 10}
        for tag, right in correct.items()
        for k in (0, 1)
    ]


def geneval(**changes: float) -> dict:
    values = {"overall": 0.3, "colors": 0.4, "counting": 0.2} | changes
    counts = {"overall": 40, "colors": 20, "counting": 20}
    metrics = [
        {"metric": f"geneval/{name}", "value": value, "unit": "fraction", "n": counts[name], "higher_is_better": True}
        for name, value in values.items()
    ]
    return BASE | {"evaluator": "geneval", "metrics": metrics, "details": {"per_prompt": outcomes(colors=8, counting=4)}}


def test_means_agree_with_the_outcomes_that_a_record_holds(tmp_path):
    def read(content: dict) -> Record:
        (tmp_path / "geneval.json").write_text(json.dumps(content))
        return read_record(tmp_path / "geneval.json")

    assert read(geneval()).value("geneval/overall") == 0.3, "the unweighted mean of 8 of 20 and 4 of 20"
    for change, words in (
        ({"overall": 0.31}, "geneval/overall: found 0.31, but details.per_prompt gives 0.3"),
        ({"colors": 0.5}, "geneval/colors: found 0.5, but details.per_prompt gives 0.4"),
    ):
        with pytest.raises(UserError, match=words):
            read(geneval(**change))
    fewer = geneval()
    fewer["metrics"][1]["n"] = 19
    with pytest.raises(UserError, match=r"geneval/colors: found n 19, but details\.per_prompt holds 20 images"):
        read(fewer)
    for broken in ({"correct": 11}, {"correct": "8"}, {"images": 0}, {"tag": None}, {"correct": True}):
        content = geneval()
        content["details"]["per_prompt"][0] |= broken
        with pytest.raises(UserError, match=r"geneval.json: details.per_prompt.0: found .*, expected whole numbers") as caught:
            read(content)
        assert "\n" not in str(caught.value)
    content = geneval()
    del content["details"]["per_prompt"][1]["tag"]
    with pytest.raises(UserError, match=r"details\.per_prompt: not as geneval writes it"):
        read(content)


@pytest.mark.parametrize(
    ("evaluator", "metric", "details", "again"),
    [
        ("clip_score", {"metric": "clip_score", "unit": "100 x cosine", "n": 6}, {"per_prompt": [20.0, 30.0, 40.0], "images": 6}, 30.0),
        ("dpg", {"metric": "dpg_all/overall", "unit": "100 x share", "n": 2},
         {"per_prompt": [{"item_id": "a", "score": 50.0}, {"item_id": "b", "score": 100.0}]}, 75.0),
        ("dpg", {"metric": "dpg/overall", "unit": "100 x share", "n": 2},
         {"per_prompt": [{"item_id": "a", "score": 50.0, "official": None}, {"item_id": "b", "score": 100.0, "official": 80.0},
                         {"item_id": "c", "score": 60.0, "official": 60.0}]}, 70.0),
        ("wise", {"metric": "wise/time", "unit": "score", "n": 2},
         {"protocol": "WISE 2025", "images_per_prompt": 1,
          "per_prompt": [{"prompt_id": 1, "score": 1.0}, {"prompt_id": 401, "score": 0.5}, {"prompt_id": 402, "score": 0.25}]}, 0.375),
    ],
)  # fmt: skip
def test_other_evaluators_means_follow_from_their_outcomes(evaluator, metric, details, again):
    def record(value: float) -> Record:
        return Record(**BASE | {"evaluator": evaluator}, metrics=[Metric(**metric, value=value, higher_is_better=True)], details=details)

    rounded = again + 5e-5 if evaluator == "wise" else again
    assert record(rounded).metrics[0].value == rounded, "the outcomes are rounded to four digits"
    with pytest.raises(ValidationError, match=r"details\.per_prompt gives"):
        record(again + 0.01)


def test_a_metric_stands_once():
    with pytest.raises(ValidationError, match="named twice: fid"):
        Record(**BASE, metrics=[Metric(**METRIC)] * 2)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "no such result record"),
        ("{", "not JSON"),
        ("[]", "record"),
        (json.dumps({**BASE, "schema": 2, "metrics": []}), "schema: found '2'"),
        (json.dumps({**BASE, "schema": 1, "metrics": [METRIC | {"value": "x"}]}), r"metrics.0.value: found 'x'"),
        (json.dumps({k: v for k, v in BASE.items() if k != "row"} | {"schema": 1, "metrics": []}), "row"),
        (json.dumps({**BASE, "metrics": [], "nfe": "1"}), "nfe: found '1'"),
        (json.dumps({**BASE, "metrics": [], "wall_seconds": "1.0"}), "wall_seconds: found '1.0'"),
        (json.dumps({**BASE, "metrics": [], "wall_seconds": -1}), "wall_seconds: found '-1'"),
        (json.dumps({**BASE, "metrics": [], "details": {"made": [3]}}), r"details: made: found '\[3\]'"),
        (json.dumps({**BASE, "metrics": [], "details": {"per_prompt": "all"}}), "details: per_prompt: found 'all'"),
        (json.dumps({**BASE, "metrics": [], "training": {"steps": 1.5}}), "training: steps: found '1.5'"),
        (json.dumps({**BASE, "metrics": [], "training": {"forward_equivalents": "1e6"}}), "training: forward_equivalents: found '1e6'"),
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
