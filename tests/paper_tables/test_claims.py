"""The claims ledger: verdicts follow from the records and change with them; what is missing is not run; a broken ledger is one line."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apex.ablations import Plan
from apex.config import load
from apex.errors import UserError
from paper_tables import ablations, claims, claims_model, published, tables_paper
from paper_tables.claims_model import MODELS, OF_RECORDS, PAPER, SCALE, WORLD, command
from paper_tables.claims_tests import (
    ANALOGY,
    CONTRADICTED,
    FAILS,
    FULL,
    HOLDS,
    NOT_RUN,
    PART,
    TESTS,
    UNDECIDED,
    VERDICTS,
    Evidence,
    Outcome,
    judged,
)
from paper_tables.expected import Expected
from paper_tables.stats import Summary
from paper_tables.view import View

PROFILE = Path("workflows/config/matrix.yaml")
WORLDS = ("world", "matrix", "world_qwen", "world64", "smoke")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(load(PROFILE))


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


def test_the_ledger_has_every_group_and_kind() -> None:
    found = claims.read()
    assert len(found) >= 50 and {one.group for one in found} == set(claims_model.GROUPS)
    assert {one.kind for one in found} == {WORLD, SCALE, PAPER} and MODELS.keys() == TESTS.keys()
    # Objectives differ, so a claim that a trained row decides is tested as both, but where the paper has one alone.
    for one in found:
        rows = [test.get("row") for test in one.tests if test["kind"] in ("difference", "ratio") and test.get("profile") is None]
        if rows and one.kind == WORLD and "apex-lora" not in rows:
            assert {"apex", "apex-eq25"} <= set(rows), one.id
    public = [one.id for one in found if any(test["objective"] == "apex-public" for test in one.tests)]
    assert {"one_step_generator", "better_than_its_start", "above_rcgm", "above_twinflow", "above_adversarial"} <= set(public)


def test_no_text_of_the_ledger_is_cut_at_a_comma() -> None:
    """An unquoted comma in `{...}` ends a value; the rest is a key of its own, which the loader refuses."""
    (sample,) = [one for one in claims.read() if one.id == "sample_dependent"]
    assert [test["reading"] for test in sample.tests] == [
        "the weight depends on the sample", "it vanishes, log(1 - D)", "it vanishes, -log D",
    ]  # fmt: skip


def test_a_claim_that_speaks_of_the_papers_scale_is_not_for_the_world() -> None:
    """Its numbers, sizes, hours and machines; what the paper prints is held against its own tables or measured at its scale."""
    kinds = {one.id: one.kind for one in claims.read()}
    speak = [one.id for one in claims.read() if re.search(r"\d+B\b|0\.\d\d\b|hours|GPU|FLUX|teacher \(0|speed", one.says)]
    assert len(speak) > 10 and {kinds[name] for name in speak} == {SCALE, PAPER}
    assert {kinds[name] for name in ("theorem_1", "instability", "both_terms", "one_step_generator", "shift_is_needed")} == {WORLD}
    small = [one.id for one in claims.read() if one.kind == WORLD and any(test["kind"] in ("speedup", "hours") for test in one.tests)]
    assert small == []


def test_every_test_names_a_command_of_a_profile_that_has_its_rows() -> None:
    """The profile is there, its target too, and it runs the test's rows, at its NFEs, with its evaluator."""
    rules = "\n".join(path.read_text() for path in (Path("Snakefile"), *Path("workflows/rules").glob("*.smk")))
    targets = set(re.findall(r"^(?:rule|checkpoint) (\w+):", rules, re.MULTILINE))
    asked, seen = [(claim, test) for claim in claims.read() for test in claim.tests], set()
    for claim, test in asked:
        words = command(test).split()
        assert words[0] == "snakemake" and (words[1] in targets or words[1].startswith("ablation_")), claim.id
        if "next" not in test:
            continue
        profile, target = test["next"].split()
        config = load(Path(f"workflows/config/{profile}.yaml"), test.get("settings", []))
        assert config.profile == profile and (claim.kind != SCALE or profile not in WORLDS), (claim.id, profile)
        seen.add(profile)
        if test["kind"] == "ablation":
            assert target == f"ablation_{test['grid']}" and test["grid"] in Plan(config).found.grids, claim.id
            continue
        rows = config.methods if target == "all" else config.all_methods
        trained = {name: config.row(name) for name in rows}
        trained |= {one.method: one for one in trained.values() if one.tuning == "lora" and one.method not in trained}
        names = [test[key] for key in ("row", "versus") if key in test] + test.get("rows", [])
        known = {*trained, *config.checkpoint_rows, "teacher"}
        assert target in ("all", "full") and set(names) <= known, (claim.id, test["reading"], names)
        assert config.nfe[0] == 1 and max(config.nfe) >= test.get("nfe", 1), claim.id
        if test.get("versus") == "teacher":
            assert max(config.teacher_nfe) >= test["versus_nfe"], claim.id
        metric = "speed" if test["kind"] == "speedup" else test.get("metric", "").partition("/")[0]
        assert not metric or metric in config.evaluators, (claim.id, test["reading"], metric)
    assert {"sana_0_6b", "sana_1_6b", "qwen_image_lora_r32", "qwen_image_lora_r64", "qwen_image_full", "matrix"} <= seen
    own = {test["printed"]: test["next"] for _, test in asked if test["kind"] == "reported"}
    assert own["APEX 0.6B"] == "sana_0_6b all" and own["APEX 20B LoRA r=32"] == "qwen_image_lora_r32 all"


