"""Synthetic result folders, made in tmp_path: records, logs and images in the contract's shape, with numbers that tests can predict."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apex.config import load
from apex.data.prompts import COMMITTED, prompts_sha256
from apex.errors import run_command
from paper_tables import audit, collect, figures
from paper_tables import build as build_tables
from paper_tables.expected import Expected
from paper_tables.view import View

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
UNSEEN = ("colors", "position", "color_attr")
REFERENCES = ("real", "mean", "shuffled", "noise")
EVALUATORS = ("geneval", "fid", "clip_score", "coverage", "speed")
# Quality of every (row, NFE); a seed adds 0.01 to it.
ROWS = {
    ("real", 0): 0.95, ("mean", 0): 0.42, ("shuffled", 0): 0.12, ("noise", 0): 0.05,
    ("teacher", 50): 0.88, ("teacher", 25): 0.80, ("teacher", 1): 0.08,
    ("apex", 1): 0.72, ("apex", 2): 0.78, ("apex", 4): 0.81, ("apex-eq25", 1): 0.10, ("apex-eq25", 2): 0.12, ("apex-eq25", 4): 0.2,
    ("fm", 1): 0.11, ("fm", 2): 0.2, ("fm", 4): 0.45,
}  # fmt: skip
FAMILIES = {"apex": "self-adversarial", "apex-eq25": "self-adversarial", "fm": "control"}  # of others: test
EXTRA_MB = {"apex-eq25": 20.0}  # as if it had a discriminator
BUDGET = 120000
# A profile that names the rows above; the methods are the suite's own.
PROFILE = """
profile: synthetic
methods: [apex, apex-eq25]
nfe: [1, 2, 4]
full: {methods: [fm], nfe: {fm: [8]}, seeds: {apex: [0, 1, 2]}}
budget: {forward_equivalents: 120000}
"""
# A full matrix: row -> (family, quality at one step). Every NFE more adds to it; four rows are swept from 1 to 20.
MATRIX = {
    "lcm": ("consistency", 0.35), "scm": ("consistency", 0.55), "ctm": ("consistency", 0.50), "pcm": ("consistency", 0.52),
    "meanflow": ("consistency", 0.60), "rcgm": ("consistency", 0.62), "scm-fd": ("consistency", 0.54), "lcm-lora": ("consistency", 0.30),
    "ladd": ("adversarial", 0.71), "add": ("adversarial", 0.40), "dmd2": ("adversarial", 0.74),
    "sana-sprint": ("adversarial + consistency", 0.70), "apex": ("self-adversarial", 0.69), "apex-eq25": ("self-adversarial", 0.003),
    "twinflow": ("self-adversarial", 0.66), "apex-lora": ("self-adversarial", 0.60), "regression": ("regression", 0.30),
    "reflow": ("regression", 0.45), "progressive": ("regression", 0.48), "fm": ("control", 0.02),
}  # fmt: skip
SWEPT = ("apex", "scm", "ctm", "meanflow")
MATRIX_PROFILE = f"""
profile: synthetic
methods: [apex, apex-eq25, fm]
nfe: [1, 2, 4]
rows:
  apex-lora: {{method: apex, tuning: lora}}
  lcm-lora: {{method: lcm, tuning: lora}}
  scm-fd: {{method: scm, params: {{derivative: finite_difference}}}}
  scm-late: {{method: scm}}
full:
  methods: [{", ".join(row for row in MATRIX if row not in ("apex", "apex-eq25", "fm"))}, scm-late]
  nfe: {{{", ".join(f"{row}: {list(range(1, 21))}" for row in SWEPT)}}}
budget: {{forward_equivalents: {BUDGET}}}
external:
  - {{row: theirs, nfe: 1, images: theirs, source: a folder}}
  - {{row: slower, nfe: 8, images: slower, source: another folder}}
