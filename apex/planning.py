"""What a training run takes: memory and hours, counted on the meta device. `python -m apex.estimate` is its command."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apex import methods, optimizers
from apex.backbones.base import Backbone
from apex.budget import Cost, count_calls, fused_attention, measure_cost
from apex.conditioning import Condition
from apex.config import Config, RunConfig
from apex.data.latents import pixels_per_latent
from apex.errors import UserError, readable
from apex.files import read_object
from apex.gpu import SHARE
from apex.launch import Launch
from apex.memory import PeakMemory, megabytes
from apex.networks import DTYPES, build_student, make_setup, parameters_by_role
from apex.pipeline import empty_backbone
from apex.testbed import Bed, Trial
from apex.text import ENCODERS, WORLD, pipeline_class

SHIPPED = Path(__file__).resolve().parent / "configurations"
META = torch.device("meta")
FSDP = "workflows/accelerate/fsdp2.yaml"
TOY_STEPS = 20  # over which calls are counted


@dataclass(frozen=True)
class Shape:
    """What of a pipeline an estimate needs. transformer: its configuration. latent: (C, side, side). tokens, width: of a caption.

    text_parameters, codec_parameters: of the frozen parts that stay on the device. source: where this is from.
    """

    transformer: dict[str, Any]
    latent: tuple[int, int, int]
    tokens: int
    width: int
    text_parameters: float
    codec_parameters: float
    source: str

    def make(self, dtype: torch.dtype = torch.float32) -> Backbone:
        """A velocity network without weights."""
        return empty_backbone(self.transformer, dtype)

    def condition(self, count: int, dtype: torch.dtype = torch.float32) -> Condition:
        """Captions at full length."""
        embeds = torch.zeros(count, self.tokens, self.width, device=META, dtype=dtype)
        return Condition(embeds, torch.ones(count, self.tokens, device=META, dtype=dtype))


def shipped() -> dict[str, dict[str, Any]]:
    """Hub name -> the configuration that is shipped for it."""
    found = [json.loads(path.read_text()) for path in sorted(SHIPPED.glob("*.json"))]
    return {one["hub"]: one for one in found}


def shape_of(config: Config) -> Shape:
    """From the pipeline's folder where it is there, else from what is shipped for its hub.

    Raises:
        UserError: neither is there.
    """
    folder, hub = config.pipeline_path, config.hub.partition("@")[0]
    if (folder / "transformer" / "config.json").is_file():
        return _from_folder(folder, config.data.resolution)
    known = shipped()
    if hub not in known:
        raise UserError(
            f"{config.blame('pipeline')}: found no {folder / 'transformer' / 'config.json'}, and no configuration is shipped for hub "
            f"{hub or '(none)'}; expected a pipeline's folder, or one of {', '.join(known)}"
        )
    one = known[hub]
    codec = one["codec"]
    side = config.data.resolution // codec["pixels"]
    captions, about = one["captions"], one["source"]
    return Shape(
        one["transformer"], (codec["channels"], side, side), captions["tokens"], captions["width"], one["text_encoder"]["parameters"],
        codec["parameters"], about,
    )  # fmt: skip


def _from_folder(folder: Path, resolution: int) -> Shape:
    """From a pipeline's configuration files; its weights are not read."""
    import diffusers
    from transformers import AutoConfig

    with readable(folder, "restore the folder"):
        transformer = read_object(folder / "transformer/config.json", "restore the folder")
        vae = read_object(folder / "vae/config.json", "restore the folder")
        kind = pipeline_class(folder)
        with META:
            codec = getattr(diffusers, vae["_class_name"]).from_config(vae)
            text = ENCODERS[kind](AutoConfig.from_pretrained(folder / "text_encoder"))
        tokens = read_object(folder / "tokenizer/tokenizer_config.json", "restore the folder")["model_max_length"] if kind == WORLD else 300
        width = transformer.get("caption_channels") or transformer["joint_attention_dim"]
        channels = transformer["in_channels"] if "caption_channels" in transformer else transformer["out_channels"]
    side = resolution // pixels_per_latent(codec)
    counts = (float(sum(p.numel() for p in part.parameters())) for part in (text, codec))
    return Shape(transformer, (channels, side, side), int(tokens), width, *counts, str(folder))


# ------------------------------------------------------------------------------------------------------ what is measured


_MEASURED: dict[Hashable, Any] = {}


