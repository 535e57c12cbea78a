"""The embedded world's AutoencoderKL: its loss, its training, its normalisation. `python -m apex.pretrain.codec` trains and writes it."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [16, 32, 48],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
}


def codec_loss(
    codec: AutoencoderKL, images: torch.Tensor, kl_weight: float, latent_noise: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """L1 + MSE + KL, each a mean over elements; returns (loss, mse). Images (B, 3, H, W) in [-1, 1].

    `latent_noise` times each channel's standard deviation is added to the latents before decoding: what the decoder
    needs must then stand out of that noise, so a generator need not hit tiny latent differences to draw a cross
    rather than a diamond.
    """
    posterior = codec.encode(images).latent_dist
    latents = posterior.sample()
    spread = latents.detach().std((0, 2, 3), keepdim=True)
    decoded = codec.decode(latents + latent_noise * spread * torch.randn_like(latents)).sample
    mse = F.mse_loss(decoded, images)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1.0 - posterior.logvar).mean()
    return F.l1_loss(decoded, images) + mse + kl_weight * kl, mse.detach()


@torch.no_grad()
def fold_normalisation(codec: AutoencoderKL, images: torch.Tensor) -> None:
    """Rescales the codec so that its latents over `images` have zero mean, unit variance per channel.

    Exact: z' = (z - m) / s is written into `quant_conv` (mean and log-variance rows) and its inverse
    into `post_quant_conv`, so decode(encode(x)) is unchanged.
    """
    latents = torch.cat([codec.encode(part).latent_dist.mode() for part in images.split(500)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    quant, post = codec.quant_conv, codec.post_quant_conv
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]


def train(
    images: torch.Tensor,
    *,
    steps: int,
    batch: int,
    lr: float,
    kl_weight: float,
    seed: int,
    latent_noise: float = 0.0,
    init: AutoencoderKL | None = None,
    log_every: int = 200,
) -> tuple[AutoencoderKL, list[tuple[int, float]]]:
    """Trains a codec on uint8 images (N, 3, H, W); returns (codec with its EMA weights, log of (step, psnr)).

    With `init`, its encoder stays as it is and only the decoder is trained: its latents keep their meaning.
    """
    torch.manual_seed(seed)
    codec = AutoencoderKL(**CONFIG, sample_size=images.shape[-1])
    if init is not None:
        codec.load_state_dict(init.state_dict())
        codec.encoder.requires_grad_(False)
        codec.quant_conv.requires_grad_(False)
    trained = [p for p in codec.parameters() if p.requires_grad]
    ema = torch.optim.swa_utils.AveragedModel(codec, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(trained, lr, betas=(0.9, 0.98), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / 200) * (1 - k / steps) ** 0.5)
    log, started, total = [], time.time(), torch.zeros(())
    for step in range(steps):
        x = images[torch.randint(len(images), (batch,))].float() / 127.5 - 1
        loss, mse = codec_loss(codec, x, kl_weight, latent_noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        ema.update_parameters(codec)
        total += mse
        done = step + 1
        if done % log_every == 0 or done == steps:
            psnr = float(10 * torch.log10(4.0 * ((done - 1) % log_every + 1) / total))  # mean since the last line
            total = torch.zeros(())
            log.append((done, round(psnr, 3)))
            rate = (time.time() - started) / done
            left = (steps - done) * rate / 60
            print(f"codec step {done}/{steps} psnr {psnr:.2f} dB, {rate:.3f} s a step, {left:.1f} min left", flush=True)
    return ema.module.eval(), log
