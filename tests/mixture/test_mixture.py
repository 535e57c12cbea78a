"""`apex` reaches the mixture's modes in one step and its controls do not; the measures against closed forms; the command."""

from __future__ import annotations

import csv
import math

import pytest
import torch

from apex import mixture, mixture_runs
from apex.errors import UserError, run_command
from apex.mixture_rows import ROWS, Recipe
from apex.mixture_runs import CENTRES, RADIUS, SCALE, VelocityMLP

# ------------------------------------------------------------------------------------------------------ the result


@pytest.fixture(scope="module")
def found(trained: dict[str, VelocityMLP]) -> dict[str, dict[str, float]]:
    return {name: mixture_runs.measure(network, 0, count=4_000) for name, network in trained.items()}


def test_apex_covers_every_mode_in_one_step(found):
    assert found["apex"]["sw1"] < found["teacher"]["sw1"] / 2
    assert found["apex"]["least_mode"] > 0.01  # the longer run of `python -m apex.mixture` has 0.19
    assert found["apex"]["spread"] > 0.75


@pytest.mark.parametrize("row", ["fm", "eq25"])
def test_the_controls_stay_at_the_mean(found, row: str):
    """The teacher trained longer, and Eq. 25 of the paper: the one-step sample is the class mean, no mode is reached."""
    assert found[row]["sw1"] > 0.8 * mixture_runs.collapsed_sw1()
    assert found[row]["least_mode"] < 0.005
    assert found[row]["spread"] < 0.3


def test_the_teacher_knows_the_modes_in_many_steps(found):
    """So the one-step rows start from a good velocity: what they miss is the one step."""
    assert found["teacher"]["sw1_50"] < 0.15
    assert found["teacher"]["sw1"] > 0.8 * mixture_runs.collapsed_sw1()


def test_eq25_closes_the_gap_of_the_branches(found):
    """L_cons and L_fake act at t = 1 through this gap alone; the teacher, which never saw c_fake, has a wide one."""
    assert found["eq25"]["branch_gap"] < 0.1 < found["teacher"]["branch_gap"]


# --------------------------------------------------------------------------------------------------- determinism


def weights(network: VelocityMLP) -> torch.Tensor:
    return torch.cat([p.flatten() for p in network.parameters()])


@pytest.mark.parametrize("row", ["apex", "ladd", "regression"])
def test_the_same_seed_gives_the_same_weights_and_another_does_not(row: str):
    """Also where a method brings networks or pairs of its own."""
    recipe = Recipe(steps=6, width=16)

    def once(seed: int, disturb: int) -> torch.Tensor:
        torch.manual_seed(disturb)  # the global generator must not matter
        return weights(mixture_runs.train(mixture_runs.make_teacher(recipe, seed), row, ROWS[row].params, recipe, seed)[0])

    first = once(0, 1)
    assert torch.equal(first, once(0, 2))
    assert not torch.equal(first, once(1, 1))


def test_the_start_is_left_as_it_was_and_watching_changes_nothing():
    recipe = Recipe(steps=6, width=16)
    teacher = mixture_runs.make_teacher(recipe, 0)
    before, steps = weights(teacher).clone(), []

    def watch(step, student, ema, nets):
        steps.append(step)
        mixture_runs.push(student, "apex", ROWS["apex"].params, 0, count=64)
        with ema.applied():
            mixture_runs.generate(student, torch.randn(4, 2, 1, 1), 0)

    watched = mixture_runs.train(teacher, "apex", ROWS["apex"].params, recipe, 0, watch)[0]
    assert torch.equal(weights(watched), weights(mixture_runs.train(teacher, "apex", ROWS["apex"].params, recipe, 0)[0]))
    assert torch.equal(weights(teacher), before)
    assert steps == list(range(6))


# ----------------------------------------------------------------------------------------------------- the measures


def test_data_moments_and_modes():
    x = mixture_runs.dataset(40_000, 0)
    for label in range(2):
        assert torch.allclose(x[label].mean(0).flatten(), CENTRES[label], atol=0.03)
        assert abs(float(x[label].var(0).mean().sqrt()) / SCALE - 1) < 0.01
        assert torch.allclose((mixture_runs.modes(label) - CENTRES[label]).norm(dim=1), torch.tensor(RADIUS))
    assert float(torch.cdist(mixture_runs.modes(0), mixture_runs.modes(1)).min()) > 5 * mixture_runs.SPREAD


def test_sliced_w1_of_a_shift_and_of_the_mean():
    """A constant offset d gives the mean of |<d, u>| = 2 |d| / pi; the collapse to the mean has a closed form."""
    x = mixture_runs.dataset(20_000, 0)[1]
    offset = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
    assert mixture_runs.sliced_w1(x, x[torch.randperm(len(x))]) < 1e-6
    assert abs(mixture_runs.sliced_w1(x + offset, x) - 10 / math.pi) < 1e-3
    mean = CENTRES[1].reshape(1, 2, 1, 1).expand_as(x)
    assert abs(mixture_runs.sliced_w1(mean, x) - mixture_runs.collapsed_sw1()) < 0.01
    assert 2 * RADIUS / math.pi < mixture_runs.collapsed_sw1() < 1.03 * 2 * RADIUS / math.pi


