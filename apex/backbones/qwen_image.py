"""The Qwen-Image family (diffusers QwenImageTransformer2DModel): the small model of the tests, Qwen-Image 20B."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apex.backbones.base import TIME_SCALE, Backbone
from apex.conditioning import Condition
from apex.errors import readable
from apex.weights import take

EXTRA_FILE = "target_time_embedder.safetensors"


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) to 2x2 patches as tokens, (B, H/2 W/2, 4 C), as QwenImagePipeline packs them."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), 4 * c)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `pack` for latents of height x width."""
    b, _, c = tokens.shape
    return tokens.view(b, height // 2, width // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


class QwenImageBackbone(Backbone):
    """`target_embedder` is the second time embedding of t - r; the stock class has no slot for it."""

    family = "qwen_image"
    transformer_class = QwenImageTransformer2DModel
    block_list = "transformer_blocks"
    # The published LoRA configuration's targets (LINs-lab/APEX).
    lora_targets = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
        "img_mlp.net.0.proj",
        "img_mlp.net.2",
        "txt_mlp.net.0.proj",
        "txt_mlp.net.2",
        "timestep_embedder.linear_1",
        "timestep_embedder.linear_2",
    )

    def __init__(self, transformer: QwenImageTransformer2DModel, target_embedder: TimestepEmbedding | None = None) -> None:
        super().__init__(transformer, "none" if target_embedder is None else "embedding")
        self.target_embedder = target_embedder
        self._delta: Tensor | None = None
        transformer.time_text_embed.register_forward_hook(lambda _m, _i, out: self._add_target(out))

    def _project(self, delta: Tensor) -> Tensor:
        # The frequencies of the stock QwenTimestepProjEmbeddings.
        return get_timestep_embedding(delta, 256, flip_sin_to_cos=True, downscale_freq_shift=0, scale=TIME_SCALE)

    def _add_target(self, embedded: Tensor) -> Tensor | None:
        if self._delta is None:
            return None
        return embedded + self.target_embedder(self._project(self._delta).to(embedded.dtype))

    def call(self, x_t: Tensor, t: Tensor, cond: Condition, delta: Tensor | None) -> Tensor:
        height, width = x_t.shape[-2:]
        self._delta = delta
        try:
            tokens = self.transformer(
                hidden_states=pack(x_t),
                timestep=t,  # the transformer multiplies by 1000 itself
                encoder_hidden_states=cond.embeds,
                encoder_hidden_states_mask=cond.mask,
                img_shapes=[[(1, height // 2, width // 2)]] * len(x_t),
                return_dict=False,
            )[0]
        finally:
            self._delta = None
        return unpack(tokens, height, width)

    def shift_modules(self) -> dict[str, nn.Module]:
        return {"projected": self.transformer.txt_in, "normed": self.transformer.txt_norm}

    def with_target_time(self) -> QwenImageBackbone:
        if self.target_time == "embedding":
            return self
        embedder = copy.deepcopy(self.transformer.time_text_embed.timestep_embedder)  # e2 starts from the first
        nn.init.zeros_(embedder.linear_2.weight)
        nn.init.zeros_(embedder.linear_2.bias)
        return QwenImageBackbone(_without_hooks(self.transformer), embedder)

    @torch.no_grad()
    def fold_one_step(self, gap: float) -> QwenImageTransformer2DModel:
        if self.target_embedder is None:
            return self.transformer
        folded = _without_hooks(self.transformer)
        time = folded.time_text_embed.timestep_embedder
        delta = torch.tensor([gap], device=time.linear_2.bias.device)
        time.linear_2.bias += self.target_embedder(self._project(delta).to(time.linear_2.bias.dtype))[0]
        return folded

    def save_extra(self, folder: Path) -> None:
        if self.target_embedder is not None:
            save_file({k: v.contiguous() for k, v in self.target_embedder.state_dict().items()}, folder / EXTRA_FILE)

    def load_extra(self, folder: Path) -> QwenImageBackbone:
        if not (folder / EXTRA_FILE).is_file():
            return self
        new = self.with_target_time()
        with readable(folder / EXTRA_FILE, "train the row again"):
            given = load_file(folder / EXTRA_FILE)
        take(new.target_embedder, given, folder / EXTRA_FILE, "train the row again")
        return new


def _without_hooks(transformer: QwenImageTransformer2DModel) -> QwenImageTransformer2DModel:
    """A copy with the same weights and none of our hooks."""
    new = QwenImageTransformer2DModel.from_config(dict(transformer.config))
    new.load_state_dict(transformer.state_dict())
    return new.to(next(transformer.parameters()))
