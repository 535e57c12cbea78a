"""Which prompt set a folder of images was made from, by what its lines say: two GenEval scores compare only where it is the same.

Prompts rewritten to long ones are in wide use under GenEval's name, and score higher; a record says which they were.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from apex.data.prompts import load_prompts
from evaluators.assets import check, registry

# `content_sha256` of djghosh13/geneval's prompts/evaluation_metadata.jsonl, 553 lines (SHA-256 of that file: 5c48e081...).
OFFICIAL = "c0bf8d5c86ed31a818987bd3ff27036beb602f0f60f80a4c041d8db17f1bd43f"
REWRITTEN = {"geneval-prompts-rewritten": "rewritten by BAGEL's authors"}  # a file of evaluators/assets.yaml: its name in a record


def content_sha256(rows: list[dict[str, Any]]) -> str:
    """SHA-256 over what the lines say, in their order; spaces and the order of keys do not matter."""
    lines = (json.dumps(row, sort_keys=True, separators=(",", ":")) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def prompt_set(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The set's name, content digest and number of prompts. A name other than "other" is given only to a whole set, in its order; a
    rewritten one is known only where its file was fetched."""
    digest = content_sha256(rows)
    name = "official" if digest == OFFICIAL else "other"
    for asset, theirs in REWRITTEN.items():
        path = registry()[asset].path
        if name == "other" and path.is_file():
            check(registry()[asset], path)
            name = theirs if content_sha256(load_prompts(path)) == digest else name
    return {"name": name, "sha256": digest, "prompts": len(rows)}
