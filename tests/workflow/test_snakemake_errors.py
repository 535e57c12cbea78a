"""A fault of the configuration under Snakemake itself: one line, Snakemake's exit code 1, and nothing printed or stored of a secret."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SECRET = "sk-hunter2hunter2hunter2aaaa"


@pytest.mark.parametrize(
    ("settings", "arguments", "says"),
    [
        ({}, ["card=h1000"], "error: --config card: unknown card 'h1000'; did you mean 'h100'? known: a100, h100, h200, l40s, rtx4090"),
        ({"profile": "speed"}, [], "profile.yaml: profile: found 'speed', expected another name: results/speed"),
        ({"guidance": -1}, ["nfe=1"], "profile.yaml: guidance: found -1, expected greater than or equal to 0"),
        ({}, ["set=guidance=-1 nfe=1"], "error: --config guidance: found -1, expected greater than or equal to 0"),
        (
            {},
            [f"set=evaluation.wise.key_variable={SECRET}"],
            "error: --config set: found what looks like a password or a key (not shown here)",
        ),
    ],
    ids=["card", "kept name", "the file's", "the call's", "secret"],
)
def test_a_fault_is_one_line_and_snakemakes_exit_code(
    make_workflow: Callable[..., Any], tmp_path: Path, settings: dict[str, Any], arguments: list[str], says: str
) -> None:
    flow = make_workflow(tmp_path, **settings)
    code, output = flow.run("all", *(["--config", *arguments] if arguments else []))
    said = [line for line in output.splitlines() if not line.startswith(("Using workflow specific profile", "Assuming unrestricted"))]
    assert code == 1 and len(said) == 1 and said[0].startswith("error: ") and says in said[0], output
    assert not (tmp_path / "results").exists()
    stored = [file for file in tmp_path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    assert SECRET not in output and stored == []


def test_one_nested_key_is_set_without_yaml(make_workflow: Callable[..., Any], tmp_path: Path) -> None:
    flow = make_workflow(tmp_path)
    code, output = flow.run("-n", "-p", "all", "--config", "set=budget.forward_equivalents=2e4 train.ema=0.5")
    assert code == 0, output
    assert "--set budget.forward_equivalents=2e4 --set train.ema=0.5" in output
