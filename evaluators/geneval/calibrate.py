"""Calibration of the world's GenEval: how it falls as real renders are blurred, made noisy, faded, or lose objects.

    python -m evaluators.geneval.calibrate --out calibration

Writes `calibration.json` (overall and per task at every level, with n) and `calibration.png`. The same renders are
spoiled more and more, so each curve compares an image with itself; level 0 is the render.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from apex.command import SEED, THREADS, Parser, whole_number
from apex.data import world
from apex.data.prompts import COMMITTED, load_prompts
from apex.errors import run_command
from apex.files import write_atomic
from apex.gpu import pick_device
from apex.provenance import git_commit, versions
from evaluators.assets import BUNDLED
from evaluators.command import is_unseen, progress, set_threads
from evaluators.geneval.__main__ import verdicts
from evaluators.geneval.logic import ColorClassifier, Detector, overall

# Levels of every fault: unit, values.
LEVELS = {
    "blur": ("standard deviation, 1/32 of the side", (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)),
    "noise": ("standard deviation, image range 1", (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)),
    "fade": ("share of the background shining through", (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
    "lost objects": ("share of objects", (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)),
}


def spoil(scene: world.Scene, fault: str, level: float, resolution: int, seed: list[int]) -> np.ndarray:
    """One render with a fault, uint8 (R, R, 3). The draws depend on `seed` alone, so levels are nested."""
    rng = np.random.default_rng(seed)
    if fault == "lost objects":
        lost = rng.random(len(scene.items)) < level
        return world.render(replace(scene, items=tuple(i for i, gone in zip(scene.items, lost, strict=True) if not gone)), resolution)
    image = world.render(scene, resolution) / 255.0
    if fault == "blur":
        from scipy.ndimage import gaussian_filter

        width = level * resolution / 32
        image = gaussian_filter(image, (width, width, 0), mode="nearest")
    elif fault == "noise":
        image = image + level * rng.standard_normal(image.shape)
    elif fault == "fade":
        image = (1 - level) * image + level * world.render(replace(scene, items=()), resolution) / 255.0
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def accuracies(images: np.ndarray, rows: list[dict], detector: Detector, classify: ColorClassifier) -> dict[str, float]:
    """Accuracy per task and `overall` of images, uint8 (n, H, W, 3), each with its prompt line."""
    found = [v.correct for i in range(0, len(images), 64) for v in verdicts(images[i : i + 64], rows[i : i + 64], detector, classify)]
    tasks = np.array([row["tag"] for row in rows])
    each = {task: float(np.array(found)[tasks == task].mean()) for task in dict.fromkeys(tasks.tolist())}
    return {"overall": overall(each), **each}


def curves(
    rows: list[dict], resolution: int, seed: int, judge: Callable[[np.ndarray, list[dict]], dict[str, float]]
) -> dict[str, list[dict[str, float]]]:
    """For every fault the accuracies at its levels, on one render a prompt."""
    scenes = [world.scene_for(row, np.random.default_rng([seed, i]), allow_held_out=is_unseen(row)) for i, row in enumerate(rows)]
    jobs = [(fault, level) for fault, (_, levels) in LEVELS.items() for level in levels]
    found: dict[str, list[dict[str, float]]] = {fault: [] for fault in LEVELS}
    for fault, level in progress(jobs, len(jobs), "calibration, levels"):
        images = np.stack([spoil(scene, fault, level, resolution, [seed, i, 1]) for i, scene in enumerate(scenes)])
        found[fault].append({"level": level, **judge(images, rows)})
    return found


def plot(found: dict[str, list[dict[str, float]]], examples: dict[str, list[np.ndarray]]) -> bytes:
    """One panel per fault, with an example image above every level, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(4.2 * len(found), 4), layout="constrained", sharey=True)
    for axis, (fault, points) in zip(axes, found.items(), strict=True):
        levels = [p["level"] for p in points]
        for name in points[0]:
            if name != "level":
                style = {"color": "black", "linewidth": 2.5} if name == "overall" else {"linewidth": 1, "alpha": 0.8}
                axis.plot(levels, [p[name] for p in points], marker=".", label=name.replace("_", " "), **style)
        for level, image in zip(levels, examples[fault], strict=True):
            x = (level - levels[0]) / (levels[-1] - levels[0])
            inset = axis.inset_axes((0.02 + 0.88 * x, 1.03, 0.08, 0.08 * 4.2 / 3.2), transform=axis.transAxes)
            inset.imshow(image)
            inset.axis("off")
        axis.set(xlabel=f"{fault}: {LEVELS[fault][0]}", ylim=(-0.03, 1.03))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("GenEval (world)")
    axes[-1].legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    pyplot.close(figure)
    return buffer.getvalue()


def main() -> None:
    parser = Parser("evaluators.geneval.calibrate", __doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--prompts", type=Path, default=COMMITTED / "test.jsonl", help="prompt file (default: the test set)")
    parser.add_argument("--resolution", type=whole_number(16, 4096), default=32, help="side of the renders in pixels (default: 32)")
    parser.add_argument("--seed", type=SEED, default=0, help="of the renders and their faults (default: 0)")
    parser.add_argument("--detector-weights", type=Path, default=BUNDLED / "detector", help="folder of the detector (default: bundled)")
    parser.add_argument("--clip-weights", type=Path, default=BUNDLED / "clip", help="open_clip folder for colours (default: bundled)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--threads", type=THREADS, default=1, help="CPU threads of this process (default: 1)")
    args = parser.parse_args()

    from evaluators.clip_model import Clip
    from evaluators.geneval.color import ClipColors
    from evaluators.geneval.world_detector import WorldDetector

    set_threads(args.threads)
    device, rows = pick_device(args.device), load_prompts(args.prompts)
    for index, row in enumerate(rows, 1):
        world.check_drawable(row, f"{args.prompts}: prompt {index}")
    detector = WorldDetector.load(args.detector_weights, device)
    classify = ClipColors(Clip(args.clip_weights, device), detector.colors)
    found = curves(rows, args.resolution, args.seed, lambda images, lines: accuracies(images, lines, detector, classify))
    shown = next((row for row in rows if row["tag"] == "position"), rows[0])
    scene = world.scene_for(shown, np.random.default_rng(args.seed), allow_held_out=is_unseen(shown))
    examples = {fault: [spoil(scene, fault, level, 64, [args.seed, 3]) for level in levels] for fault, (_, levels) in LEVELS.items()}
    about = {"prompts": args.prompts.name, "n": len(rows), "resolution": args.resolution, "seed": args.seed, "git_commit": git_commit()}
    units = {fault: unit for fault, (unit, _) in LEVELS.items()}
    write_atomic(
        args.out / "calibration.json", json.dumps({**about, "versions": versions(), "units": units, "curves": found}, indent=1) + "\n"
    )
    write_atomic(args.out / "calibration.png", plot(found, examples))
    for fault, points in found.items():
        print(f"{fault:14s}" + "  ".join(f"{p['level']:g}: {p['overall']:.3f}" for p in points))


if __name__ == "__main__":
    sys.exit(run_command(main))
