"""Figures from records, logs and images: made, of a size to read, not blank, with the right pictures in the right cells."""

from __future__ import annotations

import html
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from apex.config import load
from apex.errors import UserError
from paper_tables import curves, figures, grids, page, pictures, plotting, records, scatter
from paper_tables.expected import Expected
from paper_tables.plotting import looks
from paper_tables.view import TASKS, View

PLOTS = (
    *("quality_latency", "quality_memory", "quality_budget", "coverage_quality", "nfe", "training", "tuning"),
    *("paired", "relative", "tasks", "cost", "table1", "table2", "table3", "table4", "shift_visibility", "calibration"),
)
GRIDS = ("grid", "grid_nfe2", "grid_nfe4", "grid_unseen", "grid_samples", "sweep_apex", "sweep_apex-eq25", "sweep_fm", "sweep_teacher")
LOOK = looks({"apex": "self-adversarial", "apex-eq25": "self-adversarial", "fm": "control"})


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def has_color(image: np.ndarray, hexadecimal: str, count: int = 20) -> bool:
    wanted = np.array([int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(image - wanted).sum(2) < 12).sum() >= count


@pytest.mark.parametrize("name", [*PLOTS, *GRIDS])
def test_figure_is_made_of_a_size_to_read_and_not_blank(name: str, made: Path) -> None:
    image = pixels(made / "figures" / f"{name}.png")
    assert image.shape[0] > 240 and image.shape[1] > 700
    inked = (image.sum(2) < 3 * 250).mean()
    assert 0.005 < inked < 0.95
    half = image.shape[1] // 2
    assert (image[:, :half].sum(2) < 700).any() and (image[:, half:].sum(2) < 700).any()


@pytest.mark.parametrize("name", ["quality_latency", "quality_memory", "quality_budget", "coverage_quality", "nfe"])
def test_every_method_is_drawn(name: str, made: Path) -> None:
    image = pixels(made / "figures" / f"{name}.png")
    assert all(has_color(image, LOOK[row].color) for row in ("apex", "apex-eq25", "fm"))


def test_probe_shows_the_rows_that_have_one(made: Path) -> None:
    image = pixels(made / "figures" / "shift_visibility.png")
    assert has_color(image, LOOK["apex"].color) and has_color(image, LOOK["apex-eq25"].color)
    assert not has_color(image, LOOK["fm"].color)


def test_better_quality_is_drawn_higher(make_results: Callable[..., Path], tmp_path: Path) -> None:
    """The blue marks of apex move up when its GenEval does."""
    heights = []
    for quality in (0.2, 0.8):
        results = make_results(str(quality), rows={("apex", 1): quality, ("fm", 1): 0.5})
        content = plotting.png(scatter.quality_latency(View.load(results)))
        (tmp_path / "one.png").write_bytes(content)
        blue = np.abs(pixels(tmp_path / "one.png") - [0, 0x72, 0xB2]).sum(2) < 12
        heights.append(np.nonzero(blue)[0].mean())
    assert heights[1] < heights[0] - 100


def lines(figure: Figure, panel: int, color: str) -> list[tuple[list[float], list[float]]]:
    """(x, y) of the lines of one colour in a panel that have more than two points."""
    found = [line for line in figure.axes[panel].lines if line.get_color() == color and len(line.get_xdata()) > 2]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in found]


def test_nfe_curves_have_the_tables_numbers(full_results: Path) -> None:
    """A column per family: apex is drawn in its own, and pale in the control's."""
    figure = curves.against_nfe(View.load(full_results))
    heads = ["GenEval ↑", "GenEval, unseen ↑", "CLIP score ↑", "spread ↑", "recall ↑", "FID ↓"]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["self-adversarial", "control"]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == heads
    wanted = {"GenEval ↑": [0.73, 0.79, 0.82], "GenEval, unseen ↑": [0.37, 0.40, 0.415], "recall ↑": [0.365, 0.395, 0.41]}
    for head, values in (wanted | {"FID ↓": [20.8, 18.4, 17.2]}).items():
        own, other = (2 * heads.index(head) + column for column in (0, 1))
        ((x, y),) = lines(figure, own, LOOK["apex"].color)
        assert y == pytest.approx(values)
        assert x == pytest.approx([1, 2, 4], rel=0.05)
        assert not lines(figure, other, LOOK["apex"].color)
        assert any(pale == pytest.approx(values) for _, pale in lines(figure, other, plotting.FAINT))
    levels = [line.get_ydata()[0] for line in figure.axes[0].lines if line.is_dashed()]
    assert sorted(levels) == pytest.approx([0.81, 0.95])  # the guided teacher, the real renders