def test_quality_counts_a_missing_mode():
    real = mixture_runs.dataset(4_000, 0)
    again = mixture_runs.dataset(4_000, 1)
    three = [x[(x.flatten(1) - mixture_runs.modes(k)[0]).norm(dim=1) > 1][:2_000] for k, x in enumerate(again)]
    whole, partial = mixture_runs.quality(again, real), mixture_runs.quality(three, [x[:2_000] for x in real])
    assert whole["least_mode"] > 0.22 and partial["least_mode"] == 0
    assert whole["sw1"] < 0.1 < partial["sw1"]
    assert abs(whole["spread"] - 1) < 0.03


def test_the_way_to_the_data():
    """Data plus a constant is told to go back by it; steps along it shrink the distance of a collapsed cloud."""
    real = mixture_runs.dataset(2_000, 0)[0]
    offset = torch.tensor([[1.0, -2.0]])
    assert torch.allclose(mixture_runs.to_the_data(real + offset[..., None, None], real), -offset.expand(2_000, 2), atol=1e-4)
    x = 0.1 * torch.randn(2_000, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    distances = []
    for _ in range(4):
        distances.append(mixture_runs.sliced_w1(x, real))
        x = x + 0.5 * mixture_runs.to_the_data(x, real)[..., None, None]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < distances[0] / 2


def test_push_has_the_sign_of_the_way_to_the_data(monkeypatch):
    """A loss that regresses the one-step sample on matched data has a positive cosine, and its negative the opposite."""
    from apex import methods
    from apex.methods.base import Method, Step

    class Matched(Method):
        name, sign = "matched", 1.0

        def losses(self, batch, nets, step):
            total = torch.zeros(())
            for label, data in enumerate(mixture_runs.dataset(500, 3)):
                z = mixture_runs.noises(500, 3)[label]
                cond = mixture_runs.condition(torch.full((500,), label))
                x = z - nets.student(z, torch.ones(500), cond, torch.zeros(500))
                wanted = mixture_runs.to_the_data(x.detach(), data)[..., None, None]
                total = total - self.sign * (x * wanted).sum()
            return Step({"student": total})

    class Opposed(Matched):
        sign = -1.0

    torch.manual_seed(0)
    network = VelocityMLP(32)
    monkeypatch.setattr(methods, "get", {"matched": Matched, "opposed": Opposed}.__getitem__)
    there, back = (mixture_runs.push(network, name, {}, 0, count=500) for name in ("matched", "opposed"))
    assert there > 0.3
    assert abs(there + back) < 0.02


def test_folding_the_target_time_keeps_the_one_step_map():
    torch.manual_seed(0)
    network, z = VelocityMLP(16), torch.randn(8, 2, 1, 1)
    for p in network.target.parameters():
        torch.nn.init.normal_(p)
    cond, one = mixture_runs.condition(torch.tensor([0, 1] * 4)), torch.ones(8)
    before = network(z, one, cond, 0 * one)
    folded = network.without_target_time()
    torch.testing.assert_close(folded(z, one, cond), before, rtol=1e-4, atol=1e-5)
    assert torch.equal(folded(z, one, cond, 0 * one), folded(z, one, cond))
    assert not torch.allclose(network(z, one, cond), before, atol=1e-2)


# ------------------------------------------------------------------------------------------------------ the command


def test_every_row_is_a_method_with_valid_settings():
    from apex import methods

    for row in ROWS.values():
        for changes in ({}, *row.parts.values()):
            methods.get(row.method)({**row.params, **changes})


def test_a_row_brings_the_row_that_it_starts_from():
    assert mixture.chosen(["eq25 from apex", "fm"]) == ["fm", "apex", "eq25 from apex"]
    with pytest.raises(UserError, match=r"--rows: unknown 'apx'; known: 'fm', "):
        mixture.chosen(["apx"])


def test_the_command_writes_tables_and_picture(tmp_path, capsys):
    mixture.main(["--out", str(tmp_path / "new"), "--seeds", "4", "5", "--rows", "eq25 from apex", "--steps", "2"])
    out = tmp_path / "new"
    with open(out / "mixture.csv") as file:
        lines = list(csv.DictReader(file))
    names = ["data", "class mean", "teacher", "apex", "eq25 from apex"]
    assert [(line["row"], line["seed"]) for line in lines] == [(name, seed) for seed in "45" for name in names]
    assert all(math.isfinite(float(line["sw1"])) for line in lines)
    with open(out / "push.csv") as file:
        losses = {(line["row"], line["step"], line["loss"]) for line in csv.DictReader(file)}
    assert {("apex", "0", part) for part in ("whole", "base", "rectification")} < losses
    assert {("eq25 from apex", "0", part) for part in ("whole", "L_sup", "L_cons", "L_fake")} < losses
    with open(out / "curves.csv") as file:
        assert {line["step"] for line in csv.DictReader(file)} == {"0", "1", "2"}
    assert (out / "mixture.png").read_bytes().startswith(b"\x89PNG")
    assert "| eq25 from apex |" in capsys.readouterr().out


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    assert run_command(lambda: mixture.main(["--out", str(tmp_path), "--steps", "0"])) == 2
    assert (
        capsys.readouterr().err
        == "error: --steps: found 0, expected a whole number of at least 1; `python -m apex.mixture --help` lists the options\n"
    )
    (tmp_path / "file").write_text("")
    assert run_command(lambda: mixture.main(["--out", str(tmp_path / "file"), "--steps", "1"])) == 2
    assert "exists" in capsys.readouterr().err
