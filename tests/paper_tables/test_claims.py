"""The claims ledger: verdicts follow from the records and change with them; what is missing is not run; a broken ledger is one line."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apex.ablations import Plan
from apex.config import load
from apex.errors import UserError
from paper_tables import ablations, claims, published, tables_paper
from paper_tables.claims_tests import FAILS, FULL, HOLDS, NOT_RUN, OF_RECORDS, TESTS, UNDECIDED, Evidence, judged
from paper_tables.expected import Expected
from paper_tables.stats import Summary
from paper_tables.view import View

WORLD = Path("workflows/config/world.yaml")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(load(WORLD))


@pytest.fixture
def evidence(make_results: Callable[..., Path], plan: Plan, tmp_path: Path) -> Callable[..., Evidence]:
    """evidence(rows=..., ...): what a results folder of the synthetic profile says; theory and ablations in tmp_path."""

    def make(name: str = "results", **options: Any) -> Evidence:
        view = View.load(make_results(name, **options))
        return Evidence({"world": view}, published.load(), plan, tmp_path / "ablations", tmp_path / "theory", {"world": 2.5})

    return make


def verdict(test: dict[str, Any], given: Evidence) -> str:
    return TESTS[test["kind"]](test, given).verdict


# --------------------------------------------------------------------------------------------------- the shipped ledger


def test_the_ledger_has_every_group_and_says_what_would_decide() -> None:
    found = claims.read()
    assert len(found) >= 30 and {one.group for one in found} == set(claims.GROUPS)
    assert all(test["kind"] in TESTS for one in found for test in one.tests)
    # Objectives differ, so a claim that a trained row decides is tested as both, but where the paper has one alone.
    for one in found:
        rows = [test.get("row") for test in one.tests if test["kind"] in ("difference", "ratio") and test.get("profile") is None]
        if rows and "apex-lora" not in rows:
            assert {"apex", "apex-eq25"} <= set(rows), one.id


def test_every_row_and_cell_of_the_ledger_is_one_that_the_profiles_run(plan: Plan) -> None:
    configs = {path.stem: load(path) for path in Path("workflows/config").glob("*.yaml")}
    known = {name: {*config.all_methods, *config.checkpoint_rows, "teacher"} for name, config in configs.items()}
    known["sana_0_6b"].add("flux-schnell")  # docs/full_scale.md: a row that its user adds
    for claim in claims.read():
        for test in claim.tests:
            rows = known[test.get("profile", "sana_0_6b" if "scale" in test else "world")]
            if test["kind"] in OF_RECORDS and test["kind"] != "diverged":
                assert {test["row"], test.get("versus", test["row"])} <= rows, claim.id
            if test["kind"] == "reported":
                (row,) = [r for r in published.load()["table1"] if (published.label(r), r["nfe"]) == (test["printed"], str(test["nfe"]))]
                assert row["geneval"]
            if test["kind"] == "diverged":
                assert set(test["rows"]) <= rows, claim.id
            if test["kind"] == "ablation":
                ablation = plan.found.grids[test["grid"]]
                assert {ablation.name(test[which]) for which in ("cell", "versus")} <= set(plan.names(test["grid"])), claim.id


def test_the_whole_ledger_is_judged_where_little_was_run(evidence: Callable[..., Evidence]) -> None:
    given = evidence(rows={("apex", 1): 0.5, ("teacher", 25): 0.8})
    found = claims.judge(claims.read(), given)
    assert {one.outcome.verdict for one in found} == {HOLDS, FAILS, UNDECIDED, NOT_RUN, FULL}
    missing = [one.outcome for one in found if one.outcome.verdict == NOT_RUN]
    assert all(outcome.source.startswith("snakemake ") and outcome.value is None for outcome in missing)


# ------------------------------------------------------------------------------------------- verdicts follow the numbers

ABOVE = {"kind": "difference", "row": "apex", "nfe": 1, "versus": "fm", "metric": "geneval/overall"}


@pytest.mark.parametrize(("ours", "theirs", "expected"), [(0.7, 0.5, HOLDS), (0.5, 0.7, FAILS), (0.6, 0.6, UNDECIDED)])
def test_another_result_is_another_verdict(evidence: Callable[..., Evidence], ours: float, theirs: float, expected: str) -> None:
    given = evidence(rows={("apex", 1): ours, ("fm", 1): theirs})
    assert verdict(ABOVE, given) == expected
    assert verdict(ABOVE | {"versus": "dmd2"}, given) == NOT_RUN


def test_one_seed_borrows_the_training_noise_of_rows_with_three(
    evidence: Callable[..., Evidence], make_results: Callable[..., Path]
) -> None:
    """apex has three seeds that differ by 0.01 each: a standard deviation of 0.01. A difference of 0.02 that prompts alone decide is
    undecided with it."""
    given = evidence(rows={("apex", 1): 0.6})
    make_results(rows={("fm", 1): 0.6})
    make_results(rows={("apex", 1): 0.6}, seeds=(0, 1, 2))
    view = View.load(make_results(rows={("fm", 1): 0.6}))
    given.views["world"] = view
    assert view.training_noise("geneval/overall", 1) == pytest.approx(0.01)
    assert view.training_noise("geneval/overall", 2) is None
    narrow = view.bare_difference(("apex", 1), ("fm", 1), "geneval/overall")
    found = TESTS["difference"](ABOVE, given)
    assert (found.low, found.high) == (view.difference(("apex", 1), ("fm", 1), "geneval/overall").low, found.high)
    assert narrow.seeds == 1 and found.low < narrow.low and found.high > narrow.high
    assert found.high - found.value == pytest.approx(((narrow.high - narrow.value) ** 2 + 0.0196**2) ** 0.5)
    assert "one seed, training noise of 0.01" in found.effect


def test_a_ratio_to_a_row_that_scores_nothing_is_undecided_and_not_absent(evidence: Callable[..., Evidence]) -> None:
    test = {"kind": "ratio", "row": "apex", "nfe": 1, "versus": "fm", "versus_nfe": 1, "metric": "geneval/overall", "at_least": 0.5}
    assert verdict(test, evidence(rows={("apex", 1): 0.6})) == NOT_RUN
    found = TESTS["ratio"](test, evidence(rows={("apex", 1): 0.6, ("fm", 1): 0.0}))
    assert found.verdict == UNDECIDED and found.effect == "geneval/overall: fm at 1 has 0, apex at 1 0.6: there is no ratio"


def test_a_changed_record_changes_the_written_verdict(make_results: Callable[..., Path], run: Callable[..., int], tmp_path: Path) -> None:
    def written(quality: float) -> str:
        results = make_results(f"r{quality}", rows={("apex", 1): quality, ("teacher", 25): 0.8, ("teacher", 1): 0.1})
        out = tmp_path / f"out{quality}"
        assert run(claims.main, "--config", WORLD, "--results", results, "--theory", tmp_path, "--out", out) == 0
        assert {path.suffix for path in out.iterdir()} == {".md", ".tex", ".csv", ".html", ".png", ".rst"}
        lines = list(csv.DictReader((out / "claims.csv").open()))
        at = next(index for index, line in enumerate(lines) if line["claim"].startswith("The objective makes a one-step generator"))
        return lines[at]["verdict"]

    # The synthetic profile is not called world, so the ledger is asked of the profile by that name.
    assert [written(quality) for quality in (0.7, 0.2)] == [HOLDS, FAILS]


def test_lower_is_better_where_the_test_says_so(evidence: Callable[..., Evidence]) -> None:
    given = evidence(rows={("apex", 1): 0.8, ("fm", 1): 0.3}, seeds=(0, 1, 2))  # FID falls with quality, by 0.01 a seed
    test = ABOVE | {"metric": "fid"}
    assert verdict(test, given) == FAILS and verdict(test | {"lower": True}, given) == HOLDS
    alone = evidence("alone", rows={("apex", 1): 0.8, ("fm", 1): 0.3})
    assert verdict(test | {"lower": True}, alone) == UNDECIDED, "one seed of FID has no interval"


@pytest.mark.parametrize(
    ("ends", "test", "expected"),
    [
        ((0.1, 0.3), {}, HOLDS),
        ((-0.3, -0.1), {}, FAILS),
        ((-0.1, 0.1), {}, UNDECIDED),
        ((0.4, 0.6), {"at_least": 0.5}, UNDECIDED),
        ((0.6, 0.7), {"at_least": 0.5}, HOLDS),
        ((0.6, 0.7), {"at_most": 0.5}, FAILS),
        ((0.1, 0.2), {"at_most": 0.5}, HOLDS),
        ((-0.3, -0.1), {"lower": True}, HOLDS),
        ((None, None), {"at_least": 0.2}, HOLDS),
        ((None, None), {"at_most": 0.2}, HOLDS),
        ((None, None), {"at_least": 0.3}, FAILS),
    ],
)
def test_the_side_of_the_limit_decides(ends: tuple, test: dict, expected: str) -> None:
    low, high = ends
    value = 0.2 if low is None else (low + high) / 2
    assert judged(Summary(value, low, high), test, "", "").verdict == expected


def test_theory_is_read_and_a_changed_error_changes_it(evidence: Callable[..., Evidence], tmp_path: Path) -> None:
    test = {"kind": "theory", "check": "duality"}
    assert verdict(test, evidence()) == NOT_RUN
    (tmp_path / "theory").mkdir()
    for holds, expected in ((True, HOLDS), (False, FAILS)):
        one = {"id": "duality", "says": "s", "value": 1e-12, "bound": 1e-9, "n": 5, "holds": holds}
        (tmp_path / "theory" / "theory.json").write_text(json.dumps({"checks": [one]}))
        assert verdict(test, evidence()) == expected
    (tmp_path / "theory" / "theory.json").write_text("{}")
    with pytest.raises(UserError, match=r"theory\.json: not what apex\.theory writes"):
        verdict(test, evidence())


def alignment(folder: Path, cosines: dict[int, list[float]], gradients: tuple[float, ...] = (1.0, 0.5, 0.001), sw1: float = 0.9) -> None:
    lines = ["row,part,seed,step,cosine,gradient,kl_gradient,sw1"]
    for seed, values in cosines.items():
        lines += [f"apex,whole,{seed},{50 * (k + 1)},{v},{g},1,{sw1}" for k, (v, g) in enumerate(zip(values, gradients, strict=True))]
    folder.mkdir(exist_ok=True)
    (folder / "alignment.csv").write_text("\n".join(lines) + "\n")


def test_alignment_is_a_mean_over_moments_with_an_interval_over_seeds(evidence: Callable[..., Evidence], tmp_path: Path) -> None:
    test = {"kind": "alignment", "row": "apex", "at_least": 0.5}
    for cosines, expected in (([0.8, 0.9, 0.7], HOLDS), ([0.1, 0.2, 0.0], FAILS)):
        alignment(tmp_path / "theory", dict.fromkeys((0, 1, 2), cosines))
        found = TESTS["alignment"](test, evidence())
        assert found.verdict == expected and found.value == pytest.approx(sum(cosines) / 3) and found.seeds == 3
    alignment(tmp_path / "theory", {0: [0.9] * 3})
    assert verdict(test, evidence()) == UNDECIDED, "one seed has no interval"


def test_a_gradient_vanishes_only_while_samples_are_far(evidence: Callable[..., Evidence], tmp_path: Path) -> None:
    seeds = dict.fromkeys((0, 1, 2), [0.5] * 3)
    keeps, falls = {"kind": "gradient", "row": "apex", "at_least": 0.01}, {"kind": "gradient", "row": "apex", "at_most": 0.01}
    alignment(tmp_path / "theory", seeds)
    assert verdict(keeps, evidence()) == FAILS and verdict(falls, evidence()) == HOLDS
    alignment(tmp_path / "theory", seeds, (1.0, 0.5, 0.4))
    assert verdict(keeps, evidence()) == HOLDS
    alignment(tmp_path / "theory", seeds, sw1=0.1)
    assert verdict(keeps, evidence()) == UNDECIDED
    assert verdict(keeps | {"row": "nobody"}, evidence()) == NOT_RUN


def test_ablations_are_compared_prompt_by_prompt(
    evidence: Callable[..., Evidence], score_cell: Callable[..., None], tmp_path: Path
) -> None:
    test = {"kind": "ablation", "grid": "table7", "cell": {}, "versus": {"params.a": 1.0}}
    assert verdict(test, evidence()) == NOT_RUN
    score_cell(tmp_path / "ablations", "apex", 0, 0.6)
    score_cell(tmp_path / "ablations", "apex,a=1.0", 0, 0.3)
    assert verdict(test, evidence()) == HOLDS
    assert verdict(test | {"grid": "of another profile"}, evidence()) == NOT_RUN
    shutil.rmtree(tmp_path / "ablations")
    score_cell(tmp_path / "ablations", "apex", 0, 0.3)
    score_cell(tmp_path / "ablations", "apex,a=1.0", 0, 0.6)
    assert verdict(test, evidence()) == FAILS


def test_a_profile_that_varies_the_same_thing_by_other_settings_has_its_own_cells(
    evidence: Callable[..., Evidence], score_cell: Callable[..., None], tmp_path: Path
) -> None:
    """Where its grid has none of them the test is not run, and the rest of the ledger is made."""
    score_cell(tmp_path / "ablations", "apex", 0, 0.6)
    score_cell(tmp_path / "ablations", "apex,a=1.0", 0, 0.3)
    test = {"kind": "ablation", "grid": "table7", "cell": {}, "versus": {"params.a": 7.0}}
    outcome = TESTS["ablation"](test, evidence())
    assert outcome.verdict == NOT_RUN and "a profile whose ablation table7 has apex and apex,a=7.0, such as" in outcome.source
    assert (
        verdict(test | {"elsewhere": [{"cell": {"params.a": 7.0}, "versus": {}}, {"cell": {}, "versus": {"params.a": 1.0}}]}, evidence())
        == HOLDS
    )


def test_every_cell_that_a_claim_names_is_one_of_a_shipped_profile() -> None:
    """The first pair of a test of the world's, those of `elsewhere` of a full-scale one's."""
    plans = {name: Plan(load(Path(f"workflows/config/{name}.yaml"))) for name in ("world", "sana_0_6b", "qwen_image_lora_r64")}

    def names(name: str, test: dict, pair: dict) -> set[str]:
        grid = plans[name].found.grids.get(test["grid"])
        return {grid.name(pair[which]) for which in ("cell", "versus")} if grid else {"no such grid"}

    tests = [test for claim in claims.read() for test in claim.tests if test["kind"] == "ablation"]
    assert len(tests) > 10 and sum(len(test.get("elsewhere", [])) for test in tests) == 5
    for test in tests:
        assert names("world", test, test) <= set(plans["world"].names(test["grid"]))
        for pair in test.get("elsewhere", []):
            there = [name for name in plans if test["grid"] in plans[name].found.grids and name != "world"]
            assert any(names(name, test, pair) <= set(plans[name].names(test["grid"])) for name in there), (test["grid"], pair)


def test_a_large_profile_is_not_called_a_world(make_results: Callable[..., Path], tmp_path: Path) -> None:
    view = View.load(make_results(rows={("apex", 1): 0.5}))
    for one in view.found:
        one.record.parameters = 591_747_872
    caption, words = claims.table([], view).caption, claims.front([], view, "A profile.")
    assert "networks of up to 0.592B parameters" in caption and "Here means the embedded world" not in caption
    assert "million parameters" not in words and "hold for its teacher, data, resolution and evaluators" in words
    assert (
        "embedded world's" not in tables_paper.remark(view)
        and "the world's six tasks" not in tables_paper.table2(view, published.load()).caption
    )
    for one in view.found:
        one.record.parameters = 1_285_136
    assert "Here means the embedded world" in claims.table([], view).caption and "million parameters" in claims.front([], view, "")


LARGE = Path("workflows/config/qwen_image_lora_r64.yaml")
SCORES = {
    ("apex-lora", 1): 0.9, ("apex-lora", 2): 0.91, ("rcgm-lora", 1): 0.5, ("twinflow-lora", 1): 0.86,
    ("teacher", 50): 0.8, ("teacher", 1): 0.1, ("teacher-stock", 50): 0.95,
}  # fmt: skip


@pytest.fixture
def large(make_results: Callable[..., Path], plan: Plan, tmp_path: Path) -> Callable[..., Evidence]:
    """large(scores): what the profile of the paper's headline row says, whose rows are all LoRA, beside the world of its class."""

    def make(scores: dict[tuple[str, int], float] = SCORES, profile: str = "qwen_image_lora_r64") -> Evidence:
        config = load(LARGE)
        view = View.load(make_results(f"large{len(list(tmp_path.iterdir()))}", rows=scores), Expected.of(config))
        small = View.load(make_results("small", rows={("apex", 1): 0.1, ("apex-lora", 1): 0.1, ("teacher", 50): 0.8, ("teacher", 25): 0.8}))
        for one in (*view.found, *small.found):
            one.record.backbone = "qwen_image"
        for one in view.found:
            one.record.parameters = 20_430_401_088
            one.record.tuning = "lora" if one.record.row.endswith("-lora") else one.record.tuning
        views, guidance = {profile: view, "world_qwen": small}, {profile: 4.0, "world_qwen": 2.5}
        return Evidence(views, published.load(), plan, tmp_path / "ablations", tmp_path / "theory", guidance)

    return make