def test_sweep_shows_the_rows_with_many_nfes_and_the_teachers_curve(make_results: Callable[..., Path]) -> None:
    rows = {("apex", nfe): 0.5 + 0.02 * nfe for nfe in (1, 2, 4, 8, 20)} | {("fm", nfe): 0.3 for nfe in (1, 2)}
    view = View.load(make_results(rows=rows | {("teacher", nfe): 0.02 * nfe for nfe in (1, 2, 25)}))
    figure = curves.nfe_sweep(view)
    assert [axes.get_title() for axes in figure.axes] == ["GenEval ↑", "FID ↓", "coverage: spread ↑"]
    assert lines(figure, 0, LOOK["apex"].color) == [([1, 2, 4, 8, 20], pytest.approx([0.52, 0.54, 0.58, 0.66, 0.9]))]
    assert lines(figure, 0, plotting.TEACHER_COLOR) == [([1, 2, 25], pytest.approx([0.02, 0.04, 0.5]))]
    assert not lines(figure, 0, LOOK["fm"].color) and {text.get_text() for text in figure.axes[0].texts} == {"apex", "teacher"}
    assert curves.nfe_sweep(View.load(make_results("few", rows={("apex", 1): 0.5, ("apex", 2): 0.6}))) is None


def test_a_sweep_is_of_one_seed_though_some_nfes_have_more(make_results: Callable[..., Path]) -> None:
    """Seed 2 scores 0.02 more than seed 0; a curve of means at two NFEs and of one seed at the others would bend there."""
    rows = {("apex", nfe): 0.5 for nfe in (1, 2, 4, 8, 16)}
    results = make_results(rows=rows | {("teacher", 25): 0.8})
    make_results(rows={("apex", 1): 0.5, ("apex", 2): 0.5}, seeds=(1, 2))
    ((_, y),) = lines(curves.nfe_sweep(View.load(results)), 0, LOOK["apex"].color)
    assert y == [0.5] * 5
    assert View.load(results).get(("apex", 1), "geneval/overall").value == pytest.approx(0.51)


def test_memory_is_drawn_whole_and_without_the_steps_part(full_results: Path) -> None:
    figure = scatter.quality_memory(View.load(full_results))
    for index, wanted in enumerate(({"apex": 100.0, "apex-eq25": 120.0, "fm": 100.0}, {"apex": 20.0, "apex-eq25": 40.0, "fm": 20.0})):
        marks = {line.get_color(): line.get_xdata()[0] for line in figure.axes[index].lines if line.get_marker() not in ("None", "", None)}
        assert {row: marks[LOOK[row].color] for row in wanted} == pytest.approx(wanted)
        assert {text.get_text() for text in figure.axes[index].texts} == set(wanted)


def test_budget_joins_tuning_and_other_folders_with_the_final_run(full_results: Path, make_results: Callable[..., Path]) -> None:
    other = make_results("other", rows={("apex", 1): 0.6}, tuning=True)
    for path in (other / "records").rglob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"training": record["training"] | {"forward_equivalents": 60000}}))
    figure = scatter.quality_budget(View.load(full_results), [View.load(other)])
    assert lines(figure, 0, LOOK["apex"].color) == [([30000, 60000, 120000], pytest.approx([0.55, 0.6, 0.73]))]
    assert scatter.quality_budget(View(records.load(full_results))) is None  # one budget: nothing to compare