def test_flux_schnell_is_measured_in_every_column_of_quality_that_table_1_prints_for_both() -> None:
    (claim,) = [one for one in claims.read() if one.id == "flux_schnell_measured"]
    rows = [row for row in published.load()["table1"] if published.label(row) in ("APEX 0.6B", "FLUX-schnell") and row["nfe"] == "1"]
    cost = {"nfe", "throughput_samples_s", "latency_s", "params_b"}
    quality = {key for key in published.NUMERIC["table1"] if key not in cost and all(row[key] for row in rows)}
    measured = {{"clip_score": "clip"}.get(name := test["metric"].partition("/")[0], name): test for test in claim.tests}
    assert len(rows) == 2 and measured.keys() == quality == {"fid", "clip", "geneval"}
    assert {name for name, test in measured.items() if test.get("lower")} == {"fid"}


def test_every_row_and_cell_of_the_ledger_is_one_that_the_profiles_run(plan: Plan) -> None:
    configs = {path.stem: load(path) for path in Path("workflows/config").glob("*.yaml")}
    known = {name: {*config.all_methods, *config.checkpoint_rows, "teacher"} for name, config in configs.items()}
    known["sana_0_6b"].add("flux-schnell")  # the test's own settings add it
    for claim in claims.read():
        for test in claim.tests:
            rows = known[test.get("profile", "sana_0_6b" if "scale" in test else "matrix")]
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
    given = evidence(rows={("apex", 1): 0.3, ("teacher", 25): 0.8})
    found = claims.judge(claims.read(), given)
    assert {one.outcome.verdict for one in found} == {HOLDS, FAILS, UNDECIDED, CONTRADICTED, ANALOGY, NOT_RUN, FULL}
    missing = [one.outcome for one in found if one.outcome.verdict == NOT_RUN]
    assert all(outcome.source.startswith("snakemake ") and outcome.value is None for outcome in missing)
    assert all(one.outcome.command.startswith("snakemake ") for one in found)


# -------------------------------------------------------------------------------------------- what a world may decide


def test_a_world_decides_no_claim_about_full_scale(evidence: Callable[..., Evidence], large: Callable[..., Evidence]) -> None:
    """Whatever it measures; the same rows of networks of the paper's size decide."""
    rows = {("apex", 1): 0.1, ("apex-lora", 1): 0.1, ("teacher", 50): 0.9, ("teacher", 25): 0.9, ("rcgm-lora", 1): 0.5}
    for quality in (0.1, 0.99):
        given = evidence(f"at{quality}", rows=rows | {("apex", 1): quality, ("apex-lora", 1): quality})
        found = [one for one in claims.judge(claims.read(), given) if one.claim.kind == SCALE]
        assert {one.outcome.verdict for one in found} == {ANALOGY, NOT_RUN, FULL}
        (seen,) = [one.outcome for one in found if (one.claim.id, one.reading) == ("above_the_teacher", "apex")]
        assert seen.value == pytest.approx(quality - 0.9, abs=0.02) and seen.verdict == ANALOGY
        assert seen.command == "snakemake all --configfile workflows/config/qwen_image_full.yaml"
        decided = [one.outcome.verdict for one in claims.judge(claims.read(), given) if one.claim.id == "one_step_generator"]
        assert decided[0] == (HOLDS if quality > 0.5 else FAILS)
    (own,) = [one for one in claims.judge(claims.read(), large()) if (one.claim.id, one.reading) == ("above_the_teacher", "apex-lora")]
    assert own.outcome.verdict == HOLDS


