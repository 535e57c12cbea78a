"""Prompts in, images out, for any run, the teacher and the reference rows; images in GenEval's folder layout.

    python -m apex.sample --config workflows/config/world.yaml --row apex --run results/world/runs/apex/seed0 \\
        --nfe 1 2 4 --seed 0 --split test unseen --out 'results/world/images/apex/nfe{nfe}/seed0/{split}'
    python -m apex.sample --config ... --row teacher --nfe 25 ...       the guided teacher (Euler)
    python -m apex.sample --config ... --row real noise --nfe 0 ...     reference rows: real (fresh renders), shuffled, noise, mean
    python -m apex.sample --pipeline RUN --prompt "a red circle" --nfe 1 --out pictures      no profile: an exported run, or a pipeline

The noise of an image depends on seed, prompt number and image number alone, so results do not change with the
batch size, and an interrupted call continues where it was.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

from apex.command import COUNT, GUIDANCE, PRECISIONS, REFERENCES, RESOLUTION, SEED, THREADS, Parser, filled, whole_number
from apex.errors import NotFinite, UserError, run_command


def draw(args: argparse.Namespace, device: str) -> None:
    """Images of given captions into a folder: <number of the caption>-<number of the image>.png."""
    from apex.data.shards import encode_png
    from apex.files import write_atomic
    from apex.generator import Generator, generate

    generator = Generator.load(
        args.pipeline, nfe=args.nfe[0], guidance=args.guidance, device=device, resolution=args.resolution, precision=args.precision
    )
    rows, todo = [{"prompt": prompt} for prompt in args.prompt], list(range(len(args.prompt)))
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        for at, pictures in generate(generator, rows, todo, seed=args.seed, images=args.images, batch=args.images):
            for number, picture in enumerate(pictures):
                path = out / f"{at:03d}-{number:03d}.png"
                write_atomic(path, encode_png(picture))
                print(f"{path}: {args.prompt[at]}", flush=True)
    except NotFinite as error:
        raise NotFinite(f"{args.pipeline}, NFE {args.nfe[0]}: {error}; train it again, or give another --precision") from None


def main() -> None:
    parser = Parser("apex.sample", __doc__)
    parser.add_argument("--config", type=Path, help="the profile")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--row", nargs="+", default=[], help="a trained row, `teacher`, or one or more of " + ", ".join(REFERENCES))
    parser.add_argument("--run", type=Path, help="the exported run; the teacher's default is the profile's pipeline")
    parser.add_argument(
        "--nfe", type=whole_number(0, 1000), nargs="+", default=[1], help="network evaluations (default: 1); 0: a reference row"
    )
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--split", nargs="+", default=["test"], help="prompt sets of the profile (default: test)")
    parser.add_argument("--prompts", type=Path, help="another prompt file instead of the profile's; with one split")
    parser.add_argument("--pipeline", type=Path, help="with --prompt: an exported run, or a pipeline's folder; no profile is needed")
    parser.add_argument("--prompt", action="append", default=[], help="a caption to draw; may be given several times")
    parser.add_argument("--images", type=COUNT, default=1, help="with --prompt: images of each (default: 1)")
    parser.add_argument(
        "--guidance", type=GUIDANCE, default=1.0, help="with --prompt: of a pipeline that was not distilled (default: 1, none)"
    )
    parser.add_argument("--resolution", type=RESOLUTION, help="with --prompt: of a pipeline's images (default: its own)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="with --prompt: of weights and arithmetic (default: fp32)")
    parser.add_argument(
        "--out", required=True, help="the folder; `{row}`, `{nfe}` and `{split}` stand for each value where there are several"
    )
    parser.add_argument(
        "--keep-failed", action="store_true", help="images that are not finite: note it in the folder's made.json, and end without an error"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=THREADS, default=1)
    args = parser.parse_args()

    import torch

    from apex.config import OWN_SETS, fingerprint, load, locate
    from apex.generator import identity, load_generator, make_images, prompt_rows
    from apex.gpu import pick_device, repeatable
    from apex.kinds import IMAGES
    from apex.strict import unknown

    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    repeatable(device)
    rendered = bool(args.row) and set(args.row) <= set(REFERENCES)
    if 0 in args.nfe and not rendered:
        names = ", ".join(REFERENCES)
        raise UserError(f"--nfe: found 0, expected a whole number of at least 1; only the rows {names} are made without a network")
    if args.pipeline or args.prompt:
        if not (args.pipeline and args.prompt) or args.config or args.row:
            raise UserError("--pipeline and --prompt go together, without --config and --row; a profile's row takes --config and --row")
        if len(args.nfe) > 1:
            raise UserError(f"--nfe {' '.join(map(str, args.nfe))}: with --prompt, expected one number")
        draw(args, device)
        return
    if not (args.config and args.row):
        raise UserError("give --config and --row, or --pipeline and --prompt")
    if len(args.row) > 1 and not rendered:
        raise UserError(f"--row {' '.join(args.row)}: expected one row, or several of {', '.join(REFERENCES)}")
    for option, values in (("row", args.row), ("nfe", args.nfe), ("split", args.split)):
        if len(values) > 1 and (f"{{{option}}}" not in args.out or (option == "split" and args.prompts)):
            no_file = " and no --prompts" if option == "split" else ""
            raise UserError(f"--{option} {' '.join(map(str, values))}: several need `{{{option}}}` in --out{no_file}")
    config = load(args.config, args.set)
    known = [*OWN_SETS, *config.prompts.sets]
    for split in args.split:
        if split not in known:
            raise UserError(f"--split: {unknown('prompt set', split, known)}")
    points = list(product(args.row, args.nfe))
    outs = {(row, nfe, split): Path(filled(args.out, row=row, nfe=nfe, split=split)) for row, nfe in points for split in args.split}
    for out in outs.values():
        IMAGES.check(out)
    sets = {split: args.prompts or config.prompts_path(split) for split in args.split}
    prompts = {split: prompt_rows(config, split, args.prompts) for split in args.split}
    if {"real", "shuffled", "mean"} & set(args.row):
        from apex.data.world import check_drawable

        for split, file in sets.items():
            for number, one in enumerate(prompts[split], 1):
                check_drawable(one, f"{file}: prompt {number}")

    finished = []
    for row, nfe in points:
        generator, weights = None, []
        if not rendered:
            published = config.checkpoint_rows.get(row)
            if row != "teacher" and args.run is None and not published:
                raise UserError(f"--run: missing; row {row!r} needs the folder of its exported run")
            run = args.run or config.pipeline_path
            generator = load_generator(config, row, run, nfe, device)
            places = published.folders if published else [locate(run), generator.pipeline.path]
            weights = [fingerprint(folder) for folder in places]
        for split, file in sets.items():
            about = identity(config, row, args.seed, nfe, split, file, generator, device)
            out = outs[row, nfe, split]
            finished.append(make_images(config, prompts[split], about, generator, weights, out, keep_failed=args.keep_failed))
        del generator  # before the next one is loaded
    for move in finished:
        move()


if __name__ == "__main__":
    sys.exit(run_command(main))
