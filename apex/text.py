"""Captions to conditions, as the stock pipeline of each family does it: its own `encode_prompt`, with the text parts alone loaded.

A folder's model_index.json names the pipeline's class; a folder without one is the world's, a T5 encoder whose output is the condition.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoTokenizer

from apex.conditioning import Condition
from apex.errors import UserError, readable
from apex.files import read_object
from apex.weights import RESTORE, pretrained

WORLD = ""  # no model_index.json
# Pipeline -> its text encoder. The weights are safetensors, and no code of the folder is run.
ENCODERS: dict[str, type] = {
    WORLD: transformers.T5EncoderModel,
    "SanaPipeline": transformers.Gemma2Model,
    "SanaSprintPipeline": transformers.Gemma2Model,
    "QwenImagePipeline": transformers.Qwen2_5_VLForConditionalGeneration,
}


def pipeline_class(folder: Path) -> str:
    """The class that a pipeline folder's model_index.json names; WORLD without one.

    Raises:
        UserError: the file is damaged, or the class has no text path here.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        return WORLD
    name = read_object(index, "fetch it again").get("_class_name")
    if name is None:
        raise UserError(f"{index}: found no _class_name, expected that of a diffusers pipeline; fetch it again")
    if name not in tuple(ENCODERS):
        raise UserError(f"{index}: _class_name: found {name!r}, expected one of {', '.join(filter(None, ENCODERS))}")
    return name


def captions_cut(folder: Path, captions: list[str]) -> int:
    """How many of `captions` have more tokens than the text encoder of the pipeline folder is given; their ends are cut off."""
    kind = pipeline_class(folder)
    with readable(folder / "tokenizer", RESTORE):
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    texts, limit = iter(captions), tokenizer.model_max_length
    if kind in ("SanaPipeline", "SanaSprintPipeline"):
        from diffusers import SanaPipeline

        told = "\n".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)
        most = inspect.signature(SanaPipeline.encode_prompt).parameters["max_sequence_length"].default
        texts, limit = (told + text.lower().strip() for text in captions), len(tokenizer.encode(told)) + most - 2
    elif kind == "QwenImagePipeline":
        from diffusers import QwenImagePipeline

        stock = QwenImagePipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=tokenizer, transformer=None)
        texts = (stock.prompt_template_encode.format(text) for text in captions)
        limit = stock.tokenizer_max_length + stock.prompt_template_encode_start_idx
    cut = 0
    while group := list(itertools.islice(texts, 1000)):
        cut += sum(len(tokens) > limit for tokens in tokenizer(group, truncation=False, verbose=False)["input_ids"])
    return cut


class TextPath:
    """The frozen tokenizer and text encoder of a pipeline folder. `encode` gives the condition that the family's networks take."""

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.kind, self.device = pipeline_class(folder), device
        with readable(folder / "tokenizer", RESTORE):
            self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        encoder = pretrained(ENCODERS[self.kind], folder / "text_encoder", RESTORE, dtype)
        self.encoder: nn.Module = encoder.eval().requires_grad_(False).to(device)
        self._encode: Callable[[list[str]], tuple[Tensor, Tensor]] = {
            WORLD: self._world, "SanaPipeline": self._sana, "SanaSprintPipeline": self._sana, "QwenImagePipeline": self._qwen
        }[self.kind]  # fmt: skip
        self._stock: Any = None

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        """Captions to their condition: embeds (B, L, D), mask (B, L) with ones up to each caption's end; "" is the null condition."""
        embeds, mask = self._encode(prompts)
        longest = max(1, int(mask.sum(1).max()))  # the stock pipelines of Sana pad to 300
        return Condition(embeds[:, :longest], mask[:, :longest].to(embeds.dtype))

    def _world(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        tokens = self.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(self.device)
        hidden = self.encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        return hidden, tokens["attention_mask"]

    def _sana(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """As SanaPipeline: captions behind its instruction, the empty caption, which guidance needs, without."""
        from diffusers import SanaPipeline

        stock = self._stock or SanaPipeline(self.tokenizer, self.encoder, vae=None, transformer=None, scheduler=None)
        self._stock = stock
        instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for told in (True, False):
            chosen = [at for at, prompt in enumerate(prompts) if bool(prompt) == told]
            if chosen:
                texts = [prompts[at] for at in chosen]
                said = {"complex_human_instruction": instruction} if told else {}
                embeds, mask, *_ = stock.encode_prompt(texts, do_classifier_free_guidance=False, device=self.device, **said)
                found |= dict(zip(chosen, zip(embeds, mask, strict=True), strict=True))
        embeds, mask = (torch.stack(part) for part in zip(*(found[at] for at in range(len(prompts))), strict=True))
        # The instruction's last tokens may stand before the caption, so every mask begins with ones.
        return embeds, mask

    def _qwen(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """As QwenImagePipeline: captions in its template, whose own tokens are dropped."""
        from diffusers import QwenImagePipeline

        stock = self._stock or QwenImagePipeline(
            scheduler=None, vae=None, text_encoder=self.encoder, tokenizer=self.tokenizer, transformer=None
        )
        self._stock = stock
        embeds, mask = stock.encode_prompt(prompts, device=self.device)
        return embeds, torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device) if mask is None else mask
