"""Pipelines of the stock classes, built small: Sana with Gemma-2 and a deep-compression codec, Qwen-Image with Qwen2.5-VL.

Images of 32 px are latents of 4 x 8 x 8.
"""

from __future__ import annotations

from diffusers import (
    AutoencoderDC,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    SanaPipeline,
)
from transformers import Gemma2Config, Gemma2Model, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from apex.pretrain.t5 import build_tokenizer
from apex.testbed import tiny_qwen, tiny_sana

LATENTS = 8


def sana() -> SanaPipeline:
    tokenizer = build_tokenizer()
    small = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, sliding_window=64, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    transformer = tiny_sana().transformer
    transformer.register_to_config(sample_size=LATENTS)
    block = ("ResBlock", "ResBlock", "EfficientViTBlock")
    codec = AutoencoderDC(
        latent_channels=4, attention_head_dim=4, encoder_block_types=block, decoder_block_types=block, encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8), encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)), upsample_block_type="interpolate",
        downsample_block_type="conv", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41,
    )  # fmt: skip
    # As published (Sana_600M_512px_diffusers, scheduler/scheduler_config.json).
    solver = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return SanaPipeline(tokenizer, Gemma2Model(small), codec, transformer, solver)


def qwen_image() -> QwenImagePipeline:
    tokenizer = build_tokenizer()
    text = dict(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
    )  # fmt: skip
    vision = dict(depth=1, hidden_size=16, num_heads=2, out_hidden_size=16, intermediate_size=16, patch_size=14, fullatt_block_indexes=[0])
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    codec = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 2], num_res_blocks=1, temperal_downsample=[False, False], latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    )  # fmt: skip
    # As published (Qwen-Image, scheduler/scheduler_config.json).
    solver = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192, shift_terminal=0.02
    )  # fmt: skip
    return QwenImagePipeline(solver, codec, encoder, tokenizer, tiny_qwen().transformer)


BUILDERS = {"sana": sana, "qwen_image": qwen_image}