def once(what: str, network: nn.Module, shape: Shape, measure: Callable[[], Any]) -> Any:
    """What `measure` says of the network, kept for the next that is alike: rows share architectures, and what would mend a run's memory
    is tried on one. A pass of 20B parameters takes seconds also where nothing is computed."""
    inner = getattr(network, "transformer", network)
    settings = (type(inner), getattr(network, "target_time", ""), network.training, getattr(inner, "gradient_checkpointing", False))
    weights = tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in network.named_parameters())
    key = (what, shape.latent, shape.tokens, shape.width, settings, weights)
    if key not in _MEASURED:
        _MEASURED[key] = measure()
    return _MEASURED[key]


@dataclass(frozen=True)
class Activations:
    """Bytes of one sample's activations: kept until the backward pass, at the peak of forward and backward, at that of a pass without
    gradient; fixed: what does not grow with the batch."""

    kept: float
    peak: float
    inference: float
    fixed: float


def activations(network: Backbone, shape: Shape, dtype: torch.dtype) -> Activations:
    """Measured on meta tensors at one and two samples, gradients of the weights left out."""
    grads = 2**20 * megabytes(p for p in network.parameters() if p.requires_grad)
    kept, peak, inference = [], [], []
    for count in (1, 2):
        x = torch.zeros(count, *shape.latent, device=META, dtype=dtype)
        t, cond = torch.full((count,), 0.5, device=META), shape.condition(count, dtype)
        with fused_attention(), PeakMemory() as memory, torch.no_grad():
            network(x, t, cond)
        inference.append(memory.peak)
        with fused_attention(), PeakMemory() as memory:
            out = network(x, t, cond)
            kept.append(memory.live)
            out.float().square().mean().backward()
        peak.append(memory.peak)
        for parameter in network.parameters():
            parameter.grad = None
    per = peak[1] - peak[0]
    return Activations(kept[1] - kept[0], per, inference[1] - inference[0], max(0.0, peak[0] - per - grads))


@dataclass(frozen=True)
class Calls:
    """A method's calls of networks, in passes a training sample.

    book: kind -> network -> the mean over a run's course. alive: of the step with most, how many keep what a backward pass needs:
    every role's loss is made before the first backward pass. quiet: of the largest pass without gradient, at most 2, the two branches of
    guidance.
    """

    book: dict[str, dict[str, float]]
    alive: float
    quiet: float


@cache
def _calls(method: str, files: tuple[str, ...], params: str, tuning: str, family: str, batch: int) -> Calls:
    made = methods.get(method, list(files))(json.loads(params))
    trial = Trial(made, Bed(family), tuning=tuning, total=TOY_STEPS, size=batch)
    ledger = trial.nets.student.ledger
    for name, module in trial.extra.items():
        count_calls(module, name, ledger)
    networks = {"student", "teacher", "ema", *(name for name, module in trial.extra.items() if isinstance(module, Backbone))}
    total: dict[str, dict[str, float]] = {}
    alive = quiet = 0.0
    for step in range(TOY_STEPS):
        ledger.passes.clear()
        made.losses(trial.batch(step, progress=(step + 0.5) / TOY_STEPS), trial.nets, step)
        now = 0
        for kind, counted in ledger.passes.items():
            for entry, count in counted.items():
                name = entry.partition("[")[0]
                book = total.setdefault(kind, {})
                book[name] = book.get(name, 0.0) + count / (TOY_STEPS * batch)
                now += count if kind in ("training", "through") and name in networks else 0
        alive = max(alive, now / batch)
        forward = [count / batch for name, count in ledger.passes.get("forward", {}).items() if name in networks]
        quiet = max(quiet, min(2.0, max(forward, default=0.0)))
    return Calls(total, alive, quiet)


def calls(run: RunConfig, family: str) -> Calls:
    """Counted on toy networks of the family over a run's course."""
    # Parts of a batch rotate, so its size hardly matters; more samples than that tell no more.
    batch = min(run.train.batch_size, 16)
    return _calls(run.method, tuple(run.method_files), json.dumps(run.params), run.tuning, family, batch)


# ---------------------------------------------------------------------------------------------------------- the estimate


@dataclass
class Estimate:
    """One run.

    Attributes:
        parameters: of the student; trainable: of all networks. memory: GB by part.
        forward_equivalents: a training sample's passes. steps, flops: of the whole run. hours: at the rate and share given.
        fits, mend: whether it is within the card's memory, and what to change. uncounted: small networks whose FLOPs are left out.
        measured_memory, measured_hours: of a finished run, or of a few of its steps with random weights, in GB and hours.
    """

    row: str
    method: str
    parameters: int
    trainable: int
    memory: dict[str, float]
    forward_equivalents: float = 0.0
    steps: int = 0
    flops: float = 0.0
    hours: float | None = None
    fits: bool | None = None
    mend: str = ""
    uncounted: list[str] = field(default_factory=list)
    measured_memory: float | None = None
    measured_hours: float | None = None

    @property
    def total(self) -> float:
        return sum(self.memory.values())


