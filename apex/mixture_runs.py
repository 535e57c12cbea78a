"""The 2-D Gaussian mixture: its data and network, training by any method, measures, tables and the figure. The command: `apex.mixture`."""

from __future__ import annotations

import copy
import csv
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from apex import flow, methods
from apex.budget import Cost, Counted, Ledger, count_calls, measure_cost
from apex.conditioning import AffineShift, Condition
from apex.ema import Ema
from apex.errors import UserError
from apex.methods.base import STUDENT, Batch, Method, Networks, PairPlan, Pairs, Setup
from apex.mixture_rows import FAMILIES, ROWS, Recipe, Row
from apex.networks import Averaged, Fixed, last_matrix, parameters_by_role
from apex.seeds import derive, torch_generator

RADIUS, SPREAD, MODES = 2.0, 0.15, 4
CENTRES = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])  # the class means
SCALE = math.sqrt(RADIUS**2 / 2 + SPREAD**2)  # a class's standard deviation per axis
NULL = len(CENTRES)  # label of the empty condition
EMBEDDINGS = nn.functional.normalize(torch.randn(NULL + 1, 8, generator=torch_generator(0, "mixture", "embeddings")), dim=1) * math.sqrt(8)


def modes(label: int) -> Tensor:
    """The four mode centres of a class, (4, 2): a plus sign for class 0, a cross for class 1."""
    angle = (torch.arange(MODES) / MODES + label / (2 * MODES)) * 2 * math.pi
    return CENTRES[label] + RADIUS * torch.stack([angle.cos(), angle.sin()], 1)


def draw(labels: Tensor, generator: torch.Generator) -> Tensor:
    """One sample per label, (B, 2, 1, 1)."""
    centres = torch.stack([modes(k) for k in range(len(CENTRES))])
    which = torch.randint(MODES, labels.shape, generator=generator)
    return (centres[labels, which] + SPREAD * torch.randn(len(labels), 2, generator=generator))[..., None, None]


def condition(labels: Tensor) -> Condition:
    """One token per sample: the class embedding, (B, 1, 8)."""
    return Condition(EMBEDDINGS[labels][:, None], torch.ones(len(labels), 1))


def draw_batch(size: int, generator: torch.Generator, step: int = 0) -> Batch:
    """Classes and samples drawn at random."""
    labels = torch.randint(len(CENTRES), (size,), generator=generator)
    return Batch(draw(labels, generator), condition(labels), condition(torch.full((size,), NULL)), generator, step)


class VelocityMLP(nn.Module):
    """F(x_t, t, r, c) on (B, 2, 1, 1). The target time enters through `target`(r) (t - r), zero until it is trained."""

    def __init__(self, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        # One slow frequency: with five octaves F is rough in t and r, and `apex` ends at a distance of 0.68 rather than 0.09.
        self.register_buffer("frequencies", torch.tensor([math.pi / 2]))
        features = 1 + 2 * len(self.frequencies)
        self.inlet, self.time, self.text = (
            nn.Linear(2, width),
            nn.Linear(features, width),
            nn.Linear(EMBEDDINGS.shape[1], width, bias=False),
        )
        self.target = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.target[-1].weight)
        nn.init.zeros_(self.target[-1].bias)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outlet = nn.Linear(width, 2)

    def features(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        return torch.cat([t[:, None], angles.sin(), angles.cos()], 1)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.layers

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Condition, r: Tensor | None = None, blocks: Sequence[int] | None = None, both: bool = False
    ) -> Tensor | list[Tensor] | tuple[Tensor, list[Tensor]]:
        """F, (B, 2, 1, 1); with `blocks` what these layers give, (B, 1, width) each; with `both` the two from one pass."""
        if cond.place == "normed":
            raise ValueError("VelocityMLP has no normalisation in its text path; shift at 'embeds' or 'projected'")
        tokens = cond.embeds if cond.place == "projected" else cond.apply_shift(cond.embeds)
        tokens = self.text(tokens)
        tokens = cond.apply_shift(tokens) if cond.place == "projected" else tokens
        h = self.inlet(x_t.flatten(1)) + self.time(self.features(t)) + tokens[:, 0]
        if r is not None:
            h = h + (t - r)[:, None] * self.target(self.features(r))
        found = []
        for layer in self.layers:
            h = h + layer(nn.functional.silu(h))
            found.append(h[:, None])
        features = [found[k] for k in blocks or ()]
        if blocks is not None and not both:
            return features
        velocity = self.outlet(nn.functional.silu(h)).reshape(x_t.shape)
        return (velocity, features) if both else velocity

    @torch.no_grad()
    def without_target_time(self) -> VelocityMLP:
        """A copy with `target`(0) folded into a bias: F(z, 1, 1) is F(z, 1, 0) of this one. For methods that have no r."""
        folded = copy.deepcopy(self)
        folded.inlet.bias += folded.target(folded.features(torch.zeros(1)))[0]
        nn.init.zeros_(folded.target[-1].weight)
        nn.init.zeros_(folded.target[-1].bias)
        return folded


