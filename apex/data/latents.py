"""Encodes a data set into a cache of latents, and reads one. `python -m apex.data.cache` says what it holds, and makes it."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from apex.data.readers import Defect, Record, Skipped, detect, read_index, records
from apex.data.shards import Sample, checksum, decode, progress
from apex.errors import UserError, check_format, readable
from apex.files import atomic_folder, read_object, write_atomic
from apex.kinds import CACHE
from apex.provenance import digest, file_sha256
from apex.text import captions_cut
from apex.weights import precision, pretrained

if TYPE_CHECKING:
    from diffusers import ModelMixin

ENCODERS = ("AutoencoderKL", "AutoencoderDC", "AutoencoderKLQwenImage")
PART = 4096  # samples in a part, rounded to whole batches so that resuming keeps the batches
SCHEMA = 1  # of made.json
LEFT_OUT = ("skipped", "captions_cut")  # keys of made.json; one stands there only where there may be something to count
LATENTS, CAPTIONS = "latents.safetensors", "captions.json"


class Cache(NamedTuple):
    """Latents (N, C, h, w) float16, caption_index (N,) int64 into `captions`; `left_out`: made.json's counts of what is not whole."""

    latents: Tensor
    caption_index: Tensor
    captions: list[str]
    left_out: dict[str, Any] | None = None


# -------------------------------------------------------------------------------------- the encoder


def load_vae(pipeline: Path) -> ModelMixin:
    """The pipeline's image encoder, in eval mode. Raises `UserError` when it is missing, damaged or of an unknown class."""
    import diffusers

    config = pipeline / "vae" / "config.json"
    if not config.is_file():
        raise UserError(f"{config}: not found; --pipeline must be a diffusers pipeline folder with a vae/ in it")
    name = read_object(config, "fetch or make it again").get("_class_name")
    if name not in tuple(ENCODERS):
        raise UserError(f"{config}: _class_name is {name!r}; expected one of {', '.join(ENCODERS)}")
    return pretrained(getattr(diffusers, name), config.parent, "fetch or make them again").eval()


@torch.no_grad()
def encode_images(vae: ModelMixin, images: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W) to latents (B, C, h, w) float32 as the denoiser sees them.

    The posterior's mode, normalised as the pipelines of diffusers do: (z - shift_factor) * scaling_factor,
    or (z - latents_mean) / latents_std * scaling_factor where the config has these; what it lacks is 0 or 1.
    """
    pixels = images.to(vae.device, precision(vae)) / 127.5 - 1
    encoded = vae.encode(pixels[:, :, None] if _video(vae) else pixels)
    latents = (encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent).float()
    shift, scale = _normalisation(vae, latents)
    return ((latents[:, :, 0] if _video(vae) else latents) - shift) * scale


def decode_latents(vae: ModelMixin, latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as the denoiser sees them to pixels (B, 3, H, W), about [-1, 1]; differentiable."""
    shift, scale = _normalisation(vae, latents)
    latents = (latents / scale + shift).to(precision(vae))
    decoded = vae.decode(latents[:, :, None] if _video(vae) else latents, return_dict=False)[0].float()
    return decoded[:, :, 0] if _video(vae) else decoded


def _video(vae: ModelMixin) -> bool:
    """Whether it takes and gives (B, C, frames, H, W)."""
    return type(vae).__name__ == "AutoencoderKLQwenImage"