def test_a_profile_is_judged_by_its_own_rows_whatever_it_calls_them(large: Callable[..., Evidence]) -> None:
    """The headline profile trains LoRA alone: `apex` is `apex-lora` there, its teacher has 50 steps, the world of its class is silent."""
    found = [one for one in claims.judge(claims.read(), large()) if one.claim.group in ("quality", "compatibility")]
    told = {(one.claim.id, one.reading): one.outcome for one in found}
    assert told["above_the_teacher", "apex-lora"].verdict == HOLDS
    stock = told["above_the_teacher", "apex-lora, against the teacher's own pipeline"]
    assert stock.verdict == FAILS and "apex-lora at 1 minus teacher-stock at 50" in stock.effect
    assert told["above_the_teacher_lora", "apex"].value == pytest.approx(0.1), "its own 0.9 and 0.8, not the world's"
    assert "apex-lora at 1 over teacher at 50" in told["one_step_generator", "apex-lora"].effect
    assert (told["above_rcgm", "apex-lora"].verdict, "minus rcgm-lora at 1" in told["above_rcgm", "apex-lora"].effect) == (HOLDS, True)
    assert "apex-lora at 2 minus apex-lora at 1" in told["more_steps", "apex-lora"].effect
    weaker = claims.judge(claims.read(), large({("apex-lora", 1): 0.9, ("teacher", 4): 0.2}))
    speed = {one.reading: one.outcome for one in weaker if one.claim.id in ("speedup", "above_the_teacher")}
    assert speed["apex-lora, network evaluations"].value == 100 and speed["apex-lora, seconds"].verdict == NOT_RUN
    assert speed["apex-lora"].verdict == NOT_RUN, "a teacher of four steps is not the one of the claim"
    missing = told["above_consistency", "apex-lora against lcm"]
    assert (missing.verdict, missing.source) == (NOT_RUN, "a profile with the row lcm")
    assert told["other_backbones", "apex-lora, settings of the first architecture"].verdict == HOLDS
    lowered = told["other_backbones", "apex, learning rate lowered once it had collapsed"]
    assert lowered.source.endswith("workflows/config/world_qwen.yaml"), "of a row that it has not the world of its class is asked"
    itself = told["lora_as_good", "apex"]
    assert (itself.verdict, itself.source) == (NOT_RUN, "a profile with the row apex"), "a LoRA is not as good as itself"
    assert [one.reading for one in found if one.claim.id == "lora"] == ["apex"], "two tests that are one here are asked once"


