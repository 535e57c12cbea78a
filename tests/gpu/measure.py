"""What needs a GPU, in one go, in order of worth: measurements and checks, each kept as soon as it is there. `make gpu`.

    python tests/gpu/measure.py --out results                       (all of it: half an hour on a card of 80 GB)
    python tests/gpu/measure.py --out results --minutes 8           (what fits in eight minutes; what is there already is left out)
    python tests/gpu/measure.py --out results --only train-qwen-image-lora-r64 geneval-512px

Nothing is fetched: networks have random weights. One process does it all, since libraries take longer to load than most to time; a
step that fails says why and the next one runs. The records are those of `snakemake speed` and `snakemake measure`, where these look for
them, and of `python -m evaluators.throughput`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from apex import measure as training
from apex.errors import UserError, run_command
from apex.gpu import claim
from apex.provenance import hardware
from evaluators import throughput
from evaluators.systems import __main__ as systems

ROOT = Path(__file__).resolve().parents[2]
CHECKS = "(resumed_run_equals or learns_the_flow_map or running_mean or accumulated_micro_batches) and not bits"


@dataclass(frozen=True)
class Step:
    """seconds: about what it takes on an H100; done: files that are there once it has run."""

    name: str
    seconds: float
    run: Callable[[Path], None]
    done: tuple[str, ...]


def train(profile: str, row: str, seconds: float, steps: int = 2) -> Step:
    out = f"{profile}/plan/measured/{row}.json"

    def run(folder: Path) -> None:
        config = ROOT / f"workflows/config/{profile}.yaml"
        training.main(["--config", str(config), "--row", row, "--steps", str(steps), "--out", str(folder / out)])

    return Step(f"train-{profile.replace('_', '-')}", seconds, run, (out,))


def speed(name: str, seconds: float, side: int, nfe: tuple[int, ...] = (1, 2, 4), *options: str) -> Step:
    pattern = f"speed/{name}/{{resolution}}px/nfe{{nfe}}.json"

    def run(folder: Path) -> None:
        asked = ["--nfe", *map(str, nfe), "--resolution", str(side), *options]
        systems.main(["--system", name, "--out", str(folder / pattern), "--warmup", "2", "--limit", "4", *asked])

    done = tuple(pattern.replace("{resolution}", str(side)).replace("{nfe}", str(steps)) for steps in nfe)
    return Step(f"{name}-{side}px", seconds, run, done)


def cost(name: str, images: int, batch: int, seconds: float, *, side: int = 512, threads: int = 1) -> Step:
    out = f"throughput/{name}_{side}px_{threads}threads.json" if threads > 1 else f"throughput/{name}_{side}px.json"

    def run(folder: Path) -> None:
        asked = ["--evaluator", name, "--images", str(images), "--batch", str(batch), "--resolution", str(side), "--threads", str(threads)]
        throughput.main([*asked, "--out", str(folder / out)])

    return Step(f"{name}-{side}px" + (f"-{threads}threads" if threads > 1 else ""), seconds, run, (out,))


def checks(name: str, which: str, seconds: float) -> Step:
    """The training loop's own tests of these names, which take the GPU where there is one."""
    out = f"gpu/{name}.txt"

    def run(folder: Path) -> None:
        log, part = folder / out, (folder / out).with_suffix(".part")
        command = ["-m", "pytest", "-p", "no:cacheprovider", "-q", "tests/apex/test_train.py", "-k", which]
        with part.open("w") as file:
            found = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        print(part.read_text()[-1500:], flush=True)
        if found.returncode:
            raise UserError(f"{part}: tests failed")
        os.replace(part, log)

    return Step(name, seconds, run, (out,))