# ----------------------------------------------------------------------------------------------------- training


Watch = Callable[[int, VelocityMLP, Ema, Networks], None]


def train(
    network: VelocityMLP, name: str, params: Mapping[str, Any], recipe: Recipe, seed: int, watch: Watch | None = None
) -> tuple[VelocityMLP, dict[str, float]]:
    """Trains a copy of `network` (it is also the frozen teacher) by a method; returns it under its running mean, and what it took.

    Args:
        watch: called with (step, the student, its EMA, all networks) before each step.

    Raises:
        UserError: unknown method, or a loss that is not finite.
    """
    method = methods.get(name)(dict(params))
    teacher, student = network.eval().requires_grad_(False), copy.deepcopy(network).requires_grad_(True)
    ema = Ema(student.parameters(), recipe.ema)
    cond = condition(torch.tensor([0]))
    ledger = Ledger({key: measure_cost(student, (2, 1, 1), cond) for key in ("student", "ema", "teacher")})
    extra = make_extra(method, teacher, seed)
    nets = make_networks(student, teacher, extra, ledger, ema)
    roles = parameters_by_role(method, student, extra)
    for key, module in extra.items():
        count_calls(module, key, ledger)
    optimizers = {
        role: torch.optim.AdamW(p, recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True) for role, p in roles.items()
    }
    pairs, plan, moved = None, method.pairs(), True
    if plan is not None:
        pairs = mixture_pairs(plan, teacher, recipe, seed)
        ledger.count("teacher", len(pairs.noise) * plan.passes, "forward")
    generator = torch_generator(seed, "mixture", "train")
    seconds = 0.0
    for step in range(recipe.steps):
        if watch is not None:
            watch(step, student, ema, nets)
        started = time.process_time()
        rate = recipe.learning_rate * min((step + 1) / 100, 1 - step / recipe.steps)
        if moved:
            ema.update()
        batch = draw_batch(recipe.batch, generator, step)
        batch.progress = step / recipe.steps
        if pairs is not None:
            chosen = torch.randint(len(pairs.noise), (recipe.batch,), generator=generator)
            batch.pairs = Pairs(pairs.noise[chosen], pairs.x[chosen], pairs.cond[chosen])
        losses = method.losses(batch, nets, step).losses
        for role, loss in losses.items():
            if not torch.isfinite(loss):
                raise UserError(
                    f"mixture: {name} {dict(params)}: the loss of {role} is {float(loss)} at step {step}; lower the learning rate"
                )
            loss.backward()
        for role in losses:
            nn.utils.clip_grad_norm_(roles[role], recipe.max_grad_norm)
            optimizers[role].param_groups[0]["lr"] = rate * method.rates().get(role, 1.0)
            optimizers[role].step()
            optimizers[role].zero_grad()
        moved = STUDENT in losses
        seconds += time.process_time() - started
    with torch.no_grad(), ema.applied():
        averages = [p.detach().clone() for p in student.parameters()]
    for p, mean in zip(student.parameters(), averages, strict=True):
        p.data = mean
    passes = ledger.flops() / max(ledger.costs["teacher"].forward * recipe.batch * recipe.steps, 1)
    return student.requires_grad_(False), {"passes": passes, "cpu_seconds": seconds}


