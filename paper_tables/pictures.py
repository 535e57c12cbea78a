"""The images that the grids show, kept with committed results: pictures/<row>.zip, laid out as images/ is.

Sampled images are too many to commit. With the few that grids show, every grid is drawn again without a network, and a
matrix that is run in several sittings has all its rows in one.

    python -m paper_tables.pictures --images FOLDER --out pictures.zip    one prompt set's, as ablations keep them
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from apex.command import Parser
from apex.errors import UserError, run_command
from apex.files import write_atomic
from evaluators.images import failure
from paper_tables.grids import COLUMNS, SAMPLES, choose, in_four, read_prompts

FOLDER = "pictures"
EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's first day: the same pictures make the same file


def shown(folder: Path) -> list[Path]:
    """The files of one point's images of one prompt set that a grid can show."""
    prompts = choose(read_prompts(folder), COLUMNS)
    several = in_four(prompts)
    found = []
    for prompt in prompts:
        place = folder / prompt.folder
        wanted = [place / "samples" / f"{k:04d}.png" for k in range(SAMPLES if prompt in several else 1)]
        found += [place / "metadata.jsonl", *filter(Path.is_file, wanted)]
    return found


@contextmanager
def gathered(results: Sequence[Path]) -> Iterator[Path]:
    """A folder like images/: of every point what the last of `results` has that holds it, in images/ or else in its pictures/."""
    archives = [path for one in results for path in sorted((one / FOLDER).glob("*.zip"))]
    if not archives and len(results) == 1:
        yield results[0] / "images"
        return
    with tempfile.TemporaryDirectory(prefix="pictures.") as name:
        merged = Path(name)
        for path in archives:
            unpack(path, merged)
        for images in (one / "images" for one in results):
            for point in images.glob("[!.]*/nfe*/seed*/[!.]*"):
                place = merged / point.relative_to(images)
                shutil.rmtree(place, ignore_errors=True)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(point.resolve(), target_is_directory=True)
        yield merged


def unpack(path: Path, out: Path) -> None:
    """Writes an archive's pictures into `out`, which none of them leaves."""
    try:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(out)
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise UserError(f"{path}: not a readable zip archive ({type(error).__name__}); remove it, or restore it from git") from None


def pack(files: Mapping[str, Path]) -> bytes:
    """An archive of name -> file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, file in files.items():
            info = zipfile.ZipInfo(name, EPOCH)
            info.external_attr = 0o644 << 16
            archive.writestr(info, file.read_bytes())
    return buffer.getvalue()


def keep(results: Sequence[Path], out: Path, rows: Collection[str] | None = None) -> list[Path]:
    """Writes one archive a row to `out` (of `rows`, if given): of each of its NFEs the lowest seed. Returns their paths."""
    written = []
    with gathered(results) as images:
        for row in sorted(path for path in images.glob("[!.]*") if path.is_dir() and (rows is None or path.name in rows)):
            files = {}
            for point in sorted(row.glob("nfe*")):
                seeds = sorted(point.glob("seed*"), key=lambda path: (len(path.name), path.name))
                for folder in sorted(seeds[0].glob("[!.]*")) if seeds else []:
                    files |= {file.relative_to(images).as_posix(): file for file in shown(folder)}
            written.append(out / f"{row.name}.zip")
            write_atomic(written[-1], pack(files))
    return written


def main() -> None:
    parser = Parser("paper_tables.pictures", __doc__)
    parser.add_argument("--images", type=Path, required=True, help="images of one prompt set, in GenEval's layout")
    parser.add_argument("--out", type=Path, required=True, help="the archive")
    args = parser.parse_args()
    if not (files := shown(args.images)) and not failure(args.images):
        raise UserError(f"{args.images}: found no images, expected NNNNN/metadata.jsonl and NNNNN/samples; sample again")
    write_atomic(args.out, pack({file.relative_to(args.images).as_posix(): file for file in files}))


if __name__ == "__main__":
    sys.exit(run_command(main))
