"""A run whose weights are split over two processes (FSDP2) is the run of two processes that each hold all of them (DDP)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

ROWS = {
    "fm": {"method": "fm"},
    "apex": {"method": "apex"},
    "shift": {"method": "apex", "params": {"learn_shift": True}},
    "lora": {"method": "apex", "tuning": "lora", "lora": {"rank": 2}},
    "frozen-first": {"method": "twinflow"},
    "checkpointing": {"method": "apex", "train": {"gradient_checkpointing": True}},
    "bf16": {"method": "apex", "train": {"precision": "bf16", "frozen": "bf16"}},
    "bf16-lora": {"method": "apex", "tuning": "lora", "lora": {"rank": 2}, "train": {"precision": "bf16", "frozen": "bf16"}},
    "clipped": {"method": "apex", "params": {"learn_shift": True}, "train": {"max_grad_norm": 0.05}},
    "features": {"method": "ladd"},
    "copy": {"method": "dmd2"},
    "8bit": {"method": "apex", "train": {"optimizer": "adamw8bit"}},
}
RUN = """
import sys
sys.path[:0] = {path!r}
import torch
from accelerate.state import AcceleratorState
from apex import sharding
from apex.config import load
from apex.data.latents import load_cache
from apex.loop import Loop
from pathlib import Path

torch.set_num_threads(1)
profile, cache, out, steps, *rows = sys.argv[1:]
config = load(profile)
for row in rows:
    AcceleratorState._reset_state()
    loop = Loop(config.run_config(row), config.run_hash(row), 0, load_cache(Path(cache)), Path(out) / row, config)
    loop.fit(int(steps))
    state = {{
        "trained": {{k: sharding.whole(p).clone() for k, p in loop.trained().items()}},
        "kept": sum(sharding.local(p).numel() for p in loop.student.parameters()),
        "step": loop.step, "spent": loop.spent(), "memory": loop.memory, "parameters": loop.parameters,
        "norms": [v for row in loop.rows for k, v in row.items() if k.startswith("grad_norm")],
    }}
    with loop.ema.applied():
        state["mean"] = {{k: sharding.whole(p).clone() for k, p in loop.student.named_parameters() if p.requires_grad}}
    torch.save(state, Path(out) / f"{{row}}-{{loop.accelerator.process_index}}.pt")
"""


@pytest.fixture(scope="module")
def profile(tiny_pipeline, tmp_path_factory) -> Path:
    values = {
        "profile": "split",
        "pipeline": str(tiny_pipeline),
        "methods": list(ROWS),
        "budget": {"forward_equivalents": 1e6},
        "train": {"batch_size": 4, "warmup_steps": 2, "log_every": 1, "learning_rate": 2e-3, "max_grad_norm": 0.0},
        "rows": ROWS,
    }
    path = tmp_path_factory.mktemp("split") / "p.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def run(processes, profile, tiny_cache) -> Callable[..., Path]:
    """run(folder, steps, rows, split=True): two processes train so many steps more of these rows; their states are in `folder`."""

    def go(folder: Path, steps: int, rows: list[str], split: bool = True) -> Path:
        done = processes(
            RUN.format(path=sys.path),
            [str(profile), str(tiny_cache), str(folder), str(steps), *rows],
            ACCELERATE_USE_FSDP=str(split).lower(),
        )
        assert [d.returncode for d in done] == [0, 0], "\n".join(d.stdout for d in done)
        return folder

    return go


@pytest.fixture(scope="module")
def both(run, tmp_path_factory) -> dict[bool, Path]:
    return {split: run(tmp_path_factory.mktemp(f"split-{split}"), 4, list(ROWS), split) for split in (True, False)}


def state_of(folder: Path, row: str, rank: int = 0) -> dict:
    return torch.load(folder / f"{row}-{rank}.pt", weights_only=True)


def close(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for k in a:
        if "attn2.to_k.bias" in k:  # softmax does not see it: its gradient is rounding alone, and Adam makes steps of that
            continue
        torch.testing.assert_close(a[k], b[k], msg=lambda m, k=k: f"{k}: {m}", **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row != "8bit"])
def test_it_trains_as_two_processes_with_whole_weights(both, row: str):
    split, whole = (state_of(both[kind], row) for kind in (True, False))
    loose = {"rtol": 2e-2, "atol": 2e-3} if "bf16" in row else {"rtol": 1e-3, "atol": 2e-5}
    close(split["trained"], whole["trained"], **loose)
    close(split["mean"], whole["mean"], **loose)
    assert split["norms"] == pytest.approx(whole["norms"], rel=2e-2 if "bf16" in row else 1e-3)
    assert split["spent"] == pytest.approx(whole["spent"], rel=1e-6)
    assert split["parameters"] == whole["parameters"]


@pytest.mark.slow
def test_moments_of_8_bits_go_as_far_apart_as_their_blocks(both, tiny_pipeline):
    """Halves have other blocks than wholes, and fewer of them 8 bits: within 5% of the way, where fp32 moments agree to rounding."""
    split, whole = (state_of(both[kind], "8bit") for kind in (True, False))
    file = load_file(tiny_pipeline / "transformer" / "diffusion_pytorch_model.safetensors")
    start = {f"student.transformer.{k}": v for k, v in file.items()}
    names = sorted(start.keys() & whole["trained"].keys())  # all but the time embedding, which has other names with a target time

    def way(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
        return float(sum((a[k] - b[k]).square().sum() for k in names).sqrt())

    assert len(names) > 0.9 * len(start)
    assert 1e-4 < way(split["trained"], whole["trained"]) / way(whole["trained"], start) < 0.05
    assert split["norms"] == pytest.approx(whole["norms"], rel=1e-2)
    exact = state_of(both[True], "apex")["memory"]["optimizer"]
    assert split["memory"]["optimizer"] < 0.9 * exact and whole["memory"]["optimizer"] < 0.75 * 2 * exact


@pytest.mark.slow
def test_each_process_holds_half(both):
    """Of weights, running mean and moments; the steps' own memory is for no process less than what it gathers."""
    split, whole = state_of(both[True], "apex"), state_of(both[False], "apex")
    shares = [state_of(both[True], "apex", rank)["kept"] for rank in (0, 1)]
    assert sum(shares) == whole["kept"] and max(shares) < 0.7 * whole["kept"]  # a small tensor's last rows are one process's
    for part in ("student", "teacher", "ema", "optimizer"):
        assert split["memory"][part] == pytest.approx(whole["memory"][part] / 2, abs=0.02)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(both, run, tmp_path):
    rows = ["apex", "bf16-lora", "clipped", "8bit"]
    run(tmp_path, 2, rows)
    run(tmp_path, 2, rows)
    for row in rows:
        whole, resumed = state_of(both[True], row), state_of(tmp_path, row)
        assert resumed["step"] == whole["step"] == 4 and resumed["spent"] == whole["spent"]
        close(resumed["trained"], whole["trained"], rtol=0, atol=0)
        close(resumed["mean"], whole["mean"], rtol=0, atol=0)


