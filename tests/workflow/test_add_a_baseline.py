"""docs/add_a_baseline.md, followed to the letter: a new file beside broken ones, images alone and a published number, in one workflow."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from apex import methods
from apex.config import load
from apex.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "add_a_baseline.md").read_text()
BLOCKS = dict(re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)[:1])
CODE = BLOCKS["python"]
YAML = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)]

BROKEN = {
    "no_import": ("import torch\n", "import torch_of_yesterday\n", "torch_of_yesterday"),
    "no_citation": ('    citation = "Frans et al. 2024, arXiv 2410.12557"\n', "", "`citation`"),
    "no_step": ('return Step({"student": errors.mean()}, {"span": span.mean()})', "return errors.mean()", "Step"),
}


def test_the_example_is_short():
    assert len(CODE.splitlines()) < 60


# ------------------------------------------------------------------------------------- dropped into the package


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the package with the example dropped into it, and nothing edited."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "apex", folder / "apex", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "workflows" / "config", folder / "workflows" / "config")
    (folder / "apex" / "methods" / "shortcut.py").write_text(CODE)
    return folder


def command(folder: Path, *line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *line], cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_it_is_found_and_keeps_the_contract(checkout):
    done = command(checkout, "apex.conformance", "shortcut")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^ok +shortcut", done.stdout, flags=re.MULTILINE)) == 10


def test_its_settings_enter_the_schema(checkout):
    done = command(checkout, "apex.config", "--schema", "schema.json", "--defaults", "defaults.yaml")
    assert done.returncode == 0, done.stderr
    assert '"params-shortcut"' in (checkout / "schema.json").read_text()
    assert "levels: 5  # the shortest step is 2^-levels" in (checkout / "defaults.yaml").read_text()


def test_the_profile_of_the_page_is_checked_with_its_settings(checkout):
    profile = yaml.safe_load((checkout / "workflows/config/matrix.yaml").read_text())
    candidates = profile["tuning"]["candidates"] | YAML[0]["tuning"]["candidates"]
    profile |= {"methods": YAML[0]["methods"], "full": {}, "rows": YAML[0]["rows"], "tuning": {"candidates": candidates}}
    (checkout / "mine.yaml").write_text(yaml.safe_dump(profile))
    done = command(checkout, "apex.config", "mine.yaml", "--row", "shortcut-4")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["params"] == {"levels": 4}
    done = command(checkout, "apex.config", "mine.yaml", "--set", "rows.shortcut-4.params.levels=99")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "rows.shortcut-4.params.levels: found 99" in done.stderr and "shortcut.py" in done.stderr


# -------------------------------------------------------------------------------------------- outside the repository


def test_an_installed_package_brings_one_with_an_entry_point(tmp_path):
    """As the page's TOML declares it, in the form in which an installer leaves it."""
    (entry,) = re.findall(r'"apex.methods"\]\n(.*?)\n```', PAGE, flags=re.DOTALL)
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "shortcut.py").write_text(CODE)
    about = tmp_path / "my_package-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[apex.methods]\n{entry.replace(chr(34), '')}\n")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; from apex import methods; print(methods.get('shortcut').citation)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "Frans et al. 2024, arXiv 2410.12557", done.stderr


def test_two_methods_of_one_name_are_refused(tmp_path):
    (tmp_path / "lcm.py").write_text(CODE)
    with pytest.raises(UserError, match=r"a second method named 'lcm'; the first is .*apex/methods/lcm\.py"):
        methods.available([tmp_path / "lcm.py"])


