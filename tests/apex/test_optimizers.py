"""AdamW with moments of 8 bits: as near to AdamW as said, as small as said, and refused in one line where it cannot run."""

from __future__ import annotations

import stat
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from apex import optimizers, planning
from apex.config import Train, load
from apex.errors import UserError

CPU = torch.device("cpu")
QUANTISED = {"adamw": 0, "adamw8bit": 2}  # of the network below: two of its three matrices


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(32, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 8))


def fitted(kind: str, steps: int = 150) -> tuple[nn.Module, torch.optim.Optimizer, list[float]]:
    """A network that learns another one: itself, its optimiser, its losses."""
    net, target = network(), network(seed=1)
    train = Train(optimizer=kind, learning_rate=2e-3, weight_decay=0.01)
    optimizer, losses = optimizers.make(train, list(net.parameters()), CPU), []
    for step in range(steps):
        x = torch.randn(64, 32, generator=torch.Generator().manual_seed(step))
        loss = (net(x) - target(x).detach()).square().mean()
        loss.backward()
        optimizers.set_rate(optimizer, 2e-3 * (1 - step / steps))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return net, optimizer, losses


@pytest.fixture(scope="module")
def both() -> dict[str, tuple[nn.Module, torch.optim.Optimizer, list[float]]]:
    return {kind: fitted(kind) for kind in QUANTISED}


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_it_goes_where_adamw_goes(both):
    """Within 5% of the way that the weights went, and its loss within 1%; no nearer than 8 bits can be."""
    (exact, _, losses), (near, _, others) = both["adamw"], both["adamw8bit"]
    way = (weights(exact) - weights(network())).norm()
    apart = (weights(near) - weights(exact)).norm() / way
    assert 1e-4 < apart < 0.05
    end, other = sum(losses[-10:]), sum(others[-10:])
    assert end < 0.3 * sum(losses[:10]) and other == pytest.approx(end, rel=0.01)


@pytest.mark.parametrize("kind", QUANTISED)
def test_its_moments_take_the_bytes_that_are_said(both, kind: str, plain_tensors):
    net, optimizer, _ = both[kind]
    bytes_of = {n: sum(t.nbytes for t in plain_tensors(optimizer.state[p]) if t.ndim) for n, p in net.named_parameters()}
    assert bytes_of == {n: optimizers.moment_bytes(kind, p.numel()) for n, p in net.named_parameters()}
    moments = [t for p in net.parameters() for t in plain_tensors(optimizer.state[p]) if t.shape == p.shape]
    assert sum(t.dtype == torch.uint8 for t in moments) == 2 * QUANTISED[kind]
    assert {t.dtype for t in moments} == ({torch.uint8, torch.float32} if kind == "adamw8bit" else {torch.float32})


@pytest.mark.parametrize(
    ("values", "small"), [(4096, True), (4095, False), (2048, False), (4096 + 128, False), (10 * 256, False), (16 * 256 + 256, True)]
)
def test_which_parameters_are_quantised_is_what_the_library_does(values: int, small: bool, plain_tensors):
    """Many of them take a quarter of the memory; a scale is four bytes for 256."""
    parameter = nn.Parameter(torch.zeros(values))
    optimizer = optimizers.make(Train(optimizer="adamw8bit"), [parameter], CPU)
    parameter.grad = torch.ones(values)
    optimizer.step()
    found = plain_tensors(optimizer.state[parameter])
    assert (torch.uint8 in {t.dtype for t in found}) is small
    assert sum(t.nbytes for t in found if t.ndim) == optimizers.moment_bytes("adamw8bit", values)
    assert optimizers.moment_bytes("adamw8bit", 2**20) / optimizers.moment_bytes("adamw", 2**20) == pytest.approx(0.25 + 1 / 256, rel=1e-3)


