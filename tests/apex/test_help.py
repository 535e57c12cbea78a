"""`--help` and a refused option of every command need no heavy library: each is answered while those libraries cannot be imported."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "scipy", "matplotlib")
ASK = """
import contextlib, io, json, runpy, sys, warnings
from apex import errors

sys.modules.update(dict.fromkeys({heavy!r}))  # None: importing one raises ImportError
warnings.simplefilter("ignore")  # of runpy: a command may be a library of another one, imported by then
found = {{}}
for name in json.load(sys.stdin):
    sys.argv, out = [name, *{words!r}], io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
            code = None
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
    found[name] = [code, out.getvalue()]
print(json.dumps(found))
"""


def is_command(path: Path) -> bool:
    """Whether the file takes arguments by `python -m`. A script without a parser, as workflows/envs/write.py, would do its work here."""
    text = path.read_text()
    parses = "Parser(" in text or "image_parser(" in text
    return parses and any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in ast.parse(text).body)


def commands() -> list[str]:
    files = [path for folder in ("apex", "evaluators", "paper_tables", "workflows") for path in sorted((ROOT / folder).rglob("*.py"))]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if is_command(path)]
    return [name.removesuffix(".__main__") for name in modules]


def ask(*words: str) -> dict[str, tuple[int, str]]:
    """Exit code and output of every command with these words, all in one fresh interpreter without the heavy libraries."""
    code = ASK.format(heavy=HEAVY, words=words)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(commands()), capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    return {name: (code, text) for name, (code, text) in json.loads(done.stdout).items()}


@pytest.fixture(scope="module")
def helped() -> dict[str, tuple[int, str]]:
    return ask("--help")


@pytest.fixture(scope="module")
def refused() -> dict[str, tuple[int, str]]:
    return ask("--nonsense")


@pytest.mark.parametrize("name", commands())
def test_help_names_the_command_and_needs_no_heavy_library(helped, name: str) -> None:
    code, text = helped[name]
    assert code == 0, text[-500:] or code
    assert text.split()[:4] == ["usage:", "python", "-m", name]


@pytest.mark.parametrize("name", commands())
def test_an_unknown_option_is_refused_without_a_heavy_library(refused, name: str) -> None:
    code, text = refused[name]
    assert code == 2, text[-500:] or code
