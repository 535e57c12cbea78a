"""What users run on a GPU, run on one that lies in the CPU's memory (tests/pretend.py): no tensors of two devices meet."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from apex import methods, sample, step_timing
from apex.config import load
from apex.data import cache, embeddings, synthesise
from apex.data.shards import write_world
from apex.errors import run_command
from apex.pretrain import teacher
from tests.pretend import CARD, CPU, pretend_gpu

SETTINGS = {"train": {"learning_rate": 1e-2, "ema": 0.9}, "budget": {"forward_equivalents": 2000}}
MISTAKES = {
    "two devices": lambda there, here: there + here,
    "weights elsewhere": lambda there, here: torch.nn.Linear(3, 3)(there),
    "a mask elsewhere": lambda there, here: torch.where(here > 0, there, there),
    "joined": lambda there, here: torch.cat([there, here]),
    "into the other": lambda there, here: here.add_(there),
    "an index on the GPU": lambda there, here: here[torch.zeros(1, dtype=torch.long, device=CARD)],
    "a GPU's scalar": lambda there, here: here * there.sum(),
    "noise from a CPU generator": lambda there, here: torch.randn(3, generator=torch.Generator(), device=CARD),
    "noise in place": lambda there, here: there.normal_(generator=torch.Generator()),
    "a GPU generator on the CPU": lambda there, here: torch.randn(3, generator=torch.Generator(CARD)),
    "to numpy": lambda there, here: there.numpy(),
    "in the derivative": lambda there, here: torch.func.jvp(lambda x: x * here, (there,), (there,)),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_pretend_gpu_refuses_what_a_gpu_refuses(name: str):
    with pretend_gpu():
        there, here = torch.ones(2, 3, device=CARD), torch.ones(2, 3)
        with pytest.raises((RuntimeError, TypeError), match=r"device|a tensor on|generator on|numpy"):
            MISTAKES[name](there, here)


def test_the_pretend_gpu_allows_what_a_gpu_allows_and_keeps_the_numbers():
    def steps(device: torch.device) -> list[Tensor]:
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 3)).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), 0.1, foreach=True)
        for _ in range(3):
            x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).to(device)
            x[torch.tensor([0, 1])] *= torch.tensor(2.0)  # an index and a scalar on the CPU
            (network(x) - torch.zeros(3, device=x.device)).square().mean().backward()
            optimizer.step()
        assert {p.device for p in network.parameters()} == {p.grad.device for p in network.parameters()} == {device}
        moments = {v.device for state in optimizer.state.values() for k, v in state.items() if k != "step"}
        assert moments == {device}
        return [p.detach().cpu() for p in network.parameters()]

    with pretend_gpu():
        there = steps(CARD)
        assert {p.device for p in there} == {CPU}
    assert all(torch.equal(a, b) for a, b in zip(there, steps(CPU), strict=True))


def saved(run: Path) -> dict[str, Tensor]:
    (file,) = [*run.glob("transformer/*.safetensors"), *run.glob("lora/*.safetensors")]
    return load_file(file)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def settled(loop):
    """The loop, its weights in memory of their own: a frozen weight may lie in a mapped file, and some processors' libraries round by where
    a weight begins. What is copied to a device does not lie there."""
    for network in filter(None, (loop.student, loop.teacher)):
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()
    return loop


CASES = [*((name, "full") for name in methods.available()), ("apex", "lora"), ("lcm", "lora")]


@pytest.mark.parametrize(("method", "tuning"), CASES)
def test_every_method_trains_resumes_and_is_exported_with_the_cpus_numbers(make_loop, tmp_path, method: str, tuning: str):
    on_cpu = settled(make_loop(method, resume="cpu", tuning=tuning, **SETTINGS))
    on_cpu.fit(2)
    on_cpu.export(tmp_path / "run-cpu")
    with pretend_gpu():
        make_loop(method, resume="gpu", tuning=tuning, **SETTINGS).fit(1)
        loop = make_loop(method, resume="gpu", tuning=tuning, **SETTINGS)
        loop.fit(1)
        loop.export(tmp_path / "run-gpu")
        assert {p.device for p in (*loop.trained().values(), *loop.ema.shadow, *loop.student.parameters())} == {CARD}
    assert loop.step == 2 and [row["loss"] for row in loop.rows if "loss" in row] == pytest.approx(
        [row["loss"] for row in on_cpu.rows if "loss" in row], rel=1e-4
    )
    if getattr(loop.method.params, "derivative", "") != "jvp":  # torch takes another way to an exact derivative where it is watched
        assert same(saved(tmp_path / "run-cpu"), saved(tmp_path / "run-gpu"))


WAYS = {
    "bf16": {"train": {"precision": "bf16", "frozen": "bf16"}},
    "in parts": {"train": {"gradient_accumulation": 2, "batch_size": 2}},
    "checkpointing": {"train": {"gradient_checkpointing": True}},
    "captions as they come": {"data": {"scenes": 48, "embeddings": "batch"}},
    "learned shift": {"params": {"learn_shift": True, "a": -0.5, "b": 0.1}},
    "Qwen-Image": {},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_apex_trains_in_every_way(make_loop, qwen_pipeline, tmp_path, way: str, tuning: str):
    settings = SETTINGS | WAYS[way] | {"train": SETTINGS["train"] | WAYS[way].get("train", {})}
    settings |= {"pipeline": str(qwen_pipeline)} if way == "Qwen-Image" else {}
    for place in ("cpu", "gpu"):
        with pretend_gpu() if place == "gpu" else torch.enable_grad():
            loop = settled(make_loop("apex", resume=place, tuning=tuning, **settings))
            loop.fit(2)
            loop.export(tmp_path / f"run-{place}")
    assert same(saved(tmp_path / "run-cpu"), saved(tmp_path / "run-gpu"))


def test_a_rows_steps_are_measured_with_the_kernels_of_a_run(tiny_profile, monkeypatch):
    AcceleratorState._reset_state(True)
    monkeypatch.setattr(step_timing.planning, "measured_rate", lambda device: {"cuda:0": 1.0}[device])
    config = load(tiny_profile(rows={"row": {"method": "apex"}}, methods=["row"], budget={"forward_equivalents": 1e6}))
    with pretend_gpu():
        found = step_timing.measure(config, "row", steps=1)
        assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    AcceleratorState._reset_state(True)
    assert found["device"] == "cuda:0" and found["tflops"] > 0


# ---------------------------------------------------------------------------------------------------- one order of sums


def test_training_takes_ordered_kernels_of_attention_and_the_cpu_is_left_alone(make_loop):
    """torch's attention adds in no order in its backward pass while an operation without an order may run."""
    make_loop("fm", resume="cpu").fit(1)
    assert not torch.are_deterministic_algorithms_enabled()
    with pretend_gpu():
        make_loop("fm", resume="gpu").fit(1)
        assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_method_with_an_operation_without_an_order_runs_and_is_named(make_loop, monkeypatch, capsys):
    real = methods.get("fm").losses

    def losses(self, *given):
        if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError("some_backward_cuda does not have a deterministic implementation, but you set 'torch.use_...'")
        return real(self, *given)

    with pretend_gpu():
        plain = make_loop("fm", resume="plain")
        plain.fit(2)
        assert "warning" not in capsys.readouterr().out
        monkeypatch.setattr(methods.get("fm"), "losses", losses)
        loop = make_loop("fm", resume="named")
        loop.fit(1)
        loop = make_loop("fm", resume="named")
        loop.fit(1)
        assert torch.is_deterministic_algorithms_warn_only_enabled() and loop.step == 2
        assert all(torch.equal(v, plain.trained()[k]) for k, v in loop.trained().items())
    said = "warning: row: the last digits of a run differ from another's of its seed: some_backward_cuda does not have a deterministic"
    assert capsys.readouterr().out.count(said) == 2


