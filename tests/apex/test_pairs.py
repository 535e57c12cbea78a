"""Teacher-made pairs: what the budget pays for, where their ends lie, and what an interrupted run finds again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from apex import pairs
from apex.conditioning import Condition
from apex.errors import UserError
from apex.flow import sample, uniform_sigmas
from apex.methods.base import PairPlan
from apex.pairs import PairStore, make_pairs, pair_count

CPU = torch.device("cpu")


# -------------------------------------------------------------------------------------------------------- the budget


@given(share=st.floats(0.01, 0.99), steps=st.integers(1, 60), guidance=st.sampled_from([0.0, 1.0, 2.5]), budget=st.floats(1e3, 1e7))
def test_as_many_pairs_as_the_share_pays_for(share: float, steps: int, guidance: float, budget: float):
    """A guided step of the teacher is two passes, guidance 1 is one."""
    plan = PairPlan(share, steps, guidance)
    count = pair_count(plan, budget)
    assert plan.passes == steps * (1 if guidance == 1 else 2)
    if share * budget >= plan.passes:
        assert count * plan.passes <= share * budget * (1 + 1e-12) < (count + 1) * plan.passes * (1 + 1e-12)
    else:
        assert count == 1  # a method with pairs has one at least


# ------------------------------------------------------------------------------------------------------------ making


@pytest.fixture
def made(make_toy, make_condition, monkeypatch, tmp_path):
    """made(count, folder="a", seed=0, **plan): pairs of a toy teacher with files of 4, and the calls of the teacher."""
    monkeypatch.setattr(pairs, "CHUNK", 4)
    network, table = make_toy(seed=3).requires_grad_(False), make_condition(6)
    calls: list[int] = []

    def teacher(x: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None) -> Tensor:
        assert torch.equal(t, r)  # instantaneous velocities alone
        calls.append(len(x))
        return network(x, t, cond, r).float()

    def make(count: int, folder: str = "a", seed: int = 0, index: list[int] | None = None, **plan) -> PairStore:
        plan = PairPlan(**({"share": 0.5, "steps": 5, "guidance": 2.0} | plan))
        calls.clear()
        return make_pairs(
            plan,
            count,
            teacher,
            table.__getitem__,
            lambda size: Condition(torch.zeros(size, 5, 16), torch.ones(size, 5)),
            torch.tensor(index or [1, 3, 3, 5]),
            (1, 2, 2),
            tmp_path / folder,
            seed,
            CPU,
            lambda line: None,
        )

    make.teacher, make.table, make.calls, make.folder = network, table, calls, tmp_path
    return make


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.0])
def test_pairs_lie_on_the_guided_teachers_ode(made, guidance: float):
    """Euler from 1 to 0 in the plan's steps, each sample on its own."""
    store = made(10, guidance=guidance)
    for noise, x, row in zip(store.noise, store.x, store.caption, strict=True):
        cond = made.table[row[None]]
        null = Condition(torch.zeros(1, 5, 16), torch.ones(1, 5))
        point = noise[None].double()
        for k in range(5):
            t = torch.full((1,), 1 - k / 5, dtype=torch.float64)
            with_c, without_c = (made.teacher(point, t, c, t) for c in (cond, null))
            point = point - (without_c + guidance * (with_c - without_c)) / 5
        torch.testing.assert_close(x, point[0].float(), rtol=1e-4, atol=1e-5)
    assert len(store) == len(store.noise) == len(store.x) == len(store.caption) == 10


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("count", [3, 4, 10])
def test_they_cost_what_the_plan_says(made, guidance: float, count: int):
    made(count, guidance=guidance)
    assert sum(made.calls) == count * PairPlan(0.5, 5, guidance).passes


def test_captions_are_the_training_datas_and_noise_is_normal(made):
    store = made(400, index=[1, 3, 3, 5], steps=1)
    rows, counts = store.caption.unique(return_counts=True)
    assert rows.tolist() == [1, 3, 5]
    assert float(counts[1]) / 400 == pytest.approx(0.5, abs=0.08)  # as often as in the data
    assert float(store.noise.mean()) == pytest.approx(0, abs=0.08) and float(store.noise.std()) == pytest.approx(1, abs=0.05)
    assert len(store.noise.flatten(1).unique(dim=0)) == 400


def test_a_seed_makes_its_pairs_again_and_another_makes_others(made):
    first, again, other = made(9, "a"), made(9, "b"), made(9, "c", seed=1)
    assert all(torch.equal(getattr(first, k), getattr(again, k)) for k in ("noise", "x", "caption"))
    assert not torch.equal(first.noise, other.noise)


# ------------------------------------------------------------------------------------------------------- interruption


@pytest.mark.parametrize("lost", [[0], [1], [2], [1, 2], [0, 1, 2]], ids=str)
def test_an_interrupted_run_makes_the_missing_files_as_they_would_have_been(made, lost: list[int]):
    whole = made(10)
    files = sorted((made.folder / "a").iterdir())
    assert [f.name for f in files] == ["00000.safetensors", "00001.safetensors", "00002.safetensors"]
    for number in lost:
        files[number].unlink()
    again = made(10)
    assert all(torch.equal(getattr(whole, k), getattr(again, k)) for k in ("noise", "x", "caption"))
    assert sum(made.calls) == sum([4, 4, 2][number] for number in lost) * 10  # what is there is not made again