def test_a_printed_number_is_set_beside_the_profile_that_has_its_row(large: Callable[..., Evidence]) -> None:
    test = next(one for claim in claims.read() for one in claim.tests if one.get("printed") == "APEX 20B LoRA r=64")

    def judged_at(quality: float, **changes: Any) -> Any:
        given = large({("apex-lora", 1): quality})
        for one in given.views[given.first].found:
            one.record.details |= changes
        return TESTS["reported"](test, given)

    near, bad = judged_at(0.88), judged_at(0.8)  # each with an interval of 0.03
    assert (near.verdict, bad.verdict) == (UNDECIDED, FAILS) and near.value == pytest.approx(-0.01)
    assert bad.effect.startswith("geneval/overall: apex-lora at 1, 0.8, minus the printed 0.89")
    assert judged_at(0.9).verdict == HOLDS
    other = judged_at(0.8, comparable=False, differs=["another detector"])
    assert other.verdict == UNDECIDED and other.effect.endswith("not measured alike: another detector")
    elsewhere = TESTS["reported"](test, large(profile="mine"))
    assert (elsewhere.verdict, elsewhere.source) == (
        NOT_RUN, "snakemake all --configfile workflows/config/qwen_image_lora_r64.yaml"
    )  # fmt: skip
    with pytest.raises(UserError, match="table1 has 0 rows 'nobody' at NFE 1, expected one"):
        TESTS["reported"](test | {"printed": "nobody"}, large())


