"""WISE on a folder of images: its six categories and the weighted overall, 0 to 1, in one record.

    OPENAI_API_KEY=... python -m evaluators.wise --images FOLDER --out wise.json
    python -m evaluators.wise --images FOLDER --out wise.json --dry-run                          what it would ask, nothing is sent
    python -m evaluators.wise --images FOLDER --out wise.json --version 2026 --endpoint http://127.0.0.1:8000/v1

FOLDER is in GenEval's layout, or flat, PROMPT_ID.png. The judge is any OpenAI-compatible server. Answers are kept as they come: the same
call again asks only what is open. Intervals: bootstrap over prompts within category. docs/evaluators/wise.md says what the numbers mean.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from apex.command import number, whole_number
from apex.errors import UserError, run_command
from evaluators.command import image_parser, write_record
from evaluators.flat import open_matched
from evaluators.journal import Journal
from evaluators.result import Metric
from evaluators.statistics import bootstrap_weights, bootstrapped, mean_of_prompts
from evaluators.wise.endpoint import Endpoint, variable_fault
from evaluators.wise.judge import PARSERS, TEMPERATURE, Instruction, Judge, jobs_of, malformed, read_scores
from evaluators.wise.versions import VERSIONS, Version, load

VERSION = "2"


def means(version: Version, categories: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """The categories that have images, and the overall where all six do. Arguments: `metrics`."""
    chosen = {name: (categories == name) & (counts > 0) for name in version.weights}
    values = {name: float(mean_of_prompts(sums[mine], counts[mine])) for name, mine in chosen.items() if mine.any()}
    return values | ({"overall": version.overall(values)} if values.keys() == version.weights.keys() else {})


def metrics(version: Version, categories: np.ndarray, sums: np.ndarray, counts: np.ndarray, weights: np.ndarray) -> list[Metric]:
    """`means` with their intervals.

    Args:
        categories: of the prompts, (prompts,).
        sums, counts: per prompt the images' scores added up, and how many there are, (prompts,).
        weights: bootstrap weights, (resamples, prompts).

    Raises:
        UserError: a number is above 1, which the official parser allows: it takes any digit.
    """
    values, resampled, images = means(version, categories, sums, counts), {}, {}
    for name in (name for name in values if name != "overall"):
        mine = (categories == name) & (counts > 0)
        with np.errstate(invalid="ignore"):  # of few prompts a resample may have none with images
            resampled[name] = mean_of_prompts(sums[mine], counts[mine], weights[:, mine])
        images[name] = int(counts[mine].sum())
    if "overall" in values:
        resampled["overall"], images["overall"] = version.overall(resampled), sum(images.values())
    drawn = {name: each[np.isfinite(each)] for name, each in resampled.items()}
    for name, value in values.items():
        if (most := max(value, float(np.quantile(drawn[name], 0.975)))) > 1 + 1e-9:
            raise UserError(
                f"{version.prefix}/{name}: found up to {most:.3g}, expected at most 1: the judge gave digits above {version.best}, which "
                "the official script takes; --parser tolerant leaves them out, and reads the answers that are kept"
            )
    return [bootstrapped(f"{version.prefix}/{name}", value, drawn[name], "score", images[name]) for name, value in values.items()]


def totals(version: Version, texts: list[list[str]], zero: bool, parser: str = PARSERS[0]) -> tuple[np.ndarray, np.ndarray]:
    """Per prompt the sum of its images' scores and their number; answers that lack a score count with 0 in its place, or not at all."""
    sums, counts = np.zeros(len(texts)), np.zeros(len(texts))
    for p, answers in enumerate(texts):
        for text in answers:
            parts = read_scores(version, text, parser)
            if zero or parts.keys() == version.parts.keys():
                sums[p] += version.score(parts)
                counts[p] += 1
    return sums, counts


def key_of(args: argparse.Namespace) -> str:
    if args.key_variable and (fault := variable_fault(args.key_variable)):
        raise UserError(f"--key-variable: {fault}")
    return os.environ.get(args.key_variable, "").strip() if args.key_variable else ""


