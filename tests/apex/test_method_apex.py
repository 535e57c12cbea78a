"""`apex` against the same objective written out sample by sample, its passes, and where its gradients go."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from apex.conditioning import Condition
from apex.methods._recursive import ANY, FAKE, NEAR, ONE_STEP
from apex.methods.apex import Apex, ApexParams
from apex.methods.base import Batch, Networks

F64 = torch.float64


def shifted(cond: Condition, a: Tensor, b: Tensor) -> Condition:
    shape = (len(cond), 1, 1)
    return Condition(cond.embeds, cond.mask, a.expand(shape), b.expand(shape))


def by_hand(batch, drawn: list[Tensor], p: ApexParams, nets: dict, a: Tensor, b: Tensor, only: int | None = None) -> Tensor:
    """The public step's definition, one sample after the other. only: all samples belong to this part.

    1. Guided target v_hat where 0 < t < 1 on the real parts. 2. Recursive target sg F - clip(R) on the real parts; the fake
    part keeps the flow-matching target z - x, which nothing clips. 3. Base loss: mean over the batch of the adaptive distance
    times the interval's weight (fake part: 1). 4. Rectification on the one-step part, a mean over its quarter of the batch.
    """
    drawn = list(drawn)
    parts = 4 if p.rectification > 0 else 3
    count = len(batch)
    part = [i * parts // count if only is None else only for i in range(count)]
    t_drawn, u, noise = drawn.pop(0), drawn.pop(0), drawn.pop(0)
    fake_noise = drawn.pop(0) if FAKE in part else None
    student, base, fakes, sign = nets["online"], [], 0, -1 if p.negative_time else 1
    rectified = []
    for i in range(count):
        c, null, z = batch.cond[i : i + 1], batch.null[i : i + 1], noise[i : i + 1]
        x, t = batch.x0[i : i + 1], t_drawn[i : i + 1]
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        if part[i] == ONE_STEP:
            t, r = one, zero
        elif part[i] == NEAR:
            r = t - u[i] * p.near_width * t
        elif part[i] == ANY:
            r = t - u[i] * t
        else:
            r, start = t, fake_noise[fakes : fakes + 1]
            fakes += 1
            x = (start - student(start, one, c, zero)).detach()
        x_t, v = t * z + (1 - t) * x, z - x
        prediction = student(x_t, sign * t, shifted(c, a, b), sign * r) if part[i] == FAKE else student(x_t, t, c, r)
        own = prediction.detach()
        with torch.no_grad():
            v_hat = v
            if part[i] in (NEAR, ANY):
                f_g = nets[p.guidance_network]
                v_hat = v + p.rho * (f_g(x_t, t, c, t) - f_g(x_t, t, null, t))
            target = v
            if part[i] != FAKE and float(t - r) < p.interval:
                target = own - (own - v_hat).clamp(-p.residual_clip, p.residual_clip)
            elif part[i] != FAKE:
                f_r, now, total = nets[p.recursion_network], (t - p.interval).maximum(r), 0
                x_k, leg = x_t - p.interval * v_hat, (now - r) / p.order
                for _ in range(p.order):
                    f = f_r(x_k, now, c, now - leg)
                    total, x_k, now = total + leg * f, x_k - leg * f, now - leg
                residual = ((t - r) * own - total) / p.interval - v_hat
                target = own - residual.clamp(-p.residual_clip, p.residual_clip)
        weight = 1.0 if part[i] == FAKE else math.tan((1 - float(t - r)) * math.pi / 2.5) + 1
        base.append(distance(prediction, target) * weight)
        if part[i] == ONE_STEP and parts == 4:
            rectified.append((prediction, z, c))
    loss = p.base_weight * torch.stack(base).mean()
    if rectified:
        s, again, terms = drawn.pop(0), drawn.pop(0), []
        for k, (prediction, z, c) in enumerate(rectified):
            with torch.no_grad():
                s_k = s[k : k + 1]
                x_s = s_k * again[k : k + 1] + (1 - s_k) * (z - prediction)
                force = student(x_s, sign * s_k, shifted(c, a, b), sign * s_k) - student(x_s, s_k, c, s_k)
                force = force.clamp(-p.rectification_clip, p.rectification_clip)
            terms.append(distance(prediction, prediction.detach() - force))
        loss = loss + p.rectification * torch.stack(terms).sum() * parts / count
    assert not drawn
    return loss


def distance(prediction: Tensor, target: Tensor) -> Tensor:
    mse, c = (prediction - target).square().mean(), 1e-3
    return mse * (mse.detach() / (c**2 + 1e-8) + 1) ** -0.5 / c


# A value beside the default for every setting; `test_every_setting_is_tried` keeps it complete.
OTHER = {
    "a": -0.5,
    "b": 1.0,
    "shift_place": "normed",
    "learn_shift": True,
    "negative_time": True,
    "rho": 0.0,
    "guidance_network": "ema",
    "recursion_network": "online",
    "order": 2,
    "interval": 0.1,
    "residual_clip": 0.05,
    "near_width": 0.5,
    "base_weight": 2.0,
    "rectification": 0.0,
    "rectification_clip": 0.01,
}
CASES = [{}, *({k: v} for k, v in OTHER.items()), {"guidance_network": "online"}, {"base_weight": 0.0}, {"near_width": 0.0}, {"order": 3}]


def test_every_setting_is_tried():
    assert set(OTHER) == set(ApexParams.model_fields)
    assert all(ApexParams.model_fields[k].default != v for k, v in OTHER.items())


def run(make_toy, batch, params: dict, watch=None, only: int | None = None):
    method = Apex(params)
    if only is not None:
        method.assign = lambda batch: torch.full((len(batch),), only)
    nets = {"online": make_toy(seed=1), "ema": make_toy(seed=2), "teacher": make_toy(seed=3)}
    extra = {name: module.double() for name, module in method.extra_networks(None).items()}
    wrapped = {k: watch(v, no_grad=k != "online") for k, v in nets.items()} if watch else nets
    out = method.losses(batch, Networks(wrapped["online"], wrapped["ema"], wrapped["teacher"], extra), 0)
    return method, nets, extra["shift"], wrapped, out


@pytest.mark.parametrize("count", [8, 12])
@pytest.mark.parametrize("params", CASES, ids=str)
def test_the_loss_and_its_gradients_are_those_written_out(make_toy, make_batch, params: dict, count: int):
    assert set(compare(make_toy, make_batch(count, seed=4), params).losses) == {"student"}


NETWORKS = {"base": ("teacher", "online"), "ema": ("ema", "ema"), "online": ("online", "online")}  # the public code's three choices


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("part", [ONE_STEP, NEAR, ANY, FAKE])
def test_each_part_is_the_public_steps(make_toy, make_batch, part: int, order: int, networks: str):
    """The base loss of one part alone, clipped residuals among its elements."""
    guidance, recursion = NETWORKS[networks]
    params = {"guidance_network": guidance, "recursion_network": recursion, "order": order, "interval": 0.02, "residual_clip": 1.0}
    out = compare(make_toy, make_batch(8, seed=5), params | {"near_width": 0.5}, only=part)
    assert float(out.logs["base"]) > 0.1


@pytest.mark.parametrize("clip", [0.05, 100.0])
@pytest.mark.parametrize("negative_time", [False, True])
def test_the_rectification_is_the_public_steps(make_toy, make_batch, clip: float, negative_time: bool):
    params = {"base_weight": 0.0, "rectification_clip": clip, "negative_time": negative_time}
    out = compare(make_toy, make_batch(8, seed=6), params, only=ONE_STEP)
    assert float(out.logs["rectification"]) > 1e-3


@pytest.mark.parametrize("clip", [1e-3, 1.0])
def test_the_fake_parts_target_is_not_clipped(make_toy, make_batch, clip: float):
    """Its loss is the flow matching of the student's samples, whatever the clip: in the public code only real parts have one."""
    found = [run(make_toy, make_batch(8, seed=7), {"residual_clip": c}, only=FAKE)[-1] for c in (clip, 1e6)]
    assert torch.equal(found[0].losses["student"], found[1].losses["student"])
    assert float(found[0].logs["residual/fake"]) > clip**2  # beyond the clip, so that it would have mattered


