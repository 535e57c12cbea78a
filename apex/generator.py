"""Images of prompts, for any run, the teacher and the reference rows; written in GenEval's folder layout.

`python -m apex.sample` is its command. The noise of an image depends on seed, prompt number and image number alone, so results do not
change with the batch size.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apex import flow, lora, provenance
from apex.backbones.base import Backbone
from apex.card import LORA_FILE
from apex.conditioning import Condition, concatenate
from apex.config import Config, fingerprint, locate
from apex.data.prompts import load_prompts, prompt_folder, prompts_sha256, write_layout
from apex.errors import NotFinite, UserError, naming
from apex.export import AGAIN, read_run
from apex.files import replace_folder, write_atomic
from apex.kinds import IMAGES
from apex.linear import through_onednn
from apex.pipeline import DTYPES, Pipeline, load_backbone
from apex.seeds import derive, numpy_generator
from apex.stock import StockGenerator
from apex.weights import precision

MEAN_RENDERS = 64  # renders averaged into a prompt's mean image


class Generator:
    """A text-to-image generator of one run (or of the teacher) at one NFE.

    Attributes:
        latent_shape: (C, h, w). parameters, trainable_parameters: of the velocity network.
        passes: network evaluations per image, which guidance doubles.
    """

    def __init__(
        self, pipeline: Pipeline, backbone: Backbone, *, mode: str, sigmas: list[float], guidance: float, made: dict[str, Any]
    ) -> None:
        self.pipeline, self.backbone = pipeline, backbone.eval().requires_grad_(False)
        through_onednn(self.backbone)
        self.mode, self.sigmas, self.guidance, self.made = mode, sigmas, guidance, made
        self.device, self.family = pipeline.device, backbone.family
        config = backbone.transformer.config
        channels = config.in_channels if backbone.family == "sana" else config.out_channels
        # A run says what it was trained at; a teacher's configuration what it draws, but Qwen-Image's has no size of its own.
        side = made.get("latent_size") or getattr(config, "sample_size", None) or pipeline.latent_size
        self.latent_shape = (channels, side, side)
        self.parameters = made.get("parameters") or backbone.parameter_count()
        self.trainable_parameters = made.get("trainable_parameters", self.parameters)
        self.passes = len(sigmas) * (2 if guidance != 1.0 else 1)

    @classmethod
    def load(
        cls, run: Path, *, nfe: int, guidance: float = 1.0, device: str = "cpu", resolution: int | None = None, precision: str = "fp32"
    ) -> Generator:
        """Opens an exported run, or a pipeline folder as the teacher (Euler on a uniform grid).

        resolution: of the teacher's images, where its networks can draw several; None: the one that its configuration names.

        Raises:
            UserError: a folder that is neither.
        """
        run, dtype = locate(run), DTYPES[precision]
        recipe_file = run / "sampling.json"
        if not recipe_file.is_file():
            pipeline = Pipeline(run, device, dtype)
            backbone = load_backbone(run / "transformer", device, dtype)
            made = {"trainable_parameters": 0} | ({"latent_size": resolution // pipeline.pixels} if resolution else {})
            return cls(pipeline, backbone, mode="multi", sigmas=flow.uniform_sigmas(nfe), guidance=guidance, made=made)
        recipe, made = read_run(run)
        sigmas = recipe["sigmas"].get(str(nfe)) or flow.uniform_sigmas(nfe)
        base = locate(recipe["base"])
        pipeline = Pipeline(base, device, dtype)
        if recipe["tuning"] == "lora":
            backbone = load_backbone(base / "transformer", device, dtype)
            lora.load(backbone, run / "lora" / LORA_FILE, made.get("run", {}).get("lora"))
        else:
            backbone = load_backbone(run / "transformer").load_extra(run).to(device, dtype)
        if backbone.target_time != recipe["target_time"]:
            raise UserError(
                f"{run}: found weights with target_time {backbone.target_time!r}, expected {recipe['target_time']!r} of sampling.json: "
                f"a file of the export is missing or another run's; {AGAIN}"
            )
        return cls(pipeline, backbone, mode=recipe["mode"], sigmas=sigmas, guidance=guidance, made=made)

    def encode(self, prompts: list[str]) -> Condition:
        return self.pipeline.encode(prompts)

    def velocity(self, x: Tensor, t: Tensor, cond: Condition, r: Tensor) -> Tensor:
        """The network in its own precision; images in the making are kept in that of `x`."""
        return self.backbone(x.to(precision(self.backbone.transformer)), t, cond, r).to(x)

    @torch.no_grad()
    def denoise(self, cond: Condition, noise: Tensor, fresh: list[Tensor] | torch.Generator | None = None) -> Tensor:
        """Noise (B, C, h, w) to latents; `fresh`: the re-noising of "few", as tensors or a source of them."""
        if fresh is None or isinstance(fresh, torch.Generator):
            fresh = [torch.randn(noise.shape, generator=fresh).to(noise) for _ in self.sigmas[1:]]
        if self.guidance == 1.0:
            return flow.sample(lambda x, t, r: self.velocity(x, t, cond, r), noise, self.sigmas, mode=self.mode, fresh=fresh)
        both = concatenate([cond, self.encode([""] * len(cond))])

        def guided(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
            with_c, without_c = self.velocity(torch.cat([x, x]), torch.cat([t, t]), both, torch.cat([r, r])).chunk(2)
            return flow.guide(with_c, without_c, self.guidance)

        return flow.sample(guided, noise, self.sigmas, mode=self.mode, fresh=fresh)

    def decode(self, latents: Tensor) -> Tensor:
        return self.pipeline.decode(latents)

    def pictures(self, prompts: list[str], seed: int, places: list[tuple[int, int]]) -> np.ndarray:
        """uint8 images (B, H, W, 3) of `prompts` at `places` = (prompt number, image number). Raises `NotFinite` where one is."""
        noise, fresh = self.noise(seed, places)
        with naming(prompts, seed, places):
            return self.decode(self.denoise(self.encode(prompts), noise, fresh)).cpu().numpy()

    def noise(self, seed: int, places: list[tuple[int, int]]) -> tuple[Tensor, list[Tensor]]:
        """First noise and fresh noises of the images at `places` = (prompt number, image number)."""
        steps = len(self.sigmas) if self.mode == "few" else 1
        all_noise = torch.stack(
            [
                torch.randn(steps, *self.latent_shape, generator=torch.Generator().manual_seed(derive(seed, "image", prompt, image)))
                for prompt, image in places
            ]
        ).to(self.device)
        return all_noise[:, 0], [all_noise[:, k] for k in range(1, steps)]


def load_generator(config: Config, row: str, run: Path, nfe: int, device: str) -> Generator | StockGenerator:
    """The generator of a row by the profile: the teacher is guided, and draws at the profile's resolution, as checkpoints do."""
    if row in config.checkpoint_rows:
        return StockGenerator.load(config, row, nfe=nfe, device=device)
    return Generator.load(
        run,
        nfe=nfe,
        guidance=config.guidance if row == "teacher" else 1.0,
        device=device,
        resolution=config.data.resolution,
        precision=config.sampling.precision,
    )


