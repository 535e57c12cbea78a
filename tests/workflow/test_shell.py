"""Values of the configuration are words of commands, whatever they hold: the shell runs nothing of them, and Snakemake fills in nothing."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from apex.config import Config

RULES = Path(__file__).parents[2] / "workflows/rules"
# A command in every way of the shell's, its quotes and signs, and what Snakemake takes for a wildcard.
ODD = "o $(touch WAS_RUN) `touch WAS_RUN` ;touch WAS_RUN; & touch WAS_RUN & ' \" \\ {x} {{y}} {input} * > WAS_RUN"
TARGETS = "all full tune ablations theory claims report pretrained plan measure reference bundle adopt_tuning cards fetch_checkpoints"
# Texts that are not free: a folder's name and a variable's, which are checked.
CHECKED = {"profile", "evaluation.wise.key_variable"}


def texts(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted keys of every free text of the configuration; entries of lists and mappings are `*`."""

    def inside(annotation: Any, key: str, patterned: bool) -> Iterator[str]:
        origin, parts = get_origin(annotation), get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from texts(annotation, f"{key}.")
        elif annotation is str and not patterned:
            yield key
        elif origin is Annotated:
            yield from inside(parts[0], key, patterned or any(getattr(part, "pattern", None) for part in parts[1:]))
        elif origin is list:
            yield from inside(parts[0], f"{key}.*", patterned)
        elif origin is dict:
            yield from inside(parts[1], f"{key}.*", patterned)
        elif origin in (Union, types.UnionType):
            for part in parts:
                yield from inside(part, key, patterned)

    for name, field in model.model_fields.items():
        yield from inside(field.annotation, prefix + name, any(getattr(part, "pattern", None) for part in field.metadata))


def odd_keys(values: Any, key: str = "") -> Iterator[str]:
    """Dotted keys of the values that hold the odd text, entries as in `texts`."""
    if isinstance(values, dict):
        for name, inner in values.items():
            known = re.fullmatch(r"(rows|prompts\.sets)\.\w+|tuning\.candidates\.\w+", f"{key}.{name}".lstrip("."))
            yield from odd_keys(inner, f"{key}.{'*' if known else name}".lstrip("."))
    elif isinstance(values, list):
        for inner in values:
            yield from odd_keys(inner, f"{key}.*")
    elif isinstance(values, str) and ODD in values:
        yield key


def odd_profiles(folder: Path, pipeline: Path, shards: Path) -> list[dict[str, Any]]:
    """Two profiles that hold the odd text in every free text between them, and the files that they name."""
    lines = "".join(json.dumps({"prompt": f"a {word}", "tag": "single_object"}) + "\n" for word in ("cup", "bird"))
    (folder / ODD).mkdir()
    (folder / ODD / f"{ODD}.jsonl").write_text(lines)
    (folder / ODD / f"{ODD}.yaml").write_text("apex: {params: {}}\n")
    (folder / ODD / "launch.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")
    grid = {"title": ODD, "about": ODD, "row": "apex", "grid": {"data.source": [f"{ODD}/more"]}}
    (folder / ODD / "grids.yaml").write_text(json.dumps({"grids": {"one": grid}}))
    (folder / ODD / "my_method.py").write_text("METHOD = None\n")
    shutil.copytree(pipeline, folder / ODD / ODD)
    shutil.copytree(shards, folder / ODD / "shards")
    prompts, inside = f"{ODD}/{ODD}.jsonl", f"{ODD}/{ODD}"
    evaluation = {
        "geneval": {"detector": "transformers", "detector_weights": ODD, "clip_weights": ODD},
        "fid": {"protocol": "pytorch-fid", "reference": ODD, "weights": ODD},
        "clip_score": {"protocol": "openai", "weights": ODD},
        "dpg": {"judge": "transformers-vqa", "model": ODD, "questions": ODD},
        "wise": {"endpoint": f"https://host/{ODD}", "model": ODD, "prompts": ODD, "instruction": ODD},
    }
    scored = {"test": ["geneval", "fid", "clip_score"], "dpg": ["dpg"], "wise": ["wise"], "val": ["geneval"], "unseen": ["geneval"]}
    first = {
        "profile": "odd",
        "description": ODD,
        "pipeline": inside,
        "data": {"source": f"{ODD}/shards", "embeddings": "disk"},
        "prompts": {"test": prompts, "val": prompts, "unseen": prompts, "sets": {name: {"file": prompts} for name in ("dpg", "wise")}},
        "method_files": [f"{ODD}/my_method.py"],
        "methods": ["apex"],
        "rows": {"named": {"method": "apex", "params": {"text": ODD}}},
        "nfe": [1],
        "teacher_nfe": [1],
        "references": [],
        "evaluators": ["geneval", "fid", "clip_score", "dpg", "wise", "speed"],
        "splits": scored | {"test": [*scored["test"], "speed"]},
        "evaluation": evaluation,
        "launch": f"{ODD}/launch.yaml",
        "pretraining": {"parts": inside},
        "tuned": f"{ODD}/{ODD}.yaml",
        "tuning": {"candidates": {"apex": [{"params": {"text": ODD}}]}},
        "full": {"methods": ["fm"]},
        "ablations": f"{ODD}/grids.yaml",
        "external": [{"row": "theirs", "images": ODD, "nfe": 1, "source": ODD}],
        "checkpoints": [
            {
                "row": "given",
                "pipeline": inside,
                "lora": ODD,
                "lora_file": "a.safetensors",
                "nfe": [1],
                "source": ODD,
                "call": {"text": ODD},
            },
            {"row": "fetched", "hub": "owner/name", "nfe": [1]},
        ],
        "published": [{"row": f"{ODD[:40]}", "nfe": 1, "metric": "fid", "value": 1.0, "source": ODD, "setting": ODD}],
    }
    second = {
        "profile": "odd-drawn",
        "data": {"source": "teacher", "teacher": {"prompts": prompts}},
        "methods": ["apex"],
        "pipeline": inside,
        "references": [],
    }
    return [first, second]


