"""Trains the world's latent codec, a small diffusers AutoencoderKL, and normalises its latents exactly.

    python -m apex.pretrain.codec --data SHARDS --out FOLDER [--steps 3000] [--decoder-steps 5000]

The result is a stock AutoencoderKL folder: per-channel whitening is folded into its 1x1 `quant_conv`
and `post_quant_conv`, so `encode(...).latent_dist.mode()` has zero mean and unit variance per channel
and any stock pipeline can use it with scaling_factor 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from apex.command import BATCH_SIZE, COUNT, POSITIVE, SEED, Parser, number, whole_number
from apex.errors import run_command


def main() -> None:
    parser = Parser("apex.pretrain.codec", __doc__)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--steps", type=COUNT, default=3000)
    parser.add_argument("--batch", type=BATCH_SIZE, default=32)
    parser.add_argument("--lr", type=POSITIVE, default=2e-3)
    parser.add_argument("--kl-weight", type=number(0, 1e9), default=1e-5)
    parser.add_argument(
        "--latent-noise", type=number(0, 1e3), default=0.05, help="noise on the latents before decoding, in standard deviations"
    )
    parser.add_argument(
        "--decoder-steps", type=whole_number(0, 10**9), default=5000, help="steps of the decoder alone that follow; the latents stay"
    )
    parser.add_argument("--decode-for", type=Path, help="skip --steps: train the decoder alone for this codec's latents")
    parser.add_argument("--seed", type=SEED, default=0)
    args = parser.parse_args()

    import torch
    from diffusers import AutoencoderKL

    from apex.data.shards import load_images
    from apex.files import atomic_folder
    from apex.kinds import CODEC
    from apex.pretrain import origin, settings
    from apex.pretrain.autoencoder import fold_normalisation, train
    from apex.weights import pretrained

    CODEC.check(args.out)
    torch.set_num_threads(1)
    images = load_images(args.data)
    common = {"batch": args.batch, "kl_weight": args.kl_weight, "latent_noise": args.latent_noise}
    if args.decode_for:
        codec, log = pretrained(AutoencoderKL, args.decode_for, "name another folder"), []
    else:
        codec, log = train(images, steps=args.steps, lr=args.lr, seed=args.seed, **common)
        fold_normalisation(codec, images[:4000].float() / 127.5 - 1)
    refined: list[tuple[int, float]] = []
    if args.decoder_steps:
        codec, refined = train(images, steps=args.decoder_steps, lr=args.lr / 2, seed=args.seed + 1, init=codec, **common)
    made = {"arguments": settings(args), "psnr": log, "psnr_decoder": refined} | origin()
    with atomic_folder(args.out, CODEC) as folder:
        codec.save_pretrained(folder, safe_serialization=True)
        (folder / "made.json").write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    sys.exit(run_command(main))