def make_setup(network: VelocityMLP) -> Setup:
    """What extra networks are built from: the latents are the data, so there is no codec."""
    return Setup(
        copy=lambda: copy.deepcopy(network).requires_grad_(True),
        latent_shape=(2, 1, 1),
        blocks=len(network.blocks),
        feature_shapes=lambda blocks: [(1, network.layers[k].out_features) for k in blocks],
        caption_width=EMBEDDINGS.shape[1],
    )


def make_extra(method: Method, network: VelocityMLP, seed: int) -> dict[str, nn.Module]:
    """A method's extra networks, from the seed alone: not from which rows ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "mixture", "extra"))
        return method.extra_networks(make_setup(network))


def make_networks(
    student: VelocityMLP, teacher: VelocityMLP, extra: dict[str, nn.Module], ledger: Ledger, ema: Ema | None = None
) -> Networks:
    """The contract's networks around a student; without `ema` its running mean is the student itself."""
    averaged = Averaged(student, Ema([], 0.0) if ema is None else ema)
    return Networks(
        student=Counted(student, "student", ledger, fixed=Fixed(student)),
        ema=Counted(averaged, "ema", ledger, no_grad=True),
        teacher=Counted(Fixed(teacher), "teacher", ledger, no_grad=True),
        extra=extra,
        weights=averaged.weights,
        last_parameter=lambda: last_matrix(student),
    )


def mixture_pairs(plan: PairPlan, teacher: VelocityMLP, recipe: Recipe, seed: int) -> Pairs:
    """Noise and where the teacher's ODE takes it; the plan's share counts one forward pass a sample and step as the budget."""
    count = max(recipe.batch, int(plan.share * recipe.steps * recipe.batch / plan.passes))
    generator = torch_generator(seed, "mixture", "pairs")
    cond = condition(torch.randint(len(CENTRES), (count,), generator=generator))
    noise = torch.randn(count, 2, 1, 1, generator=generator)
    network = lambda x, t, r: teacher(x, t, cond, t)  # noqa: E731  (no guidance here: the target is the data)
    return Pairs(noise, flow.sample(network, noise, flow.uniform_sigmas(plan.steps), mode="multi"), cond)


