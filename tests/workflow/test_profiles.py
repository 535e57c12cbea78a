"""Profiles: what is read, what overrides mean, and one clear line for everything that is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from snakemake.cli import parse_config

from apex import config as configuration
from apex.config import Config, Pretraining, check_params, fingerprint, load, locate
from apex.errors import UserError, run_command
from apex.evaluation import Evaluation, command_line
from workflows.plan import Plan, overrides

PROFILES = sorted((configuration.ROOT / "workflows" / "config").glob("*.yaml"))


@pytest.fixture
def profile(tmp_path: Path) -> Callable[..., Path]:
    """profile("yaml text") writes a profile and returns its path."""

    def write(text: str = "profile: mine\n") -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """command("FILE", "--set", ...): exit code of `python -m apex.config`."""

    def call(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["apex.config", *map(str, arguments)])
        return run_command(configuration.main)

    return call


# --------------------------------------------------------------------------------------------- committed files


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_a_committed_profile_is_valid_and_prints_itself(path, command, capsys, tmp_path):
    assert command(path) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    again, first = load(printed), load(path)
    assert first.profile == path.stem
    assert again.model_dump() == first.model_dump()


def test_a_printed_profile_means_the_same_for_every_row(profile, command, capsys):
    text = "profile: mine\nmethods: [a]\ntrain: {batch_size: 7}\nrows: {a: {method: fm, train: {learning_rate: 0.25}}}\n"
    path = profile(text)
    assert command(path) == 0
    first = load(path)
    path.write_text(capsys.readouterr().out)
    again = load(path)
    assert again.run_config("a") == first.run_config("a")
    assert (again.run_hash("a", teacher=False), again.hash()) == (first.run_hash("a", teacher=False), first.hash())


@pytest.mark.parametrize("name, made", [("config.schema.json", configuration.schema), ("config.defaults.yaml", configuration.defaults)])
def test_written_schema_and_defaults_have_not_drifted(name, made):
    """`make schema` writes them."""
    assert (configuration.ROOT / "workflows" / "schemas" / name).read_text() == made()


def test_the_written_defaults_are_the_defaults():
    written = yaml.safe_load(configuration.defaults().replace("<required>", "mine"))
    assert Config.model_validate(written) == Config(profile="mine")


def test_the_schema_refuses_unknown_keys_everywhere():
    schema = json.loads(configuration.schema())
    objects = [schema, *schema["$defs"].values()]
    assert all(part["additionalProperties"] is False for part in objects if "properties" in part)


@pytest.mark.parametrize("params, right", [({"order": 2}, True), ({"steps": 20}, False), ({"order": 9}, False)])
def test_the_schema_knows_the_settings_of_every_method(params, right):
    """As an editor sees it; `steps` is a setting of `lcm`, not of `apex`."""
    validator = jsonschema.Draft202012Validator(json.loads(configuration.schema()))
    assert validator.is_valid({"profile": "mine", "rows": {"a": {"method": "apex", "params": params}}}) == right


def test_a_tuning_that_a_method_has_not_is_refused_with_its_reason(profile, command, capsys):
    path = profile("profile: mine\nmethods: [a]\nrows: {a: {method: dmd2, tuning: lora}}\n")
    assert command(path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: rows.a.tuning: found lora, expected full for dmd2: its fake score") and error.count("\n") == 1


def test_pretraining_defaults_are_what_the_bundled_networks_were_made_with():
    bundled, recipe = configuration.ROOT / "apex" / "pretrained" / "world", Pretraining()
    teacher, codec, text = (json.loads((bundled / part / "made.json").read_text())["arguments"] for part in (".", "vae", "text_encoder"))
    assert (codec["steps"], codec["decoder_steps"]) == (recipe.codec_steps, recipe.decoder_steps)
    assert text["steps"] == recipe.text_encoder_steps
    asked = {"steps": recipe.teacher_steps, "batch": recipe.batch_size, "width": recipe.width, "layers": recipe.layers, "seed": recipe.seed}
    assert {key: int(teacher[key]) for key in asked} == asked


def test_the_bundled_qwen_teacher_was_made_as_its_profile_says():
    profile = load(configuration.ROOT / "workflows" / "config" / "world_qwen.yaml")
    made, recipe = json.loads((profile.pipeline_path / "made.json").read_text())["arguments"], profile.pretraining
    asked = {"steps": recipe.teacher_steps, "batch": recipe.batch_size, "width": recipe.width, "layers": recipe.layers, "seed": recipe.seed}
    assert {key: int(made[key]) for key in asked} == asked and made["family"] == recipe.family


# --------------------------------------------------------------------------------------------- reading


def test_settings_on_the_command_line_are_lists_numbers_and_sections(profile):
    config = load(
        profile(), ["methods=apex,fm", "seeds=0,1", "nfe=2", "train.batch_size=8", "budget.forward_equivalents=1e5", "references="]
    )
    assert config.methods == ["apex", "fm"] and config.seeds == [0, 1] and config.nfe == [2] and config.references == []
    assert config.train.batch_size == 8 and config.budget.forward_equivalents == 1e5


@settings(max_examples=30)
@given(
    rate=st.floats(1e-9, 1.0),
    seeds=st.lists(st.integers(0, 2**31), min_size=1, max_size=4, unique=True),
    guidance=st.floats(0, 50),
)
def test_what_stands_behind_snakemakes_config_arrives_unchanged(tmp_path_factory, rate, seeds, guidance):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text("profile: any\n")
    config = load(path, overrides({"train": {"learning_rate": rate}, "seeds": seeds, "guidance": guidance}))
    assert (config.train.learning_rate, config.seeds, config.guidance) == (rate, seeds, guidance)


def test_dotted_settings_and_external_folders_behind_snakemakes_config(profile):
    given = {"set": "train.batch_size=8 budget.forward_equivalents=7", "external": [{"row": "mine", "images": "a folder", "nfe": 1}]}
    config = load(profile(), overrides(given))
    assert config.train.batch_size == 8 and config.budget.forward_equivalents == 7
    assert config.external[0].images == "a folder"


def test_what_the_full_scale_page_shows_is_a_profile(profile):
    """Its blocks of YAML, each on top of a profile that it speaks of."""
    page = (configuration.ROOT / "docs" / "full_scale.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"^ *```yaml\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)]
    assert [set(block) for block in blocks] == [{"data"}, {"checkpoints"}]
    ours = yaml.safe_load((configuration.ROOT / "workflows/config/sana_0_6b.yaml").read_text())
    drawn, rows = (load(profile(yaml.safe_dump(ours | block))) for block in blocks)
    assert (drawn.data.source, drawn.data.teacher.count) == ("teacher", 60000)
    assert {"sana-sprint-0.6b", "flux-schnell", "qwen-image-lightning"} <= set(rows.checkpoint_rows)


@pytest.mark.parametrize("empty", ["", "''", '""'])
def test_a_text_can_be_emptied_behind_snakemakes_config(profile, empty):
    """As Snakemake reads its command line: None of `hub=` and `hub="''"`, an empty text within brackets."""
    path = profile("profile: mine\nhub: owner/name\nablations: grids.yaml\nevaluation: {fid: {reference: folder, resolution: 24}}\n")
    given = parse_config([f"hub={empty}", f"ablations={empty}", "evaluation={fid: {reference: '', resolution: null}}"])
    config = load(path, overrides(given))
    assert (config.hub, config.ablations, config.evaluation.fid.reference, config.evaluation.fid.resolution) == ("", "", "", None)


def test_a_profile_changes_only_the_time_grids_that_it_names(profile):
    grids = load(profile("profile: mine\nsampling: {sigmas: {2: [1.0, 0.4]}}\n")).sampling.sigmas
    assert grids[2] == [1.0, 0.4] and grids[1] == [1.0] and len(grids[4]) == 4


def test_a_row_changes_only_the_training_settings_that_it_names(profile):
    text = "profile: mine\ntrain: {batch_size: 7, learning_rate: 0.5}\nrows: {slow: {method: fm, train: {learning_rate: 0.25}}}\n"
    train = load(profile(text)).run_config("slow").train
    assert (train.batch_size, train.learning_rate) == (7, 0.25)


def test_a_row_may_go_back_to_the_exact_optimiser(profile, command, capsys):
    """Said by the row it is kept in what is printed, although a profile that says nothing of it has the hash of before."""
    text = "profile: mine\ntrain: {optimizer: adamw8bit}\nrows: {a: {method: fm, train: {optimizer: adamw}}, b: {method: fm}}\n"
    path = profile(text)
    assert command(path) == 0
    path.write_text(capsys.readouterr().out)
    assert [load(path).run_config(name).train.optimizer for name in "ab"] == ["adamw", "adamw8bit"]
    assert "optimizer" not in load(path).run_config("a").model_dump()["train"]


def test_the_same_number_written_in_any_way_is_the_same_profile(profile):
    first = load(profile("profile: mine\nbudget: {forward_equivalents: 1e6}\n")).hash()
    assert load(profile("budget: {forward_equivalents: 1000000.0}\nprofile: mine\n")).hash() == first


# --------------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize(
    "change, counts",
    [
        ("budget.forward_equivalents=7", True),
        ("train.learning_rate=0.5", True),
        ("data.seed=3", True),
        ("rows.apex.params.interval=0.2", True),
        ("rows.apex.tuning=lora", True),
        ("train.checkpoint_every=1", False),
        ("train.log_every=1", False),
        ("train.optimizer=adamw8bit", True),
        ("train.optimizer=adamw", False),
        ("rows.apex.train.optimizer=adamw", False),
        ("nfe=1", False),
        ("methods=apex", False),
        ("rows.fm.train.batch_size=9", False),
        ("guidance=1", False),
    ],
)
def test_a_run_is_another_one_where_a_setting_changes_its_weights(profile, change, counts):
    text = "profile: mine\nrows: {apex: {method: apex}, fm: {method: fm}}\n"
    path = profile(text)
    assert (load(path).run_hash("apex", teacher=False) != load(path, [change]).run_hash("apex", teacher=False)) is counts


def test_another_teacher_makes_another_run(profile, tiny_pipeline, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_pipeline, folder)
    config = load(profile(), [f"pipeline={folder}"])
    before = config.run_hash("fm")
    file = folder / "transformer" / "config.json"
    os.utime(file, (1, 1))
    assert config.run_hash("fm") == before
    file.write_text(file.read_text() + " ")
    assert config.run_hash("fm") != before


def test_a_fingerprint_is_of_names_and_contents(tmp_path):
    for name, files in {"a": {"x": "1", "y": "2"}, "b": {"x": "1", "y": "2"}, "c": {"x": "1", "z": "2"}, "d": {"x": "1", "y": "3"}}.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
    a, b, c, d, nothing = (fingerprint(tmp_path / name) for name in ("a", "b", "c", "d", "none"))
    assert a == b and len({a, c, d, nothing}) == 4


def test_a_path_is_looked_for_here_and_then_beside_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "apex/data/prompts/world/test.jsonl"
    assert locate(name) == configuration.ROOT / name
    Path(name).parent.mkdir(parents=True)
    Path(name).write_text("{}")
    assert locate(name) == Path(name)


# --------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    "text, words",
    [
        ("profile: mine\nbudgett: 1\n", ["budgett", "unknown key", "did you mean 'budget'?"]),
        ("profile: mine\ntrain: {batch: 3}\n", ["train.batch", "unknown key", "known:", "batch_size"]),
        ("profile: mine\ntrain: {batch_size: many}\n", ["train.batch_size", "'many'", "integer"]),
        ("profile: mine\ntrain: {batch_size: '64'}\n", ["train.batch_size", "'64'", "integer"]),
        ("profile: mine\ntrain: {batch_size: 0}\n", ["train.batch_size", "found 0", "greater than or equal to 1"]),
        ("profile: mine\ntrain: {learning_rate: .inf}\n", ["train.learning_rate", "inf", "finite"]),
        ("profile: mine\ntrain: 3\n", ["train", "found 3", "keys and values"]),
        ("profile: mine\nbudget: {forward_equivalents: 0}\n", ["budget.forward_equivalents", "greater than 0"]),
        ("profile: mine\nguidance: 99\n", ["guidance", "found 99", "less than or equal to 50"]),
        ("profile: mine\nmethods: [apx]\n", ["methods", "unknown method 'apx'", "did you mean 'apex'?"]),
        ("profile: mine\nrows: {a: {method: nope}}\n", ["rows.a.method", "unknown method 'nope'", "known: add, apex"]),
        ("profile: mine\nrows: {teacher: {method: fm}}\n", ["rows.teacher", "another"]),
        ("profile: mine\nrows: {a: {method: fm, tuning: half}}\n", ["rows.a.tuning", "'half'", "'full' or 'lora'"]),
        ("profile: mine\nseeds: [0, 0]\n", ["seeds", "found 0 twice"]),
        ("profile: mine\nseeds: []\n", ["seeds", "at least 1"]),
        ("profile: mine\nsampling: {sigmas: {2: [0.5, 1.0]}}\n", ["sampling: sigmas of NFE 2", "falling"]),
        ("profile: mine\nevaluators: [geneval, fidd]\n", ["evaluators.1", "'fidd'", "'geneval'"]),
        ("profile: mine\nexternal: [{row: a, nfe: 1}]\n", ["external.0.images", "not given"]),
        ("profile: ../up\n", ["profile", "'../up'", "expected a name of"]),
        ("description: none\n", ["profile", "not given"]),
        ("[1, 2]\n", ["found a list", "expected keys and values"]),
        ("profile: mine\ntrain: {\n", ["line", "not valid YAML"]),
        ("profile: mine\nprofile: other\n", ["line 2", "'profile'", "given twice"]),
    ],
)
def test_a_mistake_in_a_profile_is_one_line(profile, command, capsys, text, words):
    path = profile(text)
    assert command(path) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith(f"error: {path}: ") and error.count("\n") == 1
    assert [word for word in words if word not in error] == []


@pytest.mark.parametrize(
    "override, words",
    [
        ("train.batch_size=x", ["train.batch_size", "'x'", "integer"]),
        ("train.bach_size=3", ["train.bach_size", "did you mean 'batch_size'?"]),
        ("methods=apx", ["methods", "unknown method 'apx'"]),
        ("train.batch_size", ["expected key=value"]),
        ("train={a", ["train", "not valid YAML"]),
    ],
)
def test_a_mistake_on_the_command_line_names_the_command_line(profile, command, capsys, override, words):
    assert command(profile(), "--set", override) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --set ") and error.count("\n") == 1
    assert [word for word in words if word not in error] == []


def test_several_mistakes_are_counted(profile):
    with pytest.raises(UserError, match=r"and 1 more\]$"):
        load(profile("profile: mine\ntrain: {batch_size: 0}\nguidance: 99\n"))


def test_a_missing_profile_names_those_that_are_there(profile, tmp_path):
    profile()
    with pytest.raises(UserError, match=r"other\.yaml: no such configuration file; .* has: mine"):
        load(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    "params, words",
    [("{intervall: 0.1}", ["rows.a.params.intervall", "unknown key"]), ("{interval: -1}", ["rows.a.params.interval", "found -1"])],
)
def test_a_methods_own_settings_are_checked_too(profile, params, words):
    config = load(profile(f"profile: mine\nmethods: [a]\nrows: {{a: {{method: apex, params: {params}}}}}\n"))
    with pytest.raises(UserError) as error:
        check_params(config)
    assert [word for word in words if word not in str(error.value)] == []


def test_an_unknown_row_is_named(profile):
    with pytest.raises(UserError, match=r"unknown row 'apx'; did you mean 'apex'\?"):
        load(profile()).row("apx")


# --------------------------------------------------------------------------------------------- other benchmarks


BENCHMARK = """
profile: mine
prompts: {sets: {dpg: {file: dpg.jsonl, images_per_prompt: 3}}}
evaluators: [geneval, dpg]
splits: {test: [geneval, fid], dpg: [dpg], unseen: [clip_score]}
"""


def test_a_benchmark_brings_its_prompts_and_only_what_is_scored_is_sampled(profile):
    found = load(profile(BENCHMARK))
    assert found.sampled == ["test", "dpg"] and Plan(found).scored() == {"test": ["geneval"], "dpg": ["dpg"]}
    assert (found.images_per_prompt("test"), found.images_per_prompt("dpg")) == (4, 3)
    assert Plan(found).missing().startswith("prompts.sets.dpg.file: found no file dpg.jsonl")


def test_a_profile_without_benchmarks_keeps_the_hash_that_it_had(profile):
    """Committed results are known by it."""
    found = load(profile())
    assert "sets" not in found.model_dump()["prompts"]
    assert found.hash() == load(profile("profile: mine\nevaluation: {geneval: {detector: mmdet}}\n")).hash()
    assert found.hash() != load(profile(BENCHMARK)).hash()


def test_what_is_said_of_skipping_counts_only_where_something_may_be_skipped(profile):
    """Committed results are known by their hashes."""
    plain, idle, on, more = (
        load(profile(), settings)
        for settings in ([], ["data.skip_limit=7"], ["data.on_error=skip"], ["data.on_error=skip", "data.skip_limit=7"])
    )
    assert not {"on_error", "skip_limit"} & plain.model_dump()["data"].keys()
    assert plain.hash() == idle.hash()
    assert len({plain.hash(), on.hash(), more.hash()}) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("splits: {dgp: [dpg]}", "splits: "),
        ("prompts: {sets: {test: {file: x}}}", "prompts.sets: found test, a prompt set of the profile's own"),
        ("evaluation: {fid: {protocol: pytorch-fid}}", "reference: found '' with protocol pytorch-fid, expected a path"),
        ("evaluation: {fid: {protokoll: x}}", "evaluation.fid.protokoll"),
        ("evaluation: {fid: {protocol: clean-fid, reference: x, resolution: 512}}", "resolution: found 512 with protocol clean-fid"),
        ("evaluation: {fid: {jpeg: 75}}", "jpeg: found 75 with protocol world, expected it with pytorch-fid or clean-fid alone"),
        ("evaluation: {fid: {protocol: clean-fid, reference: x, jpeg: 101}}", "evaluation.fid.jpeg: found 101"),
        ("evaluation: {dpg: {judge: transformers-vqa}}", "model: found none with judge transformers-vqa, expected its folder or hub name"),
        ("evaluation: {dpg: {precision: bfloat16}}", "precision: found bfloat16 with judge mplug, expected float32"),
        ("evaluation: {wise: {attempts: 0}}", "evaluation.wise.attempts: found 0"),
        ("evaluation: {geneval: {detector: yolo}}", "evaluation.geneval.detector"),
    ],
)
def test_settings_of_evaluators_that_are_wrong_are_one_line(profile, command, capsys, text: str, said: str):
    assert command(profile(f"profile: mine\n{text}\n")) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def said_of(plan: Plan, evaluators: list[str] | None = None) -> str:
    """What a plan finds missing, of prompts, or of what these evaluators need."""
    try:
        return (plan.missing() if evaluators is None else plan.unready(evaluators)) or ""
    except UserError as error:
        return str(error)


def test_the_prompts_of_an_asset_are_said_with_the_way_to_them(profile, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = said_of(Plan(load(profile("profile: mine\nprompts: {test: results/assets/geneval/evaluation_metadata.jsonl}\n"))))
    assert re.search("GenEval's 553 prompts .*evaluators.assets fetch geneval-prompts", found)


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        ("geneval: {detector: transformers}", r"fetch mask2former-mmdet or give evaluation\.geneval\.detector_weights"),
        ("geneval: {detector: transformers, detector_weights: HERE}", r"fetch clip-vit-l-14 or give evaluation\.geneval\.clip_w"),
        ("fid: {protocol: clean-fid, reference: nowhere}", r"^evaluation\.fid\.reference: found nothing at nowhere"),
        ("fid: {protocol: clean-fid, reference: HERE, weights: nowhere}", r"^evaluation\.fid\.weights nowhere: not found; expected FID"),
        ("clip_score: {protocol: openai}", "fetch clip-vit-l-14"),
        ("dpg: {}", r"^evaluation\.dpg\.judge: found mplug, whose modelscope is not installed"),
        ("dpg: {judge: transformers-vqa, model: ./nowhere}", r"^evaluation\.dpg\.model: found no folder \./nowhere"),
        ("dpg: {judge: transformers-vqa, model: owner/name}", "fetch dpg-bench"),
        ("wise: {}", r"^evaluation\.wise\.endpoint: found none"),
        ("wise: {endpoint: 'http://127.0.0.1:1/v1'}", r"^evaluation\.wise\.model: found none"),
        ("wise: {endpoint: 'https://host/v1', model: m}", r"^evaluation\.wise\.key_variable: found OPENAI_API_KEY not set"),
        ("wise: {endpoint: 'https://host/v1', model: m, key_variable: ''}", "fetch wise-cultural"),
        ("wise: {endpoint: 'http://127.0.0.1:1/v1', model: m, prompts: '.'}", r"wise\.prompts \./cultural_common_sense\.json: not found"),
        ("wise: {endpoint: 'http://127.0.0.1:1/v1', model: m, instruction: my}", r"^evaluation\.wise\.instruction: found no file my,"),
    ],
)  # fmt: skip
def test_what_an_official_evaluator_lacks_is_one_line(profile, monkeypatch, tmp_path, evaluation: str, said: str):
    """Only where it is to run: tables of finished results need nothing of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "here").touch()
    name = evaluation.partition(":")[0]
    text = f"profile: mine\nevaluators: [{name}]\nsplits: {{test: [{name}]}}\nevaluation: {{{evaluation.replace('HERE', 'here')}}}\n"
    plan = Plan(load(profile(text)))
    found = said_of(plan, [name])
    assert re.search(said, found) and "\n" not in found
    assert not said_of(plan) and not said_of(plan, ["coverage", "speed"])