ONE = Launch()


def estimate(run: RunConfig, shape: Shape, rate: float | None, share: float = SHARE, launch: Launch = ONE) -> Estimate:
    """One run; memory is of each of its devices. rate: TFLOP/s of a device's matrix products; None leaves the hours out."""
    method = methods.get(run.method, run.method_files)(run.params)
    train, gb = run.train, 2**30
    with META:
        student, teacher = build_student(run, method, shape.make, META)
        setup = make_setup(student, None, shape.make, META, shape.latent, shape.condition(1))
        extra = {name: module.to(META) for name, module in method.extra_networks(setup).items()}

    def size(tensors: Any) -> float:
        return megabytes(tensors) / 1024

    def moments(parameters: Iterable[Tensor], processes: int = 1) -> float:
        return sum(optimizers.moment_bytes(train.optimizer, p.numel() / processes) for p in parameters) / gb

    trained = [p for found in parameters_by_role(method, student, extra).values() for p in found]
    frozen = DTYPES[train.frozen].itemsize
    memory = {
        "student": size(student.parameters()),
        "teacher": size(teacher.parameters()) if teacher is not None else 0.0,
        "extra": size(p for module in extra.values() for p in (*module.parameters(), *module.buffers())),
        "ema": size(p for p in student.parameters() if p.requires_grad) if 0 < train.ema < 1 else 0.0,
        "optimizer": moments(trained),
        "gradients": size(trained),
        "frozen parts": (shape.text_parameters * frozen * (run.data.embeddings != "disk") + shape.codec_parameters * 4) / gb,
    }
    if launch.split:  # all but the extra networks and the frozen parts, and a block at a time is whole
        whole = {id(p) for module in extra.values() for p in module.parameters()}
        own = [p for p in trained if id(p) in whole]
        for part in ("student", "teacher", "ema", "gradients"):
            kept = size(own) if part == "gradients" else 0.0
            memory[part] = kept + (memory[part] - kept) / launch.processes
        memory["optimizer"] = moments(own) + moments((p for p in trained if id(p) not in whole), launch.processes)
        memory["gathered"] = 2 * max(size(block.parameters()) for block in student.blocks)  # the next comes while one is at work
    found = Estimate(run.row, run.method, sum(p.numel() for p in student.parameters()), sum(p.numel() for p in trained), memory)

    def cost(network: Backbone) -> Cost:
        exact = measure_cost(network, shape.latent, shape.condition(1, network.transformer.dtype))
        return Cost(measure=lambda kind: once(kind, network, shape, lambda: exact[kind]))

    counted = calls(run, student.family)
    costs = {"student": cost(student), "teacher": cost(shape.make())}
    costs["ema"] = costs["student"]
    unit, per_sample = costs["teacher"].forward, 0.0
    for kind, networks in counted.book.items():
        for name, passes in networks.items():
            module = extra.get(name)
            if name not in costs and isinstance(module, Backbone):
                costs[name] = cost(module)
            if name in costs:
                per_sample += passes * costs[name][kind]
            elif module is not None and any(p.ndim > 1 for p in module.parameters()) and name not in found.uncounted:
                found.uncounted.append(name)
    found.forward_equivalents = per_sample / unit
    found.flops = run.budget.forward_equivalents * unit
    plan = method.pairs()
    samples = train.batch_size * train.gradient_accumulation * launch.processes
    found.steps = math.ceil(found.flops * (1 - plan.share if plan else 1) / (per_sample * samples))
    found.hours = found.flops / (rate * 1e12 * share * launch.processes) / 3600 if rate else None

    dtype = DTYPES[train.precision]
    network = student.to(dtype)  # as autocast computes; sizes are taken before
    if train.gradient_checkpointing:
        network.transformer.enable_gradient_checkpointing()
        network.train()
    each = once("activations", network, shape, lambda: activations(network, shape, dtype))
    alive = train.batch_size * counted.alive
    transient = each.inference * counted.quiet * train.batch_size
    memory["step"] = (each.fixed + max(each.peak * alive, each.kept * alive + transient)) / gb
    return found


