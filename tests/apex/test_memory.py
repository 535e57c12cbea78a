"""Peak memory from the tensors themselves, against bytes counted by hand; and what a run records of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from apex.memory import PeakMemory, megabytes

N = 1000
BYTES = 4 * N  # of N float32 numbers


def test_a_tensor_counts_for_as_long_as_it_lives():
    with PeakMemory() as peak:
        a = torch.zeros(N)
        assert (peak.live, peak.peak) == (BYTES, BYTES)
        b = torch.zeros(N, dtype=torch.float64)
        assert peak.live == 3 * BYTES
        del a
        assert (peak.live, peak.peak) == (2 * BYTES, 3 * BYTES)
        del b
    assert (peak.live, peak.peak) == (0, 3 * BYTES)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_one_after_another_they_are_one_at_a_time_and_together_their_sum(count: int):
    with PeakMemory() as one:
        for _ in range(count):
            torch.ones(N)
    with PeakMemory() as together:
        kept = [torch.ones(N) for _ in range(count)]
    assert one.peak == BYTES and together.peak == count * BYTES == len(kept) * BYTES


def test_views_and_changes_in_place_take_no_memory():
    with PeakMemory() as peak:
        a = torch.zeros(10, 100)
        b = a.reshape(1000)[::2].view(5, 100).t()
        a.add_(1).mul_(2)
        b.zero_()
        c, d = a.chunk(2)
        assert peak.peak == BYTES
        del a, c, d
        assert peak.live == BYTES  # the view keeps it
        del b
        assert peak.live == 0


def test_what_was_there_before_does_not_count():
    a = torch.zeros(N)
    with PeakMemory() as peak:
        a.add_(1)
        b = a[:10]
        assert peak.peak == 0
        a = b = None
        assert peak.live == 0  # and its end gives nothing back
        c = torch.ones(N) + torch.ones(N)
    assert peak.peak == 3 * BYTES and c is not None and b is None


def test_a_tensor_that_outlives_the_measurement_changes_nothing_after_it():
    with PeakMemory() as peak:
        a = torch.zeros(N)
    b = torch.zeros(N)
    assert peak.live == BYTES
    del a, b
    assert (peak.live, peak.peak) == (0, BYTES)


@pytest.mark.parametrize("layers", [1, 2, 7])
def test_activations_are_kept_for_the_backward_pass_alone(layers: int):
    """tanh keeps its output: one a layer with gradient; without it the input and the output of the layer at work."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        for _ in range(layers):
            x = torch.tanh(x)
        return x

    x = torch.zeros(N, requires_grad=True)
    with PeakMemory() as peak:
        out = forward(x)
        assert peak.live == peak.peak == layers * BYTES
        out.backward(torch.ones_like(x))
        del out
    assert peak.live == BYTES  # the gradient of x
    with PeakMemory() as peak, torch.no_grad():
        forward(x)
    assert peak.peak == min(layers, 2) * BYTES


def test_a_linear_layers_gradients_are_counted():
    layer, x = nn.Linear(30, 20), torch.zeros(5, 30)
    with PeakMemory() as peak:
        layer(x).sum().backward()
    assert peak.live == 4 * (30 * 20 + 20)
    layer.zero_grad()
    assert peak.live == 0


def test_after_an_exception_nothing_is_counted_any_more():
    peak = PeakMemory()
    with pytest.raises(RuntimeError, match="inside"), peak:
        a = torch.zeros(N)
        raise RuntimeError("inside")
    b = torch.zeros(N)
    assert peak.peak == BYTES and len(a) == len(b)


def test_megabytes_counts_a_shared_tensor_once():
    a, b = torch.zeros(2**18), torch.zeros(2**18, dtype=torch.bfloat16)
    assert megabytes([a]) == 1.0 and megabytes([a, b, a]) == 1.5 and megabytes([]) == 0.0


# ----------------------------------------------------------------------------------------------------- in a whole run


@pytest.mark.parametrize(
    ("method", "params", "tuning"),
    [("fm", {}, "full"), ("apex", {}, "lora"), ("dmd2", {"fake_updates": 2}, "full"), ("ladd", {"spectral": True, "r1": 0.1}, "full")],
    ids=lambda v: str(v) or "default",
)
def test_measuring_leaves_no_trace_in_a_run(make_loop, method: str, params: dict, tuning: str):
    """No weight, buffer, gradient or pass: the run goes on as one that was never measured."""
    measured = make_loop(method, params=params, tuning=tuning, resume="a")
    before, passes, random = {k: v.clone() for k, v in measured.trained().items()}, measured.ledger.state()["passes"], torch.get_rng_state()
    measured.measure_memory()
    assert all(torch.equal(v, before[k]) for k, v in measured.trained().items())
    assert measured.ledger.passes == passes == {} and torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for module in (measured.student, *measured.extra.values()) for p in module.parameters())
    plain = make_loop(method, params=params, tuning=tuning, resume="b")
    for loop in (measured, plain):
        for _ in range(2):
            loop.one_step()
    assert all(torch.equal(v, plain.trained()[k]) for k, v in measured.trained().items())
    assert measured.ledger.passes == plain.ledger.passes and measured.spent() == plain.spent()


def size(module: nn.Module) -> float:
    return sum(p.numel() * p.element_size() for p in module.parameters()) / 2**20


def test_the_record_of_memory_is_made_of_its_parts(make_loop):
    loop = make_loop("dmd2", params={"fake_updates": 1})
    loop.measure_memory()
    found = loop.memory
    trained = sum(size(m) for m in (loop.student, *loop.extra.values()))
    expected = {"student": size(loop.student), "teacher": size(loop.teacher), "optimizer": 2 * trained, "ema": size(loop.student)}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.006), name
    assert found["extra"] >= size(loop.extra["fake_score"]) - 0.01
    assert found["total"] == pytest.approx(sum(v for k, v in found.items() if k != "total"), abs=0.05)
    assert found["step"] > trained  # gradients of all that is trained, at least


def test_a_lora_run_has_no_second_network_and_small_moments(make_loop):
    full, lora = (make_loop("apex", tuning=tuning, resume=tuning) for tuning in ("full", "lora"))
    for loop in (full, lora):
        loop.measure_memory()
    assert lora.memory["teacher"] == 0 < full.memory["teacher"]
    adapter = sum(p.numel() for p in lora.student.parameters() if p.requires_grad)
    assert lora.memory["optimizer"] == pytest.approx(2 * 4 * adapter / 2**20, abs=0.01)
    assert lora.memory["optimizer"] < full.memory["optimizer"]


def test_a_larger_batch_needs_more_for_its_step_and_nothing_else(make_loop):
    small, large = (make_loop("fm", train={"batch_size": size}, resume=str(size)) for size in (2, 8))
    for loop in (small, large):
        loop.measure_memory()
    assert large.memory["step"] > small.memory["step"]
    assert all(large.memory[k] == small.memory[k] for k in ("student", "teacher", "extra", "ema", "optimizer"))
