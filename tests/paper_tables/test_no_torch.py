"""`pip install '.[tables]'` has no torch: the commands run without it, and without anything else that only training needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = """
import importlib.abc, sys
TRAINING = {"torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "open_clip", "cleanfid", "scipy", "safetensors"}

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in TRAINING:
            raise ImportError(name + " is not in the tables extra")

sys.meta_path.insert(0, Refuse())
from pathlib import Path
from paper_tables import ablations, assumptions, audit, build, claims, collect, figures, tuning
results, out, profile = map(Path, sys.argv[1:4])
for main, arguments in (
    (collect.main, ["--results", results, "--out", out / "metrics.csv"]),
    (build.main, ["--results", results, "--config", profile, "--out", out / "tables"]),
    (audit.main, ["--out", out / "audit"]),
    (figures.main, ["--results", results, "--config", profile, "--out", out / "figures"]),
    (tuning.main, ["--results", results / "tune", "--out", out / "tuning"]),
    (claims.main, ["--results", results, "--config", profile, "--theory", out, "--out", out / "claims"]),
    (assumptions.main, ["--results", results / "ablations", "--config", profile, "--out", out / "claims"]),
    (ablations.main, ["--results", results / "ablations", "--config", profile, "--out", out / "ablations"]),
):
    sys.argv = ["command", *map(str, arguments)]
    main()
print("loaded:", sorted(TRAINING & set(sys.modules)), "matplotlib.pyplot" in sys.modules, "pandas" in sys.modules)
"""


def test_the_commands_import_no_torch(make_results: Callable[..., Path], profile: Path, tmp_path: Path) -> None:
    results = make_results(rows={("apex", 1): 0.5, ("real", 0): 0.9}, runs=True, images=True, calibration=True, tuning=True)
    done = subprocess.run([sys.executable, "-c", PROGRAM, results, tmp_path / "out", profile], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # pyplot and pandas take longer to load than the work takes.
    assert done.stdout.splitlines()[-1] == "loaded: [] False False"
    assert (tmp_path / "out" / "figures" / "grid.png").is_file()


@pytest.mark.parametrize("module", ["collect", "build", "audit", "figures", "tuning", "claims", "assumptions", "ablations"])
def test_help_runs(module: str, capsys: pytest.CaptureFixture[str], run: Callable[..., int]) -> None:
    program = __import__(f"paper_tables.{module}", fromlist=["main"])
    with pytest.raises(SystemExit) as end:
        run(program.main, "--help")
    assert end.value.code == 0
    assert f"python -m paper_tables.{module} " in capsys.readouterr().out
