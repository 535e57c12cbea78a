"""From the candidates' records to the choice: tuning.json (every candidate with its scores) and tuned.yaml (the best of each method).

    python -m workflows.tune --config workflows/config/world.yaml --results results/world/tune
    python -m workflows.tune --adopt --results results/world/tune --tuned workflows/config/tuned/world.yaml \\
        --reference results/reference/world/tune

The best is the highest GenEval on the validation prompts; of equals the first. A candidate that diverged counts with what
its last good state scores; one whose images are not finite has no score and is not chosen. Methods that have not been tried
in these results are left out.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from apex.command import Parser
from apex.config import Config, load
from apex.errors import UserError, run_command
from apex.files import Kind, atomic_folder, write_atomic
from evaluators.result import read_record
from paper_tables.records import read_made

REFERENCE = Kind("what `snakemake adopt_tuning` writes", ("tuning.*", "*/*/records/*.json", "*/*/run/log.csv"))
HEADER = """\
# Settings that `snakemake tune` chose, by method: the best of at most four declared candidates at {budget:g} forward-equivalents,
# by GenEval on the validation prompts. Written by `snakemake adopt_tuning` from {source}; do not edit.
"""


def read_candidate(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """One candidate's line of tuning.json."""
    geneval, coverage = (read_record(folder / "records" / f"{name}.json") for name in ("geneval", "coverage"))
    training, made = geneval.training or {}, geneval.details.get("made") or {}
    run = folder / "run" / "made.json"
    made |= read_made(run) if run.is_file() else {}
    scores = dict.fromkeys(("geneval", "geneval_low", "geneval_high", "spread", "recall", "n"))
    if not geneval.failed:
        overall = next(m for m in geneval.metrics if m.metric == "geneval/overall")
        scores = {
            "geneval": overall.value,
            "geneval_low": overall.ci_low,
            "geneval_high": overall.ci_high,
            "spread": coverage.value("coverage/spread"),
            "recall": coverage.value("coverage/recall"),
            "n": overall.n,
        }
    return {
        "params": settings.get("params", {}),
        "train": settings.get("train", {}),
        **scores,
        "failed": geneval.failed,
        "seed": geneval.seed,
        "forward_equivalents": training.get("forward_equivalents"),
        "wall_seconds": training.get("wall_seconds"),
        "steps": training.get("steps"),
        "stopped": training.get("stopped", ""),
        "revision": made.get("revision"),
        "resolved": made.get("params") or {},
        "prompts_sha256": geneval.prompts_sha256,
        "hardware": geneval.hardware,
        "git_commit": made.get("git_commit", geneval.git_commit),
    }


def collect(config: Config, results: Path) -> dict[str, Any]:
    """tuning.json's content: the candidates of the profile that have records in `results`."""
    methods: dict[str, Any] = {}
    for name, candidates in config.tuning.candidates.items():
        found = []
        for k, candidate in enumerate(candidates):
            folder = results / name / str(k)
            if all((folder / "records" / f"{e}.json").is_file() for e in ("geneval", "coverage")):
                settings = candidate.model_dump(mode="json", exclude_unset=True)
                found.append({"candidate": k, **read_candidate(folder, settings)})
        if found:
            scored = [i for i in range(len(found)) if not found[i]["failed"]]
            if not scored:
                print(f"warning: {results / name}: left out, for no candidate has images ({found[0]['failed']})", flush=True)
                continue
            best = max(scored, key=lambda i: (found[i]["geneval"], -i))
            methods[name] = {"declared": len(candidates), "candidates": found, "chosen": best}
    if not methods:
        raise UserError(f"{results}: found no records of candidates; expected METHOD/K/records/geneval.json; run `snakemake tune`")
    tuning = config.tuning
    return {
        "profile": config.profile,
        "split": "val",
        "nfe": tuning.nfe,
        "budget": config.tuning_budget,
        "methods": methods,
    }


def tuned_text(tuning: dict[str, Any], source: str) -> str:
    """The file `tuned` of a profile."""
    chosen = {}
    for name, found in tuning["methods"].items():
        best = found["candidates"][found["chosen"]]
        chosen[name] = {key: best[key] for key in ("params", "train") if best[key]}
    return HEADER.format(budget=tuning["budget"], source=source) + yaml.safe_dump(
        chosen, sort_keys=True, default_flow_style=None, width=120
    )


def adopt(results: Path, tuned: Path, reference: Path) -> int:
    """Copies the choice to where the profile reads it and the records to where they are committed; returns the number of files."""
    file = results / "tuning.json"
    if not file.is_file():
        raise UserError(f"{file}: not found; run `snakemake tune` first")
    REFERENCE.check(reference)
    write_atomic(tuned, tuned_text(json.loads(file.read_text()), f"{reference}/tuning.json"))
    wanted = sorted({*results.glob("tuning.*"), *results.glob("*/*/records/*.json"), *results.glob("*/*/run/log.csv")})
    with atomic_folder(reference, REFERENCE) as folder:
        for path in wanted:
            target = folder / path.relative_to(results)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return len(wanted)


def main() -> None:
    parser = Parser("workflows.tune", __doc__)
    parser.add_argument("--config", type=Path, help="the profile")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", required=True, type=Path, help="results/<profile>/tune")
    parser.add_argument("--adopt", action="store_true", help="make the choice the profile's")
    parser.add_argument("--tuned", type=Path)
    parser.add_argument("--reference", type=Path)
    args = parser.parse_args()
    if args.adopt:
        if not (args.tuned and args.reference):
            parser.error("--adopt needs --tuned and --reference")
        print(f"{args.tuned}; {args.reference}: {adopt(args.results, args.tuned, args.reference)} files")
        return
    if not args.config:
        parser.error("give --config")
    tuning = collect(load(args.config, args.set), args.results)
    write_atomic(args.results / "tuning.json", json.dumps(tuning, indent=1) + "\n")
    write_atomic(args.results / "tuned.yaml", tuned_text(tuning, str(args.results / "tuning.json")))
    for name, found in tuning["methods"].items():
        best = found["candidates"][found["chosen"]]
        print(f"{name}: {best['geneval']:.3f} with {json.dumps({k: best[k] for k in ('params', 'train') if best[k]})}")


if __name__ == "__main__":
    sys.exit(run_command(main))
