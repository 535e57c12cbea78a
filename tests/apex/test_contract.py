"""What a method may rely on: passes of each kind counted at their cost, frozen passes, derivatives, its networks and its batch."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from apex import methods
from apex.budget import Cost, Counted, Ledger, count_calls, counter, directional_derivative, measure_cost
from apex.conditioning import Condition
from apex.discriminators import Heads
from apex.ema import Ema
from apex.methods.base import Batch, Networks, Pairs, frozen
from apex.networks import Averaged, Fixed, last_matrix
from apex.testbed import Bed, Trial, add_lora, pretrained

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Line(nn.Module):
    """Two linear layers as a velocity network with one block: forward 2 (D H + H D) FLOPs a sample."""

    def __init__(self, elements: int = 12, hidden: int = 5) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(elements, hidden, bias=False), nn.Linear(hidden, elements, bias=False)

    def forward(self, x, t, cond, r=None, blocks=None):
        h = self.a(x.flatten(1))
        return [h[:, None]] if blocks is not None else self.b(h).reshape(x.shape)


@pytest.fixture
def line(make_condition):
    """A student, x_t, t and captions of 3 samples, and its ledger."""
    net = Line()
    ledger = Ledger({"student": measure_cost(net, (3, 2, 2), make_condition(1))})
    return Counted(net, "student", ledger, fixed=Fixed(net)), torch.zeros(3, 3, 2, 2), torch.full((3,), 0.5), make_condition(3)


# --------------------------------------------------------------------------------------------------- passes by kind


def test_each_kind_of_pass_has_its_cost_by_hand(line):
    """W1 is 12 x 5, W2 5 x 12: 120 FLOPs a product.

    Forward-mode has three for each layer: of the value, of its tangent, and of the weights' tangent, which is zero but which torch
    multiplies by all the same (and takes the time for it).
    """
    cost = line[0].ledger.costs["student"]
    assert {kind: cost[kind] for kind in ("forward", "training", "through", "jvp")} == {
        "forward": 240,
        "training": 240 + 240 + 120,  # both weights, and the gradient between the layers
        "through": 240 + 240,
        "jvp": 3 * 240,
    }


def test_the_kind_of_a_pass_follows_from_where_gradient_is_wanted(line):
    student, x, t, cond = line
    marked = x.clone().requires_grad_()
    tangents = torch.ones_like(x), torch.ones_like(t), torch.zeros_like(t)
    calls = [
        (lambda: student(x, t, cond), "training"),
        (lambda: student.through(marked, t, cond), "through"),
        (lambda: student.through(x, t, cond), "forward"),
        (lambda: student.features(marked, t, cond, [0]), "through"),
        (lambda: student.features(x, t, cond, [0]), "forward"),
        (lambda: student.jvp(x, t, cond, None, tangents), "jvp"),
    ]
    for call, kind in calls:
        student.ledger.passes.clear()
        call()
        assert student.ledger.passes == {kind: {"student": 3}}
    for call, kind in calls:
        student.ledger.passes.clear()
        with torch.no_grad():
            call()
        assert student.ledger.passes == {"jvp" if kind == "jvp" else "forward": {"student": 3}}


@pytest.mark.parametrize("kind", ["forward", "training", "through", "jvp"])
def test_the_ledger_holds_the_flops_that_each_kind_really_spends(make_backbone, make_condition, family: str, kind: str):
    """On transformers, over a batch, r told: cost of one sample times samples is what torch counts."""
    backbone, cond = make_backbone(family, "embedding"), make_condition(3)
    ledger = Ledger({"student": measure_cost(backbone, (4, 4, 4), cond)})
    student = Counted(backbone, "student", ledger, fixed=Fixed(backbone))
    x, t = torch.randn(3, 4, 4, 4, requires_grad=kind == "through"), torch.rand(3)
    with counter() as counted:
        if kind == "forward":
            with torch.no_grad():
                student(x, t, cond, t)
        elif kind == "jvp":
            student.jvp(x, t, cond, t, (torch.ones_like(x), torch.ones_like(t), torch.zeros_like(t)))
        else:
            (student if kind == "training" else student.through)(x, t, cond, t).square().mean().backward()
    assert ledger.passes == {kind: {"student": 3}}
    assert ledger.flops() == pytest.approx(counted.get_total_flops(), rel=1e-9)


def test_kinds_cost_in_their_order(make_backbone, make_condition, family: str):
    """A pass back to the input saves the weights' gradients; a directional derivative is nearly three forward passes."""
    cost = measure_cost(make_backbone(family), (4, 4, 4), make_condition(1))
    assert cost.forward < cost["through"] < cost.training < 3.5 * cost.forward
    assert 2 * cost.forward < cost["jvp"] < 3.5 * cost.forward