"""
PUBLISHED = [
    {"row": "Theirs 0.6B", "nfe": 2, "metric": "geneval/overall", "value": 0.99, "source": "a paper, Table 3", "setting": "0.6B, A100"},
    {"row": "Theirs 0.6B", "nfe": 2, "metric": "dpg", "value": 81.2, "source": "a paper, Table 3", "setting": "0.6B, A100"},
    {"row": "Old", "nfe": 1, "metric": "fid", "value": 0.5, "source": "another paper"},
]
PROMPTS = {task: [f"{task.replace('_', ' ')} prompt number {index}" for index in range(4)] for task in TASKS}


def metric(
    name: str,
    value: float,
    half: float | None = None,
    n: int = 1200,
    unit: str = "fraction",
    better: bool = True,
    word: str = "bootstrap 95%",
) -> dict[str, Any]:
    """One entry of a record's `metrics`; `half` is half the width of its interval."""
    bounds: dict[str, Any] = {}
    if half is not None:
        ends = (value - half, value + half)
        low, high = (min(1.0, max(0.0, end)) for end in ends) if name.startswith(("geneval/", "coverage/")) else ends
        bounds = {"ci_low": low, "ci_high": high, "interval": word}
    return {"metric": name, "value": value, "unit": unit, "n": n, "higher_is_better": better, **bounds}


