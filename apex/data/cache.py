"""Encodes a data set once into latents, so that training never runs the image encoder.

    python -m apex.data.cache --pipeline PIPE --data DIR --out DIR [--resolution R]

PIPE is a diffusers pipeline folder; the encoder is read from PIPE/vae. The cache holds

    latents.safetensors   `latents` (N, C, h, w) float16 as the denoiser sees them, `caption_index` (N,) int32
    captions.json         the unique captions that `caption_index` points into
    made.json             checksums of data, encoder and files, and counts; where there are any, the captions
                          that the text encoder cuts, and with --on-error skip what was skipped

With `--on-error skip` samples and files with a defect are left out and counted, `--skip-limit` of them at most.

Parts are written beside the cache as they are done; the same command continues after a kill.
"""

from __future__ import annotations

import sys
from pathlib import Path

from apex.command import BATCH_SIZE, RESOLUTION, SKIP_LIMIT, Parser, whole_number
from apex.errors import run_command


def main() -> None:
    parser = Parser("apex.data.cache", __doc__)
    parser.add_argument("--pipeline", required=True, type=Path, help="diffusers pipeline folder with vae/ in it")
    parser.add_argument("--data", required=True, type=Path, help="WebDataset shards, parquet files or an image folder")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument(
        "--resolution", type=RESOLUTION, help="resize and centre-crop to this; default: the images as they are, all of one size"
    )
    parser.add_argument("--batch", type=BATCH_SIZE, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--on-error", choices=["fail", "skip"], default="fail", help="at a sample or file with a defect (default: fail)")
    parser.add_argument(
        "--skip-limit", type=whole_number(0, 10**9), default=SKIP_LIMIT, help="defects that may be skipped, a number (default: %(default)s)"
    )
    args = parser.parse_args()

    import torch

    from apex.data.latents import build
    from apex.data.readers import Skipped
    from apex.gpu import pick_device

    skipped = Skipped(args.skip_limit) if args.on_error == "skip" else None
    device = pick_device(args.device)
    if device == "cpu":
        torch.set_num_threads(1)  # small convolutions: two jobs of one thread beat one of two
    made = build(args.pipeline, args.data, args.out, resolution=args.resolution, batch=args.batch, device=device, skipped=skipped)
    shape = "x".join(str(n) for n in made["latent_shape"])
    print(f"{args.out}: {made['samples']} latents of {shape}, {made['captions']} captions")
    if made.get("captions_cut"):
        print(f"warning: the text encoder cuts {made['captions_cut']} of {made['captions']} captions: they have too many tokens")
    if skipped is not None:
        print(f"skipped: {len(skipped.lines)} samples and files with a defect", *skipped.lines, sep="\n  ")


if __name__ == "__main__":
    sys.exit(run_command(main))
