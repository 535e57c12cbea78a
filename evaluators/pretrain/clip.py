"""Training of the scoring CLIP: a small open_clip model (ModifiedResNet and a text transformer) on renders and captions.

A batch holds scenes with their prompts and object crops on grey #999 with GenEval's colour templates. Half of
the scenes are siblings of the other half (the same shapes in another order, number or place), so that word
order matters. Captions that are true of another image of the batch are no negatives: `truth_matrix` masks them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from apex.data import world
from evaluators.clip_model import untrained
from evaluators.geneval.color import TEMPLATES, masked_crop
from evaluators.geneval.logic import Detection
from evaluators.networks import half_precision
from evaluators.pretrain.distort import WorldScenes, soften
from evaluators.pretrain.loop import fit_network

CONTEXT = 24
N, C, R = len(world.SHAPES), len(world.COLORS), len(world.RELATIONS)
GROUNDS = list(world.BACKGROUNDS)


def build_tokenizer(folder: Path) -> int:
    """Writes a word-level tokenizer of the world's captions and GenEval's templates; returns the vocabulary's size.

    The end token has the highest number, because open_clip's text tower reads the features at the largest token.
    """
    prompts = {row["prompt"] for task in world.TASKS for row in world.all_prompts(task)}
    templates = {t.format(c=c, cls=s) for t in TEMPLATES for c in world.COLORS for s in world.SHAPES}
    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in prompts | templates for word, _ in split.pre_tokenize_str(text.lower())})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<start>", *words, "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    ends = [(t, vocabulary[t]) for t in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<start>", eos_token="<end>", model_max_length=CONTEXT
    ).save_pretrained(folder)
    return len(vocabulary)


def write_config(folder: Path, vocabulary: int, side: int) -> None:
    """open_clip's own configuration file (images are resized to `side`); `local-dir:` reads the tokenizer from the same folder."""
    config = {
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {"image_size": side, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64, "patch_size": None},
            "text_cfg": {
                "context_length": CONTEXT,
                "vocab_size": vocabulary,
                "hf_tokenizer_name": "tokenizer.json beside this file",
                "width": 96,
                "heads": 3,
                "layers": 3,
            },
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.3] * 3, "interpolation": "bicubic", "resize_mode": "squash"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")


class Facts:
    """What is true of an image: numbers of objects by shape and colour, the background (-1: none), the relations."""

    def __init__(self, items: tuple[world.Item, ...], background: str | None) -> None:
        self.counts, self.relations = np.zeros((N, C), int), np.zeros((N, N, R), bool)
        self.ground = GROUNDS.index(background) if background else -1
        for a in items:
            self.counts[world.SHAPES.index(a.shape), list(world.COLORS).index(a.color)] += 1
            for b in items:
                for relation in world.relations_between(a.box, b.box):
                    self.relations[world.SHAPES.index(a.shape), world.SHAPES.index(b.shape), world.RELATIONS.index(relation)] = True


def is_true(row: dict, facts: list[Facts]) -> np.ndarray:
    """Of which images a caption is true, boolean (images,). The caption is a prompt line; class None is "object"."""
    counts = np.stack([f.counts for f in facts])
    true = np.ones(len(facts), bool)
    if row.get("background"):
        true &= np.array([f.ground for f in facts]) == GROUNDS.index(row["background"])
    for entry in row["include"]:
        shape = slice(None) if entry["class"] is None else slice(i := world.SHAPES.index(entry["class"]), i + 1)
        color = slice(i := list(world.COLORS).index(entry["color"]), i + 1) if "color" in entry else slice(None)
        number = counts[:, shape, color].sum((1, 2))
        true &= number == entry["count"] if row["tag"] == "counting" else number >= entry["count"]
        if "position" in entry:
            relation, target = (
                world.RELATIONS.index(entry["position"][0]),
                world.SHAPES.index(row["include"][entry["position"][1]]["class"]),
            )
            true &= np.array([f.relations[world.SHAPES.index(entry["class"]), target, relation] for f in facts])
    return true


def truth_matrix(facts: list[Facts], rows: list[dict]) -> np.ndarray:
    """Boolean (images, captions): which captions of the batch are true of which images."""
    return np.stack([is_true(row, facts) for row in rows], axis=1)


class Siblings:
    """Prompts that differ from a given one in a detail: order, number, relation, colour or one shape."""

    def __init__(self) -> None:
        self._groups: dict[tuple, list[dict]] = {}
        for task in world.TASKS:
            for row in world.all_prompts(task):
                self._groups.setdefault(self._key(row), []).append(row)

    @staticmethod
    def _key(row: dict) -> tuple:
        shapes, colors = (frozenset(e.get(k) for e in row["include"]) for k in ("class", "color"))
        if row["tag"] in ("single_object", "two_object"):
            return (row["tag"],)
        return (row["tag"], shapes, colors if row["tag"] == "color_attr" else None)

    def __call__(self, rng: np.random.Generator, row: dict) -> dict:
        group = self._groups[self._key(row)]
        return group[rng.integers(len(group))]


def scene_pair(rng: np.random.Generator, row: dict, resolution: int) -> tuple[np.ndarray, dict, Facts]:
    """A render of a prompt, often softened, with its caption line and its facts."""
    scene = world.scene_for(row, rng, allow_held_out=True)
    image = world.render(scene, resolution)
    if rng.random() < 0.5:
        image = np.round(np.clip(soften(rng, image / 255.0), 0, 1) * 255).astype(np.uint8)
    return image, row, Facts(scene.items, scene.background)