def caption_gigabytes(run: RunConfig, shape: Shape) -> float | None:
    """GB (1e9 bytes) on disk of a thousand captions at full length; None where they are not kept there."""
    return 1e-6 * shape.tokens * shape.width * DTYPES[run.train.frozen].itemsize if run.data.embeddings == "disk" else None


def smaller(run: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """What can be changed where memory is short, the mildest first, each on top of those before: words, and the run with it."""
    words: list[str] = []

    def changed(text: str, **changes: Any) -> tuple[str, RunConfig]:
        nonlocal run
        words.append(text)
        run = run.model_copy(update={"train": run.train.model_copy(update=changes)})
        return " ".join(words), run

    if run.train.precision != "bf16":
        yield changed("train.precision=bf16", precision="bf16")
    if run.train.frozen != "bf16":
        yield changed("train.frozen=bf16", frozen="bf16")
    if not run.train.gradient_checkpointing:
        yield changed("train.gradient_checkpointing=true", gradient_checkpointing=True)
    while run.train.batch_size > 1:
        batch, parts = run.train.batch_size // 2, run.train.gradient_accumulation * 2
        words = [word for word in words if not word.startswith(("train.batch_size", "train.gradient_accumulation"))]
        yield changed(f"train.batch_size={batch} train.gradient_accumulation={parts}", batch_size=batch, gradient_accumulation=parts)
    if run.train.optimizer == "adamw":  # last: what is before it leaves the moments exact
        yield changed("train.optimizer=adamw8bit", optimizer="adamw8bit")


def planned(run: RunConfig, shape: Shape, rate: float | None, share: float, memory: float | None, launch: Launch = ONE) -> Estimate:
    """`estimate`, and where it needs more than `memory` GB what to change so that it fits."""
    found = estimate(run, shape, rate, share, launch)
    if memory is None:
        return found
    found.fits = found.total <= memory
    if not found.fits:
        exact = found, run  # the smallest with the optimiser that the run has
        for text, changed in smaller(run):
            other = estimate(changed, shape, rate, share, launch)
            if other.total <= memory:
                found.mend = f"{text}: {other.total:.3g} GB"
                break
            if changed.train.optimizer == run.train.optimizer:
                exact = other, changed
        else:
            found.mend = "" if launch.split else several(*exact, shape, share, memory)
            found.mend = found.mend or "no setting of the loop is small enough: tuning lora, or a larger card"
    return found


def several(whole: Estimate, run: RunConfig, shape: Shape, share: float, memory: float) -> str:
    """On how many devices a run fits whose weights are split over them, `whole` being its estimate on one; '' if not on 64."""
    two = estimate(run, shape, None, share, Launch(FSDP, 2, split=True))
    gathered = two.memory["gathered"]
    divisible = 2 * (whole.total - two.total + gathered)
    for processes in (2, 4, 8, 16, 32, 64):
        if (total := whole.total + gathered - divisible * (1 - 1 / processes)) <= memory:
            return f"launch={FSDP} with {processes} processes, train.batch_size={run.train.batch_size}: {total:.3g} GB each"
    return ""


def measured_rate(device: str, seconds: float = 2.0) -> float:
    """TFLOP/s of this device in products of square matrices, bf16 on a GPU and fp32 on a CPU of one thread, as training has it."""
    cuda = device.startswith("cuda")
    side = 8192 if cuda else 1024
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if cuda else torch.float32) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        for _ in range(4):
            a @ b
        if cuda:
            torch.cuda.synchronize()
        best = max(best, 4 * 2 * side**3 / (time.perf_counter() - started) / 1e12)
    return best


# ------------------------------------------------------------------------------------------------------------- the command


def measured(config: Config, row: str, folder: Path) -> tuple[float, float] | None:
    """GB and hours of a finished run of the row, of this profile's results or the committed ones; without one, of what `apex.measure`
    left in `folder` or was committed of it; None without either."""
    for root in (Path("results"), Path("results/reference")):
        path = root / config.profile / "runs" / row / f"seed{config.seeds[0]}" / "made.json"
        if path.is_file():
            with readable(path, "train the row again"):
                made = read_object(path, "train the row again")["training"]
                return made["memory_mb"]["total"] / 1024, made["wall_seconds"] / 3600
    for root in (folder, Path("results/reference") / config.profile / "plan" / "measured"):
        if (path := root / f"{row}.json").is_file():
            with readable(path, "remove it, or measure again"):
                timed = read_object(path, "remove it, or measure again")
                if timed["run_hash"] == config.run_hash(row, teacher=False):
                    return timed["memory_gb"], timed["hours"]
    return None