def test_the_three_files_of_wise_have_the_names_that_it_reads():
    from evaluators.wise.versions import VERSIONS

    for name, version in VERSIONS.items():
        given = Evaluation.model_validate({"wise": {"version": name, "prompts": "p"}}).wise.assets()
        assert {asset: path.removeprefix("p/") for _, asset, path in given} == version.files


def test_a_fetched_file_that_is_not_whole_is_found_when_a_run_starts(profile, monkeypatch, tmp_path):
    """Not each time that Snakemake reads the profile: such a file may have a gigabyte."""
    monkeypatch.setenv("APEX_ASSETS", str(tmp_path))
    config = load(profile("profile: mine\nevaluators: [clip_score]\nevaluation: {clip_score: {protocol: openai}}\n"))
    broken = tmp_path / "clip" / "ViT-L-14.pt"
    broken.parent.mkdir()
    broken.write_bytes(b"cut off")
    plan = Plan(config)
    assert plan.missing() is None
    said = r"ViT-L-14.pt: SHA-256 is .*, expected b8cca3fd.* delete it, then python -m evaluators.assets"
    assert re.search(said, plan.unready(["clip_score"]) or "")


def test_only_the_content_of_what_a_setting_names_counts(profile, tmp_path):
    plan = Plan(
        load(profile(f"profile: mine\nevaluation: {{wise: {{prompts: {tmp_path}, model: m}}, dpg: {{questions: {tmp_path}/q.csv}}}}\n"))
    )
    for name in ("q.csv", "natural_science.json", "other.txt"):
        (tmp_path / name).write_text("1")
    first = plan.content("wise"), plan.content("dpg")
    assert [len(found) for found in first] == [1, 1] and plan.content("geneval") == plan.content("coverage") == []
    (tmp_path / "other.txt").write_text("2")
    assert (plan.content("wise"), plan.content("dpg")) == first
    (tmp_path / "q.csv").write_text("2")
    assert plan.content("wise") == first[0] and plan.content("dpg") != first[1]


