"""A figure is drawn where its data, its settings or the code changed, and nowhere else; what is kept is what drawing would give."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from paper_tables import drawn, figures

PLOT, GRID = "quality_latency.png", "grid.png"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of three rows with everything that a figure is made from; not to be changed."""
    from tests.paper_tables.conftest import build

    rows = {("apex", 1): 0.5, ("apex", 2): 0.6, ("fm", 1): 0.3, ("fm", 2): 0.4, ("real", 0): 0.9}
    return build(tmp_path_factory.mktemp("source") / "results", rows, runs=True, images=True, calibration=True, tuning=True)


@pytest.fixture(scope="module")
def once(source: Path, run: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The figures of `source`; not to be changed."""
    out = tmp_path_factory.mktemp("once")
    assert run(figures.main, "--results", source, "--out", out) == 0
    return out


@pytest.fixture
def again(source: Path, once: Path, run: Callable[..., int], tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """again(change, *options): `change` gets copies of `source` and of its figures; drawn there again, what the pictures are then."""

    def draw(change: Callable[[Path, Path], object] = lambda results, out: None, *options: object) -> dict[str, bytes]:
        results, out = tmp_path / "results", tmp_path / "out"
        shutil.copytree(source, results)
        shutil.copytree(once, out)
        change(results, out)
        assert run(figures.main, "--results", results, "--out", out, *options) == 0
        return pictures(out)

    return draw


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def stamp_of(path: Path) -> str:
    with Image.open(path) as image:
        return image.info[drawn.KEY]


def marked(path: Path, stamp: str) -> bytes:
    """Writes a red picture with that stamp to `path`, so that whoever draws the figure again is seen to; its content."""
    text, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    if stamp:
        text.add_text(drawn.KEY, stamp)
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG", pnginfo=text)
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def test_what_did_not_change_is_not_drawn_again_and_stays_the_same_file(
    source: Path, once: Path, run: Callable[..., int], tmp_path: Path
) -> None:
    out = shutil.copytree(once, tmp_path / "out")
    red = {name: marked(out / name, stamp_of(out / name)) for name in pictures(out)}
    files = {path.name: path.stat().st_ino for path in out.glob("*.png")}
    assert run(figures.main, "--results", source, "--out", out) == 0
    assert pictures(out) == red and {path.name: path.stat().st_ino for path in out.glob("*.png")} == files


def test_figures_beside_committed_records_are_taken_as_they_are(source: Path, once: Path, run: Callable[..., int], tmp_path: Path) -> None:
    results = shutil.copytree(source, tmp_path / "results")
    shutil.copytree(once, results / "figures")
    red = marked(results / "figures" / PLOT, stamp_of(once / PLOT))
    marked(results / "figures" / GRID, "of other data")
    assert run(figures.main, "--results", results, "--out", tmp_path / "out") == 0
    assert pictures(tmp_path / "out") == pictures(once) | {PLOT: red}


def edited(file: str, old: str, new: str) -> Callable[[Path, Path], object]:
    """A change of one place in one file of the results."""

    def change(results: Path, out: Path) -> None:
        content = (results / file).read_text()
        assert content.count(old) >= 1
        (results / file).write_text(content.replace(old, new, 1))

    return change


def seconds(results: Path, out: Path) -> None:
    """Another latency of one row."""
    path = results / "records/fm/nfe1/seed0/test/speed.json"
    record = json.loads(path.read_text())
    record["metrics"][0] |= {"value": 0.0123, "ci_low": 0.0122, "ci_high": 0.0124}
    path.write_text(json.dumps(record))


def pixel(results: Path, out: Path) -> None:
    for path in (results / "images/apex/nfe2/seed0/test").glob("*/samples/0000.png"):
        with Image.open(path) as image:
            image.load()
        image.putpixel((0, 0), (1, 2, 3))
        image.save(path)


CHANGES = {
    "a number": (seconds, {PLOT, "tasks.png", "nfe.png"}, {"calibration.png", GRID, "sweep_apex.png"}),
    "the probe": (edited("runs/apex/seed0/made.json", '"0.1": 0.9', '"0.1": 0.7'), {"shift_visibility.png"}, {"calibration.png", GRID}),
    "a log": (edited("runs/apex/seed0/log.csv", "\n40,", "\n41,"), {"training.png"}, {"calibration.png", GRID}),
    "the calibration": (edited("calibration/calibration.json", '"n": 300', '"n": 301'), {"calibration.png"}, {PLOT, GRID}),
    "the tuning": (edited("tune/tuning.json", "0.55", "0.52"), {"tuning.png"}, {"calibration.png", GRID}),
    "a pixel of one row": (pixel, {"grid_nfe2.png", "sweep_apex.png"}, {GRID, "sweep_fm.png", PLOT}),
    "a prompt": (
        edited("images/fm/nfe1/seed0/test/00001/metadata.jsonl", "prompt number 1", "other words"),
        {"sweep_fm.png"},
        {PLOT, "sweep_apex.png"},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_is_drawn_and_nothing_else(name: str, once: Path, again: Callable[..., dict[str, bytes]]) -> None:
    change, changes, stay = CHANGES[name]
    before, after = pictures(once), again(change)
    assert {file for file in changes | stay if before[file] != after[file]} == changes


def test_a_setting_of_the_profile_draws_what_shows_it(once: Path, again: Callable[..., dict[str, bytes]], profile: Path) -> None:
    """The profile names a row that was not run, which every plot of rows says; the calibration shows no rows."""
    before, after = pictures(once), again(lambda results, out: None, "--config", profile)
    assert before[PLOT] != after[PLOT] and before[GRID] != after[GRID] and before["calibration.png"] == after["calibration.png"]


def test_another_code_draws_everything_again(source: Path, once: Path, run: Callable[..., int], tmp_path: Path, monkeypatch) -> None:
    out = shutil.copytree(once, tmp_path / "out")
    red = {name: marked(out / name, stamp_of(out / name)) for name in pictures(out)}
    monkeypatch.setattr(drawn, "code", lambda: "another")
    assert run(figures.main, "--results", source, "--out", out) == 0
    assert all(content != red[name] for name, content in pictures(out).items())
    assert all(stamp_of(out / name) != stamp_of(once / name) for name in red)


def test_the_code_is_every_file_that_draws(tmp_path: Path, monkeypatch) -> None:
    """A change of any of them, and none of what only trains."""
    root = Path(drawn.HERE.parent)
    for name in ("apex", "evaluators", "paper_tables"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "pretrained", "*.safetensors"))
    before = drawn.code.__wrapped__()
    monkeypatch.setattr(drawn, "HERE", tmp_path / "paper_tables")
    assert drawn.code.__wrapped__() == before

    def changed(file: str) -> bool:
        content = (tmp_path / file).read_text()
        (tmp_path / file).write_text(content + "\n# \n")
        found = drawn.code.__wrapped__() != before
        (tmp_path / file).write_text(content)
        return found

    draws = ("paper_tables/plotting.py", "paper_tables/published/table1.csv", "evaluators/statistics.py", "apex/methods/apex.py")
    assert all(map(changed, draws)) and not any(map(changed, ("apex/train.py", "evaluators/fid/inception.py")))
    program = (
        "import sys, paper_tables.figures; print(*(getattr(m, '__file__', None) or '' for m in list(sys.modules.values())), sep='\\n')"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.splitlines()
    ours = {Path(file).relative_to(root).as_posix() for file in loaded if Path(file).is_relative_to(root) and ".venv" not in file}
    others = {file for file in ours if not file.startswith(("paper_tables/", f"{drawn.METHODS}/"))}
    assert others <= set(drawn.IMPORTED), "add them to drawn.IMPORTED"


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-12],
    "a bit of its pixels": lambda content: flipped(content, len(content) // 2),
    "empty": lambda content: b"",
    "no picture": lambda content: b"text",
}


def test_a_damaged_or_foreign_file_is_drawn_again(once: Path, again: Callable[..., dict[str, bytes]]) -> None:
    def damage(results: Path, out: Path) -> None:
        names = iter(sorted(pictures(out)))
        for fault in FAULTS.values():
            for name in (next(names), next(names)):
                (out / name).write_bytes(fault((out / name).read_bytes()))
        for stamp in ("", "of something else"):
            marked(out / next(names), stamp)

    assert again(damage) == pictures(once)


def test_what_is_kept_is_what_drawing_gives(again: Callable[..., dict[str, bytes]], run: Callable[..., int], tmp_path: Path) -> None:
    found = again(lambda results, out: [CHANGES[name][0](results, out) for name in ("a number", "a pixel of one row")])
    assert run(figures.main, "--results", tmp_path / "results", "--out", tmp_path / "new") == 0
    assert pictures(tmp_path / "new") == found


PROGRAM = """
import os, sys, time
from pathlib import Path
from paper_tables import drawn
os.sched_getaffinity = lambda pid: {0, 1}
folder = Path(sys.argv[1])
def job():
    (folder / str(os.getpid())).touch()
    time.sleep(60)
drawn.run({str(n): job for n in range(6)})
"""


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_processes_that_draw_end_with_the_command(by: signal.Signals, tmp_path: Path) -> None:
    command = subprocess.Popen([sys.executable, "-c", PROGRAM, tmp_path], stderr=subprocess.DEVNULL)
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert command.pid not in workers
    command.send_signal(by)
    command.wait(30)
    until(lambda: not any(map(alive, workers)))


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(holds: Callable[[], bool]) -> None:
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("not within a minute")
