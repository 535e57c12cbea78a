"""Encodes the captions of a cache once, so that training reads conditions from disk and never loads the text encoder.

    python -m apex.data.embeddings --pipeline PIPE --cache CACHE --out DIR [--dtype bf16]

DIR holds

    captions-NNNNN.safetensors   PART captions each, in the order of the cache's captions.json, the empty one (the null condition) last:
                                 `embeds` (T, D) with the tokens of one caption after those of the other, none of them padding, and
                                 `lengths` (n,) int32, their numbers
    made.json                    identity of text encoder, tokenizer, captions, checksums of the files, counts

Captions are encoded alone (`--batch 1`), so what is read is bit for bit what the text encoder gives for each caption alone. In a larger
batch the captions are padded to its longest, there as in training with `data.embeddings` memory or batch: that changes the order of sums,
and so last bits. Files are written as they are done; the same command continues after a kill.
"""

from __future__ import annotations

import sys
from pathlib import Path

from apex.command import BATCH_SIZE, PRECISIONS, Parser
from apex.errors import run_command


def main() -> None:
    parser = Parser("apex.data.embeddings", __doc__)
    parser.add_argument("--pipeline", required=True, type=Path, help="diffusers pipeline folder with tokenizer/ and text_encoder/ in it")
    parser.add_argument("--cache", required=True, type=Path, help="the cache whose captions are encoded (apex.data.cache)")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--dtype", choices=PRECISIONS, default="fp32", help="of the encoder, as train.frozen (default: fp32)")
    parser.add_argument("--batch", type=BATCH_SIZE, default=1, help="captions at once; more than 1 may change last bits (default: 1)")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    import torch

    from apex.data.captions import build
    from apex.data.latents import load_cache
    from apex.gpu import pick_device

    device = pick_device(args.device)
    if device == "cpu":
        torch.set_num_threads(1)  # two jobs of one thread beat one of two
    made = build(args.pipeline, load_cache(args.cache).captions, args.out, dtype=args.dtype, batch=args.batch, device=device)
    size = sum(path.stat().st_size for path in args.out.iterdir()) / 1e9
    print(f"{args.out}: {made['count']} captions, {made['tokens']} tokens of {made['width']} numbers, {size:.3g} GB")


if __name__ == "__main__":
    sys.exit(run_command(main))