def test_options_become_a_command_line():
    chosen = Evaluation.model_validate(
        {
            "geneval": {"detector": "mmdet", "detector_weights": "a b.pth"},
            "wise": {"model": "m", "partial": True},
            "dpg": {"partial": False},
        }
    )
    assert chosen.options() == {"geneval": {"detector": "mmdet", "detector_weights": "a b.pth"}, "wise": {"model": "m", "partial": True}}
    assert command_line(chosen.options()["geneval"]) == ["--detector", "mmdet", "--detector-weights", "a b.pth"]
    assert command_line(chosen.options()["wise"]) == ["--model", "m", "--partial"] and command_line({"partial": False}) == []
    assert [asset for _, asset, _ in chosen.geneval.assets()] == ["mask2former-mmdet", "clip-vit-l-14"]


def test_an_evaluator_with_settings_of_its_own_is_a_job_of_its_own(profile):
    """And gets its own settings alone: a change of one leaves the records of the others."""
    text = "profile: mine\nevaluators: [geneval, fid, clip_score, dpg]\nprompts: {sets: {dpg: {file: dpg.jsonl}}}\n"
    text += "splits: {test: [geneval, fid, clip_score], dpg: [dpg]}\n"
    assert Plan(load(profile(text))).alone() == ["dpg"]
    plan = Plan(load(profile(text + "evaluation: {fid: {protocol: clean-fid, reference: real}, clip_score: {protocol: openai}}\n")))
    assert plan.alone() == ["clip_score", "dpg", "fid"]
    assert plan.options(["clip_score", "geneval"]) == {"clip_score": {"protocol": "openai"}}
    assert plan.options(["fid"]) == {"fid": {"protocol": "clean-fid", "reference": "real", "keep": "results/mine/features"}}


def test_a_row_is_timed_once_also_where_other_seeds_are_asked_for_later(profile, tmp_path, monkeypatch):
    """Times have no seed of their own: of two, collecting the records could not tell which holds."""
    monkeypatch.chdir(tmp_path)

    def timed(seeds: str) -> set[str]:
        plan = Plan(load(profile(f"profile: mine\nmethods: [apex, fm]\nnfe: [1, 2]\nteacher_nfe: [25]\nseeds: {seeds}\n")))
        return {path for path in plan.records() if path.endswith("/speed.json")}

    first = timed("[3, 4]")
    assert {path.split("/")[5] for path in first} == {"seed3"}
    for path in first:
        if "/fm/" not in path:
            Path(path).parent.mkdir(parents=True)
            Path(path).write_text("{}")
    later = timed("[1, 2]")
    assert {path for path in later if "/fm/" not in path} == {path for path in first if "/fm/" not in path}
    assert {path.split("/")[5] for path in later if "/fm/" in path} == {"seed1"}