def crop_pair(rng: np.random.Generator, scenes: WorldScenes, resolution: int) -> tuple[np.ndarray, dict, Facts]:
    """One object cut out on grey as GenEval's colour check sees it, its box and mask off by up to about a pixel."""
    scene = scenes(rng)
    image = np.round(np.clip(soften(rng, world.render(scene, resolution) / 255.0), 0, 1) * 255).astype(np.uint8)
    item = scene.items[rng.integers(len(scene.items))]
    grown = world.Item(item.shape, item.color, item.x, item.y, item.size * rng.uniform(0.85, 1.12), item.rgb)
    box = tuple(float(np.clip(v + rng.uniform(-1, 1) / 32, 0, 1)) * resolution for v in item.box)
    crop = np.asarray(masked_crop(image, Detection(box, 1.0, world.mask(grown, resolution))))
    text = str(rng.choice(TEMPLATES)).format(c=item.color, cls=item.shape)
    named = None if text.endswith("object") else item.shape
    return crop, {"tag": "crop", "prompt": text, "include": [{"class": named, "count": 1, "color": item.color}]}, Facts((item,), None)


def contrastive_loss(image_features: Tensor, text_features: Tensor, scale: Tensor, true: Tensor) -> Tensor:
    """CLIP's symmetric loss (Radford et al. 2021); true captions of other images, (B, B) boolean, are left out of the sums."""
    logits = scale * image_features @ text_features.T
    labels = torch.arange(len(logits))
    others = true & ~torch.eye(len(logits), dtype=torch.bool)
    logits = logits.masked_fill(others, -torch.inf)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def train(folder: Path, *, steps: int, batch: int, lr: float, seed: int, resolution: int = 32) -> float:
    """Trains and writes the whole open_clip folder; returns the CPU time in seconds."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    write_config(folder, build_tokenizer(folder), 2 * resolution)
    name = f"local-dir:{folder}"
    model, transform = untrained(name)
    tokenizer = open_clip.get_tokenizer(name)
    model.visual.to(memory_format=torch.channels_last)
    model.train()
    scenes, siblings = WorldScenes(), Siblings()
    crops = batch // 8
    pairs = (batch - crops) // 2

    def step_loss(_: int) -> Tensor:
        rows = [scenes.prompt(rng) for _ in range(pairs)]
        rows += [siblings(rng, row) for row in rows]
        drawn = [scene_pair(rng, row, resolution) for row in rows] + [crop_pair(rng, scenes, resolution) for _ in range(crops)]
        images = torch.stack([transform(Image.fromarray(d[0])) for d in drawn]).contiguous(memory_format=torch.channels_last)
        true = torch.from_numpy(truth_matrix([d[2] for d in drawn], [d[1] for d in drawn]))
        image_features, text_features, scale = model(images, tokenizer([d[1]["prompt"] for d in drawn]))[:3]
        return contrastive_loss(image_features, text_features, scale.clamp(max=100), true)

    seconds = fit_network("clip", model.parameters(), step_loss, steps=steps, lr=lr)
    save_file(half_precision(model), folder / "open_clip_model.safetensors")
    return seconds


@torch.no_grad()
def measure(folder: Path, *, images: int = 600, seed: int = 10_000_019) -> dict[str, float]:
    """Held-out measures of a saved CLIP: 100 x mean cosine of real and of shuffled pairs, how often a true caption beats
    a false sibling, and the accuracy of colours on object crops (over all templates)."""
    name = f"local-dir:{folder}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.eval()
    tokenizer, resolution = open_clip.get_tokenizer(name), model.visual.image_size // 2
    rng, scenes, siblings = np.random.default_rng(seed), WorldScenes(), Siblings()

    def encode(pictures: list[np.ndarray]) -> Tensor:
        return model.encode_image(torch.stack([transform(Image.fromarray(p)) for p in pictures]), normalize=True)

    drawn = [scene_pair(rng, scenes.prompt(rng), resolution) for _ in range(images)]
    seen, said = encode([d[0] for d in drawn]), model.encode_text(tokenizer([d[1]["prompt"] for d in drawn]), normalize=True)
    real, shuffled = 100 * (seen * said).sum(1).mean(), 100 * (seen * said.roll(1, 0)).sum(1).mean()
    wrong = [siblings(rng, d[1]) for d in drawn]
    fair = np.array([not is_true(w, [d[2]])[0] for w, d in zip(wrong, drawn, strict=True)])
    against = model.encode_text(tokenizer([w["prompt"] for w in wrong]), normalize=True)
    wins = ((seen * said).sum(1) > (seen * against).sum(1)).numpy()
    found = {"real": round(float(real), 2), "shuffled": round(float(shuffled), 2), "beats_sibling": round(float(wins[fair].mean()), 4)}
    for task in ("counting", "position", "color_attr"):
        mine = fair & np.array([d[1]["tag"] == task for d in drawn])
        found[f"beats_sibling/{task}"] = round(float(wins[mine].mean()), 4)
    cut = [crop_pair(rng, scenes, resolution) for _ in range(images)]
    crops, right = encode([d[0] for d in cut]), 0
    for crop, (_, _, facts) in zip(crops, cut, strict=True):
        shape, color = (int(i[0]) for i in facts.counts.nonzero())
        texts = [t.format(c=c, cls=world.SHAPES[shape]) for c in world.COLORS for t in TEMPLATES]
        means = F.normalize(model.encode_text(tokenizer(texts), normalize=True).reshape(C, len(TEMPLATES), -1).mean(1), dim=-1)
        right += int((means @ crop).argmax() == color)
    return found | {"crop_colors": round(right / images, 4)}