def test_costs_are_measured_when_first_asked_for(make_condition):
    net, calls = Line(), []
    net.register_forward_hook(lambda *_: calls.append(1))
    cost = measure_cost(net, (3, 2, 2), make_condition(1))
    assert not calls
    assert cost["through"] == cost["through"] == 480 and len(calls) == 1
    with pytest.raises(KeyError):
        Cost(1.0, 3.0)["jvp"]


def test_a_restored_ledger_knows_all_kinds_and_measures_none_again(line):
    student, x, t, cond = line
    student(x, t, cond)
    student.jvp(x, t, cond, None, (x, t, t))
    student.ledger.flops()

    def never(kind):
        raise AssertionError("measured again")

    other = Ledger({"student": Cost(measure=never)})
    other.restore(json.loads(json.dumps(student.ledger.state())))
    assert other.flops() == student.ledger.flops() == 3 * (600 + 720)
    assert other.flops_of() == {"student": 3960.0}


# -------------------------------------------------------------------------------------------------- extra networks


def watched(module: nn.Module, longest: Condition | None = None) -> Ledger:
    ledger = Ledger({})
    count_calls(module, "extra", ledger, longest)
    return ledger


def test_an_extra_network_counts_by_what_its_call_is_for():
    """Trained: forward and backward. Frozen for the moment: back to the input, if that wants it. Without gradient: forward."""
    layer = nn.Linear(6, 4, bias=False)
    ledger, x = watched(layer), torch.zeros(5, 6)
    marked = x.clone().requires_grad_()
    layer(x)
    with frozen(layer):
        layer(marked)
        layer(x)
    with torch.no_grad():
        layer(marked)
    assert ledger.passes == {"training": {"extra": 5}, "through": {"extra": 5}, "forward": {"extra": 10}}
    cost = ledger.costs["extra"]
    assert (cost["forward"], cost["training"], cost["through"]) == (48, 96, 96)
    assert ledger.flops() == 5 * 96 + 5 * 96 + 10 * 48


def test_a_trained_network_whose_input_wants_gradient_pays_for_both():
    layer = nn.Linear(6, 4, bias=False)
    ledger = watched(layer)
    layer(torch.zeros(2, 6, requires_grad=True))
    assert ledger.costs["extra"]["training"] == 48 * 3