def compare(make_toy, batch, params: dict, only: int | None = None):
    """Checks loss and gradients of the method against `by_hand`; returns the method's step."""
    method, nets, shift, _, out = run(make_toy, batch, params, only=only)
    p = method.params
    a, b = (torch.tensor(v, dtype=F64, requires_grad=p.learn_shift) for v in (p.a, p.b))
    expected = by_hand(batch, batch.drawn, p, nets, a, b, only)
    torch.testing.assert_close(out.losses["student"], expected, rtol=1e-9, atol=1e-12)

    trained = list(nets["online"].parameters())
    mine = torch.autograd.grad(out.losses["student"], [*trained, *([shift.a, shift.b] if p.learn_shift else [])])
    theirs = torch.autograd.grad(expected, [*trained, *([a, b] if p.learn_shift else [])])
    for x, y in zip(mine, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)
    assert all(q.grad is None for name in ("ema", "teacher") for q in nets[name].parameters())
    return out


@pytest.mark.parametrize("name", [k for k in OTHER if k not in ("learn_shift", "shift_place")])
def test_every_setting_does_something(make_toy, make_batch, name: str):
    def gradient(params: dict) -> Tensor:
        _, nets, _, _, out = run(make_toy, make_batch(8, seed=4), params)
        return torch.cat([g.flatten() for g in torch.autograd.grad(out.losses["student"], nets["online"].parameters())])

    wide = {"residual_clip": 100.0}  # this untrained network's residuals lie mostly beyond 1
    default, other = gradient(wide), gradient(wide | {name: OTHER[name]})
    assert float((default - other).norm() / default.norm()) > 1e-4


