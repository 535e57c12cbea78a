"""How fast the suite is, as ratios that are measured in one run. Not a test: `make bench`, on a machine that does nothing else.

    python -m tests.bench                         about two minutes: steps, public, latency, commands
    python -m tests.bench steps latency           these parts alone
    python -m tests.bench all                     `make all`, `make smoke`, `make test` in a fresh clone, as seconds; more than an hour

| part | ratio |
| --- | --- |
| steps | the training loop's step over the bare passes that it needed and a bare optimizer step |
| public | the training loop's step over the bare passes of the public code's, which asks all networks for the whole batch |
| latency | one image at NFE 1 over the bare networks: text encoder, transformer, VAE decoder |
| commands | a command's whole time over that of `python -c "import torch"`; of Snakemake's, over an empty Snakefile |

Each ratio is that of the medians of alternating runs. Writes bench.json and bench.md to --out.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apex import busy
from apex.command import Parser
from apex.errors import UserError, run_command
from apex.files import write_atomic
from apex.provenance import git_commit, hardware, versions

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "workflows" / "config" / "matrix.yaml"
PIPELINE = ROOT / "apex" / "pretrained" / "world"
PARTS = ("steps", "public", "latency", "commands")
ROWS = ("apex", "lcm", "dmd2", "regression")
ROUNDS = 15  # alternating pairs behind a ratio of steps
HELPS = ("apex.train", "apex.sample", "apex.config", "evaluators.speed", "paper_tables.build")


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def alternating(rounds: int, *calls: Callable[[], object]) -> list[float]:
    """The median seconds of each call; they take turns, and a first round is not counted."""
    taken = [[seconds(call) for call in calls] for _ in range(rounds + 1)][1:]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


def entry(part: str, name: str, ours: float, bare: float, limit: float | None = None) -> dict[str, Any]:
    say(f"{part}, {name}: {ours:.4g} s, ratio {ours / bare:.3f}" + (f" (wanted: at most {limit})" if limit else ""))
    return {"part": part, "name": name, "seconds": ours, "bare_seconds": bare, "ratio": ours / bare, "limit": limit}


# ----------------------------------------------------------------------------------------------- training steps
class Calls:
    """The network calls of a loop's steps, kept as they come, and run again without anything around them."""

    def __init__(self, loop: Any) -> None:
        self.loop, self.kept, self.on = loop, [], False
        trained = [module for module in loop.extra.values() if any(p.requires_grad for p in module.parameters())]
        for network in (loop.student, loop.teacher, *trained):
            if network is not None:
                network.register_forward_pre_hook(self.keep, with_kwargs=True)

    def keep(self, module: Any, args: tuple, kwargs: dict) -> None:
        import torch

        if self.on:
            trained = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
            self.kept.append((module, args, kwargs, torch.is_grad_enabled(), trained))

    def step(self) -> None:
        """One cycle of the loop's steps; what they call is kept."""
        self.kept, self.on = [], True
        for _ in range(self.loop.method.cycle()):
            self.loop.one_step()
        self.on = False

    def bare(self) -> None:
        """The passes of the last cycle and as many optimizer steps."""
        import torch

        from apex.methods.base import frozen

        for module, args, kwargs, grad, trained in self.kept:
            args, kwargs = fresh(args, grad), fresh(kwargs, grad)
            with torch.set_grad_enabled(grad):
                if grad and not trained:
                    with frozen(module):
                        backward(module(*args, **kwargs))
                else:
                    out = module(*args, **kwargs)
                    if grad:
                        backward(out)
        optimise(self.loop)


def fresh(value: Any, grad: bool) -> Any:
    """The same arguments, of which no graph is known."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().requires_grad_(grad and value.requires_grad)
    if isinstance(value, list | tuple):
        return type(value)(fresh(one, grad) for one in value)
    return {k: fresh(v, grad) for k, v in value.items()} if isinstance(value, dict) else value


def backward(out: Any) -> None:
    import torch

    found = [out] if isinstance(out, torch.Tensor) else [t for one in out for t in ([one] if isinstance(one, torch.Tensor) else one)]
    sum(t.mean() for t in found if t.requires_grad).backward()


def optimise(loop: Any) -> None:
    """The steps of the optimizers in one cycle: the student's moves once, the others in every step."""
    from apex.optimizers import set_rate

    for role, optimizer in loop.optimizers.items():
        set_rate(optimizer, 0.0)  # the same work, and the loop's weights stay
        for _ in range(1 if role == "student" else loop.method.cycle()):
            optimizer.step()
        optimizer.zero_grad()