def test_samples_are_those_of_the_largest_argument():
    class Pick(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Linear(3, 3)

        def forward(self, features, caption=None, *, scale=1.0):
            return [self.w(f) for f in features]

    module = Pick()
    ledger = watched(module)
    module([torch.zeros(7, 2, 3), torch.zeros(7, 4, 3)])
    module([torch.zeros(2, 2, 3)], torch.zeros(2, 9))
    module(features=(torch.zeros(3, 3),), scale=2.0)
    assert ledger.passes == {"training": {"extra": 12}}


def test_a_pass_with_a_flag_has_a_cost_of_its_own_and_counts_for_its_network():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Linear(3, 3, bias=False)

        def forward(self, x: Tensor, penalty: bool = False) -> Tensor:
            return self.w(self.w(x)) if penalty else self.w(x)

    module = Twice()
    ledger = watched(module)
    with torch.no_grad():
        module(torch.zeros(5, 3), penalty=True)
        module(torch.zeros(2, 3))
        module(torch.zeros(2, 3), penalty=False)
    assert ledger.passes == {"forward": {"extra[penalty=True]": 5, "extra": 4}}
    assert ledger.flops_of() == {"extra": (5 * 2 + 4) * 2 * 3 * 3}


def test_measuring_adds_nothing_to_gradients_that_are_there():
    module = nn.Linear(3, 2)
    ledger = watched(module)
    before = {name: torch.randn(p.shape) for name, p in module.named_parameters()}
    for name, p in module.named_parameters():
        p.grad = before[name].clone()
    module(torch.ones(4, 3))
    assert ledger.passes == {"training": {"extra": 4}}
    assert all(torch.equal(p.grad, before[name]) for name, p in module.named_parameters())


def test_a_number_among_the_arguments_is_no_batch():
    class Scaled(nn.Module):
        def forward(self, scale: Tensor, x: Tensor) -> Tensor:
            return scale * x

    module = Scaled()
    ledger = watched(module)
    module(torch.tensor(2.0), torch.ones(4, 3))
    assert ledger.passes == {"forward": {"extra": 4}}


def test_where_a_caption_is_an_argument_the_longest_one_sets_the_cost():
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Linear(16, 2, bias=False)

        def forward(self, cond: Condition) -> Tensor:
            return self.w(cond.embeds)

    def cond(count: int, length: int) -> Condition:
        return Condition(torch.zeros(count, length, 16), torch.ones(count, length))

    for longest, tokens in ((cond(1, 9), 9), (None, 2)):
        module = Read()
        ledger = watched(module, longest)
        with torch.no_grad():
            module(cond(4, 2))
        assert ledger.flops() == 4 * tokens * 2 * 16 * 2


def test_measuring_an_extra_network_changes_nothing_about_it():
    """It leaves no gradient, keeps the vectors of its spectral norm and what it gives, and does not count as calls of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain, counted = (Heads([4], 5, spectral=True, normalise=False) for _ in range(2))
    counted.load_state_dict(plain.state_dict())
    ledger, x = watched(counted), torch.randn(3, 2, 4)
    random = torch.get_rng_state()
    for _ in range(3):
        torch.testing.assert_close(counted([x])[0], plain([x])[0], rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(counted.buffers(), plain.buffers(), strict=True))
    assert all(p.grad is None for p in counted.parameters())
    assert ledger.passes == {"training": {"extra": 9}} and torch.equal(torch.get_rng_state(), random)


def test_the_gradient_of_a_measured_call_is_that_of_an_unmeasured_one():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = Heads([4], 5, spectral=True)
    counted = Heads([4], 5, spectral=True)
    counted.load_state_dict(plain.state_dict())
    watched(counted)
    x, found = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)), []
    for module in (plain, counted):
        logits, penalty = module([x], penalty=True)
        (logits[0].square().mean() + penalty.mean()).backward()
        found.append([p.grad.clone() for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_extra_networks_cost_is_part_of_the_state():
    layer = nn.Linear(6, 4, bias=False)
    ledger = watched(layer)
    layer(torch.zeros(5, 6))
    other = Ledger({})
    other.restore(json.loads(json.dumps(ledger.state())))
    assert other.flops() == ledger.flops() == 5 * 96


EXPECTED = {  # of one step on 8 samples; guidance is off where it is not said
    "add": (
        {"guidance": 1.0},
        {"training": {"student": 8, "heads": 8, "heads[penalty=True]": 8}, "forward": {"teacher": 8}, "through": {"heads": 8}},
    ),
    "ladd": ({}, {"training": {"student": 8, "heads": 16}, "forward": {"teacher": 8}, "through": {"teacher": 8, "heads": 8}}),
    "ladd, mismatched": (
        {"mismatched": True},
        {"training": {"student": 8, "heads": 24}, "forward": {"teacher": 16}, "through": {"teacher": 8, "heads": 8}},
    ),
    "dmd2": (
        {"fake_updates": 1, "guidance": 1.0},
        {
            "training": {"student": 8, "fake_score[both=True]": 16, "heads": 16},
            "forward": {"teacher": 8},
            "through": {"fake_score[both=True]": 8, "heads": 8},
        },
    ),
    "pcm": (
        {"guidance": 1.0},
        {"training": {"student": 8, "heads": 16}, "forward": {"teacher": 16, "ema": 8}, "through": {"teacher": 8, "heads": 8}},
    ),
    "sana-sprint": (
        {"guidance": 1.0},
        {
            "training": {"student": 16, "heads": 16},
            "forward": {"teacher": 16},
            "through": {"teacher": 8, "heads": 8},
            "jvp": {"student": 8},
        },
    ),
    "progressive": ({"guidance": 1.0}, {"training": {"student": 8}, "forward": {"stage_teacher": 16}}),
}


@pytest.mark.parametrize("case", EXPECTED)
def test_passes_of_methods_with_extra_networks(case: str):
    params, expected = EXPECTED[case]
    trial = Trial(methods.get(case.split(",")[0])(params), Bed("sana"), size=8)
    ledger = trial.nets.student.ledger
    for name, module in trial.extra.items():
        count_calls(module, name, ledger)
    trial.losses(0)
    codec = {"decoder", "image_features"}  # of `add`: data once, samples once
    found = {kind: {k: n for k, n in book.items() if k not in codec} for kind, book in ledger.passes.items()}
    assert found == expected
    if case == "add":
        assert all(ledger.passes[kind][k] == 8 for kind in ("forward", "through") for k in codec)


# ------------------------------------------------------------------------------------------------------ derivatives


def along(network, x: Tensor, t: Tensor, cond, r: Tensor | None, tangents, h: float) -> Tensor:
    dx, dt, dr = tangents
    with torch.no_grad():
        ends = [network(x + k * dx, t + k * dt, cond, None if r is None else r + k * dr) for k in (h, -h)]
    return (ends[0] - ends[1]) / (2 * h)


@pytest.mark.parametrize("told", [True, False])
def test_the_directional_derivative_of_transformers_is_their_difference(make_backbone, make_condition, family: str, told: bool):
    backbone, cond = make_backbone(family, "embedding").double(), make_condition(3, dtype=F64)
    x, dx = normal(3, 4, 4, 4), normal(3, 4, 4, 4, seed=1)
    t, dt, dr = (torch.tensor(v, dtype=F64) for v in ([0.9, 0.5, 0.3], [1.0, 1.0, -0.5], [0.0, 0.3, 0.2]))
    r, tangents = (0.4 * t, (dx, dt, dr)) if told else (None, (dx, dt, dt))
    value, slope = directional_derivative(backbone, x, t, cond, r, tangents)
    with torch.no_grad():
        torch.testing.assert_close(value, backbone(x, t, cond, r), rtol=1e-6, atol=1e-8)
    difference = along(backbone, x, t, cond, r, tangents, 3e-5)
    # The embedding of the time is fast (1000 t) and in float32: less is not resolved, more is no derivative.
    assert float((slope - difference).norm()) < 5e-3 * float(slope.norm())
    assert not value.requires_grad and not slope.requires_grad


def test_the_derivative_is_linear_in_its_direction(make_toy, make_condition):
    network, cond, x, t = make_toy(), make_condition(3, dtype=F64), normal(3, 1, 2, 2), torch.tensor([0.9, 0.5, 0.3], dtype=F64)
    r, zero = 0.3 * t, torch.zeros_like(t)
    v = normal(3, 1, 2, 2, seed=1)

    def slope(dx, dt, dr):
        return directional_derivative(network, x, t, cond, r, (dx, dt, dr))[1]

    parts = slope(v, zero, zero), slope(0 * v, 1 + zero, zero), slope(0 * v, zero, 1 + zero)
    torch.testing.assert_close(slope(2 * v, 1 + zero, zero - 3), 2 * parts[0] + parts[1] - 3 * parts[2])
    assert min(float(p.norm()) for p in parts) > 1e-3
    assert float(slope(0 * v, zero, zero).norm()) == 0


def test_a_derivative_leaves_no_gradient_and_no_frozen_parameter(make_toy, make_condition):
    network, x, t = make_toy(), normal(2, 1, 2, 2), torch.tensor([0.9, 0.5], dtype=F64)
    student = Counted(network, "student", Ledger({"student": Cost(1.0, 3.0)}), fixed=Fixed(network))
    value, slope = student.jvp(x, t, make_condition(2, dtype=F64), None, (x, torch.ones_like(t), torch.ones_like(t)))
    assert not value.requires_grad and not slope.requires_grad
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


# ---------------------------------------------------------------------------------------------------- frozen passes


def test_frozen_passes_gradient_to_the_input_alone_and_thaws_what_it_froze():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net[0].bias.requires_grad_(False)  # was frozen before
    x = torch.ones(2, 3, requires_grad=True)
    with frozen(net):
        assert not any(p.requires_grad for p in net.parameters())
        net(x).sum().backward()
    assert float(x.grad.abs().sum()) > 0 and all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True]
    with pytest.raises(RuntimeError, match="inside"), frozen(net):
        raise RuntimeError("inside")
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True]


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_through_and_features_give_the_students_values_and_its_parameters_nothing(family: str, tuning: str):
    """Also in a step that trains the student: the graph of its own pass is not disturbed."""
    student = pretrained_copy(family)
    student = add_lora(student) if tuning == "lora" else student
    net = Counted(student, "student", Ledger({"student": Cost(1.0, 3.0)}), fixed=Fixed(student))
    x0, cond, _ = Bed(family).data(2, torch.Generator().manual_seed(0))
    x, t = x0.clone().requires_grad_(), torch.tensor([0.3, 0.8])
    own = net(x, t, cond, t)
    same, features = net.through(x, t, cond, t), net.features(x, t, cond, [1])
    torch.testing.assert_close(own, same)
    (same.square().sum() + features[0].square().sum()).backward()
    assert float(x.grad.abs().sum()) > 0 and all(p.grad is None for p in student.parameters())
    own.square().sum().backward()
    assert sum(float(p.grad.abs().sum()) for p in student.parameters() if p.grad is not None) > 0


def pretrained_copy(family: str) -> nn.Module:
    import copy

    return copy.deepcopy(pretrained(family)).requires_grad_(True)


# --------------------------------------------------------------------------------------------------------- networks


def test_networks_go_by_name_and_the_first_two_differ_once_the_student_has_moved():
    trial = Trial(methods.get("fm")(), Bed("gaussian"), ema=0.9)
    nets, batch = trial.nets, trial.batch(0)
    assert (nets.named("online"), nets.named("ema"), nets.named("teacher")) == (nets.student, nets.ema, nets.teacher)
    trial.ema.update()
    with torch.no_grad():
        for p in trial.student.parameters():
            p += 0.1
    t = torch.full((4,), 0.5)
    online, mean, teacher = (nets.named(k)(batch.x0, t, batch.cond) for k in ("online", "ema", "teacher"))
    assert online.requires_grad and not mean.requires_grad and not teacher.requires_grad
    assert not torch.equal(online, mean)
    torch.testing.assert_close(mean, teacher)  # the mean of a student that has not moved yet


def test_the_running_mean_is_asked_without_touching_the_student():
    student = nn.Linear(3, 3)
    ema = Ema(student.parameters(), 0.5)
    averaged, x = Averaged(student, ema), torch.ones(2, 3, requires_grad=True)
    assert torch.equal(averaged(x), student(x))  # before its first update
    for _ in range(3):
        ema.update()
        with torch.no_grad():
            student.weight += 1.0
    before = [p.detach().clone() for p in student.parameters()]
    out = averaged(x)
    weight, bias = ema.shadow
    torch.testing.assert_close(out, x @ weight.T + bias)
    assert not torch.equal(out, student(x))
    out.sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(2, 3))
    assert all(p.grad is None and p.requires_grad for p in student.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    with ema.applied():
        assert all(torch.equal(v, student.state_dict()[k]) for k, v in averaged.weights().items())


def test_the_weights_of_a_student_are_its_whole_state_under_the_mean():
    student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    student[0].bias.requires_grad_(False)
    ema = Ema(student.parameters(), 0.5)
    averaged = Averaged(student, ema)
    ema.update()
    with torch.no_grad():
        student[0].weight += 1.0
        student[0].bias += 1.0
    found = averaged.weights()
    assert found.keys() == student.state_dict().keys() and not any(v.requires_grad for v in found.values())
    torch.testing.assert_close(found["0.weight"], student[0].weight.detach() - 1)  # averaged
    torch.testing.assert_close(found["0.bias"], student[0].bias.detach())  # not trained, so not averaged


def test_the_last_matrix_stands_before_the_output(family: str):
    student = pretrained_copy(family)
    assert last_matrix(student) is student.transformer.proj_out.weight
    adapted = add_lora(pretrained_copy(family))
    found = last_matrix(adapted)
    assert found.requires_grad and found.ndim > 1
    if family == "sana":
        assert last_matrix(student.with_target_time()).shape == student.transformer.proj_out.weight.shape


# ------------------------------------------------------------------------------------------------------------ batches


@given(seed=st.integers(0, 10**6), size=st.integers(1, 20))
def test_a_batch_draws_from_its_own_generator(seed: int, size: int):
    """The same numbers again whatever torch's own generator does, which it leaves alone."""

    def draw() -> list[Tensor]:
        x0 = torch.zeros(size, 2, 1, 1)
        cond = Condition(torch.zeros(size, 1, 4), torch.ones(size, 1))
        batch = Batch(x0, cond, cond, torch.Generator().manual_seed(seed))
        assert len(batch) == size
        return [batch.uniform(size), batch.normal(size), batch.normal_like(x0), batch.uniform(size)]

    before = torch.get_rng_state()
    first = draw()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(), strict=True))
    assert not torch.equal(first[0], first[3]) and first[2].shape == (size, 2, 1, 1)
    assert torch.all((first[0] >= 0) & (first[0] < 1))