def test_the_shift_is_fixed_unless_it_is_learned_at_its_place():
    fixed, learned = (
        Apex({"a": 2.0, "b": 0.5, "learn_shift": v, "shift_place": "embeds"}).extra_networks(None)["shift"] for v in (False, True)
    )
    assert [p.requires_grad for p in fixed.parameters()] == [False, False]
    assert [p.requires_grad for p in learned.parameters()] == [True, True]
    assert (learned.a.item(), learned.b.item(), learned.place) == (2.0, 0.5, "embeds")


# ------------------------------------------------------------------------------------------------------- passes


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("rho", [0.0, 1.5])
def test_no_pass_is_spent_on_a_sample_whose_result_is_unused(make_toy, make_batch, watch, order: int, rho: float):
    """Of 8: 8 with gradient; 2 for fake data, 4 for rectification; 2 x 4 guidance (near, any); recursion where t - r >= D."""
    t = torch.tensor([0.3, 0.4, 0.1, 0.9, 0.5, 0.9, 0.7, 0.8])
    u = torch.tensor([0.5, 0.5, 0.5, 0.9, 0.001, 0.9, 0.5, 0.5])  # near: 0.0025, 0.0405; any: 0.0005, 0.81
    batch = make_batch(8)
    batch.given = [t, u]
    _, _, _, nets, _ = run(make_toy, batch, {"order": order, "rho": rho, "interval": 0.01, "near_width": 0.05}, watch)
    student, ema, teacher = nets["online"], nets["ema"], nets["teacher"]
    assert student.samples(grad=True) == 8
    assert student.samples(grad=False) == 2 + 4
    assert len([c for c in student.calls if c["grad"]]) == 1
    assert teacher.samples() == (8 if rho else 0)
    assert ema.samples() == order * 4  # both one-step samples, one near, one any
    assert all(float(c["t"].max()) < 1 for c in teacher.calls)
    assert all(torch.equal(c["t"], c["r"]) for c in teacher.calls)  # F_g at r = t


def test_without_rectification_no_sample_goes_to_the_shifted_branch(make_toy, make_batch, watch):
    _, _, _, nets, out = run(make_toy, make_batch(9), {"rectification": 0.0}, watch)
    calls = [c for net in nets.values() for c in net.calls]
    assert all(c["cond"].scale is None for c in calls)
    assert nets["online"].samples(grad=False) == 0
    assert not any("fake" in name or "force" in name for name in out.logs)


