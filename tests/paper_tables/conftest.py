"""Synthetic result folders, made in tmp_path: records in the contract's shape with numbers that tests can predict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
REFERENCES = ("real", "mean", "shuffled", "noise")


def metric(name: str, value: float, half: float | None = None, n: int = 1200, unit: str = "fraction", better: bool = True) -> dict[str, Any]:
    """One entry of a record's `metrics`; `half` is half the width of its interval."""
    low, high = (None, None) if half is None else (value - half, value + half)
    return {"metric": name, "value": value, "unit": unit, "n": n, "ci_low": low, "ci_high": high, "higher_is_better": better}


def numbers(evaluator: str, quality: float, seed: int, nfe: int) -> list[dict[str, Any]]:
    """Metrics of one evaluator for a row of that quality (0 to 1); seeds differ by 0.01."""
    value = quality + 0.01 * seed
    if evaluator == "geneval":
        tasks = [metric(f"geneval/{task}", value + 0.02 * (index - 2.5), 0.05, 200) for index, task in enumerate(TASKS)]
        return [metric("geneval/overall", value, 0.03), *tasks, metric("geneval/seen", value, 0.03)]
    if evaluator == "fid":
        return [metric("fid", 50 - 40 * value, 1.0, unit="score", better=False), metric("fid/floor", 3.2, None, unit="score", better=False), metric("kid", 0.0421 * (1 - value), 0.001, unit="score", better=False)]
    if evaluator == "clip_score":
        return [metric("clip_score", 20 + 10 * value, 0.2, unit="score"), metric("clip_score/real", 30.5, 0.1, unit="score"), metric("clip_score/shuffled", 21.5, 0.1, unit="score")]
    if evaluator == "coverage":
        return [metric("coverage/spread", value, 0.02), metric("coverage/precision", value, 0.03), metric("coverage/recall", value - 0.1, 0.03)]
    stages = [metric(f"speed/stage/{stage}_b1_s", 0.001 * (index + nfe), None, 30, "s", False) for index, stage in enumerate(("text", "denoise", "decode"))]
    latency = metric("speed/latency_b1_s", 0.002 + 0.004 * nfe, 0.0005, 30, "s", False)
    return [latency, metric("speed/throughput_b10_sps", 300 / nfe, 5.0, 30, "samples/s"), metric("speed/peak_memory_mb", 512.0, None, 30, "MB", False), *stages]


def record(row: str, nfe: int, seed: int, evaluator: str, quality: float, **changes: Any) -> dict[str, Any]:
    """A whole record; `changes` replaces keys."""
    generated, trained = row not in REFERENCES, row not in (*REFERENCES, "teacher")
    training = {"flops": 2.5e15, "forward_equivalents": 120000.0, "wall_seconds": 1180.5, "steps": 4000, "peak_memory_mb": 900.0}
    return {
        "schema": 1, "evaluator": evaluator, "evaluator_version": "1", "row": row, "method": row.removesuffix("-lora"), "family": "test",
        "variant": "", "tuning": "full" if trained else None, "backbone": "world-sana" if generated else None, "profile": "synthetic", "seed": seed, "nfe": nfe,
        "guidance": 3.0 if row == "teacher" else 1.0 if generated else None, "prompts": "prompts/test.jsonl", "prompts_sha256": "0" * 64, "git_commit": "abcdef012345",
        "config_hash": "0123456789ab", "hardware": "Test CPU, 2 cores", "versions": {"python": "3.11"}, "wall_seconds": 12.5, "peak_memory_mb": 700.0,
        "parameters": 1243152 if generated else None, "trainable_parameters": 1243152 if trained else None, "training": training if trained else None,
        "metrics": numbers(evaluator, quality, seed, nfe), "details": {},
    } | changes  # fmt: skip


ROWS = {
    ("real", 0): 0.97, ("mean", 0): 0.42, ("shuffled", 0): 0.12, ("noise", 0): 0.03, ("teacher", 50): 0.88, ("teacher", 25): 0.87, ("teacher", 1): 0.08,
    ("apex", 1): 0.71, ("apex", 2): 0.78, ("apex", 4): 0.81, ("apex-eq25", 1): 0.09, ("fm", 1): 0.10,
}  # fmt: skip
EVALUATORS = ("geneval", "fid", "clip_score", "coverage", "speed")


@pytest.fixture
def make_results(tmp_path: Path) -> Callable[..., Path]:
    """make_results(rows=..., seeds=..., skip={(row, evaluator)}) writes a results folder and returns it."""

    def make(
        rows: dict[tuple[str, int], float] | None = None,
        seeds: tuple[int, ...] = (0,),
        skip: frozenset[tuple[str, str]] = frozenset(),
        name: str = "results",
    ) -> Path:
        folder = tmp_path / name
        for (row, nfe), quality in (ROWS if rows is None else rows).items():
            for seed in seeds if row not in (*REFERENCES, "teacher") else (0,):
                for evaluator in EVALUATORS:
                    if (row, evaluator) in skip or (evaluator == "speed" and row in REFERENCES):
                        continue
                    path = folder / "records" / row / f"nfe{nfe}" / f"seed{seed}" / "test" / f"{evaluator}.json"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(record(row, nfe, seed, evaluator, quality)))
                unseen = folder / "records" / row / f"nfe{nfe}" / f"seed{seed}" / "unseen" / "geneval.json"
                unseen.parent.mkdir(parents=True, exist_ok=True)
                unseen.write_text(json.dumps(record(row, nfe, seed, "geneval", quality * 0.8)))
        return folder

    return make