def outcomes(value: float, split: str) -> list[dict[str, Any]]:
    """GenEval by prompt, 200 images a task, spread over its prompts; tasks differ by 0.02 around `value`, by less near 0 and 1."""
    tasks = TASKS if split == "test" else UNSEEN
    step, found = min(0.02, value / 5, (1 - value) / 5), []
    for index, task in enumerate(tasks):
        total = round(200 * (value + step * (index - (len(tasks) - 1) / 2)))
        shares = [total // 4 + (place < total % 4) for place in range(4)]
        found += [{"tag": t, "prompt": p, "correct": c, "images": 50} for t, p, c in zip([task] * 4, PROMPTS[task], shares, strict=True)]
    return found


def numbers(evaluator: str, quality: float, seed: int, nfe: int, split: str = "test") -> list[dict[str, Any]]:
    """Metrics of one evaluator for a row of that quality; tasks differ by 0.02 around it."""
    value = quality + 0.01 * seed
    if evaluator == "geneval":
        right, tasks = outcomes(value, split), TASKS if split == "test" else UNSEEN
        by_task = {task: sum(one["correct"] for one in right if one["tag"] == task) / 200 for task in tasks}
        each = [metric(f"geneval/{task}", share, 0.05, 200) for task, share in by_task.items()]
        value, n = sum(by_task.values()) / len(tasks), 200 * len(tasks)
        every = [metric(f"geneval/{name}", value, 0.03, n) for name in ("overall", "seen" if split == "test" else "unseen")]
        return [every[0], *each, every[1]]
    if evaluator == "fid":
        common = {"unit": "squared feature distance", "better": False}
        kid = metric("kid", 0.0421 * (1 - value), 0.001, word="jackknife 95%", **common | {"unit": "squared MMD"})
        return [metric("fid", 50 - 40 * value, **common), metric("fid/floor", 3.2, **common), kid]
    if evaluator == "clip_score":
        real, shuffled = (
            metric("clip_score/real", 30.5, 0.1, unit="100 x cosine"),
            metric("clip_score/shuffled", 21.5, 0.1, unit="100 x cosine"),
        )
        return [metric("clip_score", 20 + 10 * value, 0.2, unit="100 x cosine"), real, shuffled]
    if evaluator == "coverage":
        return [
            metric("coverage/spread", value, 0.02, unit="share of the renderer's standard deviation"),
            metric("coverage/precision", value, 0.03),
            metric("coverage/recall", value / 2, 0.03),
        ]

    def timed(name: str, value: float, half: float, unit: str = "s", better: bool = False) -> dict[str, Any]:
        return metric(f"speed/{name}", value, half, 30, unit, better, "interquartile range")

    stages = [timed(f"stage/{stage}_b1_s", 0.001 * (index + nfe), 0.0001) for index, stage in enumerate(("text", "denoise", "decode"))]
    whole = [timed("latency_b1_s", 0.002 + 0.004 * nfe, 0.0005), timed("throughput_b10_sps", 300 / nfe, 5.0, "samples/s", True)]
    return [*whole, *stages, metric("speed/peak_memory_mb", 512.0, None, 1, "MB", False)]


def record(row: str, nfe: int, seed: int, evaluator: str, quality: float, split: str = "test", **changes: Any) -> dict[str, Any]:
    """A whole record; `changes` replaces keys."""
    reference, trained = row in REFERENCES, row not in (*REFERENCES, "teacher")
    training = {"flops": 2.5e15, "forward_equivalents": BUDGET, "wall_seconds": 1180.5, "steps": 4000, "peak_memory_mb": 900.0}
    memory = {"student": 5.0, "teacher": 0.0, "extra": EXTRA_MB.get(row, 0.0), "ema": 5.0, "optimizer": 10.0, "step": 80.0}
    shares = {"student": 1.5e15, "teacher": 0.5e15, "ema": 0.25e15, "heads": 0.25e15 if row in EXTRA_MB else 0.0}
    training |= {
        "memory_mb": memory | {"total": sum(memory.values())},
        "flops_by_network": {k: v for k, v in shares.items() if v},
        "stopped": "",
    }
    right = outcomes(quality + 0.01 * seed, split)
    return {
        "schema": 1, "evaluator": evaluator, "evaluator_version": "1", "row": row,
        "method": row.removesuffix("-lora"), "family": FAMILIES.get(row, MATRIX.get(row, ("test",))[0]),
        "variant": "", "tuning": "none" if not trained else "lora" if row.endswith("-lora") else "full",
        "backbone": "renderer" if reference else "sana", "profile": "synthetic",
        "seed": seed, "nfe": nfe, "guidance": 2.5 if row == "teacher" else 1.0,
        "prompts": f"prompts/{split}.jsonl", "prompts_sha256": prompts_sha256(COMMITTED / f"{split}.jsonl"),
        "git_commit": "abcdef012345", "config_hash": "0123456789ab", "hardware": "Test CPU, 2 cores", "versions": {"python": "3.11"},
        "wall_seconds": 12.5, "peak_memory_mb": 700.0,
        "parameters": 0 if reference else 1243152, "trainable_parameters": 1243152 if trained else 0,
        "training": training if trained else None, "metrics": numbers(evaluator, quality, seed, nfe, split),
        "details": ({"per_prompt": right} if evaluator == "geneval" else {}) | ({"made": {"revision": 9}} if trained else {}),
    } | changes  # fmt: skip


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_logs(folder: Path, row: str, seed: int, lines: int = 60) -> None:
    """A training log in `apex.train`'s columns and the run's record with the shift-visibility probe."""
    adversary = ["loss/discriminator", "grad_norm/discriminator", "d_real", "d_fake"]
    own = {"apex": ["base", "residual/one_step", "rectification"], "apex-eq25": adversary}.get(row, [])
    head = ["step", "wall_seconds", "forward_equivalents", "learning_rate", "loss", "grad_norm", *own]
    rng = np.random.default_rng(seed)
    rows = [",".join(head)]
    for step in range(20, 20 * (lines + 1), 20):
        values = [(1 + len(name) / 10) * (0.2 + np.exp(-step / 300)) * rng.lognormal(0, 0.15) for name in head[4:]]
        rows.append(",".join(str(value) for value in [step, step * 0.3, step * 700, 1e-3, *values]))
    write(folder / "log.csv", "\n".join(rows) + "\n")
    probe = {"apex": {"0.1": 0.9, "0.3": 1.4, "0.5": 1.9, "0.7": 2.2, "0.9": 2.6}, "apex-eq25": {"0.1": 0.05, "0.5": 0.05, "0.9": 0.05}}
    settings = {"budget": {"forward_equivalents": BUDGET}, "train": {"max_grad_norm": 1.0}}
    write(folder / "made.json", {"row": row, "seed": seed, "revision": 9, "shift_visibility": probe.get(row, {}), "run": settings})


def write_images(folder: Path, row: str, nfe: int, samples: int = 4, side: int = 32, chosen: Iterable[str] = TASKS) -> None:
    """A folder in GenEval's layout: a disc in a colour of the row, at a place of the prompt."""
    rng = np.random.default_rng(len(row) * 10 + nfe)
    y, x = np.mgrid[:side, :side]
    prompts = [(task, prompt) for task in chosen for prompt in PROMPTS[task]]
    for index, (task, prompt) in enumerate(prompts):
        place = folder / f"{index:05d}"
        write(place / "metadata.jsonl", json.dumps({"tag": task, "include": [], "prompt": prompt}) + "\n")
        (place / "samples").mkdir()
        for sample in range(samples):
            image = np.full((side, side, 3), 90 + 20 * (index % 5), np.uint8)
            image[(x - 8 - 5 * sample) ** 2 + (y - 8 - index % 16) ** 2 < 40] = rng.integers(0, 255, 3)
            Image.fromarray(image).save(place / "samples" / f"{sample:04d}.png", compress_level=1)


def write_tuning(folder: Path) -> None:
    """tuning.json as `snakemake tune` leaves it: three candidates of apex, one of fm."""
    found = {"spread": 0.5, "recall": 0.6, "wall_seconds": 300.0, "forward_equivalents": 30000, "stopped": ""}
    values = [0.4, 0.55, 0.41]
    apex = [found | {"geneval": v, "geneval_low": v - 0.03, "geneval_high": v + 0.03, "params": {"order": k} if k else {}, "train": {}}
            for k, v in enumerate(values)]  # fmt: skip
    apex[2] |= {"train": {"learning_rate": 3e-4}, "stopped": "the loss of student is nan at step 90, after 40% of the budget"}
    fm = found | {"geneval": 0.05, "geneval_low": 0.03, "geneval_high": 0.07, "params": {}, "train": {}}
    methods = {"fm": {"declared": 1, "candidates": [fm], "chosen": 0}, "apex": {"declared": 3, "candidates": apex, "chosen": 1}}
    write(folder / "tuning.json", {"split": "val", "nfe": 1, "share": 0.25, "budget": 30000.0, "methods": methods})


def build(
    folder: Path,
    rows: dict[tuple[str, int], float] | None = None,
    seeds: tuple[int, ...] = (0,),
    skip: Iterable[tuple[str, str]] = (),
    runs: bool = False,
    images: bool = False,
    calibration: bool = False,
    tuning: bool = False,
) -> Path:
    """Writes a results folder and returns it; `skip` holds (row, evaluator) pairs without a record."""
    for (row, nfe), quality in (ROWS if rows is None else rows).items():
        for seed in (0,) if row in REFERENCES else seeds:
            place = folder / "records" / row / f"nfe{nfe}" / f"seed{seed}"
            for evaluator in EVALUATORS:
                if (row, evaluator) not in skip and not (evaluator == "speed" and (row in REFERENCES or seed)):
                    write(place / "test" / f"{evaluator}.json", record(row, nfe, seed, evaluator, quality))
            if (row, "geneval") not in skip:
                write(place / "unseen" / "geneval.json", record(row, nfe, seed, "geneval", quality / 2, "unseen"))
            if runs and row not in (*REFERENCES, "teacher") and not (folder / "runs" / row / f"seed{seed}").exists():
                write_logs(folder / "runs" / row / f"seed{seed}", row, seed)
        if images:
            write_images(folder / "images" / row / f"nfe{nfe}" / "seed0" / "test", row, nfe)
            write_images(folder / "images" / row / f"nfe{nfe}" / "seed0" / "unseen", row, nfe, 1, chosen=UNSEEN)
    if tuning:
        write_tuning(folder / "tune")
    if calibration:
        levels = {"blur": (0.0, 1.0, 4.0), "noise": (0.0, 0.2, 0.5), "fade": (0.0, 0.5, 1.0), "lost objects": (0.0, 0.5, 1.0)}
        found = {}
        for fault, steps in levels.items():
            fall = [1 - step / steps[-1] for step in steps]
            found[fault] = [
                {"level": step, "overall": y} | {task: y ** (0.5 + index / 3) for index, task in enumerate(TASKS)}
                for step, y in zip(steps, fall, strict=True)
            ]
        write(folder / "calibration" / "calibration.json", {"n": 300, "units": dict.fromkeys(levels, "level"), "curves": found})
    return folder


IMAGES_ONLY = ("family", "variant", "tuning", "backbone", "profile", "seed", "guidance", "config_hash", "parameters",
               "trainable_parameters", "training")  # fmt: skip


def bring(folder: Path, row: str, nfe: int, quality: float, source: str = "a folder") -> None:
    """Records of a folder of images from elsewhere, as the evaluators write them where there is no made.json."""
    for evaluator in EVALUATORS[:4]:
        one = record(row, nfe, 0, evaluator, quality) | dict.fromkeys(IMAGES_ONLY)
        one["details"] |= {"made": {"source": source}}
        write(folder / "records" / row / f"nfe{nfe}" / "seed0" / "test" / f"{evaluator}.json", one)


@pytest.fixture(scope="session")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of twenty rows, of four of them at twenty NFEs, and of two folders of images; not to be changed. profile.yaml names one
    row more, `scm-late`, that was not run."""
    folder = tmp_path_factory.mktemp("matrix") / "results"
    rows = {key: quality for key, quality in ROWS.items() if key[0] in (*REFERENCES, "teacher")}
    for row, (_, quality) in MATRIX.items():
        for nfe in range(1, 21) if row in SWEPT else (1, 2, 4):
            rows[row, nfe] = min(0.93, quality + 0.05 * math.log2(nfe))
    build(folder, rows, runs=True)
    bring(folder, "theirs", 1, 0.95)
    bring(folder, "slower", 8, 0.60)
    (folder / "profile.yaml").write_text(MATRIX_PROFILE)
    return folder


@pytest.fixture(scope="session")
def matrix_view(matrix: Path) -> View:
    return View.load(matrix, Expected.of(load(matrix / "profile.yaml")))


@pytest.fixture
def make_results(tmp_path: Path) -> Callable[..., Path]:
    """make_results(name="results", **as for `build`) writes a results folder of this test and returns it."""
    return lambda name="results", **options: build(tmp_path / name, **options)


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of `PROFILE`."""
    path = tmp_path_factory.mktemp("profile") / "synthetic.yaml"
    path.write_text(PROFILE)
    return path


@pytest.fixture(scope="session")
def full_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds, logs, images and calibration; made once, not to be changed."""
    return build(tmp_path_factory.mktemp("full") / "results", seeds=(0, 1, 2), runs=True, images=True, calibration=True, tuning=True)


def call(main: Callable[[], None], *arguments: object) -> int:
    """Runs a command as its line would, in this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["command", *map(str, arguments)])
        return run_command(main)