def test_the_world_of_a_large_profiles_class_is_an_analogy_there_too(large: Callable[..., Evidence]) -> None:
    """`apex` of the world of its class stands in for a row that the profile has not: 0.1 of 0.8, which decides nothing at 20B."""
    claim = claims.Claim.model_validate(GOOD | {"kind": "scale", "tests": [RATIO | {"profile": "world_qwen"}]})
    (found,) = claims.judge([claim], large())
    assert found.outcome.verdict == ANALOGY and found.outcome.value == pytest.approx(0.125)
    (found,) = claims.judge([claim.model_copy(update={"kind": "world"})], large())
    assert found.outcome.verdict == FAILS


def test_what_the_papers_own_tables_refute_is_contradicted_by_the_paper(evidence: Callable[..., Evidence]) -> None:
    found = {one.claim.id: one.outcome.verdict for one in claims.judge(claims.read(), evidence()) if one.claim.kind == PAPER}
    assert set(found.values()) == {CONTRADICTED, HOLDS, UNDECIDED} and found["distinguishable"] == UNDECIDED
    assert {name for name, verdict in found.items() if verdict == HOLDS} == {"trainable_parameters"}


# ------------------------------------------------------------------------------------------------ counted by objective


@pytest.mark.parametrize(
    ("verdicts", "comes_to"),
    [
        ([HOLDS, HOLDS], HOLDS), ([HOLDS, UNDECIDED], UNDECIDED), ([HOLDS, NOT_RUN], NOT_RUN), ([FAILS, UNDECIDED], FAILS),
        ([HOLDS, FAILS, UNDECIDED], PART), ([ANALOGY, NOT_RUN, FULL], ANALOGY), ([CONTRADICTED], CONTRADICTED), ([FULL], FULL),
    ],
)  # fmt: skip
def test_what_a_claim_comes_to(verdicts: list[str], comes_to: str) -> None:
    assert claims.standing(verdicts) == comes_to


def test_an_objective_that_collapsed_weighs_on_its_own_bar_alone() -> None:
    claim = claims.read()[0]

    def one(name: str, objective: str, verdict: str) -> claims.Judged:
        return claims.Judged(claim.model_copy(update={"id": name}), "", Outcome(verdict), objective, "difference")

    found = [one("a", "apex", HOLDS), one("a", "apex", HOLDS), one("b", "apex", FAILS), one("b", "apex", HOLDS)]
    alone = claims.counts(found)["apex"]
    assert {verdict: count for verdict, count in alone.items() if count} == {HOLDS: 1, PART: 1}, "claims, not tests"
    both = claims.counts([*found, *(one(name, "apex-eq25", FAILS) for name in "abcdefg")])
    assert both["apex"] == alone and both["apex-eq25"][FAILS] == 7 and list(both) == ["apex", "apex-eq25"]
    figure = claims.draw([*found, *(one(name, "apex-eq25", FAILS) for name in "abcdefg")])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["apex", "apex-eq25"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "1", "7"]
    assert "apex, tuned: holds here 1, holds in part here 1." in claims.counted(found)


def test_sentences_count_as_the_figure_does(evidence: Callable[..., Evidence]) -> None:
    given = evidence(rows={("apex", 1): 0.5, ("teacher", 25): 0.8})
    found, view = claims.judge(claims.read(), given), given.views["world"]
    front = claims.front(found, view, "")
    for objective, its in claims.counts(found).items():
        part = front.split(f"**{claims.OBJECTIVE_WORDS[objective]}**")[1].split("**")[0]
        told = dict(re.findall(r"^- ([a-z ]+): (\d+)\.", part, re.MULTILINE))
        assert {verdict: int(told.get(verdict, 0)) for verdict in VERDICTS} == its
    assert claims.counted(found) in claims.table(found, view).caption


