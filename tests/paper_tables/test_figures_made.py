"""Figures from records, logs and images: made, of a size to read, not blank, with the right pictures in the right cells."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from paper_tables import curves, figures, grids, page
from paper_tables.plotting import FIXED, Label, colors, place_labels
from paper_tables.view import View

PLOTS = ("quality_latency", "coverage_quality", "nfe", "training", "shift_visibility", "calibration")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def has_color(image: np.ndarray, hexadecimal: str, count: int = 20) -> bool:
    wanted = np.array([int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(image - wanted).sum(2) < 12).sum() >= count


@pytest.mark.parametrize("name", [*PLOTS, *grids.NAMES])
def test_figure_is_made_of_a_size_to_read_and_not_blank(name: str, made: Path) -> None:
    image = pixels(made / "figures" / f"{name}.png")
    assert image.shape[0] > 350 and image.shape[1] > 700
    inked = (image.sum(2) < 3 * 250).mean()
    assert 0.005 < inked < 0.95
    half = image.shape[1] // 2
    assert (image[:, :half].sum(2) < 700).any() and (image[:, half:].sum(2) < 700).any()


@pytest.mark.parametrize("name", ["quality_latency", "coverage_quality", "nfe", "training"])
def test_every_method_is_drawn(name: str, made: Path) -> None:
    image = pixels(made / "figures" / f"{name}.png")
    assert all(has_color(image, FIXED[row]) for row in ("apex", "apex-eq25", "fm"))


def test_probe_shows_the_rows_that_have_one(made: Path) -> None:
    image = pixels(made / "figures" / "shift_visibility.png")
    assert has_color(image, FIXED["apex"]) and has_color(image, FIXED["apex-eq25"])
    assert not has_color(image, FIXED["fm"])


def test_better_quality_is_drawn_higher(make_results: Callable[..., Path], tmp_path: Path) -> None:
    """The blue marks of apex move up when its GenEval does."""
    heights = []
    for quality in (0.2, 0.8):
        results = make_results(str(quality), rows={("apex", 1): quality, ("fm", 1): 0.5})
        content = figures.png(figures.quality_latency(View.load(results)))
        (tmp_path / "one.png").write_bytes(content)
        blue = np.abs(pixels(tmp_path / "one.png") - [0, 0x72, 0xB2]).sum(2) < 12
        heights.append(np.nonzero(blue)[0].mean())
    assert heights[1] < heights[0] - 100


def lines(figure: Figure, panel: int, color: str) -> list[tuple[list[float], list[float]]]:
    """(x, y) of the lines of one colour in a panel that have more than two points."""
    found = [line for line in figure.axes[panel].lines if line.get_color() == color and len(line.get_xdata()) > 2]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in found]


def test_nfe_curves_have_the_tables_numbers(full_results: Path) -> None:
    figure = curves.against_nfe(View.load(full_results))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["GenEval ↑", "GenEval, unseen combinations ↑", "CLIP score ↑", "spread ↑", "recall ↑", "FID ↓"]
    for panel, wanted in ((0, [0.73, 0.79, 0.82]), (1, [0.37, 0.40, 0.415]), (4, [0.365, 0.395, 0.41]), (5, [20.8, 18.4, 17.2])):
        ((x, y),) = lines(figure, panel, FIXED["apex"])
        assert y == pytest.approx(wanted)
        assert x == pytest.approx([1, 2, 4], rel=0.05)
    levels = [line.get_ydata()[0] for line in figure.axes[0].lines if line.is_dashed()]
    assert sorted(levels) == pytest.approx([0.81, 0.95])  # the guided teacher, the real renders


def test_training_curves_have_the_logs_numbers(full_results: Path) -> None:
    figure = curves.training(full_results)
    assert [axes.get_title() for axes in figure.axes][:2] == ["loss", "grad_norm"]
    drawn = lines(figure, 0, FIXED["apex"])
    assert len(drawn) == 3  # a line per seed
    log = curves.read_log(full_results / "runs" / "apex" / "seed0" / "log.csv")
    assert (drawn[0][0], drawn[0][1]) == (list(log["forward_equivalents"]), list(curves.smooth(log["loss"], 3)))
    own = next(index for index, axes in enumerate(figure.axes) if axes.get_title() == "rectification")
    assert len(lines(figure, own, FIXED["apex"])) == 3 and not lines(figure, own, FIXED["fm"])


def test_probe_and_calibration_have_their_records_numbers(full_results: Path) -> None:
    drawn = lines(curves.shift_visibility(full_results), 0, FIXED["apex"])
    assert drawn == [([0.1, 0.3, 0.5, 0.7, 0.9], [0.9, 1.4, 1.9, 2.2, 2.6])] * 3
    figure = curves.calibration(full_results)
    assert [axes.get_title() for axes in figure.axes] == ["blur", "noise", "fade", "lost objects"]
    assert lines(figure, 0, "#1b1f24") == [([0.0, 1.0, 4.0], [1.0, 0.75, 0.0])]


# ------------------------------------------------------------------------------------------------------------- grids


def test_grid_cells_are_the_images_enlarged_without_smoothing(made: Path, full_results: Path) -> None:
    sheet = pixels(made / "figures" / "grid.png")
    folders = grids.image_folders(full_results / "images", "test")
    shown = [key for key in View.load(full_results).keys if key in folders and key not in grids.LEFT_OUT]
    chosen = grids.choose(grids.read_prompts(folders["apex", 1]))
    assert [prompt.task for prompt in chosen] == ["single_object", "two_object", "counting", "colors", "position", "color_attr"]
    step = grids.CELL + grids.GAP
    head = sheet.shape[0] - len(shown) * step
    for row, key in enumerate(shown):
        for column, prompt in enumerate(chosen):
            image = pixels(folders[key] / prompt.folder / "samples" / "0000.png")
            top, left = head + row * step, grids.LABEL_WIDTH + column * step
            cell = sheet[top : top + grids.CELL, left : left + grids.CELL]
            assert (cell == image.repeat(4, 0).repeat(4, 1)).all(), (key, prompt)


def test_a_missing_image_and_another_prompt_are_not_shown_as_pictures(make_results: Callable[..., Path]) -> None:
    results = make_results(rows={("apex", 1): 0.5, ("fm", 1): 0.5}, images=True)
    whole = np.asarray(grids.grids(results / "images", View.load(results))["grid"])
    first = grids.choose(grids.read_prompts(results / "images/apex/nfe1/seed0/test"))[0].folder
    (results / "images/apex/nfe1/seed0/test" / first / "samples/0000.png").unlink()
    other = results / "images/fm/nfe1/seed0/test" / first / "metadata.jsonl"
    other.write_text(json.dumps({"tag": "single_object", "prompt": "something else"}) + "\n")
    spoiled = np.asarray(grids.grids(results / "images", View.load(results))["grid"])
    assert spoiled.shape == whole.shape
    differs = (spoiled != whole).any(2)
    top, left = whole.shape[0] - 2 * (grids.CELL + grids.GAP), grids.LABEL_WIDTH
    assert differs[top:, left : left + grids.CELL].mean() > 0.5
    assert not differs[:, left + grids.CELL :].any() and not differs[:top].any()


def test_large_images_are_reduced(tmp_path: Path) -> None:
    Image.new("RGB", (1024, 512), "red").save(tmp_path / "large.png")
    assert grids._picture(tmp_path / "large.png", 128).size == (128, 64)


def test_choice_fills_the_columns_and_knows_only_the_place() -> None:
    prompts = [grids.Prompt(f"{i:05d}", f"p{i}", task) for i, task in enumerate(["colors"] * 10 + ["position"] * 10 + ["made up"] * 10)]
    chosen = grids.choose(prompts)
    assert [prompt.folder for prompt in chosen] == ["00002", "00007", "00012", "00017", "00022", "00027"]


def test_without_images_the_folders_own_grids_are_kept(
    make_results: Callable[..., Path], made: Path, run: Callable[..., int], tmp_path: Path
) -> None:
    results = make_results(rows={("apex", 1): 0.5})
    (results / "figures").mkdir()
    content = (made / "figures" / "grid.png").read_bytes()
    (results / "figures" / "grid.png").write_bytes(content)
    assert run(figures.main, "--results", results, "--out", tmp_path / "new") == 0
    assert (tmp_path / "new" / "grid.png").read_bytes() == content
    assert 'src="grid.png"' in (tmp_path / "new" / "index.html").read_text()


# ------------------------------------------------------------------------------------------------------------ the page


def test_page_shows_every_figure_and_table(made: Path) -> None:
    text = (made / "figures" / "index.html").read_text()
    sources = re.findall(r'src="([^"]+)"', text)
    assert sources == [f"{name}.png" for name in page.CAPTIONS]  # those with a source come in this order
    assert all((made / "figures" / source).is_file() for source in sources)
    targets = re.findall(r'href="#([^"]+)"', text)
    assert set(targets) == {*page.CAPTIONS, "relative", "world", "table1", "table2", "audit"}
    assert all(text.count(f'id="{target}"') == 1 for target in targets)
    assert "http" not in text.replace("https://arxiv.org", "") and "<script" not in text
    shown = html.unescape(re.sub("<[^>]+>", "", text))
    assert "apex at NFE 1: GenEval 0.73, 0.90 [" in shown and "spread 0.73" in shown
    assert "0.73 [0.69, 0.77]" in shown and "digit for digit" in shown


def test_without_logs_and_images_the_rest_is_made_and_said(
    make_results: Callable[..., Path], run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = make_results(rows={("real", 0): 0.9, ("apex", 1): 0.5}, skip=[("apex", "speed")])
    assert run(figures.main, "--results", results, "--out", tmp_path / "figures") == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["coverage_quality.png", "index.html", "nfe.png"]
    absent = said.split("has no source of them: ")[1].strip().split(", ")
    assert absent == ["quality_latency", "grid", "grid_unseen", "grid_samples", "training", "shift_visibility", "calibration"]


def test_equal_input_gives_equal_files(make_results: Callable[..., Path]) -> None:
    view = View.load(make_results(rows={("apex", 1): 0.5, ("apex", 2): 0.6}))
    assert figures.png(curves.against_nfe(view)) == figures.png(curves.against_nfe(view))


# --------------------------------------------------------------------------------------------------------------- errors

BROKEN = {
    "log without step": ("runs/apex/seed0/log.csv", "loss,other\n1,2\n", "column 'step' is missing"),
    "log with words": ("runs/apex/seed0/log.csv", "step,loss\n1,0.5\n2,low\n", "line 3, column 'loss': found 'low'"),
    "log cut off": ("runs/apex/seed0/log.csv", "step,loss\n1,0.5\n2\n", "line 3 has 1 cells, expected 2"),
    "made.json cut off": ("runs/apex/seed0/made.json", '{"shift_', "not JSON"),
    "probe of words": ("runs/apex/seed0/made.json", '{"shift_visibility": {"0.1": "much"}}', "key 'shift_visibility'"),
    "calibration of another shape": ("calibration/calibration.json", '{"curves": {"blur": [{}]}, "units": {}}', "not a calibration record"),
    "calibration is a list": ("calibration/calibration.json", "[]", "found list, expected a JSON object"),
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
    with pytest.raises(Exception, match=r"samples/0000\.png: not an image"):
        grids.grids(results / "images", View.load(results))


# ---------------------------------------------------------------------------------------------------------------- parts


def test_running_mean_by_hand() -> None:
    found = curves.smooth(np.array([1.0, np.nan, 4.0, 7.0]), 3)
    assert found.tolist() == pytest.approx([1.0, 2.5, 5.5, 5.5])
    assert np.isnan(curves.smooth(np.array([np.nan, np.nan]), 1)).all()


def test_colours_do_not_depend_on_order_and_differ() -> None:
    rows = ["apex", "lcm", "dmd2", "real"]
    found = colors(rows)
    assert found == colors(rows[::-1]) and len(set(found.values())) == 4
    assert found["apex"] == FIXED["apex"]


def test_labels_of_one_place_do_not_overlap() -> None:
    figure, (axes,) = figures.curves.panels(["one"], 1, "title", 8, 5)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    place_labels(axes, [Label(0.5, 0.5, f"label {index}", "black") for index in range(6)])
    figures.png(figure)
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines that lead to moved ones
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for index, a in enumerate(boxes) for b in boxes[:index])
