"""Fetches a pipeline from the model hub into a folder of the results: the parts that this suite opens, and no pickle.

    python -m apex.fetch --hub Qwen/Qwen-Image --out results/pretrained/qwen_image/pipeline
    python -m apex.fetch --whole --hub black-forest-labs/FLUX.1-schnell --out ...       all parts that its model_index.json names
    python -m apex.fetch --file lora.safetensors --hub owner/name --out ...             one file

`owner/name@revision` pins what is fetched; a revision that is a commit pins every byte of it. fetched.json says which commit it was. An
interrupted call continues where it was.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from apex.command import Parser
from apex.errors import UserError, run_command
from apex.files import read_object, write_atomic

PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
# Weights as safetensors alone, in one precision: of several variants the one without a name.
KINDS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
VARIANTS = ("*.fp16.*", "*.bf16.*", "*.fp16-*", "*.bf16-*")


def fetch(hub: str, out: Path, *, whole: bool = False, file: str = "") -> str:
    """Fetches `owner/name[@revision]` into `out`; returns the commit. whole: every part of the pipeline; file: that file alone.

    Raises:
        UserError: the hub cannot be reached, has no such model or asks for a key; or what came is no pipeline.
    """
    from huggingface_hub import HfApi, snapshot_download

    name, _, revision = hub.partition("@")
    partial = out.parent / f".{out.name}.partial"
    try:
        commit = HfApi().model_info(name, revision=revision or None).sha
        parts = ("*",) if whole else PARTS
        wanted = [file] if file else ["model_index.json", *(f"{part}/{kind}" for part in parts for kind in KINDS)]
        snapshot_download(name, revision=commit, local_dir=partial, allow_patterns=wanted, ignore_patterns=list(VARIANTS))
    except Exception as error:  # the hub's library, its HTTP client and the system each have their own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"hub: {hub}: could not be fetched ({first}); check name and network, log in where the model asks for it (hf auth login), "
            f"or put the pipeline into {out} by hand"
        ) from error
    missing = [part for part in _needed(partial, whole, file) if not (partial / part).exists()]
    if missing:
        what = "that file" if file else "a pipeline in diffusers' layout with safetensors weights"
        raise UserError(f"hub: {hub}: found no {missing[0]} in it, expected {what}")
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's own notes, which differ from one download to the next
    write_atomic(partial / "fetched.json", json.dumps({"hub": name, "revision": revision or None, "commit": commit}, indent=1) + "\n")
    partial.rename(out)
    return commit


def _needed(folder: Path, whole: bool, file: str) -> list[str]:
    """What a fetched folder must hold."""
    if file:
        return [file]
    index = folder / "model_index.json"
    if not whole or not index.is_file():
        return [*PARTS, "model_index.json"]
    parts = read_object(index, "fetch it again")
    return [name for name, value in parts.items() if isinstance(value, list) and value and value[0] is not None]


def main() -> None:
    parser = Parser("apex.fetch", __doc__)
    parser.add_argument("--hub", required=True, help="owner/name, or owner/name@revision")
    parser.add_argument("--out", required=True, type=Path, help="folder of the pipeline")
    parser.add_argument("--whole", action="store_true", help="every part that its model_index.json names")
    parser.add_argument("--file", default="", help="one safetensors file in the place of a pipeline")
    args = parser.parse_args()
    if args.out.exists():
        raise UserError(f"--out {args.out}: is there already; remove it to fetch again")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print(f"{args.out}: {args.hub} at commit {fetch(args.hub, args.out, whole=args.whole, file=args.file)}")


if __name__ == "__main__":
    sys.exit(run_command(main))
