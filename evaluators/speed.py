"""Speed of one row: latency at batch 1, throughput at batch 10, end to end and per stage, peak memory, parameters.

    python -m evaluators.speed --config workflows/config/world.yaml --row apex --run results/world/runs/apex/seed0 --nfe 1 --out speed.json
    python -m evaluators.speed --config ... --row teacher --run apex/pretrained/world --nfe 1 4 25 --out 'speed-{nfe}.json'

End to end is what the paper's Table 1 fits: prompts in, 8-bit images out, text encoder and decoder included. Every repeat
draws other prompts and noise. Warm-up is left out, the device is synchronised before each reading of the clock; values are
medians, the bounds are the interquartile range over the repeats. Peak memory is the device's on CUDA, else the process's, which
only grows from one NFE to the next. While other processes use more than a tenth of
the machine's cores the timing is taken again, three times in all; the calmest counts. The record has the load (`details.load`) and
whether it was too high (`details.busy`). Several NFEs take one process: its libraries take longer to load than a network to time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from apex.command import COUNT, NFE, REFERENCES, THREADS, Parser, filled, whole_number
from apex.errors import UserError, run_command


def main() -> None:
    parser = Parser("evaluators.speed", __doc__)
    parser.add_argument("--config", required=True, type=Path, help="the profile's YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of the profile")
    parser.add_argument("--row", required=True, help="row to time: teacher, or a trained row")
    parser.add_argument(
        "--run", type=Path, help="its export; for the teacher the pipeline's folder; a checkpoint of the profile needs none"
    )
    parser.add_argument("--nfe", required=True, type=NFE, nargs="+", help="function evaluations per image; one record for each")
    parser.add_argument("--out", required=True, help="the result record (JSON) to write; with several NFEs it holds `{nfe}`")
    parser.add_argument("--repeats", type=COUNT, help="counted repeats (default: 30 / NFE, at least 10)")
    parser.add_argument("--warmup", type=whole_number(0, 10**6), default=3, help="repeats before the clock counts (default: 3)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--threads", type=THREADS, default=1, help="CPU threads of this process (default: 1)")
    run(parser.parse_args())


def run(args: argparse.Namespace) -> None:
    from apex.config import load
    from apex.data.prompts import load_prompts
    from apex.gpu import pick_device
    from evaluators.command import check_out, print_metrics, set_threads
    from evaluators.timing import timed

    if args.row in REFERENCES:
        raise UserError(f"--row {args.row}: a reference row has no network to time; expected teacher or a trained row")
    config = load(args.config, args.set)
    if args.row not in config.checkpoint_rows and not (args.run and args.run.is_dir()):
        raise UserError(f"{args.run or '--run'}: no such run; train the row first, or give the pipeline's folder for the teacher")
    outs = {nfe: Path(filled(args.out, nfe=nfe)) for nfe in args.nfe}
    if len(set(outs.values())) < len(args.nfe):
        shown = " ".join(map(str, args.nfe))
        raise UserError(f"--nfe {shown}: {len(args.nfe)} records need `{{nfe}}` in --out and each NFE once; found --out {args.out}")
    for out in outs.values():
        check_out(out)
    set_threads(args.threads)
    device = pick_device(args.device)
    prompts = [row["prompt"] for row in load_prompts(config.prompts_path("test"))]
    for nfe, out in sorted(outs.items()):
        record = timed(args, config, nfe, device, prompts)
        record.write(out)
        print_metrics(record)


if __name__ == "__main__":
    sys.exit(run_command(main))