def test_claims_csv_is_tidy(evidence: Callable[..., Evidence]) -> None:
    found = claims.judge(claims.read(), evidence(rows={("apex", 1): 0.5, ("teacher", 25): 0.8}))
    lines = list(csv.DictReader(io.StringIO(claims.to_csv(found))))
    ledger = {one.id: one for one in claims.read()}
    assert len(lines) == len(found) and {line["id"] for line in lines} == ledger.keys()
    for line in lines:
        assert line["says"] == ledger[line["id"]].says and line["kind"] == ledger[line["id"]].kind
        assert all(line[key] for key in claims.CSV if key not in ("value", "ci_low", "ci_high", "seeds", "n", "remarks")), line
        assert line["verdict"] in VERDICTS and line["objective"] in claims_model.OBJECTIVES
    assert len({(line["id"], line["objective"], line["reading"], line["test"]) for line in lines}) == len(lines)


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
        assert run(claims.main, "--config", PROFILE, "--results", results, "--theory", tmp_path, "--out", out) == 0
        assert {path.suffix for path in out.iterdir()} == {".md", ".tex", ".csv", ".html", ".png", ".rst"}
        lines = list(csv.DictReader((out / "claims.csv").open()))
        return next(line["verdict"] for line in lines if (line["id"], line["objective"]) == ("one_step_generator", "apex"))

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
    plans = {name: Plan(load(Path(f"workflows/config/{name}.yaml"))) for name in ("matrix", "sana_0_6b", "qwen_image_lora_r64")}

    def names(name: str, test: dict, pair: dict) -> set[str]:
        grid = plans[name].found.grids.get(test["grid"])
        return {grid.name(pair[which]) for which in ("cell", "versus")} if grid else {"no such grid"}

    tests = [test for claim in claims.read() for test in claim.tests if test["kind"] == "ablation"]
    assert len(tests) > 10 and sum(len(test.get("elsewhere", [])) for test in tests) == 5
    for test in tests:
        assert names("matrix", test, test) <= set(plans["matrix"].names(test["grid"]))
        for pair in test.get("elsewhere", []):
            there = [name for name in plans if test["grid"] in plans[name].found.grids and name != "matrix"]
            assert any(names(name, test, pair) <= set(plans[name].names(test["grid"])) for name in there), (test["grid"], pair)


def test_a_large_profile_is_not_called_a_world(make_results: Callable[..., Path], tmp_path: Path) -> None:
    view = View.load(make_results(rows={("apex", 1): 0.5}))
    for one in view.found:
        one.record.parameters = 591_747_872
    caption, words = claims.table([], view).caption, claims.front([], view, "A profile.")
    assert "networks of up to 0.592B parameters" in caption and "Here means the embedded world" not in caption
    assert "A network of a million parameters" not in words and "hold for its teacher, data, resolution and evaluators" in words
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
    assert {name for name, _ in asked} == {"above_the_teacher", "reported", "flux_schnell_measured", "six_hours"}


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
    lost = {"kind": "diverged", "rows": ["ladd"], "at_least": 1}
    assert verdict(lost, given) == FAILS
    for one in given.views["world"].found:  # its training ended well, but its images are not finite
        if one.record.row == "ladd":
            one.record.metrics, one.record.details["failed"] = [], "image 0 of prompt 3 is not finite"
    assert verdict(lost, given) == HOLDS
    passes = {"kind": "passes", "row": "apex", "nfe": 1, "versus": "teacher", "versus_nfe": 50}
    assert TESTS["passes"](passes | {"at_least": 15.33}, given).value == 100
    speed = {"kind": "speedup", "row": "apex", "nfe": 1, "versus": "teacher", "versus_nfe": 50}
    found = TESTS["speedup"](speed | {"at_least": 0.0}, given)
    assert found.low <= found.value <= found.high and verdict(speed | {"at_least": 1e9}, given) == FAILS


def test_a_mended_table_of_the_paper_mends_the_verdict(evidence: Callable[..., Evidence], tmp_path: Path) -> None:
    test = {"kind": "audit", "check": "flux_schnell"}
    given = evidence()
    assert verdict(test, given) == CONTRADICTED
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
    assert verdict(test | {"row": "Show-o", "versus": "Qwen-Image"}, evidence()) == CONTRADICTED
    assert verdict(test | {"versus": "Show-o"}, evidence()) == HOLDS
    with pytest.raises(UserError, match="table2 has no row 'nobody'"):
        verdict(test | {"versus": "nobody"}, evidence())


# --------------------------------------------------------------------------------------------------------------- errors

AUDIT = {"kind": "audit", "objective": "other", "check": "teacher"}
RATIO = {
    "kind": "ratio", "objective": "apex", "row": "apex", "nfe": 1, "versus": "teacher", "versus_nfe": 25, "metric": "geneval/overall",
    "at_least": 0.5, "next": "sana_0_6b all",
}  # fmt: skip
GOOD = {
    "id": "one", "kind": "paper", "group": "quality", "location": "abstract", "verbatim": False, "says": "something long enough",
    "confirm": "if so", "refute": "if not", "tests": [AUDIT],
}  # fmt: skip
IN_THE_WORLD = {"kind": "world", "tests": [RATIO]}