def test_tuning_is_the_results_own_or_the_one_that_the_profiles_settings_are_from(full_results: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "p.yaml").write_text("{profile: p, methods: [apex]}")
    results, committed = tmp_path / "results" / "p", tmp_path / "results" / "reference" / "p" / "tune"
    shutil.copytree(full_results, results)
    monkeypatch.chdir(tmp_path)
    expected = Expected.of(load(tmp_path / "p.yaml"))
    assert View.load(results, expected).tuning == results / "tune" / "tuning.json"
    shutil.move(results / "tune", committed)
    assert View.load(results, expected).tuning.resolve() == committed / "tuning.json"
    assert View.load(results).tuning is None


def test_budgets_that_differ_by_a_step_are_one_budget_and_a_variant_has_no_tuned_candidate(make_results: Callable[..., Path]) -> None:
    """Runs end at the step that spends the budget, so their sums differ a little; `apex` was tuned, `apex-slow` has other settings."""
    results = make_results(rows={("apex", 1): 0.5, ("apex-slow", 1): 0.6})
    for path in (results / "records" / "apex-slow").rglob("*.json"):
        record = json.loads(path.read_text()) | {"method": "apex", "family": "self-adversarial"}
        path.write_text(json.dumps(record | {"training": record["training"] | {"forward_equivalents": 121000}}))
    assert scatter.quality_budget(View.load(results)) is None
    make_results(rows={}, tuning=True)
    (axes,) = scatter.quality_budget(View.load(results)).axes
    drawn = sorted({line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1})
    assert drawn == [30000, 120000, 121000]
    assert not any(list(line.get_xdata()) == [30000, 121000] for line in axes.lines)


def test_probe_and_calibration_have_their_records_numbers(full_results: Path) -> None:
    drawn = lines(curves.shift_visibility(full_results, View.load(full_results)), 0, LOOK["apex"].color)
    assert len(drawn) == 3
    for x, y in drawn:
        assert (x, y) == (pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=0.02), [0.9, 1.4, 1.9, 2.2, 2.6])
    figure = curves.calibration(full_results)
    assert [axes.get_title() for axes in figure.axes] == ["blur", "noise", "fade", "lost objects"]
    assert lines(figure, 0, "#1b1f24") == [([0.0, 1.0, 4.0], [1.0, 0.75, 0.0])]


# ------------------------------------------------------------------------------------------------------------- grids


SIDE = 96  # 32 pixels, three times


def test_grid_cells_are_the_images_enlarged_without_smoothing(made: Path, full_results: Path) -> None:
    view = View.load(full_results)
    for name, nfe in (("grid", 1), ("grid_nfe4", 4)):
        sheet = pixels(made / "figures" / f"{name}.png")
        folders = grids.image_folders(full_results / "images", "test")
        rows = grids.rows_at(view, folders, nfe)
        teacher = [("teacher", 25), ("teacher", 1)] if nfe == 1 else [("teacher", 25)]
        methods = [(row, nfe) for row in ("apex", "apex-eq25", "fm")]
        assert [row.key for row in rows] == [("real", 0), ("mean", 0), *teacher, *methods]
        assert [row.heading for row in rows if row.heading] == ["self-adversarial", "control"]
        chosen = grids.choose(grids.read_prompts(folders["apex", 1]), grids.COLUMNS)
        assert [prompt.task for prompt in chosen] == [task for task in TASKS for _ in range(2)]
        *tops, bottom = grids.places(rows, 0, SIDE)
        head = sheet.shape[0] - bottom
        for row, top in zip(rows, tops, strict=True):
            for column, prompt in enumerate(chosen):
                image = pixels(folders[row.key] / prompt.folder / "samples" / "0000.png")
                left = grids.LABEL_WIDTH + column * (SIDE + grids.GAP)
                cell = sheet[head + top : head + top + SIDE, left : left + SIDE]
                assert (cell == image.repeat(3, 0).repeat(3, 1)).all(), (row.key, prompt)


def test_a_rows_sweep_has_its_nfes_below_each_other(full_results: Path) -> None:
    sheet = np.asarray(grids.grids(full_results / "images", View.load(full_results))["sweep_apex"])
    folders = grids.image_folders(full_results / "images", "test")
    prompt = grids.choose(grids.read_prompts(folders["apex", 1]), grids.COLUMNS)[0]
    for place, key in enumerate([("apex", 4), ("apex", 2), ("apex", 1), ("real", 0)]):  # from below
        image = pixels(folders[key] / prompt.folder / "samples" / "0000.png")
        top = sheet.shape[0] - (place + 1) * (SIDE + grids.GAP)
        assert (sheet[top : top + SIDE, grids.LABEL_WIDTH : grids.LABEL_WIDTH + SIDE] == image.repeat(3, 0).repeat(3, 1)).all(), key


