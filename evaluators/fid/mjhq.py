"""MJHQ-30K, the images and prompts that FID and CLIP score are published on: its archive unpacked, its prompts as a prompt file.

    python -m evaluators.assets fetch mjhq-meta mjhq-images
    python -m evaluators.fid.mjhq unpack --out MJHQ-30K               meta_data.json and CATEGORY/ID.jpg below it
    python -m evaluators.fid.mjhq prompts --out mjhq.jsonl --limit 5000

The prompt file has a line {"tag": category, "id": ..., "prompt": ...} for each entry of meta_data.json, in its order; `--limit N` takes the
first N, as SANA's `sample_nums` does, so that `python -m evaluators.fid.reference --limit N` has the same ones.
"""

from __future__ import annotations

import json
import shutil
import stat
import sys
import zipfile
from pathlib import Path, PurePosixPath

from apex.command import COUNT, Parser
from apex.errors import UserError, run_command
from apex.files import atomic_file, read_json, write_atomic
from evaluators.assets import find
from evaluators.command import progress

META = "meta_data.json"
SHOWN = 5  # faults named in an error; the rest are counted


def read_meta(path: Path) -> dict[str, dict[str, str]]:
    """meta_data.json: {id: {"category": ..., "prompt": ...}}, in its order.

    Raises:
        UserError: not that, or an id or category that is not a plain name (they become paths).
    """
    rows = read_json(path, f"give MJHQ-30K's {META}")
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"{path}: expected an object of entries by id; it is MJHQ-30K's {META} that is asked for")
    for name, row in rows.items():
        for key in ("category", "prompt"):
            if not isinstance(row, dict) or not isinstance(row.get(key), str) or not row[key].strip():
                raise UserError(f"{path}: {name}: {key} missing or not a text")
        for part in (name, row["category"]):
            if part in (".", "..") or "/" in part or "\\" in part or "\0" in part:
                raise UserError(f"{path}: {name}: {part!r} is not a plain name of a file or folder")
    return rows


def image_files(folder: Path, rows: dict[str, dict[str, str]]) -> list[Path]:
    """The file of every entry: CATEGORY/ID.jpg in the folder, in its mjhq30k_imgs or in its imgs.

    Raises:
        UserError: some are missing, the first named, all counted.
    """
    first = next(iter(rows.values()))["category"]
    places = [folder / place for place in ("mjhq30k_imgs", "imgs", ".") if (folder / place / first).is_dir()]
    root = places[0] if places else folder
    paths = [root / row["category"] / f"{name}.jpg" for name, row in rows.items()]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        named = ", ".join(str(p.relative_to(folder)) for p in missing[:SHOWN])
        raise UserError(f"{folder}: {len(missing)} of {len(paths)} images of {META} are not there: {named}; unpack mjhq30k_imgs.zip again")
    return paths


def unpack(archive: Path, out: Path) -> int:
    """Unpacks the archive's images into a folder; those that are there whole already are left. Returns their number.

    Raises:
        UserError: not an archive, or a member would leave the folder, is a link, or is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if not m.is_dir()]
            for member in members:
                _check_member(member, archive)
            for member in progress(members, len(members), "mjhq, files"):
                path = out / PurePosixPath(member.filename)
                if path.is_file() and path.stat().st_size == member.file_size:
                    continue
                with opened.open(member) as source, atomic_file(path) as file:
                    shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive}: could not be unpacked ({error}); fetch it again, or free some space") from error
    return len(members)


def _check_member(member: zipfile.ZipInfo, archive: Path) -> None:
    path = PurePosixPath(member.filename)
    link = stat.S_ISLNK(member.external_attr >> 16)
    if link or not path.parts or path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in path.parts[0]:
        raise UserError(f"{archive}: member {member.filename!r} {'is a link' if link else 'leads out of the folder'}; nothing was unpacked")


def main(argv: list[str] | None = None) -> None:
    parser = Parser("evaluators.fid.mjhq", __doc__)
    parser.add_argument("what", choices=("unpack", "prompts"))
    parser.add_argument("--out", required=True, type=Path, help="unpack: the folder; prompts: the prompt file (JSON lines)")
    parser.add_argument("--archive", type=Path, help="mjhq30k_imgs.zip (default: the fetched asset mjhq-images)")
    parser.add_argument("--meta", type=Path, help="meta_data.json (default: the fetched asset mjhq-meta)")
    parser.add_argument("--limit", type=COUNT, help="prompts: the first N")
    args = parser.parse_args(argv)
    meta = find("mjhq-meta", args.meta, "--meta")
    rows = read_meta(meta)
    if args.what == "prompts":
        if args.limit is not None and not 1 <= args.limit <= len(rows):
            raise UserError(f"--limit {args.limit}: expected 1 to {len(rows)}, the entries of {meta}")
        lines = [{"tag": row["category"], "id": name, "prompt": row["prompt"]} for name, row in list(rows.items())[: args.limit]]
        write_atomic(args.out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        print(f"{args.out}: {len(lines)} prompts")
        return
    archive = find("mjhq-images", args.archive, "--archive")
    count = unpack(archive, args.out)
    write_atomic(args.out / META, meta.read_bytes())
    image_files(args.out, rows)
    print(f"{args.out}: {count} files, every image of {META} among them")


if __name__ == "__main__":
    sys.exit(run_command(main))
