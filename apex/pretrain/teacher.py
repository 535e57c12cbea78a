"""Trains the world's teacher by flow matching with condition dropout into a pipeline folder.

    python -m apex.pretrain.teacher --pipeline FOLDER --cache FOLDER --out FOLDER [--steps 16000]

`--pipeline` holds vae/, tokenizer/ and text_encoder/, all frozen. `--out` becomes a folder in diffusers'
layout: transformer/ with its EMA weights, text_encoder/, vae/, tokenizer/, scheduler/ and made.json.
The state is saved every few minutes beside `--out`; the same command continues from it. Stopping early is
allowed: `--export-only` writes the current EMA weights.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from apex.command import BATCH_SIZE, COUNT, FAMILIES, POSITIVE, SEED, THREADS, Parser, number, whole_number
from apex.errors import UserError, run_command


def main() -> None:
    parser = Parser("apex.pretrain.teacher", __doc__)
    parser.add_argument("--pipeline", required=True, type=Path)
    parser.add_argument("--cache", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--steps", type=COUNT, default=16000)
    parser.add_argument("--batch", type=BATCH_SIZE, default=64)
    parser.add_argument("--lr", type=POSITIVE, default=2e-3)
    parser.add_argument("--family", choices=FAMILIES, default="sana", help="architecture family (default: sana)")
    parser.add_argument("--width", type=whole_number(1, 65_536), default=128)
    parser.add_argument("--layers", type=whole_number(1, 1000), default=4)
    parser.add_argument("--time-mean", type=number(-100, 100), default=0.6, help="mean of the logit-normal time distribution (deviation 1)")
    parser.add_argument("--drop", type=number(0, 1), default=0.1, help="share of captions replaced by the empty caption")
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--threads", type=THREADS, default=1)
    parser.add_argument("--save-minutes", type=number(0, 1e6), default=4.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--export-only", action="store_true")
    args = parser.parse_args()

    import torch
    from torch import nn

    from apex import provenance
    from apex.backbones.base import Backbone
    from apex.config import fingerprint
    from apex.data.latents import load_cache
    from apex.errors import readable
    from apex.files import atomic_file, write_atomic
    from apex.gpu import pick_device, repeatable
    from apex.kinds import PIPELINE
    from apex.pipeline import CaptionTable, Pipeline
    from apex.pretrain import origin
    from apex.pretrain.denoiser import BUILDERS, EMA_RATE, export, flow_matching

    PIPELINE.check(args.out)
    args.device = pick_device(args.device)
    repeatable(args.device, strict=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    cache = load_cache(args.cache, args.pipeline)
    captions = CaptionTable(Pipeline(args.pipeline, args.device), cache.captions)
    latents, index = cache.latents.to(args.device), cache.caption_index.to(args.device)
    held_out = min(2000, len(latents) // 10)

    def build() -> Backbone:
        channels, size = latents.shape[1:3]
        return BUILDERS[args.family](channels, size, captions.embeds.shape[2], width=args.width, layers=args.layers).to(args.device)

    teacher, ema = build(), build()
    ema.load_state_dict(teacher.state_dict())
    optimizer = torch.optim.AdamW(teacher.parameters(), args.lr, betas=(0.9, 0.98), weight_decay=0.01, foreach=True)

    settings = {
        k: str(v) for k, v in vars(args).items() if k in ("family", "steps", "batch", "lr", "width", "layers", "drop", "time_mean", "seed")
    }
    made_from = [fingerprint(args.pipeline), fingerprint(args.cache)]
    state_file = args.out.parent / f".{args.out.name}-resume-{provenance.digest([settings, made_from])}.pt"
    step, seconds, log = 0, 0.0, []
    generator = torch.Generator().manual_seed(args.seed)
    if state_file.exists():
        with readable(state_file, "remove it to start again"):
            state = torch.load(state_file, weights_only=True, map_location=args.device)
        teacher.load_state_dict(state["teacher"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"].cpu())
        step, seconds, log = state["step"], state["seconds"], state["log"]
        print(f"continuing from step {step}", flush=True)
    elif args.export_only:
        raise UserError(f"{state_file}: no saved state to export; run without --export-only first")

    def made() -> dict:
        return {
            "arguments": settings,
            "step": step,
            "seconds": round(seconds, 1),
            "log": log,
            "parameters": ema.parameter_count(),
            **origin(args.device),
        }

    if args.export_only:
        export(ema, args.pipeline, args.out, made())
        return

    @torch.no_grad()
    def held_out_loss(captioned: bool) -> float:
        """Loss of the EMA weights on held-out scenes at fixed times and noise, with their captions or with the empty one."""
        fixed = torch.Generator().manual_seed(1)
        total = 0.0
        for start in range(0, held_out, 250):
            x = latents[start : start + 250].float()
            cond = captions[index[start : start + 250]] if captioned else captions.null(len(x))
            noise = torch.randn(x.shape, generator=fixed).to(x)
            t = torch.rand(len(x), generator=fixed).to(x)
            total += float(flow_matching(ema, x, cond, t, noise).sum())
        return round(total / held_out, 5)

    started, mark, last_save = time.time(), step, time.time()
    running = 0.0
    while step < args.steps:
        chosen = torch.randint(held_out, len(latents), (args.batch,), generator=generator).to(args.device)
        x = latents[chosen].float()
        noise = torch.randn(x.shape, generator=generator).to(x)
        t = torch.sigmoid(torch.randn(args.batch, generator=generator) + args.time_mean).to(x)
        drop = (torch.rand(args.batch, generator=generator) < args.drop).to(args.device)
        loss = flow_matching(teacher, x, captions[torch.where(drop, captions.empty, index[chosen])], t, noise).mean()
        if not torch.isfinite(loss):
            kept = f"the last good state is {state_file}; " if state_file.exists() else ""
            raise UserError(f"loss is {float(loss.detach())} at step {step}; {kept}lower --lr and run again")
        progress = step / args.steps
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / 200) * (1 - progress) ** 0.5
        loss.backward()
        nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            rate = min(EMA_RATE, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(ema.parameters()), list(teacher.parameters()), 1 - rate)
        step += 1
        value = float(loss.detach())
        running = value if running == 0.0 else 0.99 * running + 0.01 * value
        if step % 500 == 0 or step == args.steps:
            speed = (time.time() - started) / (step - mark)
            log.append(
                {
                    "step": step,
                    "loss": round(running, 5),
                    "held_out": held_out_loss(True),
                    "held_out_empty": held_out_loss(False),
                    "minutes": round((seconds + time.time() - started) / 60, 2),
                }
            )
            print(f"teacher {log[-1]}, {speed:.3f} s a step, {(args.steps - step) * speed / 60:.1f} min left", flush=True)
        if time.time() - last_save > 60 * args.save_minutes or step == args.steps:
            total = seconds + time.time() - started
            state = {
                "teacher": teacher.state_dict(),
                "ema": ema.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
                "step": step,
                "seconds": total,
                "log": log,
            }
            with atomic_file(state_file) as file:
                torch.save(state, file)
            last_save = time.time()
    seconds += time.time() - started
    export(ema, args.pipeline, args.out, made())
    write_atomic(args.out.parent / f"{args.out.name}.log.json", json.dumps(log))


if __name__ == "__main__":
    sys.exit(run_command(main))
