"""What generated images are compared with: the features of real ones, made once and kept with what they depend on.

    python -m evaluators.fid.reference --images MJHQ-30K --protocol pytorch-fid --resolution 512 --out mjhq_512.safetensors

The folder is MJHQ-30K's (`meta_data.json` beside the images), one in GenEval's layout, or any folder of images. `--limit N` takes the
first N, as SANA's `sample_nums` does of meta_data.json. A call that was cut off goes on where it was when it is given again.

The file (safetensors; nothing is unpickled) holds mean and covariance, the features themselves, so that KID, parts by category and the
floor need no image again, each image's category, and, checked on reading: protocol, resolution, number, SHA-256 of the weights, digest of
the images, checksum of its own tensors. `python -m evaluators.fid --reference` also takes the .npz of `mu` and `sigma` that pytorch-fid and
SANA's code write; it states none of this, and allows FID alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from apex.command import BATCH_SIZE, COUNT, RESOLUTION, THREADS, Parser
from apex.data.pictures import SUFFIXES
from apex.data.prompts import read_layout
from apex.errors import UserError, run_command
from apex.files import write_atomic
from apex.gpu import pick_device
from apex.provenance import file_sha256
from evaluators.assets import find
from evaluators.command import check_out, set_threads
from evaluators.fid import PROTOCOLS
from evaluators.fid.distance import Gaussian, check_features, moments
from evaluators.fid.mjhq import META, image_files, read_meta
from evaluators.images import refuse_left_out, some

if TYPE_CHECKING:
    from evaluators.fid.inception import Feed, Network


@dataclass(frozen=True)
class Listed:
    """The images of a folder in order, each with its category ("" where it has none)."""

    paths: list[Path]
    categories: list[str]


@dataclass(frozen=True)
class Reference:
    """Mean, covariance and, unless the file has only these, features (n, d) with each image's category; and what they depend on."""

    gaussian: Gaussian
    identity: dict[str, Any]
    features: np.ndarray | None = None
    categories: np.ndarray | None = None

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """The features of each category; empty where there are none."""
        if self.features is None or self.categories is None:
            return {}
        return {name: self.features[self.categories == name] for name in sorted(set(self.categories.tolist())) if name}