@pytest.fixture(scope="module")
def outcome(make_workflow, tmp_path_factory):
    """One workflow with the example and three broken copies at paths of their own, `fm`, images alone, and a published number."""
    folder = tmp_path_factory.mktemp("baseline")
    outside = tmp_path_factory.mktemp("mine")
    (outside / "shortcut.py").write_text(CODE)
    for name, (old, new, _) in BROKEN.items():
        assert old in CODE
        (outside / f"{name}.py").write_text(CODE.replace(old, new).replace('"shortcut"', f'"{name.replace("_", "-")}"'))
    names = [name.replace("_", "-") for name in BROKEN]
    settings = {
        "method_files": [str(outside / f"{name}.py") for name in ("shortcut", *BROKEN)],
        "rows": {"unknown-setting": {"method": "fm", "params": {"levels": 3}}},
        "splits": {"test": ["geneval"]},
        "published": YAML[3]["published"],
    }
    first = make_workflow(folder, methods=["fm"], **settings)
    code, output = first.run("all")
    assert code == 0, output
    images = tmp_path_factory.mktemp("theirs") / "images"
    shutil.copytree(first.results / "images/fm/nfe1/seed0/test", images, ignore=shutil.ignore_patterns("made.json"))
    external = [YAML[2]["external"][0] | {"images": str(images)}]
    flow = make_workflow(folder, methods=["fm", *names, "unknown-setting", "shortcut"], external=external, **settings)
    code, output = flow.run("all")
    return flow, outside, code, output


def rows(flow) -> dict[str, dict[str, str]]:
    found = csv.DictReader((flow.results / "metrics.csv").open())
    return {row["row"]: row for row in found if row["metric"] == "geneval/overall" and row["split"] == "test"}


@pytest.mark.slow
def test_the_sound_rows_are_measured_beside_the_broken_ones(outcome):
    flow, _, code, output = outcome
    assert code != 0, "a broken row is no success"
    assert set(rows(flow)) == {"fm", "shortcut", "theirs"}, output


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(outcome, name):
    _, outside, _, output = outcome
    said = [line for line in output.splitlines() if line.startswith("error: ") and f"{name}.py" in line]
    assert said and all(str(outside / f"{name}.py") in line and BROKEN[name][2] in line for line in said)
    assert re.search("^error: ", output.rpartition("Traceback")[2], re.MULTILINE), "a line stands after the last traceback"


@pytest.mark.slow
def test_an_unknown_setting_of_a_row_is_one_line(outcome):
    flow, _, _, output = outcome
    said = [line for line in output.splitlines() if "rows.unknown-setting.params.levels" in line]
    assert said and all(line.startswith("error: ") and flow.profile.name in line and "unknown key 'levels'" in line for line in said)


@pytest.mark.slow
def test_all_of_them_stand_in_the_tables(outcome):
    """With citation, with `not run` where it failed; images alone and published numbers say what they are."""
    flow = outcome[0]
    text = (flow.results / "tables" / "comparison.md").read_text()
    assert "Frans et al. 2024" in text
    for row in ("fm", "shortcut", "theirs"):
        said = [line for line in text.splitlines() if re.match(rf"\|.*\b{row}\b", line)]
        assert any(f"{float(rows(flow)[row]['value']):.2f}" in line for line in said), text
    for row in ("no-import", "no-citation", "no-step", "unknown-setting"):
        assert any(row in line and "not run" in line for line in text.splitlines())
    assert any("Sana-Sprint 0.6B" in line and "0.72" in line and "published" in line for line in text.splitlines())
    assert (flow.results / "figures" / "index.html").is_file()


@pytest.mark.slow
def test_once_mended_it_runs_without_the_others_again(outcome):
    flow, outside, _, _ = outcome
    (outside / "no_step.py").write_text(CODE.replace('"shortcut"', '"no-step"'))
    _, output = flow.run("all", "--dry-run")
    assert re.search(r"^train +4$", output, flags=re.MULTILINE) and "runs/shortcut" not in output, output


def test_a_profile_may_not_give_a_published_number_a_measured_rows_name(tmp_path):
    path = tmp_path / "p.yaml"
    number = {"row": "fm", "nfe": 1, "metric": "fid", "value": 1.0, "source": "a table"}
    path.write_text(yaml.safe_dump({"profile": "mine", "methods": ["fm"], "published": [number]}))
    with pytest.raises(UserError, match="'fm' is a row that is measured; name it apart"):
        load(path)
