"""The files of others that the official protocols need: named, checked against their checksum, never opened before that.

    python -m evaluators.assets                                 what there is, what is here, whose it is
    python -m evaluators.assets fetch geneval-prompts inception

They are in `assets.yaml`, and come to results/assets, or to the folder that APEX_ASSETS names. A file that another way has brought there
is as good: it is its checksum that counts.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from apex.command import Parser
from apex.errors import UserError, run_command
from apex.files import atomic_file, write_atomic
from apex.provenance import file_sha256

BUNDLED = Path(__file__).resolve().parent / "pretrained" / "world"  # the networks that score the embedded world
REGISTRY = Path(__file__).with_name("assets.yaml")
CHUNK = 1 << 20  # bytes
PATIENCE = 60  # seconds without an answer


@dataclass(frozen=True)
class Asset:
    """A file: where it is from, where it lies, and what it must hash to (all of it, its first digits, or nothing known)."""

    name: str
    what: str
    url: str
    file: str
    sha256: str
    size: str
    licence: str

    @property
    def path(self) -> Path:
        return folder() / self.file

    @property
    def seen(self) -> Path:
        """Where the checksum of the first fetch is written down."""
        return self.path.with_name(self.path.name + ".sha256")

    @property
    def expected(self) -> str:
        """What it must hash to, or the digits known of that; "" before its first fetch where its publisher states none."""
        if self.sha256 or not self.seen.is_file():
            return self.sha256
        return self.seen.read_text().strip()


def folder() -> Path:
    return Path(os.environ.get("APEX_ASSETS") or "results/assets")


@cache
def registry() -> dict[str, Asset]:
    return {name: Asset(name=name, **about) for name, about in yaml.safe_load(REGISTRY.read_text()).items()}


def locate(name: str, given: Path | str | None = None, option: str = "") -> Path:
    """The path of a file of others, unread: the one `given`, or the fetched one.

    Raises:
        UserError: it is not there, with both ways to get it.
    """
    asset = registry()[name]
    if given is not None:
        if not Path(given).exists():
            raise UserError(f"{option or 'path'} {given}: not found; expected {asset.what} ({asset.url})")
        return Path(given)
    if not asset.path.is_file():
        other = f" or give {option} PATH" if option else ""
        raise UserError(
            f"{asset.path}: not found; it is {asset.what} ({asset.size}, {asset.licence}): python -m evaluators.assets fetch {name}{other}"
        )
    return asset.path


def find(name: str, given: Path | str | None = None, option: str = "") -> Path:
    """As `locate`; of the fetched one the checksum is verified, the one `given` is taken as it is.

    Raises:
        UserError: it is not there; or it is another file than the one that is named.
    """
    path = locate(name, given, option)
    if given is None:
        check(registry()[name], path)
    return path


def at(path: Path) -> str | None:
    """The name of the file of others that belongs at this path; None where none does."""
    return next((name for name, asset in registry().items() if asset.path.absolute() == path.absolute()), None)


def check(asset: Asset, path: Path) -> str:
    """The SHA-256 of the file, after it was held against the one that is known."""
    found = file_sha256(path)
    if not found.startswith(asset.expected):
        more = "" if len(asset.expected) == 64 else "..."
        raise UserError(
            f"{path}: SHA-256 is {found}, expected {asset.expected}{more}; it is not {asset.what}, or not whole: "
            f"delete it, then python -m evaluators.assets fetch {asset.name}"
        )
    return found


def fetch(name: str) -> Path:
    """Fetches a file unless it is there; it takes its name only when its checksum is right.

    Raises:
        UserError: no such name, no network, or another file came.
    """
    from evaluators.command import progress  # with torch, which `find` does without

    asset = _known(name)
    if asset.path.is_file():
        check(asset, asset.path)
        return asset.path
    import urllib.error
    import urllib.request

    coming = asset.path.with_name(f".{asset.path.name}.coming")
    try:
        with urllib.request.urlopen(asset.url, timeout=PATIENCE) as answer, atomic_file(coming) as file:
            pieces = iter(lambda: answer.read(CHUNK), b"")
            for piece in progress(pieces, max(1, -(-int(answer.headers.get("Content-Length") or 0) // CHUNK)), f"{name}, MiB"):
                file.write(piece)
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise UserError(
            f"{name}: could not be fetched from {asset.url} ({error}); fetch it elsewhere and put it at {asset.path}"
        ) from error
    try:
        found = check(asset, coming)
        coming.rename(asset.path)
        write_atomic(asset.seen, found + "\n")
    finally:
        coming.unlink(missing_ok=True)
    return asset.path


def _known(name: str) -> Asset:
    if name not in registry():
        raise UserError(f"{name}: no such file of others; known are {', '.join(registry())}")
    return registry()[name]


def main() -> None:

    parser = Parser("evaluators.assets", __doc__)
    parser.add_argument("what", nargs="*", metavar="fetch NAME ...", help="without: a list")
    args = parser.parse_args()
    if not args.what:
        for asset in registry().values():
            state = "here" if asset.path.is_file() else "not here"
            print(f"{asset.name}: {state}, {asset.path}\n    {asset.what}; {asset.size}, {asset.licence}\n    {asset.url}")
        return
    if args.what[0] != "fetch" or len(args.what) == 1:
        raise UserError(f"{' '.join(args.what)}: expected nothing, or fetch and names of {', '.join(registry())}")
    for name in args.what[1:]:
        _known(name)
    for name in args.what[1:]:
        print(f"{name}: {fetch(name)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
