"""What an evaluator costs: the evaluators' own code on random networks, counted in images and questions, the first batch left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from apex.errors import UserError
from evaluators import cost, throughput

METRICS = {
    "geneval": {"geneval/images_per_s"},
    "clip_score": {"clip_score/images_per_s", "clip_score/texts_per_s"},
    "fid": {"fid/images_per_s"},
    "dpg": {"dpg/vilt-b32_questions_per_s", "dpg/blip-base_questions_per_s"},
}


def test_the_command_names_every_evaluator() -> None:
    assert list(throughput.EVALUATORS) == list(cost.EVALUATORS) == list(METRICS)


@pytest.mark.slow
def test_every_evaluator_runs_on_random_networks_and_leaves_a_record(small_networks, tmp_path: Path, capsys) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    out = tmp_path / "new" / "cost.json"
    throughput.main(["--images", "3", "--batch", "1", "--resolution", "64", "--device", "cpu", "--out", str(out)])
    assert torch.equal(torch.random.get_rng_state(), before)
    about, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert about["weights"] == "random" and about["resolution"] == 64 and about["hardware"] and about["versions"]["torch"]
    assert set(about["evaluators"]) == set(METRICS)
    for name, metrics in METRICS.items():
        found = about["evaluators"][name]
        assert {key for key in found if "/" in key} == metrics
        for metric in metrics:
            value = found[metric]
            assert 0 < value["ci_low"] <= value["value"] <= value["ci_high"] and value["n"] == 2, "three batches, the first is not counted"
            assert f"{metric}: " in printed


def test_a_random_detector_is_sure_enough_to_find_things(small_networks) -> None:
    """Or nothing would be cut out for the colours, and the figure would be of half of the work."""
    torch.manual_seed(0)
    found = cost.detector_of("cpu")(torch.stack([torch.from_numpy(i) for i in cost.pictures(2, 128)]).numpy())
    assert all(image and max(d.score for kind in image.values() for d in kind) > 0.3 for image in found)
    row = cost.row_about(found[0])
    best = max(found[0], key=lambda name: max(d.score for d in found[0][name]))
    assert row["include"] == [{"class": best, "count": 1, "color": "red"}]
    assert cost.row_about({})["include"][0]["class"] == "dog"


def test_batches_are_whole_and_a_rate_is_things_by_seconds(monkeypatch) -> None:
    pictures = cost.pictures(7, 64)
    assert [len(part) for part in cost.batches(pictures, 3)] == [3, 3]
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    done = []
    assert cost.rate(lambda: done.append(1), 5, "cpu") == 2.0 and done == [1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--images", "3", "--batch", "2"], "--images 3, --batch 2: expected two batches at least"),
        (["--batch", "0"], "--batch: found 0, expected a whole number of at least 1"),
        (["--resolution", "32"], "--resolution 32: expected 64 or more"),
        (["--threads", "0"], "--threads: found 0, expected"),
    ],
)
def test_a_bad_call_is_one_clear_line(tmp_path: Path, arguments: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        throughput.main([*arguments, "--device", "cpu", "--out", str(tmp_path / "x.json")])
    assert not list(tmp_path.iterdir())
