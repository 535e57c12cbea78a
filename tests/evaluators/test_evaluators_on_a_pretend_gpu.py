"""The evaluators on a GPU that lies in the CPU's memory (tests/pretend.py): the CPU's numbers, and no tensors of two devices meet."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from evaluators import throughput
from evaluators.__main__ import MODULES
from evaluators.result import read_record
from tests.pretend import pretend_gpu


@pytest.mark.parametrize("name", ["geneval", "fid", "clip_score", "coverage"])
def test_a_record_has_the_cpus_numbers(name, make_folder, few_rows, tmp_path):
    folder, main = make_folder(few_rows), import_module(MODULES[name]).main
    for device in ("cpu", "cuda"):
        with pretend_gpu() if device == "cuda" else torch.no_grad():
            main(["--images", str(folder), "--out", str(tmp_path / device), "--device", device])
    on_cpu, on_gpu = (read_record(tmp_path / device) for device in ("cpu", "cuda"))
    assert on_gpu.metrics == on_cpu.metrics and on_gpu.hardware == "a pretend GPU" != on_cpu.hardware


@pytest.mark.parametrize("name", throughput.EVALUATORS)
def test_the_official_networks_run_with_random_weights(name, small_networks, tmp_path):
    line = ["--evaluator", name, "--images", "2", "--batch", "1", "--resolution", "64", "--device", "cuda"]
    with pretend_gpu():
        throughput.main([*line, "--out", str(tmp_path / "cost.json")])
    assert (tmp_path / "cost.json").is_file()