def test_the_shifted_branch_is_queried_for_the_fake_part_and_the_force_alone(make_toy, make_batch, watch):
    _, _, _, nets, _ = run(make_toy, make_batch(8), {"a": -1.0, "b": 0.25}, watch)
    shifted_rows = [int((c["cond"].scale.flatten() == -1).sum()) if c["cond"].scale is not None else 0 for c in nets["online"].calls]
    assert sorted(shifted_rows) == [0, 2, 2]  # fake data: none; gradient pass: the fake part; rectification: one of each pair
    assert all(c["cond"].scale is None for name in ("ema", "teacher") for c in nets[name].calls)


# -------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("rectification", [0.0, 0.5])
def test_parts_are_of_equal_size_over_micro_batches(make_batch, count: int, rectification: float):
    method = Apex({"rectification": rectification})
    steps = 12 // math.gcd(12, count) * len(method.parts)
    found = Counter()
    for micro in range(steps):
        found.update(method.assign(make_batch(count, micro_step=micro)).tolist())
    assert set(found) == set(method.parts)
    if count < len(method.parts) or count % len(method.parts) == 0:
        assert len(set(found.values())) == 1


def test_times_of_the_parts(make_batch):
    method, batch = Apex({"near_width": 0.05}), make_batch(400)
    part = method.assign(batch)
    t, r = method.times(part, batch)
    assert t.min() >= 0 and t.max() <= 1 and torch.all(r >= 0) and torch.all(r <= t)
    assert torch.all(t[part == ONE_STEP] == 1) and torch.all(r[part == ONE_STEP] == 0)
    assert torch.equal(t[part == FAKE], r[part == FAKE])
    near, some = part == NEAR, part == ANY
    assert torch.all(r[near] >= 0.95 * t[near] - 1e-12)
    assert float((r[some] / t[some]).min()) < 0.1
    for k in (NEAR, ANY, FAKE):
        assert 0.4 < float(t[part == k].mean()) < 0.6


def test_rotating_micro_batches_weigh_the_rectification_as_one_batch_does(make_toy, make_batch):
    """A mean over the one-step samples: four micro-batches of one give, on average, what the batch of four gives."""

    def rectification(count: int, micro: int) -> float:
        batch = make_batch(count, micro_step=micro, seed=9)
        first = make_batch(4, seed=9)
        batch.x0, batch.cond = first.x0[:count], first.cond[:count]
        fixed = torch.full((4,), 0.5)
        z = torch.ones(4, 1, 2, 2)
        # t, u, noise, then either the fake data's noise or s and its noise
        batch.given = [fixed[:count], fixed[:count], z[:count]]
        batch.given += {(4, 0): [z[:1], fixed[:1], z[:1]], (1, 0): [fixed[:1], z[:1]]}.get((count, micro), [])
        _, _, _, _, out = run(make_toy, batch, {"base_weight": 0.0, "rectification": 1.0})
        return float(out.losses["student"].detach())

    whole = rectification(4, 0)
    assert whole > 1e-3
    assert math.isclose(sum(rectification(1, m) for m in range(4)) / 4, whole, rel_tol=1e-9)


# ----------------------------------------------------------------------------------------------------- gradients


def backward(make_backbone, make_condition, family: str, params: dict, parts: tuple[int, ...] | None = None, stirred: bool = True):
    method = Apex(params)
    if parts is not None:
        method.parts = parts
    student, teacher, ema = (
        make_backbone(family, k, seed=s, stirred=stirred) for k, s in (("embedding", 0), ("none", 1), ("embedding", 2))
    )
    generator = torch.Generator().manual_seed(0)
    null = make_condition(8, seed=5)
    batch = Batch(torch.randn(8, 4, 4, 4, generator=generator), make_condition(8), null, generator)
    extra = method.extra_networks(None)
    method.losses(batch, Networks(student, ema, teacher.requires_grad_(False), extra), 0).losses["student"].backward()
    return student, ema, teacher, extra["shift"]


def silent(module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}


