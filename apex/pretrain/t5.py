"""The embedded world's tokenizer and T5 encoder. `python -m apex.pretrain.text_encoder` trains and writes them."""

from __future__ import annotations

import re

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from apex.data import world

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
MAX_TOKENS = 20


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over everything that the world's grammar can say; ends with `</s>` as T5's does."""
    words = sorted({word for task in world.TASKS for row in world.all_prompts(task) for word in row["prompt"].split()})
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, UNK, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, vocabulary[EOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNK, model_max_length=MAX_TOKENS, padding_side="right"
    )


def build_encoder(vocab_size: int, *, width: int = 128, layers: int = 3) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=vocab_size,
            d_model=width,
            d_kv=width // 4,
            num_heads=4,
            d_ff=2 * width,
            num_layers=layers,
            relative_attention_num_buckets=32,
            relative_attention_max_distance=32,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def noun_targets(row: dict) -> list[tuple[int, ...]]:
    """Per noun of the caption, in reading order: classes of (shape, other shape, colour, number, place, background).

    0 is "not said" for the other shape, the colour, the place and the background.
    """
    objects = list(row["include"])
    relation = next((e["position"][0] for e in objects if "position" in e), None)
    if relation:
        objects.reverse()  # `include` names the reference first, the caption the subject
    places = {0: relation, 1: world.inverse(relation)} if relation else {}
    shapes, colors, backgrounds = list(world.SHAPES), list(world.COLORS), list(world.BACKGROUNDS)
    return [
        (
            shapes.index(e["class"]),
            1 + shapes.index(objects[1 - i]["class"]) if len(objects) == 2 else 0,
            1 + colors.index(e["color"]) if "color" in e else 0,
            e["count"] - 1,
            1 + world.RELATIONS.index(places[i]) if i in places else 0,
            1 + backgrounds.index(row["background"]) if row["background"] else 0,
        )
        for i, e in enumerate(objects)
    ]


CLASSES = (len(world.SHAPES), 1 + len(world.SHAPES), 1 + len(world.COLORS), 4, 1 + len(world.RELATIONS), 1 + len(world.BACKGROUNDS))
_NOUN = re.compile(r"^(" + "|".join(world.SHAPES) + r")(s|es)?$")


def warm_up(encoder: T5EncoderModel, tokenizer: PreTrainedTokenizerFast, *, steps: int, batch: int, lr: float, seed: int) -> float:
    """Trains `encoder` on scene-graph prediction; returns the accuracy (all answers right) of the last 20 batches."""
    torch.manual_seed(seed)
    rng, sampler = np.random.default_rng(seed), world.PromptSampler()
    heads = nn.Linear(encoder.config.d_model, sum(CLASSES))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / 100) * (1 - k / steps) ** 0.5)
    accuracy: list[float] = []
    for step in range(steps):
        rows = [sampler(rng) for _ in range(batch)]
        tokens = tokenizer([r["prompt"] for r in rows], padding=True, return_tensors="pt")
        where, targets = [], []
        for i, row in enumerate(rows):
            nouns = [j for j, word in enumerate(row["prompt"].split()) if _NOUN.match(word)]
            for j, target in zip(nouns, noun_targets(row), strict=True):
                where.append((i, j))
                targets.append(target)
        hidden = encoder(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        logits = heads(hidden[tuple(torch.tensor(where).T)]).split(CLASSES, dim=1)
        wanted = torch.tensor(targets).T
        loss = sum(F.cross_entropy(part, want) for part, want in zip(logits, wanted, strict=True))
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        right = torch.stack([part.argmax(1) == want for part, want in zip(logits, wanted, strict=True)]).all(0)
        accuracy.append(float(right.float().mean()))
        if step % 100 == 0 or step == steps - 1:
            print(f"text encoder step {step}/{steps} loss {float(loss.detach()):.4f} accuracy {accuracy[-1]:.3f}", flush=True)
    return float(np.mean(accuracy[-20:]))
