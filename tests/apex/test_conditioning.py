"""The affine shift c_fake = A c + b: where it acts, what it leaves alone, and the probe that shows whether it is seen."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from apex.conditioning import PLACES, AffineShift, Condition, concatenate, shift_visibility

A, B = -0.7, 0.4


def inputs(count: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 4, 4, 4, generator=generator), torch.rand(count, generator=generator)


class Explicit(nn.Module):
    """A module with a x + b written behind it (or, for the embeddings, before the network)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * A + B


NAMES = {
    ("sana", "projected"): "caption_projection",
    ("sana", "normed"): "caption_norm",
    ("qwen_image", "projected"): "txt_in",
    ("qwen_image", "normed"): "txt_norm",
}


@pytest.mark.parametrize("place", PLACES)
def test_the_shift_equals_the_sum_written_into_the_network(make_backbone, make_condition, family: str, place: str):
    x, t = inputs()
    cond = make_condition(3)
    with torch.no_grad():
        found = make_backbone(family).velocity(x, t, AffineShift(A, B, place=place)(cond))
        other = make_backbone(family)
        if place == "embeds":
            cond = replace(cond, embeds=A * cond.embeds + B)
        else:
            name = NAMES[family, place]
            setattr(other.transformer, name, Explicit(getattr(other.transformer, name)))
        expected = other.velocity(x, t, cond)
        plain = make_backbone(family).velocity(x, t, make_condition(3))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert float((found - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("place", PLACES)
def test_the_identity_shift_is_an_exact_no_op(make_backbone, make_condition, family: str, place: str):
    x, t = inputs()
    backbone, cond = make_backbone(family), make_condition(3)
    with torch.no_grad():
        assert torch.equal(backbone.velocity(x, t, AffineShift(1.0, 0.0, place=place)(cond)), backbone.velocity(x, t, cond))


@pytest.mark.parametrize("place", PLACES)
def test_each_sample_of_a_batch_has_its_own_shift(make_backbone, make_condition, family: str, place: str):
    x, t = inputs(4)
    backbone, cond = make_backbone(family), make_condition(4)
    shift = AffineShift(A, B, place=place)
    with torch.no_grad():
        mixed = backbone.velocity(x, t, concatenate([cond[:2], shift(cond[2:])]))
        plain, shifted = backbone.velocity(x, t, cond), backbone.velocity(x, t, shift(cond))
    torch.testing.assert_close(mixed, torch.cat([plain[:2], shifted[2:]]), rtol=1e-5, atol=1e-6)


def test_an_unknown_place_is_refused():
    with pytest.raises(ValueError, match="unknown shift place 'pooled'; known: embeds, projected, normed"):
        AffineShift(place="pooled")


@given(a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_the_shift_is_a_c_plus_b(make_condition, a: float, b: float):
    cond = AffineShift(a, b)(make_condition(2))
    torch.testing.assert_close(cond.apply_shift(cond.embeds), a * cond.embeds + b, rtol=1e-6, atol=1e-6)
    assert torch.equal(cond.mask, make_condition(2).mask)


def test_a_learned_shift_gets_the_gradient_of_a_c_plus_b(make_backbone, make_condition, family: str):
    x, t = inputs()
    backbone, shift = make_backbone(family).double(), AffineShift(A, B, learned=True).double()
    cond = make_condition(3, dtype=torch.float64)

    def loss(a: float | None = None) -> Tensor:
        return backbone.velocity(x.double(), t.double(), (shift if a is None else AffineShift(a, B).double())(cond)).square().sum()

    loss().backward()
    with torch.no_grad():
        a = float(shift.a)
        numeric = (loss(a + 1e-4) - loss(a - 1e-4)) / 2e-4
    assert abs(shift.a.grad) > 1e-3
    torch.testing.assert_close(shift.a.grad, numeric, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------ batching conditions


def test_a_condition_is_cut_with_its_shift(make_condition):
    cond = AffineShift(A, B, place="embeds")(make_condition(4))
    part = cond[torch.tensor([2, 0])]
    assert len(part) == 2 and part.place == "embeds" and part.scale.shape == (2, 1, 1)
    assert torch.equal(part.embeds, cond.embeds[[2, 0]]) and torch.equal(part.mask, cond.mask[[2, 0]])
    assert cond[1:2].offset.shape == (1, 1, 1)


def test_conditions_of_different_length_are_padded_and_masked(make_condition):
    short, long = make_condition(2, length=3), make_condition(1, length=6)
    both = concatenate([short, long])
    assert both.embeds.shape[:2] == (3, 6)
    assert torch.equal(both.mask[:2, 3:], torch.zeros(2, 3))
    assert torch.equal(both.embeds[2], long.embeds[0])
    assert both.scale is None


def test_padding_does_not_change_the_velocity(make_backbone, make_condition, family: str):
    """What stands behind a caption, and how long the batch's longest caption is, does not matter."""
    x, t = inputs(2)
    backbone, cond = make_backbone(family), make_condition(2, length=4)
    for fill in (0.0, 9.0):
        tail = torch.full((2, 3, cond.embeds.shape[2]), fill)
        padded = Condition(torch.cat([cond.embeds, tail], 1), torch.cat([cond.mask, torch.zeros(2, 3)], 1))
        with torch.no_grad():
            torch.testing.assert_close(backbone.velocity(x, t, padded), backbone.velocity(x, t, cond), rtol=1e-4, atol=1e-5)


def test_conditions_shifted_at_different_places_do_not_mix(make_condition):
    cond = make_condition(2)
    with pytest.raises(ValueError, match="different places"):
        concatenate([AffineShift(place="embeds")(cond), AffineShift(place="normed")(cond)])


def test_a_condition_moves_with_all_its_parts(make_condition):
    moved = AffineShift(A, B)(make_condition(2)).to("cpu")
    assert {moved.embeds.device.type, moved.mask.device.type, moved.scale.device.type, moved.offset.device.type} == {"cpu"}


# ----------------------------------------------------------------------------------------------------------- hooks


@pytest.mark.parametrize("place", ["projected", "normed"])
def test_after_an_exception_no_shift_is_left_behind(make_backbone, make_condition, stock, family: str, place: str):
    x, t = inputs()
    backbone, cond = make_backbone(family, "embedding"), make_condition(3)

    def direct() -> Tensor:
        """The stock transformer called without us; its slot for t - r is Sana's alone."""
        with torch.no_grad():
            return stock(backbone.transformer, x, t, cond, **({"guidance": 0 * t} if family == "sana" else {}))

    before = direct()
    fuse = backbone.blocks[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("blown")))
    with pytest.raises(RuntimeError, match="blown"):
        backbone.velocity(x, t, AffineShift(A, B, place=place)(cond), 0.5 * t)
    with pytest.raises(RuntimeError, match="blown"):
        backbone.features(x, t, AffineShift(A, B, place=place)(cond), [0])
    fuse.remove()
    assert torch.equal(direct(), before)
    assert not any(block._forward_hooks for block in backbone.blocks)


# ----------------------------------------------------------------------------------------------------------- probe

TIMES = (0.1, 0.5, 0.9)


def probe(backbone, cond: Condition, shift, seed: int = 0) -> dict[float, float]:
    return shift_visibility(backbone, inputs(len(cond))[0], cond, shift, TIMES, torch.Generator().manual_seed(seed))


def test_the_probe_is_zero_for_the_identity(make_backbone, make_condition, family: str):
    assert probe(make_backbone(family), make_condition(4), AffineShift(1.0, 0.0)) == dict.fromkeys(TIMES, 0.0)


def test_the_probe_is_one_for_another_caption(make_backbone, make_condition, family: str):
    found = probe(make_backbone(family), make_condition(4), lambda c: c[torch.tensor([3, 0, 1, 2])])
    assert all(math.isclose(v, 1.0, rel_tol=1e-5) for v in found.values())


def test_the_probe_grows_with_the_shift_and_is_repeatable(make_backbone, make_condition, family: str):
    backbone, cond = make_backbone(family), make_condition(4)
    small, large = (probe(backbone, cond, AffineShift(1.0 - d, 0.0, place="normed")) for d in (0.05, 1.0))
    assert all(0 < small[t] < large[t] for t in TIMES)
    assert large == probe(backbone, cond, AffineShift(0.0, 0.0, place="normed"))


def test_the_probe_stays_finite_where_all_captions_are_the_same(make_backbone, make_condition, family: str):
    same = make_condition(4)[torch.tensor([1, 1, 1, 1])]
    found = probe(make_backbone(family), same, AffineShift(-1.0))
    assert all(math.isfinite(v) for v in found.values())


def test_the_probe_leaves_no_gradient_and_no_change(make_backbone, make_condition, family: str):
    backbone = make_backbone(family)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    probe(backbone, make_condition(4), AffineShift(-1.0, learned=True))
    assert all(p.grad is None for p in backbone.parameters())
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("name", "place", "a", "b", "seen"),
    [
        ("sana", "projected", 0.5, 0.0, False),  # a positive rescale before an RMSNorm
        ("sana", "embeds", 0.5, 0.0, True),
        ("sana", "normed", 0.5, 0.0, True),
        ("sana", "projected", -1.0, 0.0, True),
        ("sana", "projected", 1.0, 1.0, True),
        ("qwen_image", "embeds", 0.5, 0.0, False),
        ("qwen_image", "normed", 0.5, 0.0, True),
        ("qwen_image", "projected", 1.0, 1.0, False),  # a constant before a LayerNorm
        ("qwen_image", "projected", -1.0, 0.0, True),
        ("qwen_image", "embeds", -1.0, 0.0, True),
    ],
)
def test_where_a_shift_is_invisible(make_backbone, make_condition, name: str, place: str, a: float, b: float, seen: bool):
    """A scalar shift that the next normalisation undoes does nothing; a sign flip is always seen."""
    backbone, cond = make_backbone(name), make_condition(4)
    with torch.no_grad():  # far above the norms' epsilon, as trained networks are
        for module in ("caption_projection.linear_2", "txt_in"):
            found = dict(backbone.transformer.named_modules()).get(module)
            if found is not None:
                found.weight *= 30
                found.bias *= 30
    found = probe(backbone, cond, AffineShift(a, b, place=place))
    assert all((v > 0.02) == seen for v in found.values()), found
    assert seen or all(v < 0.005 for v in found.values()), found