def test_a_file_that_was_being_written_is_made_again(made):
    whole = made(10)
    last = made.folder / "a" / "00002.safetensors"
    last.rename(last.with_name(f".{last.name}.half"))  # as a kill leaves it
    assert torch.equal(made(10).x, whole.x)
    assert sorted(f.name for f in last.parent.glob("[!.]*")) == [f"0000{k}.safetensors" for k in range(3)]


def test_a_damaged_file_is_one_clear_line(made):
    made(10)
    file = made.folder / "a" / "00001.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(UserError, match="remove it to make its pairs again") as error:
        made(10)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------ drawing


def test_pairs_are_drawn_together_with_their_captions(made):
    store = made(10)
    drawn = store.draw(64, torch.Generator().manual_seed(1))
    again = store.draw(64, torch.Generator().manual_seed(1))
    assert torch.equal(drawn.noise, again.noise) and torch.equal(drawn.x, again.x)
    rows = [int((store.noise == noise).flatten(1).all(1).nonzero()) for noise in drawn.noise]
    assert torch.equal(drawn.x, store.x[rows]) and torch.equal(drawn.cond.embeds, made.table[store.caption[rows]].embeds)
    assert len(set(rows)) == 10
    assert not torch.equal(drawn.noise, store.draw(64, torch.Generator().manual_seed(2)).noise)


# ----------------------------------------------------------------------------------------------------- in a whole run


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_run_pays_for_its_pairs_before_its_first_step(make_loop, tuning: str):
    """Budget 800, share 0.5, 4 guided steps: 50 pairs of 8 passes; and the teacher is asked for nothing else."""
    loop = make_loop("regression", params={"pair_share": 0.5, "teacher_steps": 4}, tuning=tuning, budget={"forward_equivalents": 800})
    loop.fit(max_steps=1)
    assert len(loop.pairs) == 50
    assert loop.ledger.passes["forward"] == {"teacher": 400}
    step = loop.ledger.passes["training"]["student"] * loop.ledger.costs["student"].training / loop.unit
    assert loop.spent() == pytest.approx(400 + step)
    assert loop.rows[-1]["forward_equivalents"] == round(400 + step)
    assert set(loop.pairs.caption.tolist()) <= set(loop.index.tolist())


def test_pairs_of_a_run_are_its_own_teachers(make_loop, tiny_pipeline):
    from apex.pipeline import load_backbone

    loop = make_loop("reflow", params={"pair_share": 0.2, "teacher_steps": 3, "guidance": 1.0})
    loop.fit(max_steps=1)
    stock, store = load_backbone(tiny_pipeline / "transformer").eval(), loop.pairs
    cond = loop.captions[store.caption[:4]]
    with torch.no_grad():
        x = sample(lambda y, t, r: stock(y, t, cond, t), store.noise[:4], uniform_sigmas(3), mode="multi")
    torch.testing.assert_close(store.x[:4], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep", [True, False])
def test_a_resumed_run_has_the_same_pairs_and_pays_once(make_loop, keep: bool):
    """Whether the folder of pairs is still there or not."""
    import shutil

    budget, params = {"forward_equivalents": 600}, {"pair_share": 0.5, "teacher_steps": 4}

    def run(name: str, stop: bool):
        loop = make_loop("reflow", params=params, budget=budget, resume=name)
        if stop:
            loop.fit(max_steps=3)
            if not keep:
                shutil.rmtree(loop.resume / "pairs")
            loop = make_loop("reflow", params=params, budget=budget, resume=name)
        loop.fit()
        return loop

    whole, again = run("whole", False), run("again", True)
    assert whole.step == again.step > 3 and whole.spent() == again.spent()
    assert whole.ledger.passes == again.ledger.passes
    assert torch.equal(whole.pairs.x, again.pairs.x)
    assert all(torch.equal(v, again.trained()[k]) for k, v in whole.trained().items())


def test_pairs_that_leave_nothing_of_the_budget_are_refused(make_loop):
    loop = make_loop("regression", params={"teacher_steps": 200}, budget={"forward_equivalents": 300})
    with pytest.raises(UserError, match="1 teacher-made pairs of 400 passes each leave nothing of the budget of 300") as error:
        loop.fit()
    assert "row row" in str(error.value) and "\n" not in str(error.value)


def test_each_step_draws_other_pairs_and_the_same_again(make_loop):
    loop = make_loop("reflow", params={"pair_share": 0.5, "teacher_steps": 1, "guidance": 1.0}, budget={"forward_equivalents": 600})
    loop.make_pairs()
    first, again = loop.batch(0).pairs, loop.batch(0).pairs
    assert torch.equal(first.noise, again.noise) and len(first.noise) == len(loop.batch(0))
    micro = loop.batch(1).pairs
    loop.step += 1
    assert not torch.equal(first.noise, micro.noise) and not torch.equal(first.noise, loop.batch(0).pairs.noise)