def listed(folder: Path, limit: int | None = None) -> Listed:
    """The images of a folder: by its meta_data.json, by GenEval's layout, or all below it by path.

    Raises:
        UserError: no images, some of meta_data.json's missing, or fewer than `limit`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected images, or a file of statistics (.safetensors, .npz)")
    if (folder / META).is_file():
        rows = read_meta(folder / META)
        paths, categories = image_files(folder, rows), [row["category"] for row in rows.values()]
        named = set(paths)
        below = (p for category in dict.fromkeys(p.parent for p in paths) for p in sorted(category.iterdir()))
        if unnamed := [p.relative_to(folder).as_posix() for p in below if p.suffix.lower() in SUFFIXES and p not in named]:
            print(f"warning: {folder}: {len(unnamed)} images that {META} does not name are left out: {some(unnamed)}", file=sys.stderr)
    elif any((p / "metadata.jsonl").is_file() for p in folder.iterdir()):
        prompts = list(read_layout(folder))
        paths = [path for _, _, images in prompts for path in images]
        categories = [row.get("category") or row.get("tag", "") for _, row, images in prompts for _ in images]
    else:
        found = [
            p for p in sorted(folder.rglob("*")) if not any(part.startswith((".", "__MACOSX")) for part in p.relative_to(folder).parts)
        ]
        paths = [p for p in found if p.suffix.lower() in SUFFIXES]
        refuse_left_out(folder, [p for p in found if p.suffix.lower() not in SUFFIXES and not p.is_dir()], "images")
        categories = [""] * len(paths)
    if limit is not None and not 2 <= limit <= len(paths):
        raise UserError(f"--limit {limit}: expected 2 to {len(paths)}, the images of {folder}")
    if len(paths) < 2:
        raise UserError(f"{folder}: {len(paths)} images; a reference needs at least 2 ({', '.join(SUFFIXES)})")
    return Listed(paths[:limit], categories[:limit])


def make(folder: Path, feed: Feed, network: Network, kept: Path, *, limit: int | None, batch: int, threads: int) -> Reference:
    """The reference of a folder; `kept`, `batch`, `threads` as in `inception.file_features`. Real images are never compressed again."""
    from evaluators.fid.inception import file_features

    feed = replace(feed, jpeg=None)
    images = listed(folder, limit)
    features = file_features(images.paths, feed, network, kept, batch, threads, "reference")
    identity = asdict(feed) | {"n": len(images.paths), "weights": network.sha256, "files": features.files}
    identity["departures"] = features.departures
    return Reference(Gaussian(*moments(features.values, folder), folder), identity, features.values, np.array(images.categories))


def write(reference: Reference, path: Path) -> None:
    """Writes a reference with features, whole or not at all."""
    names, index = np.unique(reference.categories, return_inverse=True)
    tensors = {
        "mean": reference.gaussian.mean,
        "covariance": reference.gaussian.covariance,
        "features": reference.features,
        "category": index.astype(np.int32),
    }
    about = {"identity": json.dumps(reference.identity), "categories": json.dumps(names.tolist()), "checksum": _checksum(tensors)}
    write_atomic(path, save({name: np.ascontiguousarray(values) for name, values in tensors.items()}, metadata=about))


def _checksum(tensors: dict[str, np.ndarray]) -> str:
    every = hashlib.sha256()
    for name in sorted(tensors):
        every.update(np.ascontiguousarray(tensors[name]).tobytes())
    return every.hexdigest()


def read(path: Path, feed: Feed, weights: str) -> Reference:
    """A reference from a file, which must be for this feed and these weights where it says what it is for.

    Raises:
        UserError: not a file of statistics, damaged, not finite, not symmetric, or of another protocol, resolution or network.
    """
    if path.suffix == ".npz":
        return _read_npz(path)
    try:
        with safe_open(path, "np") as file:
            about, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        identity, names = json.loads(about["identity"]), json.loads(about["categories"])
        if about["checksum"] != _checksum(tensors):
            raise ValueError("its checksum is another: it was changed or damaged")
        mean, covariance, features, index = (tensors[name] for name in ("mean", "covariance", "features", "category"))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a reference of `python -m evaluators.fid.reference` ({error}); make it again") from error
    expected = asdict(replace(feed, jpeg=None)) | {"weights": weights}
    for key, value in expected.items():
        if identity.get(key) != value:
            raise UserError(
                f"{path}: {key} is {identity.get(key)!r}, this call's is {value!r}; make the reference with the same, or change the call"
            )
    gaussian = Gaussian(mean, covariance, path)
    check_features(features, path, len(mean))
    if index.shape != (len(features),) or (len(index) and not 0 <= index.min() <= index.max() < len(names)):
        raise UserError(f"{path}: category: found numbers that fit neither {len(features)} images nor {len(names)} names; make it again")
    return Reference(gaussian, identity, features, np.array(names)[index])


def _read_npz(path: Path) -> Reference:
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = file["mu"].astype(np.float64), file["sigma"].astype(np.float64)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not statistics as pytorch-fid writes them, mu and sigma in .npz ({error})") from error
    return Reference(Gaussian(mean, covariance, path), {"file_sha256": file_sha256(path), "states": "neither protocol, resolution nor n"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that a reference and a score share."""
    parser.add_argument("--resolution", type=RESOLUTION, help="pytorch-fid: both sets are resized and cropped to it, as SANA's code does")
    parser.add_argument("--batch", type=BATCH_SIZE, default=32, help="images that Inception takes at once (default: 32)")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="where Inception's features are kept as they come (default: beside --out)"
    )


def kept_folder(args: argparse.Namespace) -> Path:
    return args.keep or args.out.with_name(args.out.stem + ".features")


def main(argv: list[str] | None = None) -> None:
    parser = Parser("evaluators.fid.reference", __doc__)
    parser.add_argument("--images", required=True, type=Path, help="folder of real images")
    parser.add_argument("--protocol", required=True, choices=PROTOCOLS, help="whose resize")
    parser.add_argument("--out", required=True, type=Path, help="the .safetensors to write")
    parser.add_argument("--limit", type=COUNT, help="the first N images only")
    parser.add_argument("--weights", type=Path, help="FID's Inception (default: the fetched asset inception)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--threads", type=THREADS, default=1, help="CPU threads of this process (default: 1)")
    add_arguments(parser)
    args = parser.parse_args(argv)

    from evaluators.fid.inception import Feed, load_network

    if args.out.suffix != ".safetensors":
        raise UserError(f"--out {args.out}: expected a name that ends in .safetensors")
    check_out(args.out)
    set_threads(args.threads)
    feed, weights = Feed(args.protocol, args.resolution), find("inception", args.weights, "--weights")
    listed(args.images, args.limit)
    network = load_network(weights, pick_device(args.device))
    reference = make(args.images, feed, network, kept_folder(args), limit=args.limit, batch=args.batch, threads=args.threads)
    write(reference, args.out)
    print(f"{args.out}: {reference.identity['n']} images, {feed.protocol}, {feed.described}")
    for name, part in reference.parts.items():
        print(f"    {name}: {len(part)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