def make_loop(row: str, cache: Path, work: Path) -> Any:
    import torch

    from apex.config import load, locate
    from apex.data.latents import load_cache
    from apex.loop import Loop

    config = load(CONFIG, [])
    run = config.run_config(row)
    held = load_cache(cache, locate(run.pipeline), config.data.resolution)
    loop = Loop(run, "bench", 0, held, work / row, config)
    if loop.method.pairs() is not None:
        from apex.pairs import PairStore

        # A step's time does not depend on the values of its pairs: data stands for what the teacher would draw.
        x = loop.latents.float()
        loop.pairs = PairStore(torch.randn(x.shape), x, loop.index, loop.captions.__getitem__, loop.accelerator.device)
    return loop


def steps(cache: Path, work: Path) -> list[dict[str, Any]]:
    found = []
    for row in ROWS:
        calls = Calls(make_loop(row, cache, work))
        found.append(entry("steps", row, *alternating(ROUNDS, calls.step, calls.bare), 1.10))
    return found


def public(cache: Path, work: Path) -> list[dict[str, Any]]:
    """The public step's passes: B with gradient; without, B/4 for the fake part, 2 B guidance, N B recursion and B/2 rectification."""
    import torch

    found = []
    for row in ("apex", "apex-public"):
        loop = make_loop(row, cache, work)
        size = loop.run.train.batch_size
        x, t = torch.randn(2 * size, *loop.latents.shape[1:]), torch.rand(2 * size)
        cond = loop.captions[loop.index[: 2 * size]]

        def passes(loop: Any = loop, size: int = size, x: Any = x, t: Any = t, cond: Any = cond) -> None:
            loop.ema.update()
            with torch.no_grad():
                loop.student(x[: size // 4], t[: size // 4], cond[: size // 4], t[: size // 4])
            loop.student(x[:size], t[:size], cond[:size], t[:size]).mean().backward()
            with torch.no_grad():
                loop.teacher(x, t, cond, t)
                for _ in range(loop.method.params.order):
                    loop.student(x[:size], t[:size], cond[:size], t[:size])
                half = size // 2
                loop.student(x[:half], t[:half], cond[:half], t[:half])
            optimise(loop)

        found.append(entry("public", row, *alternating(ROUNDS, loop.one_step, passes), 0.80))
    return found


# ---------------------------------------------------------------------------------------------------- latency
def latency(*_: Path) -> list[dict[str, Any]]:
    """One prompt to one 8-bit image at NFE 1, as evaluators.speed times it, and the same networks on ready inputs."""
    import torch

    from apex.generator import Generator

    sampler = Generator.load(PIPELINE, nfe=1)
    pipeline, random = sampler.pipeline, torch.Generator().manual_seed(0)
    prompt, noise = ["a red circle above a blue square"], torch.randn(1, *sampler.latent_shape, generator=random)
    kept: dict[str, tuple[Any, tuple, dict]] = {}
    vae = pipeline.vae  # its decoder is two modules
    networks = {
        "text": pipeline.text.encoder,
        "transformer": sampler.backbone.transformer,
        "conv": vae.post_quant_conv,
        "decoder": vae.decoder,
    }
    handles = [
        module.register_forward_pre_hook(lambda m, a, k, name=name: kept.update({name: (m, a, k)}), with_kwargs=True)
        for name, module in networks.items()
    ]

    def ours() -> None:
        with torch.no_grad():
            sampler.decode(sampler.denoise(sampler.encode(prompt), noise, random))

    ours()
    for handle in handles:
        handle.remove()
    missing = [name for name in networks if name not in kept]
    if missing:
        raise UserError(f"latency: {', '.join(missing)} was not called; the bare networks are not those of a sample")

    def bare() -> None:
        with torch.no_grad():
            for module, args, kwargs in kept.values():
                module(*args, **kwargs)

    return [entry("latency", "one image at NFE 1", *alternating(100, ours, bare), 1.15)]


# --------------------------------------------------------------------------------------------------- commands
def run(*words: str, cwd: Path = ROOT) -> float:
    def call() -> None:
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr[-2000:]}")

    return seconds(call)


def commands(_: Path, work: Path) -> list[dict[str, Any]]:
    python, snakemake = sys.executable, str(Path(sys.executable).parent / "snakemake")
    (work / "Snakefile").write_text("rule all:\n")
    empty = [snakemake, "-n", "--snakefile", str(work / "Snakefile"), "--cores", "1", "--directory", str(work)]
    picture = [python, "-m", "apex.sample", "--pipeline", str(PIPELINE), "--prompt", "a red circle", "--nfe", "1", "--out"]
    bare = statistics.median(run(python, "-c", "import torch") for _ in range(3))
    nothing = statistics.median(run(*empty) for _ in range(3))
    say(f"commands: `import torch` {bare:.2f} s, an empty Snakefile {nothing:.2f} s")
    timed = {f"{name} --help": ([python, "-m", name, "--help"], bare, 0.5) for name in HELPS}
    timed["snakemake -n all"] = ([snakemake, "-n", "all"], nothing, 2.0)
    timed["snakemake tables"] = ([snakemake, "tables"], nothing, 5.0)
    found = []
    for name, (words, base, limit) in timed.items():
        found.append(entry("commands", name, statistics.median(run(*words) for _ in range(3)), base) | {"limit_seconds": limit})
    taken = [run(*picture, str(work / f"picture{k}")) for k in range(3)]
    return [*found, entry("commands", "one picture", statistics.median(taken), bare) | {"limit_seconds": 6.0}]


def whole(work: Path) -> list[dict[str, Any]]:
    """make's main jobs in a fresh clone of this checkout's commit, environment included in none of them."""
    clone = work / "clone"
    run("git", "clone", "--quiet", str(ROOT), str(clone))
    run("make", "env", cwd=clone)
    found = []
    for target, limit in (("smoke", 180.0), ("test", 480.0), ("all", 720.0)):
        say(f"make {target}")
        taken = run("make", target, cwd=clone)
        say(f"make {target}: {taken:.0f} s")
        found.append({"part": "whole", "name": f"make {target}", "seconds": taken, "limit_seconds": limit})
    nothing = statistics.median(run(str(clone / ".venv" / "bin" / "snakemake"), "all", cwd=clone) for _ in range(3))
    say(f"snakemake all with nothing to do: {nothing:.2f} s")
    return [*found, {"part": "whole", "name": "snakemake all, nothing to do", "seconds": nothing, "limit_seconds": 2.0}]


# ----------------------------------------------------------------------------------------------------- the run
def prepared(work: Path) -> Path:
    """Latents to train on: those of results/world, else of a few scenes."""
    cache = ROOT / "results" / "world" / "data" / "cache"
    if cache.is_dir():
        return cache
    say("no results/world/data/cache: 2000 scenes are drawn and encoded")
    python, shards, cache = sys.executable, work / "shards", work / "cache"
    run(python, "-m", "apex.data.shards", "world", "--out", str(shards), "--scenes", "2000", "--captions", "full", "--resolution", "32",
        "--seed", "0")  # fmt: skip
    run(python, "-m", "apex.data.cache", "--pipeline", str(PIPELINE), "--data", str(shards), "--resolution", "32", "--out", str(cache))
    return cache


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    lines = [
        f"{record['hardware']}; torch {record['versions'].get('torch')}, commit {record['git_commit']}"
        + ("; **taken beside other work**" if record["busy"] else ""),
        "",
        "| what | seconds | ratio | wanted |",
        "| --- | --- | --- | --- |",
    ]
    for one in record["measured"]:
        ratio = f"{one['ratio']:.2f}" if "ratio" in one else ""
        wanted = f"≤ {one['limit']:.2f}" if one.get("limit") else f"≤ {one['limit_seconds']:g} s" if one.get("limit_seconds") else ""
        lines.append(f"| {one['part']}: {one['name']} | {one['seconds']:.3g} | {ratio} | {wanted} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = Parser("tests.bench", __doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}, all (default: all but the last)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench", help="folder (default: results/bench)")
    args = parser.parse_args()
    if unknown := [part for part in args.parts if part not in (*PARTS, "all")]:
        raise UserError(f"found {', '.join(unknown)}, expected one or more of {', '.join((*PARTS, 'all'))}")
    first = busy.read()
    time.sleep(2)
    before = busy.between(first, busy.read())
    if busy.is_busy(before):
        say(f"warning: other processes use {before['others']:.2g} of {before['cores']} cores: ratios are rough, the record says so")
    import torch

    torch.set_num_threads(1)
    chosen = args.parts or list(PARTS)
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cache = prepared(work) if {"steps", "public"} & set(chosen) else Path()
        for number, part in enumerate(chosen, 1):
            say(f"part {number} of {len(chosen)}: {part}")
            measured += (
                whole(work)
                if part == "all"
                else {"steps": steps, "public": public, "latency": latency, "commands": commands}[part](cache, work)
            )
    record = {
        "hardware": hardware(),
        "versions": versions(),
        "git_commit": git_commit(),
        "load_before": before,
        "busy": busy.is_busy(before),
    }
    record["measured"] = measured
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out / "bench.json", json.dumps(record, indent=1) + "\n")
    write_atomic(args.out / "bench.md", table(record))
    print(table(record))


if __name__ == "__main__":
    sys.exit(run_command(main))