def test_another_error_of_the_first_pass_is_not_hidden(make_loop, monkeypatch):
    monkeypatch.setattr(methods.get("fm"), "losses", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pretend_gpu(), pytest.raises(RuntimeError, match="out of memory"):
        make_loop("fm").fit(1)


# ------------------------------------------------------------------------------------------------------- the commands


def call(monkeypatch, main, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    assert run_command(main) == 0


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("method", ["apex", "fm"])
def test_a_run_is_sampled_with_the_cpus_images(make_loop, tmp_path, monkeypatch, method: str, tuning: str):
    loop = make_loop(method, tuning=tuning, **SETTINGS)
    loop.fit(2)
    loop.export(tmp_path / "run")
    for device in ("cpu", "cuda"):
        with pretend_gpu() if device == "cuda" else torch.enable_grad():
            line = ["--pipeline", tmp_path / "run", "--prompt", "a red circle", "--nfe", 2, "--device", device, "--out", tmp_path / device]
            call(monkeypatch, sample.main, *line)
    pictures = [sorted((tmp_path / device).rglob("*.png")) for device in ("cpu", "cuda")]
    assert pictures[0] and len(pictures[0]) == len(pictures[1])
    for a, b in zip(*pictures, strict=True):
        assert Image.open(a).tobytes() == Image.open(b).tobytes()


def test_data_is_prepared_with_the_cpus_numbers(tiny_pipeline, tiny_cache, tiny_profile, tmp_path, monkeypatch):
    write_world(tmp_path / "shards", scenes=8, resolution=32, seed=0)
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    profile = tiny_profile()
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        with pretend_gpu() if device == "cuda" else torch.enable_grad():
            given = ["--device", device, "--pipeline", tiny_pipeline]
            call(monkeypatch, cache.main, *given, "--data", tmp_path / "shards", "--out", out / "cache")
            call(monkeypatch, embeddings.main, *given, "--cache", out / "cache", "--out", out / "text")
            small = ["--steps", 3, "--batch", 4, "--width", 32, "--layers", 1]
            call(monkeypatch, teacher.main, *given, "--cache", tiny_cache, "--out", out / "teacher", *small)
            line = ["--config", profile, "--prompts", tmp_path / "prompts.txt", "--count", 3, "--steps", 2, "--device", device]
            call(monkeypatch, synthesise.main, *line, "--out", out / "drawn")
    for part in ("cache", "text", "teacher/transformer"):
        files = sorted(path.name for path in (tmp_path / "cpu" / part).glob("*.safetensors"))
        assert files, part
        for name in files:
            assert same(*(load_file(tmp_path / device / part / name) for device in ("cpu", "cuda"))), (part, name)
    drawn = [sorted((tmp_path / device / "drawn").glob("*.tar")) for device in ("cpu", "cuda")]
    assert drawn[0] and [a.read_bytes() for a in drawn[0]] == [b.read_bytes() for b in drawn[1]]
