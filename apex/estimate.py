"""What a profile's runs need, before anything is spent: parameters, memory by part, training FLOPs, hours. `snakemake plan`.

    python -m apex.estimate --config workflows/config/qwen_image_lora_r64.yaml --card h100 --out results/qwen_image_lora_r64/plan

Nothing is loaded or fetched. The profile's own network is built on torch's meta device, from its pipeline's files or from the
configuration that is shipped for its hub (apex/configurations), and the training loop's own counters measure it there: FLOPs of every
kind of pass, peak memory of a step. How often a method calls which network is counted on toy networks: it does not depend on their size.

Not in it: the codec's and the text encoder's time, and what an allocator keeps beside the tensors; `share` is what they leave of the
card's rate.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from apex.command import POSITIVE, Parser, number
from apex.errors import UserError, run_command
from apex.gpu import CARDS, SHARE


def main() -> None:
    parser = Parser("apex.estimate", __doc__)
    parser.add_argument("--config", required=True, type=Path, help="a profile, workflows/config/*.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of the profile")
    parser.add_argument("--row", action="append", default=[], help="rows to plan; default: all of `methods`")
    parser.add_argument("--card", choices=CARDS, help="its memory and rate, from data sheets")
    parser.add_argument("--memory", type=POSITIVE, help="GB of the device, in place of the card's")
    parser.add_argument(
        "--tflops", type=POSITIVE, help="the device's rate in TFLOP/s, in place of the card's; without both it is measured here"
    )
    parser.add_argument(
        "--share", type=number(0, 1, above=True), default=SHARE, help=f"of the rate that training reaches (default: {SHARE}, assumed)"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for plan.json and the table")
    args = parser.parse_args()

    import torch

    from apex.config import check_params, load
    from apex.files import write_atomic
    from apex.planning import caption_gigabytes, measured, measured_rate, planned, shape_of
    from apex.provenance import hardware

    torch.set_num_threads(1)
    config = load(args.config, args.set)
    rows = args.row or config.methods
    check_params(config, rows)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory, rate = CARDS.get(args.card, (None, None))
    if rate is None and args.tflops is None:
        rate, source = measured_rate(device), f"measured on {hardware(device)}"
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30 if device == "cuda" else None
    else:
        source = f"data sheet of {args.card}" if args.tflops is None else "as given"
    memory, rate = args.memory or memory, args.tflops or rate
    shape, launch, found = shape_of(config), config.launched(), []
    for row in rows:
        print(f"{row}: on the meta device", flush=True)
        try:
            one = planned(config.run_config(row), shape, rate, args.share, memory, launch)
        except UserError as error:
            print(f"{row}: left out: {error}", flush=True)
            continue
        if had := measured(config, row, args.out / "measured"):
            one.measured_memory, one.measured_hours = had
        found.append(one)
    about = {
        "profile": config.profile, "source": shape.source, "latent": list(shape.latent), "tokens": shape.tokens, "rate_tflops": rate,
        "rate_source": source, "share": args.share, "memory_gb": memory, "budget": config.budget.forward_equivalents,
        "processes": launch.processes, "split": launch.split,
        "captions_gb_per_1000": caption_gigabytes(config.run_config(rows[0]), shape),
    }  # fmt: skip
    write_atomic(
        args.out / "plan.json", json.dumps(about | {"rows": [asdict(one) | {"total": one.total} for one in found]}, indent=1) + "\n"
    )
    for one in found:
        hours = f"{one.hours:.3g} hours" if one.hours is not None else "hours unknown"
        fits = "" if one.fits is None else "fits" if one.fits else f"does not fit; {one.mend}"
        print(f"{one.row}: {one.parameters / 1e9:.4g}B parameters, {one.trainable / 1e9:.4g}B trained, {one.total:.3g} GB, {hours}; {fits}")
    if about["captions_gb_per_1000"]:
        size = f"{about['captions_gb_per_1000']:.3g} GB for 1,000 captions of {shape.tokens} tokens"
        print(f"embeddings on disk: {size}; no text encoder in memory")


if __name__ == "__main__":
    sys.exit(run_command(main))