def without(test: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in test.items() if name != key}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"group": "qualty"}, "claim one: group: found 'qualty'"),
        ({"says": "short"}, "claim one: says: found 'short'"),
        ({"locaton": "x"}, "claim one: locaton: unknown key 'locaton'; did you mean 'location'"),
        ({"kind": "large"}, "claim one: kind: found 'large', expected 'world', 'scale' or 'paper'"),
        ({"tests": [{"kind": "guess"}]}, "claim one: test 1: unknown kind of test 'guess'; known: ablation,"),
        ({"tests": [AUDIT, AUDIT | {"log(1 - D)": None}]}, "claim one: test 2 (audit): log(1 - D): unknown key 'log(1 - D)'"),
        ({"tests": [AUDIT | {"objective": "apex-eq5"}]}, "claim one: test 1 (audit): objective: found 'apex-eq5', expected 'apex',"),
        ({"tests": [without(AUDIT, "objective")]}, "claim one: test 1 (audit): objective: not given"),
        ({"tests": [without(AUDIT, "check")]}, "claim one: test 1 (audit): check: not given"),
        (IN_THE_WORLD | {"kind": "paper"}, "claim one: test 1: found ratio, expected one of audit, printed_difference in a claim"),
        (IN_THE_WORLD | {"kind": "world", "tests": [AUDIT]}, "claim one: test 1: found audit, expected one of theory, "),
        ({"kind": "world", "tests": [RATIO | {"scale": "full"}]}, "claim one: test 1: found ratio with scale: full, expected one"),
        ({"kind": "world", "tests": [without(RATIO, "next")]}, "claim one: test 1 (ratio): next: not given"),
        ({"kind": "world", "tests": [RATIO | {"next": "sana_0_6b"}]}, "claim one: test 1 (ratio): next: found 'sana_0_6b', expected"),
        ({"kind": "world", "tests": [RATIO | {"nfe": "1"}]}, "claim one: test 1 (ratio): nfe: found '1', expected a valid integer"),
        ({"kind": "world", "tests": [RATIO | {"at_lest": 0.5}]}, "claim one: test 1 (ratio): at_lest: unknown key 'at_lest'; did you mean"),
        (
            {"kind": "world", "tests": [{"kind": "gradient", "objective": "apex", "row": "apex"}]},
            "claim one: test 1 (gradient): found at_least and at_most both or neither, expected one of them",
        ),
        (
            {"kind": "world", "tests": [{"kind": "ablation", "objective": "apex", "grid": "g", "cell": {}, "versus": {}, "next": "a b",
                                         "elsewhere": [{"cell": {}, "verses": {}}]}]},
            "claim one: test 1 (ablation): elsewhere.0.versus: not given",
        ),
    ],
)  # fmt: skip
def test_a_broken_ledger_is_one_line(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps([GOOD]))
    assert [one.id for one in claims.read(path)] == ["one"]
    path.write_text(json.dumps([GOOD | change]))
    with pytest.raises(UserError) as error:
        claims.read(path)
    assert str(error.value).startswith(f"{path}: {line}") and "\n" not in str(error.value)


def test_a_reading_cut_at_a_comma_twice_the_same_id_and_twice_a_key(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps([GOOD, GOOD]))
    with pytest.raises(UserError, match="found claim one twice"):
        claims.read(path)
    text = "tests: [{kind: audit, objective: other, check: teacher, reading: it vanishes, log(1 - D)}]"
    path.write_text("- " + "\n  ".join([*(f"{key}: {json.dumps(value)}" for key, value in without(GOOD, "tests").items()), text]))
    with pytest.raises(UserError, match=r"claim one: test 1 \(audit\): log\(1 - D\): unknown key"):
        claims.read(path)
    path.write_text(path.read_text().replace("reading: it vanishes, log(1 - D)", "check: other"))
    with pytest.raises(UserError, match="not valid YAML: key 'check' is given twice"):
        claims.read(path)


def test_no_records_is_one_line(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(claims.main, "--config", PROFILE, "--results", tmp_path, "--theory", tmp_path, "--out", tmp_path) == 2
    assert f"{tmp_path}: found no records; run `snakemake all`, or give the committed ones" in capsys.readouterr().err