def make_teacher(recipe: Recipe, seed: int) -> VelocityMLP:
    """A new network, trained by flow matching."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "mixture", "weights"))
        network = VelocityMLP(recipe.width)
    return train(network, "fm", {}, recipe, derive(seed, "mixture", "teacher"))[0]


# ---------------------------------------------------------------------------------------------------- measuring


def projections(count: int) -> Tensor:
    """Evenly spread directions, (2, count)."""
    angle = torch.arange(count) / count * math.pi
    return torch.stack([angle.cos(), angle.sin()])


def sliced_w1(a: Tensor, b: Tensor, count: int = 128) -> float:
    """Mean over directions of the Wasserstein-1 distance of the projections; a, b (N, 2, 1, 1), equal N."""
    u = projections(count)
    return float(((a.flatten(1) @ u).sort(0).values - (b.flatten(1) @ u).sort(0).values).abs().mean())


def collapsed_sw1() -> float:
    """Sliced W1 between a class and its mean, in closed form: E|R cos + N(0, SPREAD^2)|, a folded normal, over all angles."""
    m = RADIUS * projections(4096)[0].double()
    folded = SPREAD * math.sqrt(2 / math.pi) * torch.exp(-((m / SPREAD) ** 2) / 2) + m * torch.erf(m / (SPREAD * math.sqrt(2)))
    return float(folded.mean())


def to_the_data(x: Tensor, data: Tensor, count: int = 64) -> Tensor:
    """Where each sample should move: steepest descent of the squared sliced Wasserstein-2 distance, (N, 2).

    The scale is such that samples which are the data plus a constant move by minus that constant.
    """
    u = projections(count)
    now = x.flatten(1) @ u
    wanted = torch.empty_like(now).scatter_(0, now.argsort(0), (data.flatten(1) @ u).sort(0).values)
    return (wanted - now) @ u.T * (2 / count)


@torch.no_grad()
def generate(network: VelocityMLP, noise: Tensor, label: int, steps: int = 1) -> Tensor:
    """One step: z - F(z, 1, 0, c). More: Euler along the instantaneous velocity (r = t)."""
    cond = condition(torch.full((len(noise),), label))
    return flow.sample(lambda x, t, r: network(x, t, cond, r), noise, flow.uniform_sigmas(steps), mode="any" if steps == 1 else "multi")


def noises(count: int, seed: int, *purpose: object) -> list[Tensor]:
    """Noise per class, (count, 2, 1, 1) each."""
    return [torch.randn(count, 2, 1, 1, generator=torch_generator(seed, "mixture", "noise", *purpose, k)) for k in range(len(CENTRES))]


def dataset(count: int, seed: int, *purpose: object) -> list[Tensor]:
    """Data per class, (count, 2, 1, 1) each."""
    labels = (torch.full((count,), k) for k in range(len(CENTRES)))
    return [draw(k, torch_generator(seed, "mixture", "data", *purpose, int(k[0]))) for k in labels]


def quality(samples: Sequence[Tensor], data: Sequence[Tensor]) -> dict[str, float]:
    """Samples of each class against its data; means over the classes.

    sw1: sliced Wasserstein-1. least_mode: the smallest share of samples within three standard deviations of one mode
    (exact data: 0.247). spread: RMS distance of the samples from E[x|c] over the data's: 0 is the mean image, 1 the data.
    """
    rows = []
    for label, (x, real) in enumerate(zip(samples, data, strict=True)):
        near = torch.cdist(x.flatten(1), modes(label)) < 3 * SPREAD
        spread = float((x.flatten(1) - CENTRES[label]).square().mean().sqrt()) / SCALE
        rows.append({"sw1": sliced_w1(x, real), "least_mode": float(near.float().mean(0).min()), "spread": spread})
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


@torch.no_grad()
def measure(network: VelocityMLP, seed: int, a: float = -1.0, b: float = 0.0, count: int = 10_000) -> dict[str, float]:
    """`quality` of one step, and of 50 Euler steps (sw1_50); branch_gap: RMS of F(z, 1, 1, c_fake) - F(z, 1, 1, c) over the data's spread.

    branch_gap is all that L_cons and (with shared noise) L_fake see at t = 1.
    """
    noise, data = noises(count, seed, "measure"), dataset(count, seed, "measure")
    few, one, gaps = count // 5, torch.ones(count), []
    for label, z in enumerate(noise):
        cond = condition(torch.full((count,), label))
        gaps.append(float((network(z, one, AffineShift(a, b)(cond)) - network(z, one, cond)).square().mean().sqrt()) / SCALE)
    many = [generate(network, z[:few], label, 50) for label, z in enumerate(noise)]
    return quality([generate(network, z, label) for label, z in enumerate(noise)], data) | {
        "sw1_50": quality(many, [x[:few] for x in data])["sw1"],
        "branch_gap": sum(gaps) / len(gaps),
    }


def push(network: VelocityMLP, name: str, params: Mapping[str, Any], seed: int, count: int = 4096) -> float:
    """Cosine between how a gradient step on a method's loss moves the one-step samples and the way to the data.

    The loss is the method's own, on one large batch with its own times; plain gradient descent, a small step. 1: straight
    to the data; 0: the loss does not care; negative: away from it.
    """
    student = copy.deepcopy(network).requires_grad_(True)
    method = methods.get(name)(dict(params))
    ledger = Ledger({key: Cost(0.0, 0.0) for key in ("student", "ema", "teacher")})
    nets = make_networks(student, student, make_extra(method, network, seed), ledger)
    batch = draw_batch(count, torch_generator(seed, "mixture", "push"))
    loss = method.losses(batch, nets, method.cycle() - 1).losses["student"]
    slopes = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
    noise, data = noises(count, seed, "push"), dataset(count, seed, "push")
    before = [generate(student, z, label) for label, z in enumerate(noise)]
    norm = math.sqrt(sum(float(g.square().sum()) for g in slopes if g is not None))
    size = 1e-3 * math.sqrt(sum(float(p.detach().square().sum()) for p in student.parameters()))
    with torch.no_grad():
        for p, g in zip(student.parameters(), slopes, strict=True):
            if g is not None:
                p -= g * (size / max(norm, 1e-30))
    moved = torch.cat([(generate(student, z, k) - x).flatten(1) for k, (z, x) in enumerate(zip(noise, before, strict=True))])
    wanted = torch.cat([to_the_data(x, real) for x, real in zip(before, data, strict=True)])
    return float(nn.functional.cosine_similarity(moved.flatten(), wanted.flatten(), dim=0, eps=1e-12))


# ------------------------------------------------------------------------------------------------------- running

Line = dict[str, Any]
KEPT = 1_000  # samples per class kept for the picture


@dataclass
class Results:
    """Lines of mixture.csv, curves.csv and push.csv; clouds: a row's one-step samples, from the first seed."""

    lines: list[Line] = field(default_factory=list)
    curves: list[Line] = field(default_factory=list)
    pushes: list[Line] = field(default_factory=list)
    clouds: dict[str, list[Tensor]] = field(default_factory=dict)

    def seeds(self, row: str, key: str) -> list[float]:
        """A row's values, one per seed; empty where it has none."""
        return [line[key] for line in self.lines if line["row"] == row and line.get(key) is not None]


