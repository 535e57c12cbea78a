"""Linear layers through oneDNN: torch's own bits in value and gradients, and torch's own layer wherever the two may differ."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from apex import linear
from apex.budget import counter
from apex.linear import COLUMNS, ROWS, TERMS, Linear, through_onednn

here = pytest.mark.skipif(not linear.suited(), reason="needs an AMD processor with AVX-512, where oneDNN has torch's bits")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def taken(monkeypatch):
    """The products that went through oneDNN; here made by torch, so that the layer's own arithmetic is tried on every machine."""
    monkeypatch.setattr(linear, "suited", lambda: True)
    calls = []
    monkeypatch.setattr(linear, "_product", lambda x, w, b=None: calls.append(tuple(x.shape)) or F.linear(x, w, b))
    return calls


def pair(terms: int, columns: int, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """torch's layer and ours with the same weights."""
    torch.manual_seed(0)
    plain = nn.Linear(terms, columns, bias=bias)
    ours = copy.deepcopy(plain)
    through_onednn(nn.Sequential(ours))
    assert type(ours) is Linear
    return plain, ours


def value_and_gradients(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    out = layer(x)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))
    return [out.detach(), x.grad, *(p.grad for p in layer.parameters())]


SHAPES = [(ROWS, TERMS, COLUMNS), (80, 128, 768), (1024, 128, 128), (256, 100, 640), (4096, 64, 192), (96, 16, 16), (64, 8, 192)]


@here
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "terms", "columns"), SHAPES)
def test_value_and_gradients_have_torchs_bits(rows: int, terms: int, columns: int, bias: bool):
    plain, ours = pair(terms, columns, bias)
    x = torch.randn(2, rows // 2, terms)
    for expected, found in zip(value_and_gradients(plain, x), value_and_gradients(ours, x), strict=True):
        assert torch.equal(expected, found)
    with torch.no_grad():
        assert torch.equal(plain(x), ours(x))


@pytest.mark.parametrize("bias", [True, False])
def test_the_gradients_are_those_of_a_linear_layer(taken, bias: bool):
    plain, ours = pair(32, 48, bias)
    x = torch.randn(4, 32, 32)
    for expected, found in zip(value_and_gradients(plain, x), value_and_gradients(ours, x), strict=True):
        assert torch.equal(expected, found)
    assert taken == [(4, 32, 32), (128, 48)]  # the output and the input's gradient


def test_frozen_weights_pass_the_gradient_to_the_input_alone(taken):
    plain, ours = pair(32, 48)
    x = torch.randn(128, 32)
    ours.requires_grad_(False)
    assert torch.equal(value_and_gradients(plain, x)[1], value_and_gradients(ours, x)[1])
    assert ours.weight.grad is None


def test_a_gradient_can_be_differentiated_again(taken):
    found = []
    for layer in pair(32, 48):
        taken.clear()
        x = torch.randn(128, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        assert (128, 48) not in taken
        found.append(torch.autograd.grad(slope.square().sum(), [x, layer.weight, layer.bias]))
    assert (128, 32) in taken
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


def forward_mode(layer: nn.Module, x: torch.Tensor) -> None:
    with forward_ad.dual_level():
        value, slope = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, torch.ones_like(x))))
        assert torch.allclose(slope, layer.weight.sum(1).expand_as(value), atol=1e-5)


def under_autocast(layer: nn.Module, x: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def counted(layer: nn.Module, x: torch.Tensor) -> None:
    with counter() as flops:
        layer(x)
    assert flops.get_total_flops() == 2 * x.numel() * len(layer.weight)


def two_threads(layer: nn.Module, x: torch.Tensor) -> None:
    torch.set_num_threads(2)
    layer(x)


ELSEWHERE = {
    "forward mode": forward_mode,
    "vmap": lambda layer, x: torch.vmap(layer)(x[None]),
    "jvp": lambda layer, x: torch.func.jvp(layer, (x,), (x,)),
    "autocast": under_autocast,
    "FLOP counter": counted,
    "threads": two_threads,
    "few rows": lambda layer, x: layer(x[: ROWS - 1]),
    "double": lambda layer, x: layer.double()(x.double()),
    "meta": lambda layer, x: layer.to("meta")(x.to("meta")),
    "columns of a matrix": lambda layer, x: layer(torch.randn(x.shape[1], x.shape[0]).t()),
    "empty": lambda layer, x: layer(x[:0]),
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_torchs_layer_is_taken_elsewhere(taken, where: str):
    ELSEWHERE[where](pair(32, 48)[1], torch.randn(128, 32))
    assert taken == []


@pytest.mark.parametrize(("terms", "columns"), [(TERMS + 1, 32), (32, COLUMNS - 1)])
def test_products_whose_bits_may_differ_are_torchs(taken, terms: int, columns: int):
    pair(terms, columns)[1](torch.randn(128, terms))
    assert taken == []


def test_names_weights_and_copies_stay(taken):
    plain, ours = pair(32, 48)
    assert list(plain.state_dict()) == list(ours.state_dict())
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(again) is Linear
        assert torch.equal(again.weight, plain.weight)
        assert again.weight is not ours.weight


def test_a_subclass_of_torchs_layer_keeps_its_own_forward(taken):
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    layer = Doubled(32, 48)
    through_onednn(nn.Sequential(layer))
    assert type(layer) is Doubled


def test_other_processors_keep_torchs_layers(monkeypatch, tmp_path):
    monkeypatch.setattr(linear, "CPUINFO", tmp_path / "cpuinfo")
    for text in (None, "vendor_id\t: GenuineIntel\n"):
        if text:
            linear.CPUINFO.write_text(text)
        linear.suited.cache_clear()
        layer = nn.Linear(32, 48)
        through_onednn(nn.Sequential(layer))
        assert type(layer) is nn.Linear
    linear.suited.cache_clear()
