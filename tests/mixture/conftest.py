"""A short run of the mixture, shared by its tests: a teacher, and its students by three methods."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from apex.mixture_rows import ROWS, Recipe
from apex.mixture_runs import VelocityMLP, make_teacher, train

SHORT = Recipe(steps=1200, width=96)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def trained() -> dict[str, VelocityMLP]:
    """The teacher and the students of `fm`, `apex` and `eq25`, by the recipe above."""
    teacher = make_teacher(SHORT, 0)
    students = {name: train(teacher, ROWS[name].method, ROWS[name].params, SHORT, 0)[0] for name in ("fm", "apex", "eq25")}
    return {"teacher": teacher, **students}
