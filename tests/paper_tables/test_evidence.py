"""What stands in a table is what was measured, and what does not fit the profile or is older than a correction is marked."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from apex import methods
from apex.ablations import Plan
from apex.config import fingerprint, load
from apex.errors import UserError
from paper_tables import ablations, build, claims, evidence, page, published, tables_methods, tuning
from paper_tables.claims_tests import Evidence, pair_of, remarks
from paper_tables.expected import Expected
from paper_tables.logs import read_log
from paper_tables.records import read_made
from paper_tables.view import View

WORLD = Path("workflows/config/matrix.yaml")
REFERENCE = Path("results/reference/matrix")
OLD = "before the correction"


@pytest.fixture(scope="module")
def reference() -> Callable[..., View]:
    """reference("key=value", ...): the committed world, its tables made for the profile with these changes."""
    known = View.load(REFERENCE)
    return lambda *changes: View(known.found, Expected.of(load(WORLD, changes)), known.made, known.logs, known.tuning)


def notes(view: View) -> dict[str, str]:
    return {row: view.note(row) for row in view.rows if view.note(row)}


# ------------------------------------------------------------------------------------------- facts from records


def test_the_budget_of_a_caption_is_what_the_rows_spent(make_results: Callable[..., Path], profile: Path) -> None:
    """Not what the profile now says; and every row then says that it was trained with another one."""
    results = make_results(rows={("apex", 1): 0.5, ("fm", 1): 0.2, ("real", 0): 0.9}, runs=True)
    for change in ([], ["budget.forward_equivalents=20000"]):
        view = View.load(results, Expected.of(load(profile, change)))
        table = tables_methods.comparison(view)
        assert "one training budget (120,000 forward passes of the teacher, as recorded)" in table.caption
        assert "20,000 forward" not in table.caption.replace("120,000", "")
        told = {line.cells["row"].text: line.cells["row"].note for line in table.lines if line.cells["row"].text in ("apex", "fm")}
        says = "Trained with budget of 120,000, the profile has 20,000." if change else ""
        assert told == {"apex": says, "fm": says} and view.note("real") == ""


def test_budgets_that_differ_are_not_called_one(make_results: Callable[..., Path]) -> None:
    results = make_results(rows={("apex", 1): 0.5, ("fm", 1): 0.2})
    for path in (results / "records" / "fm").rglob("*.json"):
        said = json.loads(path.read_text())
        said["training"]["forward_equivalents"] = 60000
        path.write_text(json.dumps(said))
    assert "at different training budgets (60,000 to 120,000 forward" in tables_methods.comparison(View.load(results)).caption


def test_a_record_without_its_runs_settings_is_held_against_the_budget_by_what_it_spent(
    make_results: Callable[..., Path], profile: Path
) -> None:
    results = make_results(rows={("apex", 1): 0.5})
    for budget, says in (
        (120000, ""),
        (119990, ""),
        (20000, "Trained for 120,000, the profile has 20,000."),
        (121000, "Trained for 120,000"),
    ):
        note = View.load(results, Expected.of(load(profile, [f"budget.forward_equivalents={budget}"]))).note("apex")
        assert note.startswith(says) and bool(note) == bool(says), budget


# ------------------------------------------------------------------------------------------- row by row


def test_the_committed_rows_are_of_the_profile_and_a_row_more_marks_none_of_them(reference: Callable[..., View]) -> None:
    plain = notes(reference())
    others = {row: note for row, note in plain.items() if not note.startswith("Before the correction")}
    assert others.keys() <= {"sana-sprint"}, "its records are of another run than runs/ holds"
    assert notes(reference("rows.more={method: fm, params: {}}", "full.methods=[more]")) == plain
    assert notes(reference("methods=[apex]", "seeds=[7]", "nfe=[1]", "evaluators=[geneval]")) == plain


@pytest.mark.parametrize(
    ("change", "rows", "says"),
    [
        ("rows.scm-fd.train.batch_size=32", {"scm-fd"}, "Trained with batch_size 64, the profile has 32."),
        ("rows.meanflow={method: meanflow, tuned: false, params: {}}", {"meanflow"}, "Trained with "),
        ("train.checkpoint_every=7", set(), ""),
        ("data.scenes=7", None, "Trained with data.scenes 20,000, the profile has 7."),
        ("guidance=3", {"teacher"}, "Sampled with guidance 2.5, the profile has 3."),
        (
            "prompts.test=apex/data/prompts/world/val.jsonl",
            None,
            "Scored on another prompt file (SHA-256 b5b6fffbabff) than the profile's test",
        ),
        ("sampling.sigmas={1: [0.9]}", None, "Sampled at the times 1, the profile has 0.9."),
        ("pipeline=apex/pretrained", None, "Trained with pipeline apex/pretrained/world, the profile has apex/pretrained."),
    ],
)
def test_a_setting_that_differs_marks_its_own_rows(reference: Callable[..., View], change: str, rows: set[str] | None, says: str) -> None:
    before, view = reference(), reference(change)
    trained = {row for row in view.rows if view.trained(row)}
    marked = {row for row in [*view.rows, "teacher"] if view.note(row) != before.note(row)}
    if rows is None:
        assert marked >= trained
    else:
        assert marked == rows
    assert all(says.lower() in view.note(row).lower() for row in marked)  # of some seeds the sentence begins with them
    assert all(evidence.OTHER in view.remarks(row) for row in marked)


@pytest.mark.parametrize(
    ("row", "details", "says"),
    [
        ("theirs", {"prompts": 300}, []),
        ("theirs", {"prompts": 298}, ["Scored on 298 prompts of the 300 of the profile's test set."]),
        ("theirs", {"prompts": 298, "prompts_missing": 2}, ["Scored by geneval without 2 of the benchmark's prompts."]),
        ("apex", {"prompts": 298}, []),
    ],
)
def test_scores_of_a_set_that_is_not_whole_are_marked_where_nobody_chose_it(row: str, details: dict, says: list[str]) -> None:
    config = load(WORLD, ['external=[{row: theirs, images: "x", nfe: 1}]'])
    one = next(one.record for one in View.load(REFERENCE).found if one.record.evaluator == "geneval" and one.record.row == "apex")
    record = one.model_copy(update={"row": row, "prompts_sha256": None, "training": None, "details": details})
    assert evidence.Wanted(config).of_record(record, "test", {}) == says


def test_an_external_row_over_a_part_of_the_prompts_is_marked_in_the_view(reference: Callable[..., View]) -> None:
    plain = reference('external=[{row: theirs, images: "x", nfe: 1}]')
    one = next(one for one in plain.found if one.record.evaluator == "geneval" and one.record.row == "apex" and one.split == "test")
    update = {"row": "theirs", "prompts_sha256": None, "training": None, "details": {"prompts": 12}}
    found = replace(one, record=one.record.model_copy(update=update))
    view = View([*plain.found, found], plain.expected, plain.made, plain.logs, plain.tuning)
    assert list(view.remarks("theirs")) == [evidence.OTHER] and "on 12 prompts of the 300" in view.note("theirs")
    assert view.note("apex") == plain.note("apex")


def test_a_key_that_is_younger_than_the_record_stands_for_its_default() -> None:
    wanted = load(WORLD).run_config("scm").model_dump(mode="json")
    made = json.loads((REFERENCE / "runs/scm/seed0/made.json").read_text())
    assert "frozen" not in made["run"]["train"] and wanted["train"]["frozen"] == "fp32"
    assert evidence.differences(made, wanted) == []
    wanted["train"]["frozen"] = "bf16"
    assert evidence.differences(made, wanted) == [("train.frozen", "fp32", "bf16")]
    del wanted["train"]["frozen"]  # the other way round: a default that the profile leaves out
    made["run"]["train"]["optimizer"] = "adamw8bit"
    assert evidence.differences(made, wanted) == [("train.optimizer", "adamw8bit", "adamw")]
    del made["params"]["tangent_c"], made["run"]["train"]["optimizer"]
    default = evidence.method_defaults("scm")["tangent_c"]
    wanted["params"] |= {"tangent_c": default + 1}
    made["run"]["params"].pop("tangent_c", None)
    assert evidence.differences(made, wanted) == [("params.tangent_c", default, default + 1)]


def test_images_of_another_run_than_the_one_that_is_kept_are_marked(make_results: Callable[..., Path]) -> None:
    results = make_results(rows={("apex", 1): 0.5}, runs=True, seeds=(0, 1))
    for seed, run in ((0, "aaaa"), (1, "bbbb")):
        made = results / f"runs/apex/seed{seed}/made.json"
        made.write_text(json.dumps(json.loads(made.read_text()) | {"run_hash": "aaaa"}))
        record = results / f"records/apex/nfe1/seed{seed}/test/geneval.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"run_hash": run}))
    assert View.load(results).note("apex") == "Seed 1: images of another run (bbbb) than runs/ holds (aaaa)."


def test_another_teacher_is_marked_where_the_run_recorded_its_own(make_results: Callable[..., Path], profile: Path) -> None:
    results = make_results(rows={("apex", 1): 0.5}, runs=True)
    made, config = results / "runs/apex/seed0/made.json", load(profile)
    ours = fingerprint(config.pipeline_path)
    for recorded, says in ((None, ""), (ours, ""), ("0123", f"Made with another teacher (checksum 0123, the profile's is {ours}).")):
        made.write_text(json.dumps(json.loads(made.read_text()) | {"teacher": recorded}))
        assert View.load(results, Expected.of(config)).note("apex") == says


# ------------------------------------------------------------------------------------------- corrections


def test_corrections_are_those_of_the_classes() -> None:
    """What a class was raised to stands in the file, and nothing else does."""
    raised = {name: methods.get(name).revision for name in methods.available() if methods.get(name).revision > 1}
    told: dict[str, int] = {}
    for one in evidence.corrections():
        told |= {name: max(one.revision, told.get(name, 1)) for name in one.methods}
        assert all(key in evidence.method_defaults(name) for name in one.methods for key in one.unless)
    assert told == raised


def test_a_run_is_older_than_a_correction_by_its_revision_and_only_where_the_fault_had_an_effect() -> None:
    for method, made, old in (
        ("apex", {}, True),
        ("apex", {"revision": 1, "params": {"rectification": 0.5}}, True),
        ("twinflow", {"revision": 1}, True),
        ("apex", {"revision": 2}, False),
        ("apex", {"params": {"rectification": 0.0}}, False),
        ("apex", {"run": {"params": {"base_weight": 0}}}, False),
        ("apex-eq25", {}, False),
        ("fm", {}, False),
    ):
        found = evidence.correction(method, made)
        assert (found is not None and found.remark == OLD) is old, (method, made)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- {methods: [apex], revision: '2', remark: r, says: s}", "revision"),
        ("- {methods: [apex], revision: 1, remark: r, says: s}", "revision"),
        ("- {methods: [apex], revision: 2, remark: r, says: s, unles: {}}", "unles"),
        ("- {methods: [apex], revision: 2, remark: r}", "says"),
        ("- {methods: [], revision: 2, remark: r, says: s}", "methods"),
        ("- [", "not valid YAML"),
    ],
)
def test_corrections_are_read_strictly(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "corrections.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"corrections.yaml: .*{says}") as caught:
        evidence.corrections(tmp_path / "corrections.yaml")
    assert "\n" not in str(caught.value)


@pytest.fixture
def half_old(make_results: Callable[..., Path]) -> Path:
    """Row apex is as old as the correction, twinflow is not; fm has none."""
    results = make_results(rows={("apex", 1): 0.5, ("twinflow", 1): 0.4, ("fm", 1): 0.1, ("teacher", 25): 0.8, ("real", 0): 0.9}, runs=True)
    for path in [*(results / "records/apex").rglob("*.json"), results / "runs/apex/seed0/made.json"]:
        said = json.loads(path.read_text())
        said.get("details", {}).pop("made", None)
        said.pop("revision", None)
        path.write_text(json.dumps(said))
    return results


def test_the_remark_stands_in_every_table_and_figure_where_the_row_does(half_old: Path) -> None:
    view = View.load(half_old)
    (says,) = {one.sentence for one in evidence.corrections()}
    assert view.remarked == {OLD: ["apex"]} and view.remarks("apex", 1) == {OLD: [says]}
    for table in build.tables(view, published.load()):
        named = next(column.key for column in table.columns if column.key in ("row", "model"))
        for line in table.lines:
            if line.cells[named].text in ("apex", "twinflow", "fm"):
                assert (line.cells[named].note == says) is (line.cells[named].text == "apex"), table.name
        assert "Before the correction: apex." in table.words
    assert "<b>apex</b> (before the correction) at NFE 1" in page.headline(view)
    html = page.index(view, ["quality_latency", "calibration"])
    shown = {name: html.partition(f'id="figure-{name}"')[2].partition("</figure>")[0] for name in ("quality_latency", "calibration")}
    assert [("Before the correction: apex." in text) for text in shown.values()] == [True, False]


def test_claims_carry_it_beside_the_verdicts_that_rest_on_the_row(half_old: Path, tmp_path: Path) -> None:
    given = Evidence({"world": View.load(half_old)}, published.load(), Plan(load(WORLD)), REFERENCE / "ablations", tmp_path)
    (says,) = {one.sentence for one in evidence.corrections()}
    found = claims.judge(claims.read(), given)
    lines = list(csv.DictReader(io.StringIO(claims.to_csv(found))))
    for one, line, printed in zip(found, lines, claims.table(found, given.views["world"]).lines, strict=True):
        assert (OLD in printed.cells["verdict"].text) is (OLD in one.outcome.remarks) is ("Before the correction" in line["remarks"])
        assert printed.cells["verdict"].note == line["remarks"]
    test = {"kind": "difference", "metric": "geneval/overall", "nfe": 1}
    assert remarks(test | {"row": "twinflow", "versus": "fm"}, given) == {}
    assert remarks(test | {"row": "apex", "versus": "twinflow"}, given) == {OLD: f"apex: {says}"}
    assert remarks({"kind": "diverged", "rows": ["apex"]}, given) == {OLD: says}, "true of all that the test reads"
    cells = {cell.name: cell for cell in ablations.load_grid(given.plan, "table7", given.cells).cells}
    old = [name for name, cell in cells.items() if OLD in cell.remarks]
    for claim in claims.read():
        for ablation in (one for one in claim.tests if one["kind"] == "ablation" and one["grid"] == "table7"):
            pair = pair_of(ablation, given.grid("table7"))
            assert (OLD in remarks(ablation, given)) is bool({*pair} & {*old})


def test_a_claim_on_time_says_what_its_timings_are_worth(make_results: Callable[..., Path], tmp_path: Path) -> None:
    results = make_results(rows={("apex", 1): 0.5, ("teacher", 50): 0.8})
    (timed,) = (results / "records/teacher").rglob("speed.json")
    said = json.loads(timed.read_text())
    said["details"] |= {"load": {"others": 1.5, "cores": 2}, "busy": True}
    timed.write_text(json.dumps(said))
    given = Evidence({"world": View.load(results)}, published.load(), Plan(load(WORLD)), tmp_path, tmp_path)
    found = remarks({"kind": "speedup", "row": "apex", "nfe": 1, "versus": "teacher", "versus_nfe": 50}, given)
    assert "teacher: Timed on a busy machine: other processes used 1.5 of 2 cores" in found["timed on a busy machine"]


def test_cells_of_ablations_and_candidates_of_tuning_carry_it(full_results: Path) -> None:
    grid = ablations.load_grid(Plan(load(WORLD)), "table6_apex", REFERENCE / "ablations")
    old = {cell.name: OLD in cell.remarks for cell in grid.cells}
    for cell in grid.cells:
        made = next(iter(cell.made.values()))
        assert old[cell.name] is (made.get("revision", 1) < 2 and made["params"]["rectification"] != 0 != made["params"]["base_weight"])
    table = ablations.table(grid, published.load())
    assert [OLD in line.cells["note"].text for line in table.lines] == list(old.values())
    assert "250,011 to 250,420 forward passes of the teacher" in table.caption or any(not is_old for is_old in old.values())
    found = tuning.read(full_results / "tune" / "tuning.json")
    assert found.remarked == {OLD: ["apex"]}
    notes = {line.cells["method"].text: line.cells["settings"].note for line in tuning.table(found).lines}
    assert notes["apex"].startswith("Before the correction") and notes["fm"] == ""
    for one in found.methods["apex"].candidates:
        assert one.model_copy(update={"revision": 2}).correction("apex") is None


# ------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"seed": "0"}, "seed: found '0'"),
        ({"training": {"steps": "many"}}, "training.steps: found 'many'"),
        ({"training": []}, "training: found"),
        ({"revision": 0}, "revision: found '0'"),
        ({"prompts_seen": {"test": {"prompts": 2}}}, "prompts_seen.test.prompts_seen: found"),
        ({"row": "fm"}, "key 'row' is 'fm', but the file lies under 'apex'"),
        ({"seed": 1}, "key 'seed' is 1, but the file lies under 0"),
        ([1], "found a JSON list, expected an object"),
    ],
)
def test_a_malformed_record_of_making_is_one_line(tmp_path: Path, content: object, says: str) -> None:
    path = tmp_path / "made.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_made(path, "apex", 0)
    assert str(caught.value).startswith(f"{path}: ") and says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"step,loss\n1,0.5\n1,0.4\n", "line 3, column 'step': found '1', expected more than 1"),
        (b"step,loss\nnan,0.5\n", "line 2, column 'step': found 'nan'"),
        (b"step,loss,loss\n1,0.5,0.4\n", "column 'loss' stands there twice"),
        (b"step,loss\n1,\xff\n", "not a CSV log"),
    ],
)
def test_a_malformed_log_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_log(tmp_path / "log.csv")
    assert str(caught.value).startswith(f"{tmp_path / 'log.csv'}: ") and says in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------- timings


def test_a_timing_says_what_else_the_machine_did(make_results: Callable[..., Path]) -> None:
    results = make_results(rows={("apex", 1): 0.5, ("fm", 1): 0.2, ("twinflow", 1): 0.3})
    load_of = {"others": 0.05, "cores": 2, "seconds": 1.0, "attempts": 1}
    for row, details in (
        ("fm", {"load": load_of, "busy": False}),
        ("twinflow", {"load": load_of | {"others": 1.4, "attempts": 3}, "busy": True}),
    ):
        path = results / f"records/{row}/nfe1/seed0/test/speed.json"
        said = json.loads(path.read_text())
        said["details"] |= details
        path.write_text(json.dumps(said))
    view = View.load(results)
    table = tables_methods.comparison(view)
    told = {line.cells["row"].text: line.cells["latency"].note for line in table.lines if line.cells["nfe"].text == "1"}
    assert told["apex"] == "Timed without a record of the machine's load: other work may have slowed it down."
    assert told["fm"] == ""
    assert told["twinflow"] == "Timed on a busy machine: other processes used 1.4 of 2 cores meanwhile."
