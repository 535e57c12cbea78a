"""Builds and warms up the world's text encoder: a small T5 encoder over a word tokenizer.

    python -m apex.pretrain.text_encoder --out FOLDER [--steps 800]

Sana's cross-attention has no token positions, so the order of words must be inside the embeddings:
"a red circle and a blue square" has the words of "a blue circle and a red square". A T5 encoder's
relative position bias gives it. At scale a text encoder comes pretrained on language; here its stand-in
is a minute of scene-graph prediction: at every noun, the object's shape, colour, number, place relative to the
other object, that object's shape, and the background. It is frozen from then on: trained further with the teacher
at the teacher's rate, it forgot colours and places before the teacher had learned to look at them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from apex.command import BATCH_SIZE, COUNT, POSITIVE, SEED, Parser
from apex.errors import run_command


def main() -> None:
    parser = Parser("apex.pretrain.text_encoder", __doc__)
    parser.add_argument("--out", required=True, type=Path, help="pipeline folder; tokenizer/ and text_encoder/ are written into it")
    parser.add_argument("--steps", type=COUNT, default=800)
    parser.add_argument("--batch", type=BATCH_SIZE, default=128)
    parser.add_argument("--lr", type=POSITIVE, default=2e-3)
    parser.add_argument("--seed", type=SEED, default=0)
    args = parser.parse_args()

    import torch

    from apex.files import atomic_folder
    from apex.kinds import TEXT_ENCODER, TOKENIZER
    from apex.pretrain import origin, settings
    from apex.pretrain.t5 import build_encoder, build_tokenizer, warm_up

    TOKENIZER.check(args.out / "tokenizer")
    TEXT_ENCODER.check(args.out / "text_encoder")
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    encoder = build_encoder(len(tokenizer))
    accuracy = warm_up(encoder, tokenizer, steps=args.steps, batch=args.batch, lr=args.lr, seed=args.seed)
    made = {"arguments": settings(args), "accuracy": accuracy} | origin()
    with atomic_folder(args.out / "tokenizer", TOKENIZER) as folder:
        tokenizer.save_pretrained(folder)
    with atomic_folder(args.out / "text_encoder", TEXT_ENCODER) as folder:
        encoder.save_pretrained(folder, safe_serialization=True)
        (folder / "made.json").write_text(json.dumps(made, indent=1))


if __name__ == "__main__":
    sys.exit(run_command(main))