@pytest.fixture(scope="session")
def run() -> Callable[..., int]:
    """run(module.main, "--results", folder, ...): the command's exit code."""
    return call


@pytest.fixture(scope="session")
def made(full_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the four commands make of `full_results`: metrics.csv, tables/, audit/, figures/."""
    out = tmp_path_factory.mktemp("made")
    assert call(collect.main, "--results", full_results, "--out", out / "metrics.csv") == 0
    assert call(build_tables.main, "--results", full_results, "--out", out / "tables") == 0
    assert call(audit.main, "--out", out / "audit") == 0
    assert call(figures.main, "--results", full_results, "--out", out / "figures") == 0
    return out


@pytest.fixture(scope="session")
def published_numbers() -> list[dict[str, Any]]:
    return PUBLISHED


@pytest.fixture(scope="session")
def bring_images() -> Callable[..., None]:
    """bring_images(results, row, nfe, quality) adds the records of a folder of images from elsewhere."""
    return bring


@pytest.fixture(scope="session")
def score_cell() -> Callable[..., None]:
    """score_cell(folder, name, seed, quality, visibility=None) writes the records of a cell of an ablation and of its making."""

    def score(folder: Path, name: str, seed: int, quality: float, visibility: float | None = None) -> None:
        place = folder / name / f"seed{seed}"
        for evaluator in ("geneval", "coverage"):
            write(place / "records" / f"{evaluator}.json", record("apex", 1, seed, evaluator, quality) | {"row": "cell"})
        write(place / "run" / "made.json", {"shift_visibility": {"0.5": visibility} if visibility is not None else {}, "training": {}})

    return score
