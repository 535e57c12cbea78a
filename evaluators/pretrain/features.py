"""Training of the FID network: a classifier of everything a scene is made of (see `evaluators.networks.FeatureNet`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor

from apex.data import world
from evaluators.networks import FeatureNet, load_network
from evaluators.pretrain.distort import WorldScenes, soften
from evaluators.pretrain.loop import fit_network

COUNTS = 5  # 0 to 4 objects of a shape
N, C = len(world.SHAPES), len(world.COLORS)
# The network's outputs, in this order: what is predicted, and how many numbers.
PARTS = {"counts": N * COUNTS, "pairs": N * C, "places": N * 3, "tints": N * 3, "ground": 3, "look": 3}


def attributes(scene: world.Scene, blur: float, noise: float) -> dict[str, np.ndarray]:
    """The truth of one scene: per shape its count, mean (x, y, size) and mean RGB, the colour-shape pairs shown, the background
    (level and slope along x and y), and the look (edge width, blur in sides, noise), all scaled to about unit range."""
    counts, pairs = np.zeros(N, np.int64), np.zeros((N, C), np.float32)
    places, tints = np.zeros((N, 3), np.float32), np.zeros((N, 3), np.float32)
    for item in scene.items:
        s = world.SHAPES.index(item.shape)
        counts[s] += 1
        pairs[s, list(world.COLORS).index(item.color)] = 1
        places[s] += ((item.x - 0.5) * 4, (item.y - 0.5) * 4, (item.size - 0.18) * 16)
        tints[s] += (np.array(item.rgb) - 0.5) * 3
    places, tints = (sums / np.maximum(counts, 1)[:, None].astype(np.float32) for sums in (places, tints))
    slope = (scene.grey[1] - scene.grey[0]) * 10
    ground = np.array([sum(scene.grey) - 1, slope * np.cos(scene.angle), slope * np.sin(scene.angle)], np.float32)
    look = np.array([scene.edge - 1.1, blur * 20, noise * 8], np.float32)
    return {"counts": counts, "pairs": pairs, "places": places, "tints": tints, "ground": ground, "look": look}


def sample(rng: np.random.Generator, scenes: WorldScenes, resolution: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A render, uint8 (R, R, 3), and its attributes; some are softened, some blurred and made noisy by known amounts."""
    scene = scenes(rng)
    image, blur, noise = world.render(scene, resolution) / 255.0, 0.0, 0.0
    kind = rng.random()
    if kind < 0.25:
        image = soften(rng, image)
    elif kind < 0.5:
        blur, noise = rng.uniform(0, 0.06) * (rng.random() < 0.7), rng.uniform(0, 0.25) * (rng.random() < 0.7)
        image = gaussian_filter(image, (blur * resolution, blur * resolution, 0), mode="nearest") + rng.normal(0, noise, image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8), attributes(scene, blur, noise)


def _batch(rng: np.random.Generator, scenes: WorldScenes, resolution: int, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    drawn = [sample(rng, scenes, resolution) for _ in range(size)]
    images = torch.from_numpy(np.stack([d[0] for d in drawn])).permute(0, 3, 1, 2).float() / 255
    return images, {k: torch.from_numpy(np.stack([d[1][k] for d in drawn])) for k in PARTS}


def _split(outputs: Tensor) -> dict[str, Tensor]:
    parts = dict(zip(PARTS, outputs.split(list(PARTS.values()), dim=1), strict=True))
    shapes = {"counts": (-1, N, COUNTS), "pairs": (-1, N, C), "places": (-1, N, 3), "tints": (-1, N, 3)}
    return {k: v.reshape(shapes[k]) if k in shapes else v for k, v in parts.items()}


def attribute_loss(outputs: Tensor, truth: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of counts and of pairs (summed over a shape's colours: their mean is too weak, and colour is not
    learnt) + squared errors of the rest (places and tints only of shapes that are there)."""
    said = _split(outputs)
    there = (truth["counts"] > 0).float()[..., None]

    def where_there(name: str) -> Tensor:
        return ((said[name] - truth[name]) ** 2 * there).sum() / there.sum().clamp(min=1) / 3

    return (
        F.cross_entropy(said["counts"].flatten(0, 1), truth["counts"].flatten())
        + C * F.binary_cross_entropy_with_logits(said["pairs"], truth["pairs"])
        + where_there("places")
        + where_there("tints")
        + F.mse_loss(said["ground"], truth["ground"])
        + F.mse_loss(said["look"], truth["look"])
    )


def train(*, steps: int, batch: int, lr: float, seed: int, resolution: int) -> tuple[FeatureNet, float]:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    net = FeatureNet(resolution, outputs=sum(PARTS.values())).to(memory_format=torch.channels_last)
    scenes = WorldScenes()

    def step_loss(_: int) -> Tensor:
        images, truth = _batch(rng, scenes, resolution, batch)
        return attribute_loss(net(images), truth)

    seconds = fit_network("fid", net.parameters(), step_loss, steps=steps, lr=lr)
    net.eval()
    renders = np.stack([world.render(scenes(rng), resolution) for _ in range(2000)])
    with torch.no_grad():
        features = net.raw_features(torch.from_numpy(renders).permute(0, 3, 1, 2).float() / 255)
    net.shift.copy_(features.mean(0))
    net.scale.copy_(1 / features.std(0))
    return net, seconds


@torch.no_grad()
def measure(folder: Path, *, images: int = 1000, seed: int = 10_000_019) -> dict[str, float]:
    """Held-out accuracy of a saved network: counts all right, pairs all right, and the root mean square error of places
    (fractions of the side) and of the background's level."""
    net = load_network(folder, FeatureNet)
    pictures, truth = _batch(np.random.default_rng(seed), WorldScenes(), net.resolution, images)
    said = _split(net(pictures))
    there = truth["counts"] > 0
    return {
        "counts": round(float((said["counts"].argmax(-1) == truth["counts"]).all(1).float().mean()), 4),
        "pairs": round(float(((said["pairs"] > 0) == (truth["pairs"] > 0)).flatten(1).all(1).float().mean()), 4),
        "place_rmse": round(float((said["places"] - truth["places"])[there][:, :2].pow(2).mean().sqrt() / 4), 4),
        "ground_rmse": round(float((said["ground"] - truth["ground"])[:, 0].pow(2).mean().sqrt() / 2), 4),
    }
