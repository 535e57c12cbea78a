"""Kills at random moments, by hand: the workflow goes on each time, and ends with the metrics and files of a run that nothing disturbed.

    python -m tests.workflow.kills --kills 20                     the smoke profile; hours on two cores
    python -m tests.workflow.kills --kills 3 --folder DIR         what both runs leave stays in DIR

A kill is SIGKILL to Snakemake alone, SIGKILL to Snakemake with its jobs, or SIGTERM to Snakemake alone, in turn. After it the next call
starts at once, as a scheduler would start it, beside what is left of the one before. Printed are, of each kill, the moment, the rule that
ran and how long its jobs outlived it; then every difference from the undisturbed run, and the exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
WAYS = ("SIGKILL to Snakemake alone", "SIGKILL to all", "SIGTERM to Snakemake alone")
COLUMNS = ("row", "nfe", "seed", "split", "metric", "value", "ci_low", "ci_high", "n")  # of metrics.csv
SAME = ("*.png", "*.safetensors", "*.tar", "captions.json")  # files that must be equal; figures show what a clock says


def start(folder: Path, profile: Path, log: Path) -> subprocess.Popen[bytes]:
    """`snakemake all` in a process group of its own; its output goes to the end of `log`."""
    line = [sys.executable, "-m", "snakemake", "all", "--cores", "1", "--snakefile", str(ROOT / "Snakefile")]
    line += ["--directory", str(folder), "--configfile", str(profile), "--workflow-profile", str(ROOT / "profiles/default")]
    with log.open("ab") as out:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(line, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True)


def living(folder: Path) -> dict[int, str]:
    """Process id -> command line of every process that works in `folder`."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{name}/cwd").readlink() == folder and (line := Path(f"/proc/{name}/cmdline").read_bytes()):
                found[int(name)] = line.replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
    return found


def parent_of(number: int) -> int | None:
    """The process id of a process's parent; None if it has ended."""
    try:
        return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def trainings(folder: Path) -> list[str]:
    """What the trainings that run at this moment write to; one place twice is a collision."""
    found = {number: line.split() for number, line in living(folder).items()}
    found = {number: line for number, line in found.items() if "python" in line[0] and "apex.train" in line}  # not the shell around it
    # A process that a training starts, such as git, has the training's command line until it is another program.
    lines = [line for number, line in found.items() if parent_of(number) not in found]
    return sorted(line[line.index("--out") + 1] for line in lines if "--out" in line)


def kill(process: subprocess.Popen[bytes], way: str) -> None:
    if way == "SIGKILL to all":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(process.pid, signal.SIGKILL if way.startswith("SIGKILL") else signal.SIGTERM)


def disturbed(folder: Path, profile: Path, kills: int, seconds: float, rng: random.Random) -> Iterator[str]:
    """Runs the workflow in `folder` and kills it `kills` times; yields what is to be said. seconds: how long an undisturbed run takes."""
    log, done = folder / "log.txt", 0
    while done < kills:
        process = start(folder, profile, log)
        delay = rng.uniform(2, max(3.0, seconds / 3))
        end, twice = time.monotonic() + delay, set()
        while time.monotonic() < end and process.poll() is None:
            found = trainings(folder)
            twice |= {out for out in found if found.count(out) > 1}
            time.sleep(0.2)
        if twice:
            yield f"COLLISION: two trainings at once wrote to {', '.join(sorted(twice))}"
        if process.poll() is not None:
            if process.returncode:
                yield f"FAILED: exit code {process.returncode}, see {log}"
                return
            yield f"ended before kill {done + 1}; beginning again"
            for path in (folder / "results", folder / ".snakemake"):
                subprocess.run(["rm", "-rf", str(path)], check=True)
            continue
        way, left = WAYS[done % len(WAYS)], living(folder)
        running = sorted({line.split(" -m ", 1)[1].split()[0] for line in left.values() if " -m " in line and "snakemake" not in line})
        at = time.monotonic()
        kill(process, way)
        process.wait()
        stopped, left = time.monotonic() - at, set(left) - {process.pid}
        while (alive := set(living(folder)) & left) and time.monotonic() - at < 120:
            time.sleep(0.05)
        done += 1
        outlived = time.monotonic() - at
        yield f"kill {done} after {delay:.1f} s, {way}, at work: {', '.join(running) or 'no job'}; Snakemake ended after " + (
            f"{stopped:.1f} s, its last job after {outlived:.1f} s" + (f", LEFT BEHIND: {sorted(alive)}" if alive else "")
        )
    process = start(folder, profile, log)
    if process.wait():
        yield f"FAILED: exit code {process.returncode}, see {log}"