def test_a_missing_image_and_another_prompt_are_not_shown_as_pictures(make_results: Callable[..., Path]) -> None:
    results = make_results(rows={("apex", 1): 0.5, ("fm", 1): 0.5}, images=True)
    whole = np.asarray(grids.grids(results / "images", View.load(results))["grid"])
    first = grids.choose(grids.read_prompts(results / "images/apex/nfe1/seed0/test"), grids.COLUMNS)[0].folder
    (results / "images/apex/nfe1/seed0/test" / first / "samples/0000.png").unlink()
    other = results / "images/fm/nfe1/seed0/test" / first / "metadata.jsonl"
    other.write_text(json.dumps({"tag": "single_object", "prompt": "something else"}) + "\n")
    spoiled = np.asarray(grids.grids(results / "images", View.load(results))["grid"])
    assert spoiled.shape == whole.shape
    differs = (spoiled != whole).any(2)
    left, lower = grids.LABEL_WIDTH, whole.shape[0] - SIDE - grids.GAP
    upper = lower - SIDE - grids.GAP - grids.HEADING
    for top in (upper, lower):
        assert differs[top : top + SIDE, left : left + SIDE].mean() > 0.5
    assert not differs[:, left + SIDE :].any() and not differs[:upper].any()


def cell_of(sheet: np.ndarray, rows: list[grids.Row], place: int, column: int) -> np.ndarray:
    """One picture of a grid without a remark below."""
    *tops, bottom = grids.places(rows, 0, SIDE)
    top, left = sheet.shape[0] - bottom + tops[place], grids.LABEL_WIDTH + column * (SIDE + grids.GAP)
    return sheet[top : top + SIDE, left : left + SIDE]


def paint(folder: Path, color: tuple[int, int, int]) -> None:
    """One colour for every image of a folder."""
    for path in folder.glob("*/samples/*.png"):
        Image.new("RGB", (32, 32), color).save(path)


def test_a_sweep_shows_one_seed_at_every_nfe(make_results: Callable[..., Path]) -> None:
    """Seed 0 is red and seed 1 blue. NFE 1 has both, NFE 2 and 4 seed 1 alone, NFE 8 seed 0 alone: three of four have seed 1."""
    results = make_results(rows={("apex", nfe): 0.5 for nfe in (1, 2, 4, 8)}, images=True)
    images = results / "images" / "apex"
    for nfe in (1, 2, 4, 8):
        paint(images / f"nfe{nfe}" / "seed0" / "test", (255, 0, 0))
        if nfe == 1:
            shutil.copytree(images / "nfe1" / "seed0", images / "nfe1" / "seed1")
        elif nfe < 8:
            (images / f"nfe{nfe}" / "seed0").rename(images / f"nfe{nfe}" / "seed1")
        paint(images / f"nfe{nfe}" / "seed1" / "test", (0, 0, 255))
    sheet = np.asarray(grids.grids(results / "images", View.load(results))["sweep_apex"])
    assert has_color(sheet, "#0000ff", 3 * 12 * SIDE * SIDE) and not has_color(sheet, "#ff0000", 1)


def test_rows_of_a_grid_are_of_one_seed_or_say_which(make_results: Callable[..., Path]) -> None:
    results = make_results(rows={("apex", 1): 0.5, ("fm", 1): 0.5, ("lcm", 1): 0.5, ("scm", 1): 0.5}, images=True)
    for row in ("apex", "fm"):  # these have seed 1 as well; seed 0 is that of most
        shutil.copytree(results / "images" / row / "nfe1" / "seed0", results / "images" / row / "nfe1" / "seed1")
    (results / "images/scm/nfe1/seed0").rename(results / "images/scm/nfe1/seed3")
    view = View.load(results)
    folders = grids.image_folders(results / "images", "test", view)
    assert {key[0]: grids.seed_of(folder) for key, folder in folders.items()} == {"apex": 0, "fm": 0, "lcm": 0, "scm": 3}
    below = {row.key[0]: row.below for row in grids.rows_at(view, folders, 1, usual=0)}
    assert below == {"apex": "NFE 1", "fm": "NFE 1", "lcm": "NFE 1", "scm": "NFE 1, seed 3"}