def test_draws_have_their_distributions_and_noise_the_datas_type():
    cond = Condition(torch.zeros(1, 1, 4), torch.ones(1, 1))
    batch = Batch(torch.zeros(1, 2, 1, 1), cond, cond, torch.Generator().manual_seed(0))
    for found in (batch.normal(20000), batch.normal_like(torch.zeros(100, 200))):
        assert abs(float(found.mean())) < 0.03 and abs(float(found.std()) - 1) < 0.03
    uniform = batch.uniform(20000)
    assert abs(float(uniform.mean()) - 0.5) < 0.02 and abs(float(uniform.std()) - 12**-0.5) < 0.01
    assert batch.normal_like(torch.zeros(3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert (batch.micro_step, batch.progress, batch.pairs) == (0, 0.0, None)


def test_pairs_of_a_trial_lie_on_the_teachers_ode():
    """25 Euler steps of Gaussian data's velocity: near the exact end, element by element."""
    trial = Trial(methods.get("regression")({"guidance": 1.0, "teacher_steps": 200}), Bed("gaussian"), size=64)
    pairs: Pairs = trial.batch(0).pairs
    which = pairs.cond.embeds[:, 0, 0].long()
    teacher = pretrained("gaussian")
    exact = teacher.means[which][:, :, None, None] + teacher.stds[which][:, :, None, None] * pairs.noise
    assert float((pairs.x - exact).abs().max()) < 0.05
    assert isinstance(trial.nets, Networks)