def test_a_step_is_adamws_where_nothing_is_quantised():
    """Moments of small parameters are fp32: decay, correction of the bias and the rate are those of AdamW."""
    ends = []
    for kind in QUANTISED:
        parameter = nn.Parameter(torch.linspace(-1, 1, 100))
        optimizer = optimizers.make(Train(optimizer=kind, weight_decay=0.1, betas=[0.8, 0.95]), [parameter], CPU)
        for step in range(20):
            optimizers.set_rate(optimizer, 0.01 / (step + 1))
            parameter.grad = torch.sin(parameter.detach() * (step + 1))
            optimizer.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-7)


# ----------------------------------------------------------------------------------------------------- in a whole run

ROWS = {"full": {"method": "fm"}, "extra": {"method": "dmd2"}, "lora": {"method": "apex", "tuning": "lora", "lora": {"rank": 64}}}


@pytest.mark.parametrize("row", ROWS)
def test_a_runs_record_and_the_plan_know_its_memory(make_loop, tiny_profile, row: str, plain_tensors):
    method, more = ROWS[row]["method"], {k: v for k, v in ROWS[row].items() if k != "method"}
    loops = {kind: make_loop(method, resume=kind, train={"optimizer": kind}, **more) for kind in QUANTISED}
    loop = loops["adamw8bit"]
    loop.fit(5 if row == "extra" else 1)  # every role has stepped
    loops["adamw"].measure_memory()
    states = [s for o in loop.optimizers.values() for s in o.state.values()]
    found = sum(t.nbytes for s in states for t in plain_tensors(s) if t.ndim) / 2**20
    assert loop.memory["optimizer"] == pytest.approx(found, abs=0.006)  # it has two decimals
    assert found < 0.75 * loops["adamw"].memory["optimizer"]  # of so small a network many parameters stay as they were
    shape = replace(planning.shape_of(load(tiny_profile())), tokens=loop.captions.longest().embeds.shape[1])
    assert planning.estimate(loop.run, shape, None).memory["optimizer"] * 1024 == pytest.approx(found)


def test_the_plan_names_it_where_no_milder_change_is_enough(tiny_profile):
    config = load(tiny_profile())
    run, shape = config.run_config("fm"), planning.shape_of(config)
    changes = list(planning.smaller(run))
    assert "optimizer" not in changes[-2][0] and changes[-1][0] == f"{changes[-2][0]} train.optimizer=adamw8bit"
    without, with_it = (planning.estimate(one, shape, None).total for _, one in changes[-2:])
    assert planning.planned(run, shape, None, 0.35, (without + with_it) / 2).mend.startswith(f"{changes[-1][0]}: ")
    assert [text for text, _ in planning.smaller(changes[-1][1])] == []


# ------------------------------------------------------------------------------------------------------- one clear line


def test_a_name_that_is_none_is_one_line(tiny_profile):
    with pytest.raises(UserError, match=r"train.optimizer: found '?adam8'?, expected .*adamw.*adamw8bit"):
        load(tiny_profile(train={"optimizer": "adam8"}))


def test_without_the_library_it_is_refused_before_any_work(make_loop, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(UserError, match=r"^train.optimizer: adamw8bit needs torchao, .* not installed: pip install .*, or take adamw$"):
        make_loop("fm", train={"optimizer": "adamw8bit"})
    assert not (tmp_path / "resume").exists()
    make_loop("fm", train={"optimizer": "adamw"}).fit(1)


def test_on_a_gpu_it_needs_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    gpu = torch.device("cuda")
    with pytest.raises(UserError, match=r"found no C compiler \(gcc, clang\): install gcc, name one in the variable CC, or take adamw$"):
        optimizers.check("adamw8bit", gpu)
    optimizers.check("adamw8bit", CPU)
    optimizers.check("adamw", gpu)
    compiler = tmp_path / "mycc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", "mycc")
    optimizers.check("adamw8bit", gpu)
    monkeypatch.setenv("CC", "othercc")
    with pytest.raises(UserError, match=r"found no C compiler \(othercc\)"):
        optimizers.check("adamw8bit", gpu)