def test_images_from_elsewhere_stand_in_the_grid_by_the_prompts_text(
    make_results: Callable[..., Path], bring_images: Callable[..., None], tmp_path: Path
) -> None:
    """The folder counts its prompts backwards; its cells are of the same prompts nonetheless. Of another NFE, it is in the first grid."""
    results = make_results(rows={("apex", 1): 0.5}, images=True)
    own, theirs = results / "images/apex/nfe1/seed0/test", tmp_path / "theirs"
    count = len(list(own.glob("[0-9]*")))
    for folder in own.glob("[0-9]*"):
        shutil.copytree(folder, theirs / f"{count - 1 - int(folder.name):05d}")
    bring_images(results, "theirs", 8, 0.6)
    profile = tmp_path / "p.yaml"
    profile.write_text(
        f"{{profile: p, methods: [apex], nfe: [1], budget: {{forward_equivalents: 120000}}, "
        f"external: [{{row: theirs, nfe: 8, images: '{theirs}'}}]}}"
    )
    view = View.load(results, Expected.of(load(profile)))
    folders = grids.image_folders(results / "images", "test", view)
    sheet = np.asarray(grids.grids(results / "images", view)["grid"])
    rows = grids.rows_at(view, folders, 1, elsewhere=True)
    assert [(row.key, row.heading) for row in rows] == [(("apex", 1), "self-adversarial"), (("theirs", 8), "external")]
    for column in range(grids.COLUMNS):
        apex, other = (cell_of(sheet, rows, place, column) for place in (0, 1))
        assert (apex == other).all() and apex.std() > 0


def test_rows_without_images_are_named_below_the_grid(make_results: Callable[..., Path], profile: Path) -> None:
    results = make_results(rows={("apex", 1): 0.5}, images=True)
    alone, named = (
        grids.grids(results / "images", View.load(results, expected))["grid"] for expected in (None, Expected.of(load(profile)))
    )
    assert named.width == alone.width and named.height == alone.height + grids.LINE + grids.GAP
    below = np.asarray(named)[alone.height :]
    assert (below < 200).any() and (np.asarray(named)[: alone.height] == np.asarray(alone)).all()


def test_size_of_a_picture() -> None:
    assert [grids.cell_side(side) for side in (16, 32, 64, 128, 1024)] == [112, 96, 128, 128, 128]


def test_large_images_are_reduced(tmp_path: Path) -> None:
    Image.new("RGB", (1024, 512), "red").save(tmp_path / "large.png")
    assert grids._picture(tmp_path / "large.png", 128).size == (128, 64)


def test_choice_fills_the_columns_and_knows_only_the_place() -> None:
    prompts = [grids.Prompt(f"{i:05d}", f"p{i}", task) for i, task in enumerate(["colors"] * 10 + ["position"] * 10 + ["made up"] * 10)]
    chosen = grids.choose(prompts)
    assert [prompt.folder for prompt in chosen] == ["00002", "00007", "00012", "00017", "00022", "00027"]


def test_kept_pictures_give_the_same_grids(full_results: Path, made: Path, run: Callable[..., int], tmp_path: Path) -> None:
    """As in a clone: records and pictures/, no images/. Kept again, they are the same files."""
    results, again = tmp_path / "results", tmp_path / "again"
    shutil.copytree(full_results, results, ignore=shutil.ignore_patterns("images"))
    kept = pictures.keep([full_results], results / pictures.FOLDER)
    assert {path.stem for path in kept} == {path.name for path in (full_results / "images").iterdir()}
    assert run(figures.main, "--results", results, "--out", tmp_path / "new") == 0
    for name in GRIDS:
        assert (tmp_path / "new" / f"{name}.png").read_bytes() == (made / "figures" / f"{name}.png").read_bytes(), name
    pictures.keep([results], again)
    assert all((again / path.name).read_bytes() == path.read_bytes() for path in kept)
    with zipfile.ZipFile(results / pictures.FOLDER / "apex.zip") as archive:
        images = [name for name in archive.namelist() if name.startswith("apex/nfe1/seed0/test") and name.endswith(".png")]
    assert len(images) == grids.COLUMNS + 2 * (grids.SAMPLES - 1)


