"""Question-answering and chat models of transformers' own classes, built tiny with random weights and saved as local folders."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ViltConfig,
    ViltForQuestionAnswering,
    ViltImageProcessor,
    ViltProcessor,
)

WORDS = [
    "is",
    "are",
    "there",
    "a",
    "an",
    "the",
    "red",
    "blue",
    "green",
    "circle",
    "square",
    "on",
    "left",
    "of",
    "in",
    "many",
    "how",
    "yes",
    "no",
    "answer",
    "with",
    "or",
    "user",
    "assistant",
    ":",
    "?",
    ".",
    "1",
    "2",
    "3",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<image>"]
CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} "
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)


def tokenizer(**more: object) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        additional_special_tokens=["<image>"],
        model_max_length=40,
        **more,
    )


def _save(model: torch.nn.Module, processor: object, folder: Path) -> Path:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # far enough from zero that answers differ
    model.save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)
    return folder


def build(kind: str, folder: Path) -> Path:
    """kind: "vilt", "blip" or "llava"."""
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vocabulary = len(SPECIAL) + len(WORDS)
    size = {"height": 16, "width": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "vilt":
            names = {0: "yes", 1: "no", 2: "3"}
            config = ViltConfig(**width, vocab_size=vocabulary, image_size=16, patch_size=8, max_position_embeddings=40, id2label=names)
            images = ViltImageProcessor(size={"shortest_edge": 16}, size_divisor=8)
            return _save(ViltForQuestionAnswering(config), ViltProcessor(images, tokenizer()), folder)
        if kind == "blip":
            text = {
                **width,
                "vocab_size": vocabulary,
                "encoder_hidden_size": 32,
                "bos_token_id": 2,
                "eos_token_id": 3,
                "sep_token_id": 3,
                "pad_token_id": 0,
            }
            config = BlipConfig(text_config=text, vision_config={**width, "image_size": 16, "patch_size": 8}, projection_dim=32)
            return _save(BlipForQuestionAnswering(config), BlipProcessor(BlipImageProcessor(size=size), tokenizer()), folder)
        vision = {**width, "image_size": 16, "patch_size": 8, "projection_dim": 32, "model_type": "clip_vision_model"}
        text = {
            **width,
            "vocab_size": vocabulary,
            "num_key_value_heads": 2,
            "model_type": "llama",
            "bos_token_id": 2,
            "eos_token_id": 3,
            "pad_token_id": 0,
        }
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, image_seq_length=4, vision_feature_layer=-1)
        images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
        processor = LlavaProcessor(
            images, tokenizer(), patch_size=8, vision_feature_select_strategy="default", chat_template=CHAT, num_additional_image_tokens=1
        )
        return _save(LlavaForConditionalGeneration(config), processor, folder)