def generate(
    generator: Generator | StockGenerator, rows: list[dict], todo: list[int], *, seed: int, images: int, batch: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(prompt number, uint8 images (images, H, W, 3)) for each prompt number in `todo`, at most `batch` images at a time."""
    per_batch = max(1, batch // images)
    for start in range(0, len(todo), per_batch):
        chosen = todo[start : start + per_batch]
        places = [(i, k) for i in chosen for k in range(images)]
        parts = []
        for first in range(0, len(places), batch):  # more than one part only where a prompt has more images than a batch
            part = places[first : first + batch]
            parts.append(generator.pictures([rows[i]["prompt"] for i, _ in part], seed, part))
        pictures = np.concatenate(parts)
        for k, i in enumerate(chosen):
            yield i, pictures[k * images : (k + 1) * images]


def prompt_rows(config: Config, split: str, file: Path | None = None) -> list[dict]:
    """The lines of a prompt set, or of another `file`, as far as the profile takes them."""
    file = file or config.prompts_path(split)
    rows = load_prompts(file)
    if config.prompts.per_task is None:
        return rows
    return load_prompts(file, limit=config.prompts.per_task * len({row.get("tag", "") for row in rows}))


def reference_images(kind: str, rows: list[dict], index: int, *, seed: int, images: int, resolution: int) -> np.ndarray:
    """Images of a reference row for one prompt: uint8 (images, H, W, 3).

    real: fresh renders that fulfil the prompt; shuffled: those of another prompt of the set; noise: uniform noise;
    mean: the average of MEAN_RENDERS renders of the prompt, the same for all its images.
    """
    from apex.data.world import render, scene_for

    if kind == "shuffled":
        order = numpy_generator(seed, "shuffle", len(rows)).permutation(len(rows))
        index = int(order[(int(np.flatnonzero(order == index)[0]) + 1) % len(rows)])  # one cycle: no prompt keeps its own
    if kind == "mean":
        rng = numpy_generator(seed, "reference", kind, index)
        renders = [render(scene_for(rows[index], rng, allow_held_out=True), resolution) for _ in range(MEAN_RENDERS)]
        return np.repeat(np.round(np.mean(renders, axis=0)).astype(np.uint8)[None], images, axis=0)
    found = []
    for image in range(images):
        rng = numpy_generator(seed, "reference", kind, index, image)
        if kind == "noise":
            found.append(rng.integers(0, 256, (resolution, resolution, 3), dtype=np.uint8))
        else:
            found.append(render(scene_for(rows[index], rng, allow_held_out=True), resolution))
    return np.stack(found)


def identity(
    config: Config, row: str, seed: int, nfe: int, split: str, prompts: Path, generator: Generator | StockGenerator | None, device: str
) -> dict[str, Any]:
    """What made.json says of the images' origin, besides times."""
    made = generator.made if generator else {}
    return {
        "row": row,
        "method": made.get("method", row),
        "family": made.get("family", "teacher" if generator else "reference"),
        "variant": made.get("variant", ""),
        "tuning": made.get("tuning", "none"),
        "backbone": getattr(generator, "family", None) if generator else "renderer",
        "profile": config.profile,
        "seed": seed,
        "nfe": nfe,
        "guidance": generator.guidance if generator else 1.0,
        "sigmas": generator.sigmas if generator else [],
        "mode": generator.mode if generator else "none",
        "prompts": str(prompts),
        "split": split,
        "prompts_sha256": prompts_sha256(prompts),
        "config_hash": made.get("config_hash", config.hash()),
        "git_commit": made.get("git_commit", provenance.git_commit()),
        "hardware": provenance.hardware(device),
        "versions": provenance.versions(),
        "parameters": generator.parameters if generator else 0,
        "trainable_parameters": generator.trainable_parameters if generator else 0,
        "training": made.get("training"),
        "source": made.get("source", ""),
        **{key: made.get(key) for key in provenance.OF_THE_RUN},
    } | ({"teacher": fingerprint(config.pipeline_path)} if row == "teacher" else {})


def make_images(
    config: Config,
    rows: list[dict],
    about: dict[str, Any],
    generator: Generator | StockGenerator | None,
    weights: list[str],
    out: Path,
    *,
    keep_failed: bool = False,
) -> Callable[[], None]:
    """Makes the images of one prompt set in GenEval's layout, with made.json. The function that it returns moves them to `out`.

    They grow in a hidden folder next to `out`, named after what makes them (`weights`: checksums of the network's folders). An
    interrupted call continues there, and images of other weights or settings are never taken for this call's. A call that makes several
    folders moves them at its end: if one fails, the next call finds the others whole.

    An image that is not finite ends it, and `out` stays as it was. With `keep_failed`, `out` gets a made.json that says so (`failed`) and
    no image, so that a workflow goes on with its other rows.

    Raises:
        NotFinite: an image is not finite, without `keep_failed`.
    """
    keys = ("row", "seed", "nfe", "guidance", "sigmas", "mode", "prompts_sha256", "config_hash", "run_hash")
    images = config.images_per_prompt(about["split"])
    identity = {k: about[k] for k in keys} | {"prompts": len(rows), "images": images, "weights": weights}
    work = out.parent / f".{out.name}-{provenance.digest(identity)}"
    todo = [i for i in range(len(rows)) if not (prompt_folder(work, i) / "metadata.jsonl").exists()]
    if not todo and (work / "made.json").is_file():  # an earlier call made them all, and failed elsewhere
        return partial(replace_folder, work, out, IMAGES)
    seed, started, said = about["seed"], time.time(), time.time()
    if generator:
        source = generate(generator, rows, todo, seed=seed, images=images, batch=config.sampling.batch_size)
    else:
        size = config.data.resolution
        source = ((i, reference_images(about["row"], rows, i, seed=seed, images=images, resolution=size)) for i in todo)
    try:
        for done, (i, pictures) in enumerate(source, 1):
            write_layout(work, i, rows[i], list(pictures))
            if time.time() - said > 10:
                said = time.time()
                left = (said - started) / done * (len(todo) - done) / 60
                print(f"{about['row']} NFE {about['nfe']}, {about['split']}: {done}/{len(todo)} prompts, {left:.1f} min left", flush=True)
    except NotFinite as error:
        message = f"row {about['row']}, NFE {about['nfe']}, {about['split']}: {error}"
        if not keep_failed:
            raise NotFinite(
                f"{message}; no image is written to {out}: train the row again, or give its weights another precision"
            ) from None
        print(f"warning: {message}; {out} says so, and holds no image", flush=True)
        shutil.rmtree(work, ignore_errors=True)
        write_atomic(work / "made.json", json.dumps(about | {"failed": str(error)}, indent=1) + "\n")
        return partial(replace_folder, work, out, IMAGES)
    about = about | {
        "prompts_total": len(rows),
        "wall_seconds": round(time.time() - started, 2),
        "peak_memory_mb": provenance.peak_memory_mb(),
    }
    write_atomic(work / "made.json", json.dumps(about, indent=1) + "\n")
    return partial(replace_folder, work, out, IMAGES)
