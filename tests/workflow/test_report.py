"""`snakemake report`: one file that shows all results in a browser that has no network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# What `.[tables]` does not bring cannot be found.
WITHOUT_TRAINING = """
import importlib.machinery as machinery
find = machinery.PathFinder.find_spec
absent = {"torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "open_clip", "cleanfid", "scipy", "safetensors",
          "tokenizers", "huggingface_hub", "webdataset", "pyarrow", "pandas"}
machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, path=None, target=None: None if name.split(".")[0] in absent else find(name, path, target)
)
"""


@pytest.mark.parametrize("target", ["report", "tables"])
def test_in_a_fresh_clone_the_committed_records_are_shown_without_training_and_its_packages(target, root, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT_TRAINING)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reference").symlink_to(root / "results" / "reference")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{root}"}
    line = [sys.executable, "-m", "snakemake", target, "-n", "-p", "--cores", "1", "--snakefile", str(root / "Snakefile")]
    done = subprocess.run([*line, "--directory", str(tmp_path)], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert re.search(rf"^{target} +1\ntotal +1$", said, re.MULTILINE), said
    assert "--results results/reference/world" in said and "--gallery results/world/pictures.html" in said
    assert not Path(tmp_path, "results", "world", "records").exists()


@pytest.fixture(scope="module")
def report(story, tmp_path_factory):
    """The report of the finished workflow, in a folder of its own."""
    assert story.code == 0, story.output
    flow = story.flow.copy(tmp_path_factory.mktemp("reported") / "copy")
    code, output = flow.run("report")
    assert code == 0, output
    return shutil.copy(flow.results / "report.html", tmp_path_factory.mktemp("report") / "report.html")


def entries(page, category: str) -> list[str]:
    """The names of what a category lists; leaves it open."""
    page.locator("a, button, li").filter(has_text=re.compile(f"^{re.escape(category)}$")).last.click()
    page.wait_for_function("document.querySelectorAll('table a').length > 0")
    return [row.locator("td").first.inner_text().strip() for row in page.locator("table tbody tr").all()]


def categories(page) -> list[str]:
    return re.findall(r"^\d\. .*$", page.inner_text("body"), flags=re.MULTILINE)


@pytest.mark.slow
def test_the_front_page_says_what_a_small_world_can_show(report, open_page):
    page = open_page(report)
    page.get_by_text("What it cannot show").wait_for()
    said = page.inner_text("body")
    assert "Does one-step generation by condition shifting hold?" in said and "neither confirms nor refutes a claim" in said
    assert re.search(r"apex, tuned \(\d+ claims\)", said)
    assert re.search(r"^holds here: \d+\. \w+", said, re.MULTILINE) and re.search(r"^not run: \d+\. \w+", said, re.MULTILINE)
    assert categories(page) == ["1. Claims and verdicts", "2. Tables", "3. Figures", "4. Audit of the paper's tables"]


@pytest.mark.slow
def test_every_entry_opens(report, open_page, story):
    """Verdicts, tables and audit as pages, figures as pictures, all from the one file."""
    page = open_page(report)
    page.get_by_text("What it cannot show").wait_for()
    found = {}
    for category in categories(page):
        page.goto(page.url.split("#")[0])
        page.get_by_text("What it cannot show").wait_for()
        found[category] = entries(page, category)
        for number, name in enumerate(found[category]):
            page.locator("table tbody tr").nth(number).locator("a[iconname=eye]").click()
            shown = page.locator("iframe, img[src^=data]").last
            shown.wait_for()
            if shown.evaluate("it => it.tagName") == "IMG":
                shown.evaluate("image => image.decode()")
                assert shown.evaluate("image => image.naturalWidth") > 100, name
            else:
                heading = page.frame_locator("iframe").locator("h1, h2").first
                heading.wait_for()
                assert len(heading.inner_text()) > 5, name
    assert found["1. Claims and verdicts"] == ["assumptions", "claims", "verdicts"]
    tables = {path.stem for path in (story.flow.results / "tables").glob("*.html")}
    assert set(found["2. Tables"]) == tables and len(tables) >= 9
    drawn = {path.stem for path in (story.flow.results / "figures").glob("*.png")}
    grids = {name for name in drawn if name.startswith(("grid", "sweep_"))}
    assert grids and set(found["3. Figures"]) == (drawn - grids) | {"all picture grids"}


@pytest.mark.slow
def test_tables_sort_and_filter_and_pictures_open_within_the_report(report, open_page):
    page = open_page(report)
    page.get_by_text("What it cannot show").wait_for()
    at = entries(page, "1. Claims and verdicts").index("claims")
    page.locator("table tbody tr").nth(at).locator("a[iconname=eye]").click()
    frame = page.frame_locator("iframe")
    rows = frame.locator("tbody tr:not(.s)")
    rows.first.wait_for()
    frame.locator("input.filter").fill("holds here -holds")
    assert not any(row.is_visible() for row in rows.all())
    frame.locator("input.filter").fill("duality")
    seen = [row.inner_text() for row in rows.all() if row.is_visible()]
    assert 0 < len(seen) < 6 and all("duality" in text.lower() for text in seen)
    page.goto(page.url.split("#")[0])
    page.get_by_text("What it cannot show").wait_for()
    at = entries(page, "3. Figures").index("all picture grids")
    page.locator("table tbody tr").nth(at).locator("a[iconname=eye]").click()
    grid = page.frame_locator("iframe").locator("figure img").first
    grid.click()
    assert grid.bounding_box()["width"] == grid.evaluate("image => image.naturalWidth") > 100
