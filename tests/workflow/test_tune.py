"""`snakemake tune` and `snakemake full`: what a profile declares, what tuning chooses, and how the choice reaches a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from apex.config import load
from apex.errors import UserError
from evaluators.result import SPREAD, Metric, Record
from workflows.plan import Plan, configured
from workflows.tune import adopt, collect, tuned_text

DECLARED = """
tuning:
  candidates:
    fm: [{}, {train: {learning_rate: 3e-4}}]
    apex: [{}, {params: {order: 2}}, {params: {order: 2, interval: 0.05}, train: {batch_size: 32}}]
"""


@pytest.fixture
def profile(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str = "") -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text("profile: mine\n" + text)
        return path

    return write


def record(folder: Path, method: str, k: int, geneval: float, stopped: str = "") -> None:
    """Writes the records of a candidate as the evaluators do."""
    shared = {
        "row": "candidate", "method": method, "nfe": 1, "seed": 0, "prompts_sha256": "p", "evaluator_version": "1", "git_commit": "g",
        "hardware": "h", "versions": {}, "wall_seconds": 1.0, "peak_memory_mb": 1.0,
        "training": {"forward_equivalents": 10, "wall_seconds": 2.0, "steps": 3, "stopped": stopped},
    }  # fmt: skip
    overall = Metric(
        metric="geneval/overall", value=geneval, unit="fraction", n=480, ci_low=max(0.0, geneval - 0.05), ci_high=min(1.0, geneval + 0.05),
        higher_is_better=True, interval="bootstrap 95%",
    )  # fmt: skip
    units = {"spread": SPREAD, "recall": "fraction"}
    variety = [Metric(metric=f"coverage/{name}", value=0.5, unit=unit, n=480, higher_is_better=True) for name, unit in units.items()]
    out = folder / method / str(k) / "records"
    Record(evaluator="geneval", metrics=[overall], **shared).write(out / "geneval.json")
    Record(evaluator="coverage", metrics=variety, **shared).write(out / "coverage.json")


def test_more_than_four_candidates_are_refused(profile):
    with pytest.raises(UserError, match=r"tuning.candidates.fm: .*at most 4"):
        load(profile("tuning: {candidates: {fm: [{}, {}, {}, {}, {}]}}\n"))


@pytest.mark.parametrize(
    "text, line",
    [
        ("tuning: {candidates: {fmm: [{}]}}\n", "tuning.candidates: unknown method 'fmm'; did you mean 'fm'?"),
        ("full: {methods: [fmm]}\n", "full.methods: unknown method 'fmm'"),
        ("full: {seeds: {apx: [0, 1]}}\n", "full.seeds: unknown row 'apx'"),
        ("full: {nfe: {apx: [3]}}\n", "full.nfe: unknown row 'apx'"),
        ("full: {methods: [fm, fm]}\n", "full.methods: found fm twice"),
        ("tuning: {candidates: {fm: [{param: {}}]}}\n", "tuning.candidates.fm.0.param: unknown key 'param'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(profile, text, line):
    with pytest.raises(UserError) as error:
        load(profile(text))
    assert line in str(error.value)


def test_the_best_on_the_validation_prompts_is_chosen_and_of_equals_the_first(profile, tmp_path):
    config, results = load(profile(DECLARED)), tmp_path / "tune"
    for method, k, score in (("fm", 0, 0.3), ("fm", 1, 0.3), ("apex", 0, 0.1), ("apex", 2, 0.6)):
        record(results, method, k, score, stopped="at step 3" if k == 2 else "")
    found = collect(config, results)["methods"]
    assert found["fm"]["chosen"] == 0
    assert found["apex"]["candidates"][found["apex"]["chosen"]]["candidate"] == 2  # the second has no record
    assert found["apex"]["declared"] == 3
    assert found["apex"]["candidates"][1]["stopped"] == "at step 3"


def test_no_records_is_one_line(profile, tmp_path):
    with pytest.raises(UserError, match="found no records of candidates"):
        collect(load(profile(DECLARED)), tmp_path / "tune")


def test_the_choice_reaches_the_runs(profile, tmp_path):
    """What tuning chose is what a row of the method trains with, but for what the row itself names."""
    config, results = load(profile(DECLARED)), tmp_path / "tune"
    record(results, "apex", 0, 0.1)
    record(results, "apex", 2, 0.6)
    (results / "tuning.json").write_text(json.dumps(collect(config, results)))
    tuned, reference = tmp_path / "tuned.yaml", tmp_path / "reference"
    adopt(results, tuned, reference)
    assert json.loads((reference / "tuning.json").read_text()) == collect(config, results)
    assert (reference / "apex" / "2" / "records" / "geneval.json").is_file()

    rows = "rows: {a: {method: apex, params: {order: 3}}, plain: {method: apex, tuned: false}}\n"
    chosen = load(profile(f"tuned: {tuned}\n{rows}"))
    assert chosen.run_config("apex").params == {"order": 2, "interval": 0.05}
    assert chosen.run_config("apex").train.batch_size == 32
    assert chosen.run_config("a").params == {"order": 3, "interval": 0.05}
    assert chosen.run_config("plain").params == {}
    assert chosen.run_config("plain").train.batch_size == 64
    assert chosen.run_config("fm").params == {}
    without = load(profile(rows))
    assert chosen.hash() != without.hash()
    assert chosen.run_hash("apex", teacher=False) != without.run_hash("apex", teacher=False)
    assert chosen.run_hash("plain", teacher=False) == without.run_hash("plain", teacher=False)


def test_a_missing_or_a_wrong_file_of_tuned_settings_is_one_line(profile, tmp_path):
    with pytest.raises(UserError, match=r"tuned: found no file .*nowhere\.yaml; `snakemake tune` makes it"):
        load(profile("tuned: nowhere.yaml\n")).run_config("fm")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("fm: {settings: {}}\n")
    with pytest.raises(UserError, match=r"wrong.yaml: methods.fm.settings: unknown key 'settings'"):
        load(profile(f"tuned: {wrong}\n")).run_config("fm")


def test_a_candidate_trains_at_the_budget_of_tuning_with_its_own_settings(profile):
    path = profile(DECLARED + "budget: {forward_equivalents: 1000}\nmethods: [fm]\nfull: {methods: [apex]}\n")
    plan = Plan(load(path))
    assert plan.candidates() == [("fm", 0), ("fm", 1), ("apex", 0), ("apex", 1), ("apex", 2)]
    run = load(path, plan.candidate_settings("apex", 2)).run_config("candidate")
    assert run.budget.forward_equivalents == 1000, "the profile's, where tuning names none"
    assert (run.method, run.params, run.train.batch_size) == ("apex", {"order": 2, "interval": 0.05}, 32)
    tuning = ["tuning.forward_equivalents=2.5e5"]
    for budget in (1e6, 4e6):  # a number of its own: it does not follow the profile's budget
        changed = load(path, [*tuning, f"budget.forward_equivalents={budget}"])
        assert load(path, Plan(changed).candidate_settings("apex", 2)).run_config("candidate").budget.forward_equivalents == 2.5e5


def test_tuned_settings_do_not_leak_into_candidates(profile, tmp_path):
    tuned = tmp_path / "tuned.yaml"
    tuned.write_text("apex: {params: {order: 4}}\n")
    path = profile(DECLARED + f"tuned: {tuned}\n")
    assert load(path, Plan(load(path)).candidate_settings("apex", 0)).run_config("candidate").params == {}


def test_the_text_of_the_choice_is_yaml_that_names_its_source():
    tuning = {"budget": 2.5e5, "methods": {"fm": {"chosen": 0, "candidates": [{"params": {}, "train": {"learning_rate": 3e-4}}]}}}
    text = tuned_text(tuning, "here.json")
    assert "here.json" in text
    assert "fm:" in text and "learning_rate: 0.0003" in text


def test_a_call_for_some_rows_leaves_the_fulls_others_out(root):
    """`snakemake all --config methods=apex,fm` of the README, on the profile that has much more in `full`."""
    config = load(root / "workflows" / "config" / "world.yaml", ["methods=apex,fm", "full.methods="])
    assert set(config.full.seeds) - set(config.all_methods)
    assert {point.row for point in Plan(config).points(full=True)} == {"teacher", *config.references, "apex", "fm"}
    load(root / "workflows" / "config" / "world.yaml", ["methods=scm"])  # which `full` names too


@pytest.mark.parametrize(
    "words, settings, name",
    [
        (["snakemake", "all"], {}, "world"),
        (["snakemake", "tables"], {"profile": "matrix"}, "matrix"),
        (["snakemake", "-c2", "full"], {}, "matrix"),
        (["snakemake", "tune"], {}, "matrix"),
        (["snakemake", "ablation_table7"], {}, "matrix"),
        (["snakemake", "full"], {"profile": "world"}, "world"),
        (["snakemake", "results/world/tables"], {}, "world"),
    ],
)
def test_what_belongs_to_all_methods_takes_their_profile_unless_another_is_named(root, words, settings, name):
    assert configured(root, [], settings, words).config.profile == name
    smoke = root / "workflows" / "config" / "smoke.yaml"
    assert configured(root, [smoke], {}, words).config.profile == "smoke"


def test_the_quick_profile_has_rows_settings_and_prompts_of_the_matrix(root):
    """A number of `make all` differs from the matrix's by its budget and its seeds, and by nothing else."""
    quick, matrix = (load(root / "workflows" / "config" / f"{name}.yaml") for name in ("world", "matrix"))
    assert quick.methods == matrix.methods
    for row in quick.methods:
        one, other = (config.run_config(row).model_dump() for config in (quick, matrix))
        assert one.pop("budget") != other.pop("budget") and one == other
    assert (quick.prompts, quick.sampling, quick.splits, quick.nfe) == (matrix.prompts, matrix.sampling, matrix.splits, matrix.nfe)


