"""One source of versions: pyproject.toml; the lock and the conda files have not drifted from it, and the package is complete."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.conftest import LONGEST, TOGETHER

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()


@pytest.fixture(scope="module")
def write():
    """workflows/envs/write.py, which makes the conda files."""
    spec = importlib.util.spec_from_file_location("write_environments", ROOT / "workflows" / "envs" / "write.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(line) for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]]


# --------------------------------------------------------------------------------------------- versions


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_lock_holds_a_version_that_pyproject_allows(requirement, write):
    """Where this fails: make lock."""
    version = write.locked().get(write.normal(requirement.name))
    assert version is not None and requirement.specifier.contains(version, prereleases=True)


def test_every_locked_package_has_hashes_and_the_lock_names_no_host():
    blocks = re.split(r"\n(?=[a-z0-9])", LOCK)
    pinned = [block for block in blocks if re.match(r"[a-z0-9._-]+==", block)]
    assert len(pinned) > 50
    assert [block.splitlines()[0] for block in pinned if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", block)] == []
    assert re.findall(r"\S*(?:://|--index|--extra-index|--find-links|--trusted-host| @ )\S*", LOCK) == []


@pytest.mark.parametrize("name", ["environment.yml", "workflows/envs/suite.yaml"])
def test_the_conda_files_are_what_the_lock_says(name, write):
    """Where this fails: make lock."""
    text = (ROOT / name).read_text()
    assert text == write.render(write.PURPOSES[name])
    assert sorted(name for name, _ in (line.split("==") for line in yaml.safe_load(text)["dependencies"][-1]["pip"])) == sorted(
        write.direct()
    )


def test_every_dependency_has_its_reason_and_every_python_is_the_same(write):
    lines = re.findall(r'^    "([A-Za-z][^"]*)",(.*)$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    stated = {write.normal(re.match(r"[A-Za-z0-9._-]+", line)[0]): rest for line, rest in lines if re.search(r"[=<>]=", line)}
    assert stated.keys() == write.direct().keys()
    assert [name for name, rest in stated.items() if not re.search(r"#\s*\w{3}", rest)] == []
    allowed = SpecifierSet(PROJECT["requires-python"])
    versions = ["3.10", "3.11", "3.12", "3.13"]
    assert [v for v in versions if allowed.contains(v)] == ["3.11", "3.12"]
    assert f"python {PROJECT['requires-python']}" in (ROOT / "environment.yml").read_text()
    assert [v for v in versions if f"Programming Language :: Python :: {v}" in PROJECT["classifiers"]] == ["3.11", "3.12"]


def test_the_tables_bring_what_the_report_imports():
    """Snakemake itself requires pygments only in an extra of its own."""
    named = {Requirement(line).name for line in PROJECT["optional-dependencies"]["tables"]}
    assert {"snakemake", "matplotlib", "pillow", "pygments"} <= named


def test_the_tables_need_no_torch():
    names = {Requirement(line).name for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["tables"]]}
    assert not names & {Requirement(line).name for line in PROJECT["optional-dependencies"]["train"]} - {"pillow"}


def test_what_results_depend_on_is_installed_as_locked(write):
    locked = write.locked()
    installed = {name: metadata.version(name) for name in (Requirement(line).name for line in PROJECT["optional-dependencies"]["train"])}
    assert {name: v for name, v in installed.items() if v.split("+")[0] != locked[write.normal(name)]} == {}


# --------------------------------------------------------------------------------------------- the package


@pytest.mark.slow
def test_a_built_package_holds_the_code_the_weights_and_the_published_tables(tmp_path):
    pytest.importorskip("setuptools", minversion="70")  # what pyproject.toml builds with
    tree = tmp_path / "tree"
    for name in ("apex", "evaluators", "paper_tables", "workflows", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    inside = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    wanted = {
        "apex/config.py",
        "apex/data/prompts/world/test.jsonl",
        "apex/pretrained/world/vae/config.json",
        "paper_tables/text_claims.yaml",
        "evaluators/assets.yaml",
        "evaluators/wise/instruction-2025.yaml",
    }
    for folder in ("apex/pretrained", "evaluators/pretrained", "paper_tables/published"):
        wanted |= {str(f.relative_to(ROOT)) for f in (ROOT / folder).rglob("*") if f.is_file()}
    assert wanted - inside == set()
    assert not [name for name in inside if name.startswith(("tests", "workflows", "results"))]


# --------------------------------------------------------------------------------------------- make


def make(*arguments: str, path: str | None = None, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/usr/bin/env", f"PATH={path or os.environ['PATH']}", shutil.which("make"), *arguments], cwd=folder, capture_output=True, text=True
    )


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


@needs_make
@pytest.mark.parametrize(
    "target, line",
    [
        ("all", ".venv/bin/snakemake all --config methods=fm"),
        ("tables", ".venv/bin/snakemake tables --config methods=fm"),
        ("smoke", ".venv/bin/snakemake all pretrained --configfile workflows/config/smoke.yaml --config methods=fm"),
        ("lint", ".venv/bin/snakemake --lint"),
        ("test", '.venv/bin/pytest -n logical -m "not slow" --config methods=fm'),
        ("test-slow", ".venv/bin/pytest -n logical -m slow --config methods=fm"),
        ("test-all", ".venv/bin/pytest -n logical --config methods=fm"),
    ],
)
def test_a_target_makes_the_environment_and_then_calls_one_command(tmp_path, target, line):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    done = make("-n", target, "ARGS=--config methods=fm", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    installed = next(at for at, text in enumerate(lines) if "uv pip sync" in text and "--require-hashes requirements.lock" in text)
    assert line in lines[installed:]


@needs_make
def test_a_bare_make_lists_every_target_and_starts_nothing(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    done, asked = make(folder=tmp_path), make("help", folder=tmp_path)
    assert done.returncode == 0 and done.stdout == asked.stdout and [file.name for file in tmp_path.iterdir()] == ["Makefile"]
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1].split()
    assert sorted(re.findall(r"^  make (\S+) +\S", done.stdout, flags=re.MULTILINE)) == sorted(targets)


@needs_make
def test_without_a_python_that_fits_make_says_what_to_install(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "sed", "sh"):
        (tools / name).symlink_to(shutil.which(name))
    done = make("env", path=str(tools), folder=tmp_path)
    assert done.returncode != 0
    assert "error: found no Python 3.11 or 3.12" in done.stderr and "apt install python3 python3-venv" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_continuous_integration_runs_the_readmes_commands():
    text = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    commands = [line for line in text.splitlines() if line.startswith("make ")]
    assert commands == ["make lint", "make test", "make test-slow", "make smoke"]


def test_the_order_of_the_tests_names_files_that_are_there():
    """A file that was renamed would start last, and one of those that share a fixture would build it again."""
    names = {*LONGEST, *TOGETHER} - set(TOGETHER.values())
    assert [name for name in sorted(names) if not (ROOT / name).is_file()] == []
    assert set(TOGETHER.values()) <= set(LONGEST)