def test_new_images_stand_beside_kept_ones_and_replace_those_of_the_same_point(make_results: Callable[..., Path], tmp_path: Path) -> None:
    """apex and fm are kept, apex is made again and lcm is new: the grid has the new apex, the kept fm, and lcm."""
    results = make_results(rows={("apex", 1): 0.5, ("fm", 1): 0.5}, images=True)
    kept = pictures.keep([results], results / pictures.FOLDER)
    shutil.rmtree(results / "images")
    make_results(rows={("apex", 1): 0.5, ("lcm", 1): 0.5}, images=True)
    paint(results / "images/apex/nfe1/seed0/test", (255, 0, 0))
    with pictures.gathered([results]) as images:
        rows = grids.rows_at(View.load(results), grids.image_folders(images, "test"), 1)
        assert [row.key[0] for row in rows] == ["lcm", "apex", "fm"]
        sheet = np.asarray(grids.grids(images, View.load(results))["grid"])
    assert (cell_of(sheet, rows, 1, 0) == (255, 0, 0)).all()
    assert all(cell_of(sheet, rows, place, 0).std() > 0 for place in (0, 2))
    assert (results / "images/apex/nfe1/seed0/test").is_dir()  # what was gathered is gone, the images are not
    assert {path.stem for path in pictures.keep([results], results / pictures.FOLDER)} == {"apex", "fm", "lcm"} and len(kept) == 2


def test_an_archive_that_cannot_be_read_or_leads_outside(make_results: Callable[..., Path], tmp_path: Path) -> None:
    results = make_results(rows={("apex", 1): 0.5}, images=True)
    path = pictures.keep([results], results / pictures.FOLDER)[0]
    shutil.rmtree(results / "images")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../outside.txt", "x")
    before = sorted(tmp_path.rglob("*"))
    with pictures.gathered([results]) as images:
        assert grids.grids(images, View.load(results))
        assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked, there or elsewhere
    content = path.read_bytes()
    path.write_bytes(content.replace(b"IDAT", b"IDAX"))
    with pytest.raises(UserError, match=r"pictures/apex\.zip: not a readable zip archive"), pictures.gathered([results]) as images:
        grids.grids(images, View.load(results))
    path.write_bytes(content[:200])
    with pytest.raises(UserError, match=r"pictures/apex\.zip: not a readable zip archive"), pictures.gathered([results]):
        pass


# ------------------------------------------------------------------------------------------------------------ the page


def test_page_shows_every_figure_and_table(made: Path) -> None:
    text = (made / "figures" / "index.html").read_text()
    sources = re.findall(r'src="([^"]+)"', text)
    assert sorted(sources) == sorted(path.name for path in (made / "figures").glob("*.png"))
    assert sources[:5] == ["quality_latency.png", "grid.png", "grid_nfe2.png", "grid_nfe4.png", "grid_unseen.png"]
    targets = re.findall(r'href="#([^"]+)"', text)
    tables = {"comparison", "paired", "cost", "stability", "relative", "world", "table1", "table2", "table3", "table4", "audit", "tuning"}
    assert set(targets) == tables | {f"figure-{source.removesuffix('.png')}" for source in sources}
    assert all(text.count(f'id="{target}"') == 1 for target in targets)
    assert "http" not in text.replace("https://arxiv.org", "") and "<script src" not in text
    shown = html.unescape(re.sub("<[^>]+>", "", text))
    assert "apex at NFE 1: GenEval 0.73, 0.90 [" in shown and "spread 0.73" in shown
    assert "0.73 [0.69, 0.77]" in shown and "digit for digit" in shown


