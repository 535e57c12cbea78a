"""The embedded world's teachers: Sana and Qwen-Image transformers of its size, their loss, and the folder that one becomes.

`python -m apex.pretrain.teacher` trains and writes one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel, SanaTransformer2DModel

from apex import losses
from apex.backbones.base import Backbone
from apex.backbones.qwen_image import QwenImageBackbone
from apex.backbones.sana import SanaBackbone
from apex.conditioning import Condition
from apex.files import atomic_folder
from apex.flow import interpolate
from apex.kinds import PIPELINE

EMA_RATE = 0.999
PARTS = ("vae", "tokenizer", "text_encoder")


def build_sana(channels: int, size: int, caption_channels: int, *, width: int, layers: int) -> SanaBackbone:
    """A Sana transformer of the world's size. Heads are 32 wide, as in SANA 0.6B and 1.6B."""
    heads = width // 32
    return SanaBackbone(
        SanaTransformer2DModel(
            in_channels=channels,
            out_channels=channels,
            num_attention_heads=heads,
            attention_head_dim=32,
            num_layers=layers,
            num_cross_attention_heads=heads,
            cross_attention_head_dim=32,
            cross_attention_dim=width,
            caption_channels=caption_channels,
            mlp_ratio=2.5,
            sample_size=size,
            patch_size=2,
            interpolation_scale=1.0,  # without it the model has no image positions
        )
    )


def build_qwen_image(channels: int, size: int, caption_channels: int, *, width: int, layers: int) -> QwenImageBackbone:
    """A Qwen-Image transformer of the world's size. A head's rotary axes keep Qwen-Image's shares, 16:56:56 of 128."""
    return QwenImageBackbone(
        QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=4 * channels,
            out_channels=channels,
            num_layers=layers,
            attention_head_dim=32,
            num_attention_heads=width // 32,
            joint_attention_dim=caption_channels,
            axes_dims_rope=(4, 14, 14),
        )
    )


BUILDERS: dict[str, Callable[..., Backbone]] = {"sana": build_sana, "qwen_image": build_qwen_image}


def flow_matching(backbone: Backbone, latents: torch.Tensor, cond: Condition, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Per sample (B,): mean over elements of ||F(x_t, t, c) - (z - x)||^2."""
    return losses.flow_matching(backbone(interpolate(latents, noise, t), t, cond), latents, noise)


def export(backbone: Backbone, pipeline: Path, out: Path, made: dict) -> None:
    with atomic_folder(out, PIPELINE) as folder:
        for part in PARTS:
            shutil.copytree(pipeline / part, folder / part)
        backbone.transformer.save_pretrained(folder / "transformer", safe_serialization=True)
        FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0).save_pretrained(folder / "scheduler")
        (folder / "made.json").write_text(json.dumps(made, indent=1))