def commands(output: str) -> list[str]:
    """The commands that a dry run prints."""
    found = re.findall(r"^ *Shell command: (.*)$", output, re.MULTILINE)
    return [command for command in found if command != "None"]  # a rule that only names others has none


def words_run(command: str, folder: Path) -> list[list[str]]:
    """Runs a command in bash, in `folder`, with programs that only write down their words; returns these."""
    programs, said = folder / "programs", folder / "said"
    if not programs.is_dir():
        programs.mkdir()
        (programs / "stub").write_text(
            '#!/bin/sh\nfor word in "$0" "$@"; do printf "%s\\0" "$word"; done >> "$SAID"; printf "\\1\\0" >> "$SAID"\n'
        )
        (programs / "stub").chmod(0o755)
        for name in ("python", "snakemake", "accelerate", "mkdir", "cp", "tee"):
            (programs / name).symlink_to("stub")
        (programs / "touch").symlink_to(shutil.which("touch"))
    said.unlink(missing_ok=True)
    for word in shlex.split(command):
        if word.startswith("results/"):
            (folder / word).parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env={"PATH": str(programs), "SAID": str(said)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return [call.split("\0")[:-1] for call in said.read_text().split("\1\0") if call]


@pytest.fixture(scope="module")
def printed(
    tiny_pipeline: Path, tiny_shards: Path, make_workflow: Callable[..., Any], tmp_path_factory: Any
) -> tuple[list[dict], list[str]]:
    """Two odd profiles, and the commands of all their jobs."""
    folder = tmp_path_factory.mktemp("odd")
    profiles = odd_profiles(folder, tiny_pipeline, tiny_shards)
    found: list[str] = []
    for profile, targets in zip(profiles, (TARGETS, "all synthesise"), strict=True):
        flow = make_workflow(folder)
        flow.profile.write_text(yaml.safe_dump(profile, allow_unicode=True))
        code, output = flow.run("-n", "-p", *targets.split(), "--config", f"set=[{json.dumps('description=' + ODD)}]")
        assert code == 0, output[-3000:]
        found += commands(output)
    return profiles, found


def test_every_free_text_of_the_configuration_is_odd(printed) -> None:
    odd = {key for profile in printed[0] for key in odd_keys(profile)}
    short = {"published.*.row"}  # at most 60 characters: a part of the text
    patterned = {"methods.*", "full.methods.*"}  # names of rows, which are checked against those that there are
    wanted = set(texts(Config)) - CHECKED - short - patterned - {"rows.*.method"}
    assert wanted - odd == set()


def test_the_shell_runs_nothing_of_a_value(printed, tmp_path: Path) -> None:
    said: list[list[str]] = []
    for command in printed[1]:
        said += words_run(command, tmp_path)
        assert not list(tmp_path.rglob("WAS_RUN")), command
    assert len(said) > 30
    programs = {Path(call[0]).name for call in said}
    assert {"python", "snakemake", "accelerate", "cp"} <= programs
    whole = {word for call in said for word in call}
    # Values arrive as they are: a pipeline, data, prompts, images of others, and settings of the command line.
    named = {
        f"{ODD}/{ODD}",
        f"{ODD}/shards",
        f"{ODD}/more",
        f"{ODD}/launch.yaml",
        f"{ODD}/{ODD}.yaml",
        ODD,
        f"--source={ODD}",
        f"description={ODD}",
    }
    assert {name for name in named if name not in whole} == set()
    options = [json.loads(call[call.index("--options") + 1]) for call in said if "--options" in call]
    assert any(found.get("wise", {}).get("endpoint") == f"https://host/{ODD}" for found in options)


@pytest.mark.slow
def test_a_source_with_a_command_in_its_name_is_read_and_not_run(
    make_workflow, tiny_shards: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_shards, tmp_path / ODD)
    shutil.copytree(tiny_pipeline, tmp_path / f"p{ODD}")
    flow = make_workflow(tmp_path, data={"source": ODD}, pipeline=f"p{ODD}")
    code, output = flow.run("results/tiny/data/cache")
    assert code == 0, output
    assert (flow.results / "data/cache/made.json").is_file()
    assert not list(tmp_path.rglob("WAS_RUN"))


def test_every_rule_quotes_every_value() -> None:
    """Of a shell text's fields only those go without `q` that hold whole commands or words which are quoted where they are made."""
    made = {"params.before", "params.commands", "params.command", "params.scores", "params.what", "params.steps"}
    unquoted = {
        field
        for file in RULES.glob("*.smk")
        for field in re.findall(r"(?<!\{)\{((?:input|output|log|params|wildcards)(?:\.\w+)?(?::\w+)?)\}", file.read_text())
        if not field.endswith(":q")
    }
    assert unquoted <= made
    assert not re.search(r"shell=True|os\.system", "".join(file.read_text() for file in RULES.glob("*.smk")))