def _normalisation(vae: ModelMixin, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """(shift, scale): the denoiser sees (z - shift) * scale."""
    config = vae.config
    scale = getattr(config, "scaling_factor", None) or 1.0
    if getattr(config, "latents_mean", None) is None:
        return getattr(config, "shift_factor", None) or 0.0, scale
    mean, std = (torch.tensor(v, device=like.device).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
    return mean, scale / std


def pixels_per_latent(vae: ModelMixin) -> int:
    """Image pixels a side for one latent; image sides must be multiples of it."""
    config = vae.config
    if hasattr(config, "temperal_downsample"):  # AutoencoderKLQwenImage; the spelling is diffusers'
        return 2 ** len(config.temperal_downsample)
    return 2 ** (len(getattr(config, "encoder_block_out_channels", None) or config.block_out_channels) - 1)


def vae_checksum(pipeline: Path) -> str:
    """Short SHA-256 over the encoder's config and weights."""
    files = sorted(p for p in (pipeline / "vae").iterdir() if p.name == "config.json" or p.suffix == ".safetensors")
    return digest({p.name: file_sha256(p) for p in files})


# ---------------------------------------------------------------------------------- making the cache


class Part(NamedTuple):
    """Latents (n, C, h, w) float16, None where n is 0; whether each record read is in them; what was wrong with the others."""

    latents: Tensor | None
    kept: list[bool]
    defects: list[str]


def build(
    pipeline: Path,
    data: Path,
    out: Path,
    *,
    resolution: int | None = None,
    batch: int = 64,
    device: str = "cpu",
    skipped: Skipped | None = None,
) -> dict[str, Any]:
    """Encodes every image of `data` and writes the cache `out`; returns what made.json holds. `skipped`: see `records`."""
    CACHE.check(out)
    source, vae = detect(data), load_vae(pipeline).to(device)
    about = {"schema": SCHEMA, "data_sha256": checksum(source), "vae": vae_checksum(pipeline), "resolution": resolution, "batch": batch}
    part = batch * max(1, PART // batch)
    skipping = {} if skipped is None else {"on_error": "skip"}
    parts = out.parent / f".{out.name}.parts-{digest(about | {'part': part} | skipping)}"
    captions: dict[str, int] = {}
    index: list[int] = []
    stream = records(source, skipped)
    total = (read_index(source.root) or {}).get("samples") if source.kind == "tar" and source.whole else None
    done: list[Tensor] = []
    size: list[tuple[int, ...]] = []  # of the first image

    def note(record: Record) -> None:
        """Numbers captions by first appearance."""
        index.append(captions.setdefault(record.caption, len(captions)))

    for number in progress(itertools.count(), -(-total // part) if total else None, f"parts of {part} images"):
        path = parts / f"{number:05d}.safetensors"
        found = _read_part(path)
        if found is None:
            found = _encode(vae, itertools.islice(stream, part), resolution, batch, size, note, skipped)
            if found.kept:
                _write_part(path, found)
        else:  # encoded before: only the captions are needed
            for kept, record in zip(found.kept, stream, strict=False):
                if kept:
                    note(record)
            for line in found.defects if skipped else ():
                skipped(Defect(line))
        if found.latents is not None:
            done.append(found.latents)
            unit = pixels_per_latent(vae)
            size[:] = [(found.latents.shape[2] * unit, found.latents.shape[3] * unit, 3)]
        if len(found.kept) < part:
            break
    for _ in stream:  # nothing but what is wrong at the end
        pass
    if not done:
        raise UserError(f"{data}: no samples without a defect; expected at least one")
    latents = torch.cat(done)
    cut = captions_cut(pipeline, list(captions)) if (pipeline / "tokenizer").is_dir() else 0
    with atomic_folder(out, CACHE) as folder:
        save_file({"latents": latents, "caption_index": torch.tensor(index, dtype=torch.int32)}, folder / LATENTS)
        (folder / LATENTS).chmod(0o644)  # safetensors makes it private
        (folder / CAPTIONS).write_text(json.dumps({"captions": list(captions)}, ensure_ascii=False, indent=0) + "\n")
        files = {name: file_sha256(folder / name) for name in (LATENTS, CAPTIONS)}
        made = about | {"samples": len(index), "captions": len(captions), "latent_shape": list(latents.shape[1:]), "sha256": files}
        made |= {} if skipped is None else {"skipped": skipped.about()}
        made |= {"captions_cut": cut} if cut else {}
        (folder / "made.json").write_text(json.dumps(made, indent=1) + "\n")
    shutil.rmtree(parts)
    return made


def _encode(
    vae: ModelMixin,
    stream: Iterator[Record],
    resolution: int | None,
    batch: int,
    size: list[tuple[int, ...]],
    note: Callable[[Record], None],
    skipped: Skipped | None,
) -> Part:
    """Float16 latents of all records. `size`: see `decode`; `note` is called with every record whose latents are kept."""
    unit, found, kept, defects = pixels_per_latent(vae), [], [], []

    def samples() -> Iterator[Sample]:
        for record in stream:
            try:
                sample = decode(record, resolution, size)
            except Defect as error:
                if skipped is None:
                    raise
                skipped(error)
                defects.append(str(error))
                kept.append(False)
                continue
            kept.append(True)
            note(record)
            yield sample

    images_in = samples()
    while group := list(itertools.islice(images_in, batch)):
        height, width = group[0].image.shape[:2]
        if height % unit or width % unit:
            raise UserError(f"images are {width}x{height}; this encoder needs sides that are multiples of {unit}: give --resolution")
        images = torch.from_numpy(np.stack([s.image.transpose(2, 0, 1) for s in group]))
        latents = encode_images(vae, images).to("cpu", torch.float16).contiguous()
        if not latents.isfinite().all():
            raise UserError(f"latents of samples {group[0].key} to {group[-1].key} are not finite in float16; check PIPE/vae")
        found.append(latents)
    return Part(torch.cat(found) if found else None, kept, defects)


def _write_part(path: Path, part: Part) -> None:
    tensors = {"kept": torch.tensor(part.kept)} | ({} if part.latents is None else {"latents": part.latents})
    write_atomic(path, save(tensors, {"defects": json.dumps(part.defects)}))


def _read_part(path: Path) -> Part | None:
    """A part that an earlier, interrupted run has finished; None when there is none, or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            latents = file.get_tensor("latents") if "latents" in file.keys() else None  # noqa: SIM118
            return Part(latents, file.get_tensor("kept").tolist(), json.loads(file.metadata()["defects"]))
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


# --------------------------------------------------------------------------------- reading the cache


def load_cache(path: Path, pipeline: Path | None = None, resolution: int | None = None) -> Cache:
    """Reads and verifies a cache.

    Args:
        pipeline: whose image encoder must have made it. resolution: pixels a side that its images must have. None: any.

    Raises:
        UserError: a file is missing, changed, truncated, of an unknown format, or does not fit the others; or the latents are of another
            encoder or resolution.
    """
    again = "make the cache again with python -m apex.data.cache"
    for name in ("made.json", LATENTS, CAPTIONS):
        if not (path / name).is_file():
            raise UserError(f"{path / name}: not found; {again}")
    made = read_object(path / "made.json", again)
    check_format(made.get("schema"), {SCHEMA}, f"{path / 'made.json'}: schema", again)
    if pipeline is not None:
        _check_origin(path / "made.json", made, pipeline, resolution, again)
    recorded = made.get("sha256")
    for name in (LATENTS, CAPTIONS):
        if not isinstance(recorded, dict) or file_sha256(path / name) != recorded.get(name):
            raise UserError(f"{path / name}: SHA-256 differs from made.json: truncated or changed; {again}")
    texts = read_object(path / CAPTIONS, again)
    try:
        tensors = load_file(path / LATENTS)
    except SafetensorError as error:
        raise UserError(f"{path / LATENTS}: truncated or corrupt ({error}); {again}") from None
    latents, index, captions = tensors.get("latents"), tensors.get("caption_index"), texts.get("captions")
    if latents is None or index is None or latents.ndim != 4 or index.ndim != 1 or latents.dtype != torch.float16:
        found = {k: (str(v.dtype), list(v.shape)) for k, v in tensors.items()}
        raise UserError(f"{path / LATENTS}: found {found}; expected latents (N, C, h, w) float16 and caption_index (N,); {again}")
    if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
        raise UserError(f'{path / CAPTIONS}: expected {{"captions": [text, ...]}}; {again}')
    counts = {"latents": len(latents), "caption_index": len(index), "made.json": made.get("samples")}
    if len(set(counts.values())) != 1 or not len(index) or made.get("captions") != len(captions):
        raise UserError(f"{path}: counts do not agree: {counts}, {len(captions)} captions of {made.get('captions')}; {again}")
    if int(index.min()) < 0 or int(index.max()) >= len(captions):
        raise UserError(f"{path / LATENTS}: caption_index runs from {index.min()} to {index.max()}, with {len(captions)} captions; {again}")
    return Cache(latents, index.long(), captions, {key: made[key] for key in LEFT_OUT if key in made})


def _check_origin(file: Path, made: dict[str, Any], pipeline: Path, resolution: int | None, again: str) -> None:
    """Checks that the latents are of this pipeline's encoder and of images of this resolution."""
    if made.get("vae") != (wanted := vae_checksum(pipeline)):
        raise UserError(
            f"{file}: vae: found latents of the encoder {made.get('vae')!r}, expected {wanted!r} of {pipeline / 'vae'}; {again}"
        )
    config = pipeline / "vae" / "config.json"
    with readable(config, "fetch or make it again"):
        unit = pixels_per_latent(_Config(config))
    shape = made.get("latent_shape")
    sides = [unit * side for side in shape[1:]] if isinstance(shape, list) and all(type(n) is int for n in shape) else shape
    if resolution is not None and sides != [resolution] * 2:
        raise UserError(f"{file}: latent_shape: found latents of {sides} pixels, expected {resolution} a side (data.resolution); {again}")


class _Config:
    """An encoder's configuration without its weights, for `pixels_per_latent`."""

    def __init__(self, file: Path) -> None:
        self.config = SimpleNamespace(**read_object(file, "fetch or make it again"))