def run_seed(rows: Sequence[str], seed: int, recipe: Recipe, results: Results, report: Callable[[str], None]) -> None:
    """Trains and measures every row with one seed; adds to `results`."""
    count = 2_000
    every, early = max(recipe.steps // 20, 1), recipe.steps // 10
    noise, data = noises(count, seed, "curve"), dataset(count, seed, "curve")
    real, mean = dataset(10_000, seed, "measure"), [c.reshape(1, 2, 1, 1).expand(10_000, 2, 1, 1) for c in CENTRES]

    def note(row: str, found: Mapping[str, float], samples: list[Tensor], took: Mapping[str, float] | None = None) -> None:
        about = {"row": row, "method": ROWS[row].method if row in ROWS else "", "params": dict(ROWS[row].params) if row in ROWS else {}}
        results.lines.append({**about, "seed": seed, **found, **(took or {})})
        results.clouds.setdefault(row, [x[:KEPT] for x in samples])
        report(f"seed {seed}  {row:18}" + "".join(f"  {key} {value:.3f}" for key, value in found.items()))

    def one_step(network: VelocityMLP) -> list[Tensor]:
        return [generate(network, z, label) for label, z in enumerate(noise)]

    note("data", quality(dataset(10_000, seed, "again"), real), data)
    note("class mean", quality(mean, real), mean)
    networks = {"teacher": make_teacher(recipe, seed)}
    paired = {name: methods.get(ROWS[name].method)(dict(ROWS[name].params)).pairs() is not None for name in rows}
    note("teacher", measure(networks["teacher"], seed), one_step(networks["teacher"]))
    for name in rows:
        row = ROWS[name]

        def watch(step: int, student: VelocityMLP, ema: Ema, _nets: Networks, name: str = name, row: Row = row) -> None:
            if step % every == 0:
                with ema.applied():
                    results.curves.append({"row": name, "seed": seed, "step": step, "sw1": quality(one_step(student), data)["sw1"]})
            if paired[name]:  # its loss is of given pairs, which a batch of fresh samples has not
                return
            if step == early or (step == 0 and row.start != "teacher"):
                for part, changes in {"whole": {}, **row.parts}.items():
                    cosine = push(student, row.method, {**row.params, **changes}, seed)
                    results.pushes.append({"row": name, "seed": seed, "step": step, "loss": part, "cosine": cosine})

        start = networks[row.start] if row.start == "teacher" else networks[row.start].without_target_time()
        networks[name], took = train(start, row.method, row.params, recipe, seed, watch)
        shift = {key: row.params[key] for key in ("a", "b") if key in row.params}
        samples = one_step(networks[name])
        results.curves.append({"row": name, "seed": seed, "step": recipe.steps, "sw1": quality(samples, data)["sw1"]})
        note(name, measure(networks[name], seed, **shift), samples, took)


def run(rows: Sequence[str], seeds: Sequence[int], recipe: Recipe, report: Callable[[str], None] = print) -> Results:
    """Trains and measures every row with every seed."""
    results = Results()
    for seed in seeds:
        run_seed(rows, seed, recipe, results, report)
    return results


COLUMNS = {
    "sw1": "SW1 at 1 step",
    "least_mode": "least mode",
    "spread": "spread",
    "branch_gap": "branch gap",
    "sw1_50": "SW1 at 50 steps",
    "passes": "passes",
}


def table(results: Results) -> str:
    """A Markdown table: mean over seeds, and the range where there are several; then the cosines of push.csv."""

    def cell(values: Sequence[float], digits: int) -> str:
        if not values:
            return ""
        mean, low, high = (f"{v:.{digits}f}" for v in (sum(values) / len(values), min(values), max(values)))
        return mean if low == high else f"{mean} ({low} to {high})"

    rows = list(dict.fromkeys(line["row"] for line in results.lines))
    lines = ["| row | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " ---: |" * len(COLUMNS)]
    lines += [
        f"| {row} | " + " | ".join(cell(results.seeds(row, key), 1 if key == "passes" else 2) for key in COLUMNS) + " |" for row in rows
    ]
    groups: dict[tuple[str, int, str], list[float]] = {}
    for line in results.pushes:
        groups.setdefault((line["row"], line["step"], line["loss"]), []).append(line["cosine"])
    lines += ["", "| row | step | loss | cosine with the way to the data |", "| --- | ---: | --- | ---: |"]
    return "\n".join([*lines, *(f"| {row} | {step} | {loss} | {cell(values, 2)} |" for (row, step, loss), values in groups.items())])


def as_csv(lines: Sequence[Line]) -> str:
    """Lines with the same or fewer keys than others; floats to six digits."""
    keys = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()})
    return text.getvalue()