def test_hours_of_training_are_those_of_the_records(large: Callable[..., Evidence]) -> None:
    test = next(one for claim in claims.read() for one in claim.tests if one["kind"] == "hours")
    found = TESTS["hours"](test, large())
    assert found.verdict == HOLDS and found.value == pytest.approx(1180.5 / 3600)
    assert TESTS["hours"](test | {"at_most": 0.3}, large()).verdict == FAILS


def test_what_needs_full_scale_is_not_asked_of_a_world(evidence: Callable[..., Evidence]) -> None:
    asked = [(one.claim.id, one.reading) for one in claims.judge(claims.read(), evidence()) if one.outcome.verdict == FULL]
    assert {name for name, _ in asked} == {"above_the_teacher", "reported", "flux_schnell", "six_hours"}


def test_cells_of_one_seed_borrow_the_training_noise_of_their_grid(
    evidence: Callable[..., Evidence], score_cell: Callable[..., None], tmp_path: Path
) -> None:
    """Of the cells with three seeds; twice where both have one. Another grid's cells lend nothing."""
    test = {"kind": "ablation", "grid": "guidance", "cell": {"params.rho": 0.5}, "versus": {"params.rho": 3.0}}
    cells = tmp_path / "ablations"
    score_cell(cells, "apex,rho=0.5", 0, 0.6)
    score_cell(cells, "apex,rho=3.0", 0, 0.5)
    for seed in (0, 1, 2):
        score_cell(cells, "apex,order=1", seed, 0.2 + 0.2 * seed)
    alone = TESTS["ablation"](test, evidence())
    assert alone.verdict == HOLDS and "one seed, and none of the cells has three" in alone.effect
    for seed, quality in enumerate((0.3, 0.4, 0.5)):
        score_cell(cells, "apex", seed, quality)  # what the records score is a line of it
    (noise,) = {evidence().grid("guidance").noise}
    assert noise > 0.05
    wider = TESTS["ablation"](test, evidence())
    assert wider.verdict == UNDECIDED and f"training noise of {noise:.2g} from cells with three" in wider.effect
    half = [(one.high - one.low) / 2 for one in (alone, wider)]
    assert half[1] == pytest.approx((half[0] ** 2 + 2 * (1.96 * noise) ** 2) ** 0.5, rel=0.02)
    known = TESTS["ablation"](test | {"versus": {}}, evidence())
    assert "one seed, training noise" in known.effect  # one of the two has three
    shown = ablations.table(evidence().grid("guidance"), published.load())
    (line,) = [line.cells for line in shown.lines if line.cells["params.rho"].text == "0.5"]
    assert (line["difference"].summary.low, line["difference"].summary.high) == pytest.approx((known.low, known.high)), "as in the table"
    assert f"training noise of those with three (a standard deviation of {noise:.2g})" in shown.caption
    for seed in (1, 2):
        score_cell(cells, "apex,rho=0.5", seed, 0.6)
    assert "one seed" not in TESTS["ablation"](test | {"versus": {}}, evidence()).effect


