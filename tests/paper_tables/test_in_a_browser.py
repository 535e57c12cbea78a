"""The pages as a reader uses them, in a browser: tables sort and filter, pictures show and open, nothing fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paper_tables import figures
from paper_tables.render import Cell, Column, Line, Table, html_fragment, page

Open = Callable[[Path], Any]


def texts(rows: Any, column: int = 0) -> list[str]:
    """What stands in this column of the rows that are seen; a section's heading has the first alone."""
    seen = [row.locator("td") for row in rows.all() if row.is_visible()]
    return [cells.nth(column).inner_text().strip() for cells in seen if column < cells.count()]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A table with sections, numbers as the tables write them, and a row that goes on with the name of the one above."""
    table = Table(
        "t", "T", "Words.", [Column("name", "name", numeric=False), Column("value", "value"), Column("kind", "kind", numeric=False)]
    )
    given = [
        ("first", "apex", "0.5 [0.4, 0.6]", "full"),
        ("", "", "1,200", "lora"),
        ("second", "lcm", "−3.5", "full"),
        ("", "add", "not run", "lora"),
        ("", "pcm", "2e-3", "Zeta"),
    ]
    for section, name, value, kind in given:
        table.lines.append(Line({"name": Cell(name), "value": Cell(value), "kind": Cell(kind)}, section))
    path = tmp_path / "t.html"
    path.write_text(page("T", html_fragment(table)))
    return path


def test_a_click_on_a_head_sorts_and_a_third_one_restores(open_page: Open, small: Path) -> None:
    shown = open_page(small)
    rows, head = shown.locator("tbody tr"), shown.locator("thead th").nth(1)
    before = texts(rows)
    assert before == ["first", "apex", "", "second", "lcm", "add", "pcm"] and head.get_attribute("aria-sort") == "none"
    head.click()
    assert texts(rows, 1) == ["−3.5", "2e-3", "0.5 [0.4, 0.6]", "1,200", "not run"]
    assert texts(rows) == ["lcm", "pcm", "apex", "apex", "add"]  # the second row of apex has its name where it stands alone
    assert head.get_attribute("aria-sort") == "ascending"
    head.press("Enter")
    assert texts(rows, 1) == ["1,200", "0.5 [0.4, 0.6]", "2e-3", "−3.5", "not run"]  # what has no number stays below
    assert head.get_attribute("aria-sort") == "descending"
    head.click()
    assert texts(rows) == before and head.get_attribute("aria-sort") == "none"
    shown.locator("thead th").nth(2).click()
    assert texts(rows, 2) == ["full", "full", "lora", "lora", "Zeta"]  # words, not codes of letters
    assert texts(rows) == ["apex", "lcm", "apex", "add", "pcm"]  # equal ones keep their order


def test_words_filter_the_rows(open_page: Open, small: Path) -> None:
    shown = open_page(small)
    rows, search = shown.locator("tbody tr"), shown.locator("input.filter")
    before = texts(rows)
    search.fill("LORA")
    assert texts(rows) == ["first", "apex", "second", "add"] and texts(rows, 1) == ["1,200", "not run"]
    search.fill("apex lora")  # the row's own words, and the name that it goes on with
    assert texts(rows) == ["first", "apex"]
    shown.locator("thead th").nth(1).click()
    assert texts(rows, 1) == ["1,200"]
    search.fill("second")  # a section's heading
    assert texts(rows, 1) == ["−3.5", "2e-3", "not run"]
    search.fill("nothing such")
    assert texts(rows) == []
    search.fill("")
    for _ in range(2):
        shown.locator("thead th").nth(1).click()
    assert texts(rows) == before


def test_merged_cells_count_as_their_columns(open_page: Open, tmp_path: Path) -> None:
    table = Table("t", "T", "Words.", [Column(key, key, "group", numeric=key != "a") for key in "abc"])
    for name, cells in {"x": (Cell("not run", merge=True),) * 2, "y": (Cell("1"), Cell("7")), "z": (Cell("2"), Cell("3"))}.items():
        table.lines.append(Line({"a": Cell(name), "b": cells[0], "c": cells[1]}))
    (tmp_path / "t.html").write_text(page("T", html_fragment(table)))
    shown = open_page(tmp_path / "t.html")
    assert shown.locator("td[colspan]").count() == 1
    shown.locator("thead tr").last.locator("th").nth(2).click()
    assert texts(shown.locator("tbody tr")) == ["z", "y", "x"]


def test_the_page_of_results_shows_every_picture_and_opens_it(open_page: Open, made: Path) -> None:
    shown = open_page(made / "figures" / "index.html")
    images = shown.locator("figure img")
    assert images.count() == len(list((made / "figures").glob("*.png")))
    for image in images.all():
        image.scroll_into_view_if_needed()  # they load when they are seen
        image.evaluate("image => image.decode()")
        assert image.evaluate("image => image.naturalWidth") > 100
    grid = shown.locator("#figure-grid img")
    small = grid.bounding_box()["width"]
    grid.click()
    assert grid.bounding_box()["width"] == grid.evaluate("image => image.naturalWidth") >= small
    shown.keyboard.press("Escape")
    assert grid.bounding_box()["width"] == small


def test_the_comparison_sorts_by_geneval(open_page: Open, made: Path) -> None:
    shown = open_page(made / "tables" / "comparison.html")
    table = shown.locator("table").first
    heads = table.locator("thead tr").last.locator("th")
    at = [head.inner_text().split()[0] for head in heads.all()].index("overall")
    heads.nth(at).click()
    values = [float(text.split()[0].rstrip("abcdefgh")) for text in texts(table.locator("tbody tr"), at) if text[:1].isdigit()]
    assert len(values) > 3 and values == sorted(values) and not any(map(math.isnan, values))


def test_the_gallery_needs_no_file_beside_it(open_page: Open, full_results: Path, run: Callable[..., int], tmp_path: Path) -> None:
    assert run(figures.main, "--results", full_results, "--out", tmp_path / "figures", "--gallery", tmp_path / "pictures.html") == 0
    grids = [path.stem for path in (tmp_path / "figures").glob("*.png") if path.stem.startswith(("grid", "sweep_"))]
    (tmp_path / "figures").rename(tmp_path / "elsewhere")
    shown = open_page(tmp_path / "pictures.html")
    images = shown.locator("figure img")
    assert images.count() == len(grids) > 2
    for image in images.all():
        image.scroll_into_view_if_needed()
        image.evaluate("image => image.decode()")