def test_every_table_has_its_plot_right_below_it(made: Path) -> None:
    """But for the audit, which is text."""
    text = (made / "figures" / "index.html").read_text()
    order = re.findall(r'id="([^"]+)"', text)
    tables = [name for name in order if not name.startswith("figure-")]
    assert set(tables) == {*page.PLOTS, "audit"} - {"sweep", "repeated"}  # too few NFEs for a sweep, and nothing committed to compare with
    for name in tables[:-1]:
        below = order[order.index(name) + 1].removeprefix("figure-")
        assert below in page.PLOTS[name], name


def test_every_figure_has_a_place_on_the_page() -> None:
    placed = [*page.FIRST, *(plot for plots in page.PLOTS.values() for plot in plots)]
    assert len(placed) == len(set(placed))
    assert {name for name in placed if name not in ("grid_nfe", "sweep_")} == set(page.CAPTIONS)
    names = ["sweep_fm", "grid_nfe10", "nfe_sweep", "grid_nfe2", "table2", "grid", "quality_latency", "sweep_apex"]
    order = ["quality_latency", "grid", "grid_nfe2", "grid_nfe10", "nfe_sweep", "sweep_apex", "sweep_fm", "table2"]
    assert page.ordered(names) == order


def test_without_logs_and_images_the_rest_is_made_and_said(
    make_results: Callable[..., Path], run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = make_results(rows={("real", 0): 0.9, ("apex", 1): 0.5}, skip=[("apex", "speed")])
    assert run(figures.main, "--results", results, "--out", tmp_path / "figures") == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        *(
            "cost.png",
            "coverage_quality.png",
            "index.html",
            "nfe.png",
            "quality_memory.png",
            "table2.png",
            "table3.png",
            "table4.png",
            "tasks.png",
        )
    ]
    absent = said.split("has no source of them: ")[1].strip().split(", ")
    assert absent == [
        *("quality_latency", "grid", "grid_unseen", "grid_samples", "paired", "quality_budget"),
        *("training", "nfe_sweep", "tuning", "relative", "table1", "shift_visibility", "calibration"),
    ]


def test_equal_input_gives_equal_files(make_results: Callable[..., Path]) -> None:
    view = View.load(make_results(rows={("apex", 1): 0.5, ("apex", 2): 0.6}))
    assert plotting.png(curves.against_nfe(view)) == plotting.png(curves.against_nfe(view))


# --------------------------------------------------------------------------------------------------------------- errors

BROKEN = {
    "log without step": ("runs/apex/seed0/log.csv", "loss,other\n1,2\n", "column 'step' is missing"),
    "log with words": ("runs/apex/seed0/log.csv", "step,loss\n1,0.5\n2,low\n", "line 3, column 'loss': found 'low'"),
    "log cut off": ("runs/apex/seed0/log.csv", "step,loss\n1,0.5\n2\n", "line 3 has 1 cells, expected 2"),
    "made.json cut off": ("runs/apex/seed0/made.json", '{"shift_', "not JSON"),
    "probe of words": ("runs/apex/seed0/made.json", '{"shift_visibility": {"0.1": "much"}}', "shift_visibility.0.1: found 'much'"),
    "calibration of another shape": ("calibration/calibration.json", '{"curves": {"blur": [{}]}, "units": {}}', "not a calibration record"),
    "calibration is a list": ("calibration/calibration.json", "[]", "found a JSON list, expected an object"),
    "metadata cut off": (
        "images/apex/nfe1/seed0/test/00000/metadata.jsonl",
        '{"prompt',
        "expected one JSON object with the keys prompt and tag",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_one_line_that_names_it(
    fault: str, make_results: Callable[..., Path], run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = make_results(rows={("apex", 1): 0.5})
    file, content, says = BROKEN[fault]
    (results / file).parent.mkdir(parents=True)
    (results / file).write_text(content)
    assert run(figures.main, "--results", results, "--out", tmp_path / "figures") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {results / file}: ") and says in error and error.count("\n") == 1
    assert not (tmp_path / "figures").exists()


def test_a_broken_image_is_named(make_results: Callable[..., Path]) -> None:
    results = make_results(rows={("apex", 1): 0.5}, images=True)
    for path in (results / "images/apex/nfe1/seed0/test").glob("*/samples/0000.png"):
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(Exception, match=r"samples/0000\.png: found .*, expected a whole PNG"):
        grids.grids(results / "images", View.load(results))