# Values of attention's queries and keys matter, but a key's bias shifts every logit of a query alike, and the last Qwen block's
# text stream is not read.
def unread(family: str) -> tuple[str, ...]:
    last = "transformer.transformer_blocks.1."
    return (
        (f"{last}attn.to_add_out", f"{last}txt_mlp", f"{last}txt_mod", f"{last}attn.add_q_proj", f"{last}attn.norm_added_q")
        if family == "qwen_image"
        else ()
    )


def test_every_parameter_of_the_student_is_trained_and_nothing_else(make_backbone, make_condition, family: str):
    student, ema, teacher, shift = backward(make_backbone, make_condition, family, {})
    unexpected = {n for n in silent(student) if not n.startswith(unread(family)) and not n.endswith("_k.bias")}
    assert not unexpected
    assert silent(ema) == {n for n, _ in ema.named_parameters()}
    assert silent(teacher) == {n for n, _ in teacher.named_parameters()}
    assert silent(shift) == {"a", "b"}


def test_a_fresh_target_embedding_starts_from_its_last_layer(make_backbone, make_condition, family: str):
    """Its last layer is zero at first, so the layer before it gets no gradient yet, and the last one does."""
    student, *_ = backward(make_backbone, make_condition, family, {}, stirred=False)
    slot = "transformer.time_embed.guidance_embedder." if family == "sana" else "target_embedder."
    found = {n.removeprefix(slot) for n in silent(student) if n.startswith(slot)}
    assert found == {"linear_1.weight", "linear_1.bias"}


@pytest.mark.parametrize("part", [ONE_STEP, NEAR, ANY, FAKE])
def test_a_learned_shift_gets_its_gradient_from_the_fake_part_alone(make_backbone, make_condition, family: str, part: int):
    *_, shift = backward(make_backbone, make_condition, family, {"learn_shift": True, "a": -0.8, "b": 0.3}, parts=(part,))
    # b adds a constant before a LayerNorm in the Qwen blocks, but a does not
    assert ("a" in silent(shift)) == (part != FAKE)


@pytest.mark.parametrize("part", [ONE_STEP, NEAR, ANY, FAKE])
def test_every_part_reaches_the_text_path_and_the_time(make_backbone, make_condition, family: str, part: int):
    student, *_ = backward(make_backbone, make_condition, family, {"rectification": 0.0}, parts=(part,))
    names = {"sana": ("caption_projection.linear_1.weight", "time_embed.timestep_embedder.linear_1.weight", "proj_out.weight")}
    names["qwen_image"] = ("txt_in.weight", "time_text_embed.timestep_embedder.linear_1.weight", "proj_out.weight")
    assert not {f"transformer.{n}" for n in names[family]} & silent(student)


def test_rectification_reaches_the_network_through_the_one_step_part_alone(make_toy, make_batch):
    """With the base loss off, the gradient is d(F, F - g)'s at (z, 1, 0, c): g chained through F of the one-step rows."""
    batch = make_batch(8, seed=2)
    _, nets, _, _, out = run(make_toy, batch, {"base_weight": 0.0, "rectification": 1.0})
    got = torch.autograd.grad(out.losses["student"], nets["online"].parameters())
    z, s, again = batch.drawn[2][:2], batch.drawn[4], batch.drawn[5]
    one, c = torch.ones(2, dtype=F64), batch.cond[:2]
    prediction = nets["online"](z, one, c, torch.zeros_like(one))
    with torch.no_grad():
        a, b = torch.tensor(-1.0, dtype=F64), torch.tensor(0.0, dtype=F64)
        x_s = s[:, None, None, None] * again + (1 - s[:, None, None, None]) * (z - prediction)
        force = (nets["online"](x_s, s, shifted(c, a, b), s) - nets["online"](x_s, s, c, s)).clamp(-1, 1)
        mse = force.square().flatten(1).mean(1)
        scale = (mse / (1e-6 + 1e-8) + 1) ** -0.5 / 1e-3
        pull = 2 * force / 4 * scale[:, None, None, None] / 2
    for g, e in zip(got, torch.autograd.grad(prediction, nets["online"].parameters(), pull), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-8, atol=1e-11)
