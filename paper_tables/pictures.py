"""The images that the grids show, kept with committed results: pictures/<row>.zip, laid out as images/ is.

Sampled images are too many to commit. With the few that grids show, every grid is drawn again without a network, and a
matrix that is run in several sittings has all its rows in one.

    python -m paper_tables.pictures --images FOLDER --out pictures.zip    one prompt set's, as ablations keep them
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from apex.command import Parser
from apex.errors import UserError, run_command
from apex.files import write_atomic
from evaluators.images import failure
from paper_tables.archives import Folder, Points, opened
from paper_tables.grids import COLUMNS, SAMPLES, choose, in_four, read_prompts

FOLDER = "pictures"
EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's first day: the same pictures make the same file


def shown(folder: Folder) -> list[Folder]:
    """The files of one point's images of one prompt set that a grid can show."""
    prompts = choose(read_prompts(folder), COLUMNS)
    several = in_four(prompts)
    found = []
    for prompt in prompts:
        place = folder / prompt.folder
        wanted = [place / "samples" / f"{k:04d}.png" for k in range(SAMPLES if prompt in several else 1)]
        found += [place / "metadata.jsonl", *(file for file in wanted if file.is_file())]
    return found


@contextmanager
def gathered(results: Sequence[Path]) -> Iterator[Points]:
    """Of every point what the last of `results` has that holds it, in images/ or else in its pictures/."""
    with ExitStack() as stack:
        archives = [stack.enter_context(opened(path)) for one in results for path in sorted((one / FOLDER).glob("*.zip"))]
        sources: list[Folder] = [*archives, *(one / "images" for one in results)]
        found = {"/".join(point.parts[-4:]): point for source in sources for point in source.glob("[!.]*/nfe*/seed*/[!.]*")}
        yield Points(dict(sorted(found.items(), key=lambda item: item[0].split("/"))))


def pack(files: Mapping[str, Folder]) -> bytes:
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
        for row in dict.fromkeys(name.split("/")[0] for name in images.found):
            if rows is not None and row not in rows:
                continue
            mine = {name: folder for name, folder in images.found.items() if name.startswith(f"{row}/")}
            lowest: dict[str, str] = {}  # NFE -> seed
            for _, nfe, seed, _ in (name.split("/") for name in mine):
                lowest[nfe] = min(lowest.get(nfe, seed), seed, key=lambda one: (len(one), one))
            files = {}
            for name, folder in mine.items():
                if name.split("/")[2] == lowest[name.split("/")[1]]:
                    files |= {f"{name}/{file.relative_to(folder)}": file for file in shown(folder)}
            written.append(out / f"{row}.zip")
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
