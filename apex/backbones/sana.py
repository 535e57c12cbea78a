"""The Sana family (diffusers SanaTransformer2DModel): the world's 1M model, SANA 0.6B and 1.6B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor, nn

from apex.backbones.base import TIME_SCALE, Backbone
from apex.conditioning import Condition


def like(new: nn.Module, old: nn.Module) -> nn.Module:
    """`new` in the dtype and on the device of `old`; untouched where they agree, for diffusers warns at every cast."""
    mine, theirs = next(new.parameters()), next(old.parameters())
    return new if (mine.dtype, mine.device) == (theirs.dtype, theirs.device) else new.to(theirs)


def with_guidance(config: Mapping[str, Any], embeds: bool) -> dict[str, Any]:
    """The configuration with `guidance_embeds` set. Where it was left out, as in published ones, diffusers would take its default again."""
    told = {key: value for key, value in config.items() if key != "_use_default_values"}
    return told | {"guidance_embeds": embeds}


class SanaBackbone(Backbone):
    family = "sana"
    transformer_class = SanaTransformer2DModel
    block_list = "transformer_blocks"
    lora_targets = (
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "conv_inverted",
        "conv_point",
        "timestep_embedder.linear_1",
        "timestep_embedder.linear_2",
    )

    def __init__(self, transformer: SanaTransformer2DModel) -> None:
        super().__init__(transformer, "embedding" if transformer.config.guidance_embeds else "none")

    def call(self, x_t: Tensor, t: Tensor, cond: Condition, delta: Tensor | None) -> Tensor:
        scale = TIME_SCALE * self.transformer.config.timestep_scale
        return self.transformer(
            x_t,
            encoder_hidden_states=cond.embeds,
            encoder_attention_mask=cond.mask,
            timestep=t * scale,
            guidance=None if delta is None else delta * TIME_SCALE,
            return_dict=False,
        )[0]

    def shift_modules(self) -> dict[str, nn.Module]:
        return {"projected": self.transformer.caption_projection, "normed": self.transformer.caption_norm}

    def with_target_time(self) -> SanaBackbone:
        if self.target_time == "embedding":
            return self
        new = SanaTransformer2DModel.from_config(with_guidance(self.transformer.config, True))
        state = {
            k.replace("time_embed.emb.timestep_embedder", "time_embed.timestep_embedder"): v
            for k, v in self.transformer.state_dict().items()
        }
        slot, time = new.time_embed.guidance_embedder, new.time_embed.timestep_embedder
        new.load_state_dict(state | {f"time_embed.guidance_embedder.{k}": v for k, v in slot.state_dict().items()})
        slot.linear_1.load_state_dict(time.linear_1.state_dict())
        nn.init.zeros_(slot.linear_2.weight)
        nn.init.zeros_(slot.linear_2.bias)
        return SanaBackbone(like(new, self.transformer))

    def with_time_scale(self, factor: float) -> SanaBackbone:
        """The scale is the stock configuration's `timestep_scale`, 0.001 of Sana-Sprint's published one."""
        self.transformer.register_to_config(timestep_scale=factor * self.transformer.config.timestep_scale)
        return self

    @torch.no_grad()
    def fold_one_step(self, gap: float) -> SanaTransformer2DModel:
        if self.target_time == "none":
            return self.transformer
        source = self.transformer
        folded = SanaTransformer2DModel.from_config(with_guidance(source.config, False))
        state = {
            k.replace("time_embed.timestep_embedder", "time_embed.emb.timestep_embedder"): v
            for k, v in source.state_dict().items()
            if "guidance_embedder" not in k
        }
        folded.load_state_dict(state)
        embed = source.time_embed
        dtype = next(source.parameters()).dtype
        slot = TIME_SCALE * torch.tensor([gap], device=embed.linear.weight.device)
        constant = embed.guidance_embedder(embed.guidance_condition_proj(slot).to(dtype))[0]
        folded = like(folded, source)
        folded.time_embed.emb.timestep_embedder.linear_2.bias += constant
        return folded