def test_costs_divergence_and_speed_come_from_records(evidence: Callable[..., Evidence]) -> None:
    given = evidence(rows={("apex", 1): 0.6, ("ladd", 1): 0.5, ("teacher", 50): 0.8})
    memory = {"kind": "training", "row": "ladd", "versus": "apex", "quantity": ["memory_mb", "total"], "at_least": 1.0}
    assert verdict(memory, given) in (HOLDS, FAILS) and verdict(memory | {"row": "add"}, given) == NOT_RUN
    assert verdict(memory | {"row": "apex", "versus": "apex", "at_least": 1.01}, given) == FAILS
    stopped = {"kind": "diverged", "rows": ["apex"], "at_most": 0}
    assert verdict(stopped, given) == HOLDS
    assert verdict(stopped | {"rows": ["apex", "add"]}, given) == NOT_RUN
    assert verdict({"kind": "diverged", "rows": ["ladd"], "at_least": 1}, given) == FAILS
    passes = {"kind": "passes", "row": "apex", "nfe": 1, "versus": "teacher", "versus_nfe": 50}
    assert TESTS["passes"](passes | {"at_least": 15.33}, given).value == 100
    speed = {"kind": "speedup", "row": "apex", "nfe": 1, "versus": "teacher", "versus_nfe": 50}
    found = TESTS["speedup"](speed | {"at_least": 0.0}, given)
    assert found.low <= found.value <= found.high and verdict(speed | {"at_least": 1e9}, given) == FAILS


