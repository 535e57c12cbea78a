"""How far a benchmark's prompts stand among the training captions. A score on them says less of the method, the more do.

    python -m apex.data.overlap --data DIR --prompts FILE [FILE ...]

Every run's record has it for the prompt sets of its profile (`prompts_seen` in made.json), and its card and the tables say it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apex.command import Parser
from apex.data.prompts import load_prompts, prompts_sha256
from apex.data.shards import load_captions
from apex.errors import run_command

WORDS = 3  # GenEval's prompts begin "a photo of"


def normal(text: str) -> str:
    """The text by which two captions are one: case, spaces and the full stop at the end do not count."""
    return " ".join(text.casefold().split()).rstrip(" .")


def _opening(text: str) -> str:
    return " ".join(text.split()[:WORDS])


def overlap(prompts: Sequence[str], captions: Sequence[str], counts: Sequence[int] | None = None) -> dict[str, Any]:
    """Prompts among captions, by `normal`.

    counts: how many samples have each caption, one each by default.
    Returns prompts and samples, each in all and those that are `seen`: prompts that are captions, samples whose caption is a prompt;
    and, where at least half of the prompts begin with the same three words, those (`opening`) and the samples whose captions begin so.
    """
    wanted = [normal(prompt) for prompt in prompts]
    opening, common = Counter(map(_opening, wanted)).most_common(1)[0] if wanted else ("", 0)
    opening = opening if 2 * common >= len(wanted) else ""
    known, found = set(wanted), set()
    samples = seen = alike = 0
    for caption, count in zip(map(normal, captions), counts or [1] * len(captions), strict=True):
        samples += count
        alike += count if opening and _opening(caption) == opening else 0
        if caption in known:
            found.add(caption)
            seen += count
    return {
        "prompts": len(wanted),
        "prompts_seen": sum(prompt in found for prompt in wanted),
        "samples": samples,
        "samples_seen": seen,
        "opening": opening,
        "samples_alike": alike,
    }


def overlaps(files: dict[str, Path], captions: Sequence[str], counts: Sequence[int] | None = None) -> dict[str, dict[str, Any]]:
    """`overlap` with every prompt file that is there, by its set's name, with the file's SHA-256."""
    return {
        name: {"sha256": prompts_sha256(file), **overlap([row["prompt"] for row in load_prompts(file)], captions, counts)}
        for name, file in files.items()
        if file.is_file()
    }


def words(name: str, found: dict[str, Any]) -> str:
    """One line on one prompt set."""
    alike = f"; {found['samples_alike']:,} begin as its prompts do, “{found['opening']}”" if found["opening"] else ""
    return (
        f"{name}: {found['prompts_seen']:,} of {found['prompts']:,} prompts are training captions word for word, "
        f"of {found['samples_seen']:,} of {found['samples']:,} samples{alike}"
    )


def main() -> None:
    parser = Parser("apex.data.overlap", __doc__)
    parser.add_argument("--data", required=True, type=Path, help="training data, as `data.source` names it")
    parser.add_argument("--prompts", required=True, type=Path, nargs="+", help="prompt files, JSON lines")
    args = parser.parse_args()
    prompts = {str(file): [row["prompt"] for row in load_prompts(file)] for file in args.prompts}
    captions = load_captions(args.data)
    for name, texts in prompts.items():
        print(words(name, overlap(texts, captions)))


if __name__ == "__main__":
    sys.exit(run_command(main))
