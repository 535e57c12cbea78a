"""Proof, with nothing to download, that the detector of transformers computes what mmdet's does.

    python -m evaluators.geneval.agreement --out results/reference/geneval_agreement      (`make env-mmdet` first)
    python -m evaluators.geneval.agreement --out FOLDER --small                            (a small network and small images)

mmdet's network of the official configuration gets random weights, which are saved as a .pth with the meta of mmengine and converted;
both detectors then run on the same images of several sizes: patterns of random blocks, and rendered scenes. Compared are the logits of
classes and masks, the boxes, scores and masks after all of the post-processing, and GenEval's verdicts on random prompts of every task.

The networks are random, and a random Mask2Former is sure of nothing: its scores would all be below GenEval's thresholds of 0.3 and 0.9.
Its last layers for classes and for masks are therefore scaled up, so that many detections pass them. Norms and biases are drawn at
random too, or two that are confused would not be noticed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from apex.command import SEED, THREADS, Parser
from apex.errors import UserError, run_command


def main(argv: list[str] | None = None) -> None:
    parser = Parser("evaluators.geneval.agreement", __doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder to write: agreement.json, README.md")
    parser.add_argument("--small", action="store_true", help="a small network and small images")
    parser.add_argument("--seed", type=SEED, default=0, help="of weights, images and prompts (default: 0)")
    parser.add_argument("--threads", type=THREADS, default=1, help="CPU threads of this process (default: 1)")
    args = parser.parse_args(argv)

    from apex.files import write_atomic
    from apex.provenance import git_commit, hardware, versions
    from evaluators.command import check_out, set_threads
    from evaluators.cost import CLASS_SCALE, MASK_SCALE
    from evaluators.geneval import mmdet_detector
    from evaluators.geneval.coco import CLASSES
    from evaluators.geneval.mmdet_detector import official_configuration
    from evaluators.geneval.proof import TOLERANCE, faults, prove, readme

    check_out(args.out / "agreement.json")
    set_threads(args.threads)
    official_configuration()  # or one line says how to install it, before any work
    import cv2  # of two distributions with one module: the one with a display, or the one without
    import mmengine

    about = {
        "configuration": mmdet_detector.CONFIGURATION + (", small" if args.small else ""),
        "seed": args.seed,
        "scaled": {"classes": CLASS_SCALE, "masks": MASK_SCALE},
        "tolerance": TOLERANCE,
        "git_commit": git_commit(),
        "hardware": hardware(),
        "versions": versions() | {"mmengine": mmengine.__version__, "opencv": cv2.__version__},
        "classes": len(CLASSES),
    }
    with tempfile.TemporaryDirectory() as folder:
        results = prove(Path(folder), args.small, args.seed)
    write_atomic(args.out / "agreement.json", json.dumps({**about, "images": results}, indent=1) + "\n")
    write_atomic(args.out / "README.md", readme(results, about, args.small, args.seed))
    for result in results:
        print(f"{result['size'][1]}x{result['size'][0]}: {'; '.join(faults(result)) or 'agree'}")
    if any(map(faults, results)):
        raise UserError(f"{args.out / 'agreement.json'}: the detectors do not agree; see there")


if __name__ == "__main__":
    sys.exit(run_command(main))