def test_a_mended_table_of_the_paper_mends_the_verdict(evidence: Callable[..., Evidence], tmp_path: Path) -> None:
    test = {"kind": "audit", "check": "flux_schnell"}
    given = evidence()
    assert verdict(test, given) == FAILS
    folder = shutil.copytree(published.PUBLISHED, tmp_path / "published")
    text = (folder / "table1.csv").read_text()
    assert text.count("28.36") == 1
    (folder / "table1.csv").write_text(text.replace("28.36", "28.96"))
    given.data = published.load(folder)
    assert verdict(test, given) == HOLDS


def test_a_difference_of_printed_scores_has_the_error_of_its_prompts(evidence: Callable[..., Evidence]) -> None:
    test = {"kind": "printed_difference", "table": "table2", "row": "APEX 20B LoRA r=64", "versus": "Qwen-Image"}
    found = TESTS["printed_difference"](test, evidence())
    assert found.value == pytest.approx(0.02) and found.n == 553 and found.verdict == UNDECIDED
    assert verdict(test | {"versus": "Show-o"}, evidence()) == HOLDS
    with pytest.raises(UserError, match="table2 has no row 'nobody'"):
        verdict(test | {"versus": "nobody"}, evidence())


# --------------------------------------------------------------------------------------------------------------- errors

