"""Bad input ends in one right line and leaves everything as it was; ordinary input is accepted. The cases lie in the modules here.

    python -m tests.bad_inputs.test_bad_inputs

counts what all cases come to.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

import tests.bad_inputs as package
from tests.bad_inputs.case import ACCEPTED, FAULTS, LINE, Case, outcome

MOST = 15  # cases of one kind


def cases() -> list[Case]:
    """The cases of every module here whose name begins with `of_`."""
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name.startswith("of_"))
    return [case for name in names for case in importlib.import_module(f"{package.__name__}.{name}").CASES]


CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bad_input(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    came_to, said = outcome(case, folder)
    assert came_to == (ACCEPTED if case.says is None else LINE), said


def test_the_table_is_broad() -> None:
    kinds = Counter(case.kind for case in CASES)
    assert max(kinds.values()) <= MOST and len({case.id for case in CASES}) == len(CASES)


def main() -> int:
    found: Counter[str] = Counter()
    for case in CASES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "case"
            folder.mkdir()
            came_to, said = outcome(case, folder)
        found[came_to] += 1
        if came_to in FAULTS:
            print(f"{came_to}: {case.id}\n    {said.strip()[-300:]}")
    print(
        f"{len(CASES)} cases of {len({case.kind for case in CASES})} kinds: "
        + ", ".join(f"{k} {found[k]}" for k in (LINE, ACCEPTED, *FAULTS))
    )
    return int(any(found[fault] for fault in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
