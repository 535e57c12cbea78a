"""Systems without weights to download: stock pipelines built from published configurations, values at random."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from evaluators.systems.known import PROMPTS, Part, system


def network(part: Part, small: bool = False) -> nn.Module:
    """On torch's default device, in its default dtype, values as the class initialises them."""
    package, name = part.kind.split(".")
    given = {**part.config, **(part.small if small else {})}
    found = getattr(importlib.import_module(package), name)
    model = found(found.config_class(**given)) if package == "transformers" else found(**given)
    return model.eval().requires_grad_(False)


def tokenizer(length: int, words: list[str]) -> Any:
    """One token a word or mark. A published tokenizer is a download; a few tokens more or less of a caption change no time here,
    and captions of fixed length none at all."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<s>", "</s>"]
    vocabulary = {word: at for at, word in enumerate([*special, *sorted({w for text in words for w in text.split()})])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=length
    )


def build(name: str, *, small: bool, device: str, dtype: torch.dtype) -> Any:
    """The stock pipeline of a system, its networks at random in `dtype` on `device`. As from_pretrained makes them: on the device and in
    the dtype from the start, so a network of 20B needs no more than its own memory."""
    import diffusers

    what = system(name)
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            made: dict[str, Any] = {role: network(part, small) for role, part in what.networks.items()}
    finally:
        torch.set_default_dtype(before)
    if what.lora:
        from peft import LoraConfig

        from apex.backbones.qwen_image import QwenImageBackbone

        targets = list(QwenImageBackbone.lora_targets)
        made["transformer"].add_adapter(LoraConfig(r=what.lora, lora_alpha=what.lora, target_modules=targets))
        made["transformer"].to(device=device, dtype=dtype).requires_grad_(False)
    if what.compiled:
        made[what.denoiser].compile()
    made |= {role: tokenizer(length, PROMPTS) for role, length in what.tokens.items()}
    known = dict(what.scheduler)
    made["scheduler"] = getattr(diffusers, known.pop("class"))(**known)
    pipe = getattr(diffusers, what.pipeline)(**made)
    pipe.set_progress_bar_config(disable=True)
    return pipe