GOOD = {
    "id": "one", "group": "quality", "location": "abstract", "verbatim": False, "says": "something long enough", "confirm": "if so",
    "refute": "if not", "tests": [{"kind": "audit", "check": "teacher"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"group": "qualty"}, "claim one: group: found 'qualty'"),
        ({"says": "short"}, "claim one: says: found 'short'"),
        ({"locaton": "x"}, "claim one: locaton: unknown key 'locaton'; did you mean 'location'"),
        ({"tests": [{"kind": "guess"}]}, "claim one: unknown kind of test 'guess'; known: theory,"),
        ({"full": "make it"}, None),
        ({"full": "make it so"}, "claim one: full: found 'make it so'"),
    ],
)
def test_a_broken_ledger_is_one_line(tmp_path: Path, change: dict[str, Any], line: str | None) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps([GOOD | change]))
    if line is None:
        assert claims.read(path)[0].command == "snakemake it --configfile workflows/config/make.yaml (a profile to come)"
        return
    with pytest.raises(UserError) as error:
        claims.read(path)
    assert str(error.value).startswith(f"{path}: {line}") and "\n" not in str(error.value)


def test_twice_the_same_id_and_a_test_without_its_keys(tmp_path: Path, evidence: Callable[..., Evidence]) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps([GOOD, GOOD]))
    with pytest.raises(UserError, match="found claim one twice"):
        claims.read(path)
    path.write_text(json.dumps([GOOD | {"tests": [{"kind": "difference", "row": "apex"}]}]))
    with pytest.raises(UserError, match="claim one: the test of kind difference lacks 'nfe'"):
        claims.judge(claims.read(path), evidence())


def test_no_records_is_one_line(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(claims.main, "--config", WORLD, "--results", tmp_path, "--theory", tmp_path, "--out", tmp_path) == 2
    assert f"{tmp_path}: found no records; run `snakemake all`, or give the committed ones" in capsys.readouterr().err