def command(profile: Path, cache: Path, out: Path, row: str) -> list[str]:
    return ["--config", str(profile), "--row", row, "--cache", str(cache), "--out", str(out), "--set", "budget.forward_equivalents=60"]


MAIN = "import sys; sys.path[:0] = {path!r}; from apex import train; from apex.errors import run_command; sys.exit(run_command(train.main))"


@pytest.mark.slow
@pytest.mark.parametrize("row", ["apex", "lora"])
def test_what_is_exported_is_whole_and_loads_in_stock_diffusers(processes, profile, tiny_cache, tmp_path, row: str):
    done = {}
    for split in (True, False):
        out = tmp_path / str(split) / "seed0"
        said = processes(MAIN.format(path=sys.path), command(profile, tiny_cache, out, row), ACCELERATE_USE_FSDP=str(split).lower())
        assert [d.returncode for d in said] == [0, 0], "\n".join(d.stdout for d in said)
        done[split] = out
    files = {kind: sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) for kind, out in done.items()}
    assert files[True] == files[False]
    for name in (f for f in files[True] if f.endswith(".safetensors")):
        close(load_file(done[True] / name), load_file(done[False] / name), rtol=1e-3, atol=2e-5)
    made = json.loads((done[True] / "made.json").read_text())
    assert made["processes"] == 2 and made["split"] is True
    assert made["parameters"] == json.loads((done[False] / "made.json").read_text())["parameters"]
    if row == "apex":
        from diffusers import SanaTransformer2DModel

        loaded = SanaTransformer2DModel.from_pretrained(done[True] / "transformer")
        assert sum(p.numel() for p in loaded.parameters()) == made["parameters"]


@pytest.mark.slow
def test_a_state_of_other_shares_is_refused(run, processes, profile, tiny_cache, make_loop, tmp_path):
    """Of another number of processes, of a run with whole weights, and the other way round: one line, and nothing is lost."""
    run(tmp_path, 1, ["fm"])
    kept = {p: p.read_bytes() for p in (tmp_path / "fm").iterdir()}
    for count, split, expected in ((3, "true", "found the shares of 2 processes, expected 3"), (1, "false", "split over processes")):
        done = processes(
            RUN.format(path=sys.path), [str(profile), str(tiny_cache), str(tmp_path), "1", "fm"], count, ACCELERATE_USE_FSDP=split
        )
        assert all(d.returncode and expected in d.stdout and "remove" in d.stdout for d in done), done[0].stdout
    assert {p: p.read_bytes() for p in (tmp_path / "fm").iterdir()} == kept


REFUSED = """
import sys
sys.path[:0] = {path!r}
from accelerate.state import AcceleratorState
from apex.config import load
from apex.data.latents import load_cache
from apex.errors import UserError
from apex.loop import Loop
from pathlib import Path

profile, cache, out, *methods = sys.argv[1:]
for method in methods:
    AcceleratorState._reset_state()
    config = load(profile, ['rows.refused={{"method": "' + method + '"}}', 'methods=["refused"]'])
    try:
        loop = Loop(config.run_config("refused"), config.run_hash("refused"), 0, load_cache(Path(cache)), Path(out) / method, config)
        loop.fit(1)
    except UserError as error:
        print(f"{{method}}: {{error}}", flush=True)
"""


@pytest.mark.slow
def test_what_split_weights_cannot_do_is_refused_before_training(processes, profile, tiny_cache, tmp_path):
    needs = {"scm": "directional derivatives", "ctm": "the gradients of one whole matrix", "regression": "teacher-made pairs"}
    done = processes(REFUSED.format(path=sys.path), [str(profile), str(tiny_cache), str(tmp_path), *needs], ACCELERATE_USE_FSDP="true")
    for said in (d.stdout for d in done):
        lines = {line.partition(":")[0]: line for line in said.splitlines()}
        for method, what in needs.items():
            assert f"row refused: its method needs {what}, which a run whose weights are split" in lines.get(method, ""), said
    assert not list(tmp_path.rglob("*.pt"))
