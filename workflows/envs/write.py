"""Writes the two conda files from pyproject.toml and requirements.lock, so that versions have one source.

python workflows/envs/write.py                   (part of `make lock`; a test fails when they drift)

environment.yml               the whole suite, for conda users
workflows/envs/suite.yaml     the same, which `snakemake --sdm conda` installs for every rule
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HEAD = """\
# {purpose}
# Written by workflows/envs/write.py from pyproject.toml and requirements.lock: edit pyproject.toml, then `make lock`.
# The versions are the lock's, which are tested with pip; conda itself, hence the part outside `pip:`, was not run.
name: apex-suite
channels:
  - conda-forge
dependencies:
  - python >=3.11,<3.13
  - pip
  - pip:
"""
PURPOSES = {
    "environment.yml": "For conda users: `conda env create -f environment.yml`, then `pip install --no-deps -e .` inside it.",
    "workflows/envs/suite.yaml": "For `snakemake --sdm conda`; without that option nothing reads it.",
}


def normal(name: str) -> str:
    """A package's name as the lock writes it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def direct() -> dict[str, str]:
    """Requirements that pyproject.toml names, base and extras: normalised name -> specifier."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    split = (re.fullmatch(r"([A-Za-z0-9._-]+)\s*(.*)", line).groups() for line in lines)
    return {normal(name): specifier for name, specifier in split}


def locked() -> dict[str, str]:
    """The lock's pins: normalised name -> version."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE))


def render(purpose: str) -> str:
    pins = locked()
    return HEAD.format(purpose=purpose) + "".join(f"      - {name}=={pins[name]}\n" for name in sorted(direct()))


if __name__ == "__main__":
    for file, purpose in PURPOSES.items():
        (ROOT / file).write_text(render(purpose))