STEPS = [
    train("qwen_image_lora_r64", "apex-lora", 75),
    speed("qwen-image-lora-r64", 60, 512),
    speed("qwen-image-teacher", 70, 512, (50,), "--batch", "1"),
    speed("sana-0.6b", 20, 512),
    speed("sana-0.6b", 20, 1024),
    checks("checks", CHECKS, 60),
    cost("geneval", 96, 16, 25),
    cost("clip_score", 256, 64, 12),
    cost("fid", 128, 32, 12),
    cost("dpg", 128, 32, 20),
    speed("flux-schnell", 35, 512),
    speed("sana-sprint-0.6b", 20, 512),
    speed("sana-1.6b", 20, 512),
    speed("sana-sprint-1.6b", 20, 512),
    speed("sdxl-dmd2", 20, 512),
    speed("sdxl-lcm", 20, 512),
    speed("pcm", 20, 512),
    speed("pixart", 20, 512),
    speed("sd3.5-turbo", 30, 512),
    speed("qwen-image", 50, 512),
    speed("qwen-image-lora-r32", 55, 512),
    train("sana_0_6b", "apex", 30),
    train("sana_1_6b", "apex", 40),
    speed("flux-schnell", 60, 1024),
    speed("sana-sprint-0.6b", 25, 1024),
    speed("sana-1.6b", 25, 1024),
    speed("sana-sprint-1.6b", 25, 1024),
    speed("sdxl-dmd2", 35, 1024),
    speed("sdxl-lcm", 35, 1024),
    speed("pcm", 35, 1024),
    speed("pixart", 30, 1024),
    speed("sd3.5-turbo", 60, 1024),
    cost("fid", 128, 32, 10, threads=8),
    speed("sana-0.6b-compiled", 150, 512),
    speed("qwen-image-lora-r64", 160, 1024),
    speed("qwen-image", 150, 1024),
    speed("qwen-image-compiled", 200, 512),
    speed("sana-0.6b-compiled", 150, 1024),
    speed("qwen-image-lora-r32", 160, 1024),
    speed("qwen-image-compiled", 300, 1024),
    checks("checks-adamw8bit", "resumed_run_equals and bits", 240),  # torchao compiles the step for every shape
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="where runs write: results")
    parser.add_argument("--minutes", type=float, help="no step begins that would end later, by its estimate (default: none is left out)")
    parser.add_argument("--only", nargs="+", metavar="STEP", choices=[step.name for step in STEPS], help="these steps alone")
    parser.add_argument("--list", action="store_true", help="print the steps and end")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{step.name:36} {step.seconds:4.0f} s" for step in STEPS))
        return
    if not torch.cuda.is_available():
        raise UserError("no GPU here that torch can use; `snakemake speed` and `snakemake measure` run without one")
    claim()
    (args.out / "gpu").mkdir(parents=True, exist_ok=True)
    started, failed = time.time(), []
    log = args.out / "gpu" / "took.json"
    took: dict[str, float] = json.loads(log.read_text())["seconds"] if log.is_file() else {}
    for step in STEPS:
        left = args.minutes * 60 - (time.time() - started) if args.minutes else float("inf")
        if (args.only and step.name not in args.only) or all((args.out / name).is_file() for name in step.done):
            continue
        if step.seconds > left:
            print(f"---- {step.name}: about {step.seconds:.0f} s, {left:.0f} s are left: not begun", flush=True)
            continue
        print(f"---- {step.name}, {time.time() - started:.0f} s since the start", flush=True)
        began = time.time()
        torch.use_deterministic_algorithms(False)  # a step that trains asks for them; systems are timed as they come
        try:
            step.run(args.out)
        except Exception as error:  # the next one may run
            failed.append(step.name)
            said = str(error) if isinstance(error, UserError) else traceback.format_exc(limit=-6)
            print(f"error: {step.name}: {said}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        took[step.name] = round(time.time() - began, 1)
        log.write_text(json.dumps({"hardware": hardware("cuda"), "seconds": took, "failed": failed}, indent=1) + "\n")
    print(f"the speed table of what is there: python -m paper_tables.systems --results {args.out}/speed --out {args.out}/speed/tables")
    if failed:
        raise UserError(f"failed: {', '.join(failed)}; the others are kept, and the same call tries these again")


if __name__ == "__main__":
    sys.exit(run_command(main))