def metrics(results: Path) -> list[tuple[str, ...]]:
    """metrics.csv without what a clock measured."""
    with (results / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if not row["metric"].startswith("speed/")]
    return sorted(tuple(row[key] for key in COLUMNS) for row in rows)


def digest(path: Path) -> str:
    """SHA-256 of a file; of safetensors of the tensors, because the order of their metadata is by chance."""
    if path.suffix != ".safetensors":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    total = hashlib.sha256()
    for name, value in sorted(load_file(path).items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def files(results: Path) -> dict[str, str]:
    """Name -> digest of every file that is no log and not hidden; "is there" of those that hold times."""
    found: dict[str, str] = {}
    for path in sorted(results.rglob("*")):
        name = path.relative_to(results)
        if path.is_file() and not any(part.startswith(".") for part in name.parts) and name.parts[0] not in ("logs", "benchmarks"):
            plain = any(name.match(pattern) for pattern in SAME) and name.parts[0] not in ("figures", "claims")
            found[name.as_posix()] = digest(path) if plain else "is there"
    return found


def differences(whole: Path, killed: Path) -> list[str]:
    """What differs between the results of two runs."""
    out = []
    a, b = metrics(whole), metrics(killed)
    out += [f"metrics.csv: {len(a)} lines undisturbed, {len(b)} killed"] if len(a) != len(b) else []
    out += [f"metrics.csv: {one} and {other}" for one, other in zip(a, b, strict=False) if one != other][:20]
    mine, other = files(whole), files(killed)
    out += [f"{name}: missing after kills" for name in mine if name not in other]
    out += [f"{name}: only after kills" for name in other if name not in mine]
    out += [f"{name}: other content" for name, digest in mine.items() if other.get(name, digest) != digest]
    return out


def left_over(results: Path) -> list[str]:
    """Hidden files and folders that are neither a state to go on from, a lock nor Snakemake's mark."""
    hidden = (path for path in results.rglob(".*") if not path.name.startswith((".resume-", ".lock", ".snakemake_timestamp")))
    return sorted(path.relative_to(results).as_posix() for path in hidden)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--profile", type=Path, default=ROOT / "workflows/config/smoke.yaml")
    parser.add_argument("--folder", type=Path, help="an empty folder, which stays; without it a temporary one")
    parser.add_argument("--whole", type=Path, help="folder of an undisturbed run that there is already")
    parser.add_argument("--seconds", type=float, help="with --whole: how long that run took")
    args = parser.parse_args()
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="apex-kills-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    whole, killed, profile = args.whole, folder / "killed", args.profile.resolve()
    killed.mkdir(exist_ok=True)
    seconds = args.seconds or 600.0
    if whole is None:
        whole, started = folder / "whole", time.monotonic()
        whole.mkdir(exist_ok=True)
        if start(whole, profile, whole / "log.txt").wait():
            print(f"the undisturbed run failed, see {whole / 'log.txt'}")
            return 1
        seconds = time.monotonic() - started
        print(f"undisturbed: {seconds:.0f} s", flush=True)
    bad = []
    for said in disturbed(killed, profile, args.kills, seconds, random.Random(args.seed)):
        print(said, flush=True)
        bad += [said] if any(word in said for word in ("COLLISION", "FAILED", "LEFT BEHIND")) else []
    if not any("FAILED" in said for said in bad):
        (name,) = (path.name for path in (whole / "results").iterdir() if (path / "metrics.csv").is_file())
        found = differences(whole / "results" / name, killed / "results" / name)
        print("\n".join(found) or "metrics and files are those of the undisturbed run")
        print(f"left over, hidden: {json.dumps(left_over(killed / 'results' / name))}")
        bad += found
    print(f"{args.kills} kills, {len(bad)} faults; {folder}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