def draw_figure(results: Results) -> bytes:
    """One-step samples of the first seed, a panel per row, and the distance in training of every row; PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    across = 6
    down = -(-len(results.clouds) // across)
    figure = Figure(figsize=(13.5, 1.95 * down + 5.2), layout="constrained")
    whole = figure.add_gridspec(2, 1, height_ratios=[1.95 * down, 5.2])
    grid, below = whole[0].subgridspec(down, across), whole[1].subgridspec(1, len(FAMILIES))
    for index, (row, clouds) in enumerate(results.clouds.items()):
        axes = figure.add_subplot(grid[index // across, index % across])
        for label, (x, colour) in enumerate(zip(clouds, ("tab:blue", "tab:orange"), strict=True)):
            axes.plot(*x.flatten(1).T, ".", markersize=2, color=colour, alpha=0.5, rasterized=True)
            axes.plot(*modes(label).T, "+", markersize=7, color="black")
        values = results.seeds(row, "sw1")
        axes.set_title(f"{row}: {sum(values) / len(values):.2f}", fontsize=10)
        axes.set(xlim=(-4.2, 4.2), ylim=(-3.1, 3.1), aspect="equal", xticks=[], yticks=[])
    families = {name: methods.get(ROWS[name].method).family for name in dict.fromkeys(line["row"] for line in results.curves)}
    for place, (title, members) in enumerate(FAMILIES.items()):
        axes = figure.add_subplot(below[0, place])
        for index, name in enumerate(name for name, family in families.items() if family in members):
            by_step: dict[int, list[float]] = {}
            for line in results.curves:
                if line["row"] == name:
                    by_step.setdefault(line["step"], []).append(line["sw1"])
            means = [sum(v) / len(v) for v in by_step.values()]
            axes.plot(list(by_step), means, color=f"C{index % 10}", linestyle="-" if index < 10 else "--", label=name)
        axes.axhline(collapsed_sw1(), color="black", linewidth=0.8, linestyle=":", label="class mean (closed form)")
        # A row that explodes leaves the frame: the others are what is to be read.
        axes.set(xlabel="training step", yscale="log", ylim=(0.03, 5))
        axes.set_title(title, fontsize=10)
        axes.set_yticks([0.05, 0.1, 0.2, 0.5, 1, 2, 5], labels=["0.05", "0.1", "0.2", "0.5", "1", "2", "5"] if place == 0 else [])
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8.5)
        if place == 0:
            axes.set_ylabel("sliced W1 at one step (mean of seeds)")
    figure.suptitle("One-step samples (first seed; + are the modes; sliced W1, mean of seeds) and the distance in training", fontsize=11)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90, metadata={"Software": None})
    return out.getvalue()