def test_full_adds_rows_seeds_and_nfes_and_times_each_point_once(profile):
    text = "methods: [apex]\nseeds: [0]\nnfe: [1, 2]\nteacher_nfe: [1]\nreferences: []\n"
    text += "full: {methods: [fm], seeds: {apex: [0, 1]}, nfe: {fm: [2, 8]}}\n"
    plan = Plan(load(profile(text)))
    names = lambda full: {(p.row, p.nfe, p.seed) for p in plan.points(full)}  # noqa: E731
    assert names(False) == {("teacher", 1, 0), ("apex", 1, 0), ("apex", 2, 0)}
    assert names(True) - names(False) == {("fm", 1, 0), ("fm", 2, 0), ("fm", 8, 0), ("apex", 1, 1), ("apex", 2, 1)}
    assert len(plan.points(True)) == len(set(plan.points(True)))
    assert set(plan.records()) < set(plan.records(full=True))
    timed = [path for path in plan.records(full=True) if path.endswith("speed.json")]
    assert len(timed) == 6  # the first seed alone


def fail(folder: Path, method: str, k: int) -> None:
    """The records of a candidate whose images are not finite."""
    record(folder, method, k, 0.9)
    for path in (folder / method / str(k) / "records").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": [], "details": {"failed": "not finite"}}))


def test_a_candidate_whose_images_failed_is_kept_and_never_chosen(profile, tmp_path, capsys):
    config, results = load(profile(DECLARED)), tmp_path / "tune"
    fail(results, "fm", 0)
    record(results, "fm", 1, 0.1)
    found = collect(config, results)["methods"]["fm"]
    assert found["chosen"] == 1
    assert [(one["geneval"], one["failed"]) for one in found["candidates"]] == [(None, "not finite"), (0.1, "")]
    fail(results, "apex", 0)
    assert set(collect(config, results)["methods"]) == {"fm"}  # a method without any image has no choice; the others go on
    assert "apex: left out, for no candidate has images (not finite)" in capsys.readouterr().out
