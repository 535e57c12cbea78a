"""The committed pages are of the committed records: none was left behind when records were replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from paper_tables import build, claims, collect

REFERENCE = Path("results/reference")
QWEN = Path("workflows/config/world_qwen.yaml")


@pytest.mark.parametrize("profile", ["world", "matrix", "world_qwen"])
def test_committed_numbers_tables_and_verdicts_follow_from_the_committed_records(
    run: Callable[..., int], profile: str, tmp_path: Path
) -> None:
    """Where this fails: snakemake reference, world_qwen's first, because the ledger of `matrix` reads it."""
    results, config = REFERENCE / profile, ["--config", f"workflows/config/{profile}.yaml"]
    assert run(collect.main, "--results", results, "--out", tmp_path / "metrics.csv") == 0
    assert run(build.main, "--results", results, "--out", tmp_path / "tables", *config) == 0
    others = ["--theory", REFERENCE / "theory", "--also", f"{QWEN}={REFERENCE / 'world_qwen'}"]
    assert run(claims.main, *config, "--results", results, *others, "--out", tmp_path / "claims") == 0
    for name in ("metrics.csv", "tables/comparison.csv", "tables/paired.csv", "claims/claims.csv"):
        assert (tmp_path / name).read_text() == (results / name).read_text(), name