def main(argv: list[str] | None = None) -> None:
    parser = image_parser("evaluators.wise", __doc__)
    parser.add_argument(
        "--version", choices=sorted(VERSIONS), default="2025", help="of the benchmark; 2026 is WISE_Verified (default: 2025)"
    )
    parser.add_argument("--prompts", type=Path, help="folder of its three files (default: the assets)")
    parser.add_argument("--endpoint", help="base URL of an OpenAI-compatible server (default: OpenAI's; 2026: vLLM's on this machine)")
    parser.add_argument("--model", help="the judge (default: the protocol's, gpt-4o-2024-05-13; 2026: Qwen3.5-35B-A3B)")
    parser.add_argument(
        "--key-variable", default="OPENAI_API_KEY", help="environment variable with the key; '' sends none (default: OPENAI_API_KEY)"
    )
    parser.add_argument("--instruction", type=Path, help="YAML with the judge's instruction (default: ours)")
    parser.add_argument("--workers", type=whole_number(1, 1024), default=8, help="requests at once (default: 8)")
    parser.add_argument("--parser", choices=PARSERS, default=PARSERS[0], help="what reads the answers (default: as the official script)")
    parser.add_argument(
        "--attempts",
        type=whole_number(1, 1000),
        help="how often an answer that lacks a score is asked for (default: as the official script, 1; 2026: 3)",
    )
    parser.add_argument("--tries", type=whole_number(1, 1000), default=8, help="how often a request that fails is made (default: 8)")
    parser.add_argument("--timeout", type=number(0, 86_400, above=True), default=120, help="seconds without an answer (default: 120)")
    parser.add_argument("--layout", choices=("auto", "geneval", "flat"), default="auto", help="of the folder (default: what is there)")
    parser.add_argument("--partial", action="store_true", help="score a folder that lacks prompts")
    parser.add_argument("--answers", type=Path, help="folder of the answers kept (default: answers, beside the record)")
    parser.add_argument("--dry-run", action="store_true", help="say how many requests it takes, send none")
    run(parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    started = time.time()
    version = VERSIONS[args.version]
    attempts = version.attempts if args.attempts is None else args.attempts
    prompts, files = load(version, args.prompts)
    instruction = Instruction.read(version, args.instruction)
    texts = {name: prompt.text for name, prompt in prompts.items()}
    matched = open_matched(args, texts, "prompt_id", None if args.layout == "auto" else args.layout == "flat")
    images = matched.images
    key = key_of(args)
    endpoint = Endpoint(args.endpoint or version.endpoint, key, args.timeout, args.tries, args.seed)
    judge = Judge(version, instruction, args.model or version.model, attempts, args.parser)
    jobs = jobs_of([prompts[name] for name in matched.ids], images.files)
    with Journal(args.answers or args.out.parent / "answers", "wise", judge.identity(endpoint.host)) as journal:
        to_ask = {job.key for job in jobs if judge.is_open(job, journal)}
        size = sum(job.path.stat().st_size for job in {job.key: job for job in jobs if job.key in to_ask}.values())
        print(
            f"wise: {len(jobs)} images of {len(matched.ids)} prompts, {len(jobs) - len(to_ask)} answered or equal to another; "
            f"{len(to_ask)} requests to {judge.model} at {endpoint.host}, {size / 2**20:.1f} MiB of images; "
            f"at most {attempts} times that where answers cannot be read",
            file=sys.stderr,
        )
        if args.dry_run:
            return
        if to_ask and not key and not endpoint.local and args.key_variable:
            raise UserError(f"{args.key_variable}: not set, and {endpoint.host} may need a key; set it, or give --key-variable ''")
        judge.ask(jobs, endpoint, journal, args.workers)
        answers = [journal.get(job.key) for job in jobs]
    ends = np.cumsum([len(mine) for mine in images.files])
    texts_of = [[a["text"] for a in answers[end - len(mine) : end]] for end, mine in zip(ends, images.files, strict=True)]
    categories = np.array([prompts[name].category for name in matched.ids])
    weights = bootstrap_weights(categories.tolist(), seed=args.seed)
    sums, counts = totals(version, texts_of, version.zero, args.parser)
    found = metrics(version, categories, sums, counts, weights)

    def by_name(zero: bool, parser: str) -> dict[str, float]:
        """The same answers under another rule or parser."""
        return {f"{version.prefix}/{name}": v for name, v in means(version, categories, *totals(version, texts_of, zero, parser)).items()}

    bounds = {name: by_name(zero, args.parser) for name, zero in (("counted_as_0", True), ("left_out", False))}
    other = next(name for name in PARSERS if name != args.parser)
    otherwise = sum(read_scores(version, a["text"], args.parser) != read_scores(version, a["text"], other) for a in answers)
    by_other = {"parser": other, "answers_read_otherwise": otherwise, **by_name(version.zero, other)}
    reported = Counter(answer["model"] for answer in answers)
    once = {job.key: answer for job, answer in zip(jobs, answers, strict=True)}.values()
    bad = malformed(version, jobs, answers, args.parser)
    if bad["count"]:
        rule = "count as 0 in what they lack" if version.zero else "are left out"
        print(f"wise: {bad['count']} answers lack a score and {rule}, such as {bad['examples'][0]['answer'][:60]!r}", file=sys.stderr)
    differs = {
        "another judge": list(reported) != [version.model],
        "our wording of the instruction": instruction.ours,
        "tolerant parser": args.parser != PARSERS[0],
        f"up to {attempts} attempts where the official script makes {version.attempts}": attempts != version.attempts,
        f"{len(matched.missing)} prompts missing": bool(matched.missing),
        f"{len(matched.rewritten)} prompts rewritten": bool(matched.rewritten),
        f"{len(images.files[0])} images a prompt": len(images.files[0]) != 1,
    }
    details = {
        "protocol": f"WISE {version.name}",
        "judge": {"model": judge.model, "reported": dict(reported), "host": endpoint.host, "temperature": TEMPERATURE},
        "instruction": {"sha256": instruction.sha256, "ours": instruction.ours},
        "parser": args.parser,
        "comparable": not any(differs.values()),
        "differs": [words for words, true in differs.items() if true],
        "prompt_files": files,
        "images_per_prompt": len(images.files[0]),
        "prompts_missing": len(matched.missing),
        "prompts_rewritten": len(matched.rewritten),
        "malformed": {**bad, "rule": "counted_as_0" if version.zero else "left_out", **bounds},
        "by_the_other_parser": by_other,
        "requests": sum(a["attempts"] for a in once),
        "tokens": {way: sum(a["tokens"][k] for a in once) for k, way in enumerate(("in", "out"))},
        "parts": {
            name: round(float(np.mean([read_scores(version, a["text"], args.parser).get(name, 0) for a in answers])), 4)
            for name in version.parts
        },
        "per_prompt": [
            {"prompt_id": int(name), "score": round(float(s / c), 4) if c else None}
            for name, s, c in zip(matched.ids, sums, counts, strict=True)
        ],
    }
    write_record(args, images, "wise", VERSION, found, details, started)


if __name__ == "__main__":
    sys.exit(run_command(main))
