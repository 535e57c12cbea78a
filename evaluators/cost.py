"""The official evaluators on networks of the official sizes with random weights. `python -m evaluators.throughput` says what is timed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from apex.data import world
from apex.data.prompts import COMMITTED, load_prompts
from apex.provenance import peak_memory_mb
from evaluators.clip_model import Clip
from evaluators.timing import quartiles, synchronise

# Swin-S and the head of mmdet's mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py; a test holds it to what the converter reads off mmdet's.
MASK2FORMER = {
    "backbone_config": {
        "model_type": "swin", "embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7, "mlp_ratio": 4.0,
        "patch_size": 4, "drop_path_rate": 0.0, "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    "feature_size": 256, "mask_feature_size": 256, "hidden_dim": 256, "num_attention_heads": 8, "encoder_layers": 6,
    "encoder_feedforward_dim": 1024, "decoder_layers": 10, "dim_feedforward": 2048, "num_queries": 100, "num_labels": 80,
}  # fmt: skip
CLASS_SCALE, MASK_SCALE = 24.0, 60.0
WORDS = ["is", "there", "a", "the", "red", "blue", "left", "of", "dog", "car", "on", "?", "yes", "no"]
QUESTION = "is there a red dog on the left of the blue car ?"
Pictures = list[np.ndarray]


def pictures(count: int, side: int) -> Pictures:
    """Rendered scenes, uint8 (side, side, 3)."""
    rng, rows = np.random.default_rng(0), load_prompts(COMMITTED / "test.jsonl")
    return [world.render(world.scene_for(rows[i % len(rows)], rng, allow_held_out=True), side) for i in range(count)]


def detector_of(device: str) -> Any:
    """GenEval's detector of transformers, at random and sure of itself."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    from evaluators.geneval.mask2former import TransformersDetector

    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig.from_dict(MASK2FORMER)).eval().requires_grad_(False)
    model.class_predictor.weight *= CLASS_SCALE
    masks = model.model.transformer_module.decoder.mask_predictor.mask_embedder
    [layer for layer in masks.modules() if isinstance(layer, torch.nn.Linear)][-1].weight.mul_(MASK_SCALE)
    return TransformersDetector(model.to(device))


def geneval(device: str, images: Pictures, batch: int) -> Iterator[tuple[str, float]]:
    """Images a second of detector, colours and verdict."""
    from evaluators.geneval.__main__ import verdicts
    from evaluators.geneval.color import ClipColors

    detector = detector_of(device)
    classify = ClipColors(Clip.random(device), detector.colors)
    for part in batches(images, batch):
        stack = np.stack(part)
        rows = [row_about(found) for found in detector(stack)]
        yield "geneval/images_per_s", rate(partial(verdicts, stack, rows, detector, classify), len(part), device)


def row_about(found: dict[str, list[Any]]) -> dict[str, Any]:
    """A prompt that asks for the colour of the likeliest thing."""
    best = max(found, key=lambda name: max(d.score for d in found[name]), default="dog")
    return {"tag": "colors", "include": [{"class": best, "count": 1, "color": "red"}], "prompt": f"a photo of a red {best}"}


def clip_score(device: str, images: Pictures, batch: int) -> Iterator[tuple[str, float]]:
    """Images and texts a second of CLIP ViT-L/14."""
    clip = Clip.random(device, batch)
    for part in batches(images, batch):
        drawn = [Image.fromarray(image) for image in part]
        yield "clip_score/images_per_s", rate(partial(clip.encode_images, drawn), len(part), device)
        yield "clip_score/texts_per_s", rate(partial(clip.encode_texts, [QUESTION] * len(part)), len(part), device)


def fid(device: str, images: Pictures, batch: int, threads: int = 1) -> Iterator[tuple[str, float]]:
    """Images a second from PNG files to features."""
    from evaluators.fid.inception import Feed, Network, build, file_features

    net = build().to(device)
    net.fc = torch.nn.Identity()
    with tempfile.TemporaryDirectory() as folder:
        for number, part in enumerate(batches(images, batch)):
            files = [Path(folder) / f"{number}-{index}.png" for index in range(len(part))]
            for file, image in zip(files, part, strict=True):
                Image.fromarray(image).save(file)

            kept, network = Path(folder) / f"kept{number}", Network(net, "random", device)
            work = partial(file_features, files, Feed("pytorch-fid"), network, kept, batch=batch, threads=threads)
            yield "fid/images_per_s", rate(work, len(part), device)


def dpg(device: str, images: Pictures, batch: int) -> Iterator[tuple[str, float]]:
    """Questions a second of two judges of transformers, a question an image."""
    from evaluators.dpg.judges import TransformersVqa

    for name, save in (("vilt-b32", save_vilt), ("blip-base", save_blip)):
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            judge = TransformersVqa(folder, device, "float32", batch)
            for part in batches(images, batch):
                drawn = [Image.fromarray(image) for image in part]
                asked = [QUESTION] * len(part)
                yield f"dpg/{name}_questions_per_s", rate(partial(judge.answer, drawn, asked), len(part), device)


def save_vilt(folder: Path) -> None:
    from transformers import ViltConfig, ViltForQuestionAnswering, ViltImageProcessor, ViltProcessor

    config = ViltConfig(id2label={0: "yes", 1: "no"}, num_labels=2)
    _save(ViltForQuestionAnswering(config), ViltProcessor(ViltImageProcessor(), tokenizer()), folder)


def save_blip(folder: Path) -> None:
    from transformers import BlipConfig, BlipForQuestionAnswering, BlipImageProcessor, BlipProcessor

    config = BlipConfig(text_config={"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0})
    _save(BlipForQuestionAnswering(config), BlipProcessor(BlipImageProcessor(), tokenizer()), folder)


def _save(model: Any, processor: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def tokenizer() -> Any:
    """A token a word, between two marks."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(special + WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=40
    )


def batches(images: Pictures, batch: int) -> Iterator[Pictures]:
    """Whole batches; what is left over is not timed."""
    return (images[start : start + batch] for start in range(0, len(images) - batch + 1, batch))


def rate(work: Callable[[], object], count: int, device: str) -> float:
    """Things a second."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return count / (time.perf_counter() - started)


EVALUATORS: dict[str, Callable[..., Iterator[tuple[str, float]]]] = {"geneval": geneval, "clip_score": clip_score, "fid": fid, "dpg": dpg}


def measure(name: str, device: str, images: Pictures, batch: int, threads: int) -> dict[str, Any]:
    """The figures of one evaluator, by name; and the peak of memory."""
    more = {"threads": threads} if name == "fid" else {}
    found: dict[str, list[float]] = {}
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for metric, value in EVALUATORS[name](device, images, batch, **more):
            found.setdefault(metric, []).append(value)
    timed = {metric: quartiles(np.array(values[1:])) for metric, values in found.items()}
    return {"batch": batch, "threads": threads, "peak_memory_mb": peak_memory_mb(device), **timed}
