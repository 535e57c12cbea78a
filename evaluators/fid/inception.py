"""FID's Inception-v3 (2015-12-05), and how each published code feeds it: image files to features (n, 2048).

`pytorch-fid` (mseitzer/pytorch-fid 0.3.0): values in [0, 1] at the image's size; bilinear to 299 without antialiasing; 2x - 1. SANA's code
(tools/metrics/pytorch-fid/compute_fid.py) puts before it, for generated and real images alike, a resize of the short side (bilinear, with
antialiasing, Pillow's) and a centre crop to one resolution: of images that have that size already it is pytorch-fid unchanged.

`clean-fid` (GaParmar/clean-fid 0.1.35, mode "clean"): the image as it is; Pillow's bicubic to 299, each channel in float, clipped to
[0, 255], not rounded; (x - 128)/128.

The weights are the same ones in both, of TensorFlow's graph of 2015-12-05: pytorch-fid keeps them as a state dict, which is what is loaded
here; clean-fid fetches NVIDIA's TorchScript of the same graph.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, nn

from apex.data import pictures
from apex.errors import UserError
from apex.files import write_atomic
from apex.provenance import digest, file_sha256
from apex.weights import take
from evaluators.command import progress
from evaluators.fid import PROTOCOLS

SIDE = 299
CHUNK = 256  # images a file of kept features


@dataclass(frozen=True)
class Feed:
    """How images reach the network: all that features depend on beside the file and the weights.

    `resolution` is SANA's resize and crop before pytorch-fid (None: the image as it is; always None for clean-fid). `jpeg` is the quality
    at which the image is compressed first, as SANA's sampling writes .jpg (None: not at all).
    """

    protocol: str
    resolution: int | None = None
    jpeg: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UserError(f"--protocol {self.protocol}: expected one of {', '.join(PROTOCOLS)}")
        if self.resolution is not None and self.protocol == "clean-fid":
            raise UserError("--resolution: clean-fid resizes each image from its own size to 299; leave it out")
        if self.resolution is not None and self.resolution < 1:
            raise UserError(f"--resolution {self.resolution}: expected 1 or more")
        if self.jpeg is not None and not 1 <= self.jpeg <= 100:
            raise UserError(f"--jpeg {self.jpeg}: expected a quality from 1 to 100")

    @property
    def described(self) -> str:
        before = f"short side to {self.resolution} (Pillow bilinear, antialiased) and centre crop, then " if self.resolution else ""
        after = "bilinear to 299 without antialiasing" if self.protocol == "pytorch-fid" else "Pillow bicubic to 299 in float"
        return before + after

    def __call__(self, content: bytes) -> Tensor:
        """A file's bytes -> what the network takes, float32 (3, 299, 299).

        Raises:
            PictureError: not a picture that can be used.
        """
        return self.of(pictures.decode(content).pixels)

    def of(self, pixels: np.ndarray) -> Tensor:
        """Decoded pixels, uint8 (H, W, 3) -> what the network takes, float32 (3, 299, 299)."""
        image = Image.fromarray(pixels)
        if self.jpeg is not None:
            squeezed = io.BytesIO()
            image.save(squeezed, "JPEG", quality=self.jpeg)
            image = Image.fromarray(pictures.decode(squeezed.getvalue()).pixels)
        return self._pytorch_fid(image) if self.protocol == "pytorch-fid" else self._clean_fid(image)

    def _pytorch_fid(self, image: Image.Image) -> Tensor:
        from torchvision.transforms import functional

        if self.resolution is not None:
            image = functional.center_crop(functional.resize(image, self.resolution), self.resolution)
        values = functional.to_tensor(image)[None]
        return 2 * nn.functional.interpolate(values, (SIDE, SIDE), mode="bilinear", align_corners=False)[0] - 1

    def _clean_fid(self, image: Image.Image) -> Tensor:
        from cleanfid.resize import make_resizer

        resized = make_resizer("PIL", False, "bicubic", (SIDE, SIDE))(np.asarray(image))
        return (torch.from_numpy(resized).permute(2, 0, 1) - 128) / 128


def build() -> nn.Module:
    """The network without weights: (B, 3, 299, 299) in [-1, 1] -> pool3 features (B, 2048). Nothing is fetched.

    torchvision's Inception-v3 with pytorch-fid's blocks, which pool as TensorFlow's graph does.
    """
    from pytorch_fid.inception import FIDInceptionA, FIDInceptionC, FIDInceptionE_1, FIDInceptionE_2
    from torchvision.models import inception_v3

    net = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    for name, width, features in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        setattr(net, f"Mixed_{name}", FIDInceptionA(width, pool_features=features))
    for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        setattr(net, f"Mixed_{name}", FIDInceptionC(768, channels_7x7=width))
    net.Mixed_7b, net.Mixed_7c = FIDInceptionE_1(1280), FIDInceptionE_2(2048)
    return net.eval().requires_grad_(False)


@dataclass(frozen=True)
class Network:
    """A feature network on its device, and the SHA-256 of its weights."""

    net: Callable[[Tensor], Tensor]
    sha256: str
    device: str = "cpu"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> np.ndarray:
        return self.net(images.to(self.device)).float().cpu().numpy()


def load_network(path: Path, device: str = "cpu") -> Network:
    """FID's Inception from pytorch-fid's file (the asset `inception`), every weight of it.

    Raises:
        UserError: not a file of plain tensors, or not of this network, or not finite.
    """
    net = build()
    expected = "expected pt_inception-2015-12-05-6726825d.pth of pytorch-fid"
    try:
        given = dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, OSError, ValueError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: not FID's Inception ({' '.join(str(error).split())[:160]}); {expected}") from error
    take(net, given, path, f"not FID's Inception: {expected}")
    net.fc = nn.Identity()  # what is left is pool3
    return Network(net.to(device), file_sha256(path), device)


def _chunks(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    return (paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK))


@dataclass(frozen=True)
class Features:
    """Features of files in their order, float32 (n, d), the digest of the files' content, and how many were decoded otherwise than the
    official script would (`pictures.DEPARTURES` and their numbers)."""

    values: np.ndarray
    files: str
    departures: dict[str, int]


def file_features(
    paths: Sequence[Path], feed: Feed, network: Network, kept: Path, batch: int = 32, threads: int = 1, name: str = "fid"
) -> Features:
    """Features of image files in the given order. They are kept in the folder `kept`, a file for every 256 images: a call that was cut off
    goes on there, and a rerun reads them. What is kept is known by the images' content, the feed and the weights, not by names.

    Raises:
        UserError: a file is not a readable image, or a kept file not what was written.
    """
    for path in paths:  # before they are read for their digests
        pictures.check_readable(path)
    kept.mkdir(parents=True, exist_ok=True)
    identity = asdict(feed) | {"weights": network.sha256, "decoder": pictures.VERSION}
    found, every, departures = [], hashlib.sha256(), Counter()
    with ThreadPoolExecutor(threads) as pool:
        for chunk in progress(_chunks(paths), -(-len(paths) // CHUNK), f"{name}, batches of {CHUNK} images"):
            hashes = list(pool.map(file_sha256, chunk))
            every.update("\n".join(hashes).encode() + b"\n")
            file = kept / f"{digest(identity | {'files': hashes})}.safetensors"
            kept_values = _read_kept(file, len(chunk)) if file.is_file() else None
            if kept_values is None:
                counted: Counter[str] = Counter()
                parts = []
                for start in range(0, len(chunk), batch):
                    tensors, others = zip(*pool.map(lambda p: _read(p, feed), chunk[start : start + batch]), strict=True)
                    counted.update(name for names in others for name in names)
                    parts.append(network(torch.stack(tensors)))
                values = np.concatenate(parts)
                check_rows(values, chunk, f"check {network.sha256[:12]}, the weights of the network")
                checksum = hashlib.sha256(values.tobytes()).hexdigest()
                about = {"identity": json.dumps(identity), "checksum": checksum, "departures": json.dumps(counted)}
                write_atomic(file, save({"features": values}, metadata=about))
            else:
                values, counted = kept_values
                check_rows(values, chunk, f"delete {file} and run again")
            found.append(values)
            departures.update(counted)
    return Features(np.concatenate(found), every.hexdigest(), dict(sorted(departures.items())))


def check_rows(values: np.ndarray, paths: Sequence[Path], mend: str) -> None:
    """Raises `UserError` with the first image whose features, a row of (n, d), are not finite."""
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        raise UserError(f"{paths[bad[0]]}: found features that are not finite, expected numbers; {mend}")


def _read(path: Path, feed: Feed) -> tuple[Tensor, tuple[str, ...]]:
    picture = pictures.read(path, path)
    if feed.resolution is not None:
        height, width = picture.pixels.shape[:2]
        scale = feed.resolution / min(height, width)
        pictures.check_scaled((round(width * scale), round(height * scale)), path)
    return feed.of(picture.pixels), picture.departures


def _read_kept(file: Path, count: int) -> tuple[np.ndarray, Counter[str]]:
    try:
        with safe_open(file, "np") as opened:
            values, about = opened.get_tensor("features"), opened.metadata() or {}
        if len(values) != count or about["checksum"] != hashlib.sha256(values.tobytes()).hexdigest():
            raise ValueError("its checksum is another")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{file}: not the features that were kept there ({error}); delete it and run again") from error
    return values, Counter(json.loads(about.get("departures", "{}")))
