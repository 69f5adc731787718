"""Train the 4-channel, factor-4 autoencoder of the embedded base: 64x64 pixels to 16x16 latents.

The network has no normalisation and no attention, so it is local: random 32x32 crops teach it what whole
pictures would at a quarter of the cost. Colours are permuted, inverted, greyed and thresholded so that
styles that it never saw (line drawings, pixel art, photographs) survive the round trip too.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from pictures import EMOJI_STYLES, draw_all, read_emoji, to_pixels
from torch import Tensor

from fedsd.data import drawn

ALL_GROUPS = (
    "Animals & Nature", "Food & Drink", "Travel & Places", "Objects", "Activities", "Smileys & Emotion",
    "People & Body", "Symbols", "Flags",
)  # fmt: skip
LATENT_NOISE = 0.05  # teaches the decoder to forgive small errors of the denoiser


def build() -> AutoencoderTiny:
    """Return an untrained autoencoder, about 0.35 M parameters, latents near N(0, 1) by its training loss."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(1, 2, 3),
        num_decoder_blocks=(3, 2, 1),
        upsampling_scaling_factor=2,
        latent_channels=4,
        scaling_factor=1.0,
    )


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Crop 32x32 and recolour; x uint8-derived float (N, 3, 64, 64) in [-1, 1] -> (N, 3, 32, 32)."""
    n = len(x)
    top, left = torch.randint(0, 33, (2, n), generator=generator)
    x = torch.stack([image[:, t : t + 32, s : s + 32] for image, t, s in zip(x, top, left, strict=True)])
    kind = torch.randint(0, 10, (n,), generator=generator)
    grey = x.mean(1, keepdim=True).expand_as(x)
    x = torch.where((kind == 0).view(-1, 1, 1, 1), grey, x)
    x = torch.where((kind == 1).view(-1, 1, 1, 1), -x, x)
    x = torch.where((kind == 2).view(-1, 1, 1, 1), (4 * grey).clamp(-1, 1), x)
    x = torch.where((kind == 3).view(-1, 1, 1, 1), x[:, torch.randperm(3, generator=generator)], x)
    gain = 0.5 + torch.rand(n, 3, 1, 1, generator=generator)
    shift = 0.6 * torch.rand(n, 3, 1, 1, generator=generator) - 0.3
    return torch.where((kind == 4).view(-1, 1, 1, 1), (x * gain + shift).clamp(-1, 1), x)


def loss_of(vae: AutoencoderTiny, x: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction (L1, L2, and L1 of image gradients) plus moments of N(0, 1); returns (loss, mse)."""
    z = vae.encode(x).latents
    y = vae.decode(z + LATENT_NOISE * torch.randn_like(z)).sample
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    moments = mean.square().mean() + (std - 1).square().mean()
    edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
    mse = F.mse_loss(y, x)
    return mse + 0.5 * F.l1_loss(y, x) + 0.5 * edges + 0.1 * moments, mse


def main() -> None:
    """Train for `--minutes`, resuming from `--out` where it exists."""
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--emoji", type=Path, required=True)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--minutes", type=float, default=12)
    args.add_argument("--lr", type=float, default=2e-3)
    args.add_argument("--threads", type=int, default=2)
    opts = args.parse_args()
    torch.set_num_threads(opts.threads)
    generator = torch.Generator().manual_seed(0)
    pictures = read_emoji(opts.emoji, EMOJI_STYLES, ALL_GROUPS) + draw_all(drawn.LOOKS + drawn.STYLES, variations=4)
    data = to_pixels(pictures)
    vae = AutoencoderTiny.from_pretrained(opts.out) if (opts.out / "config.json").exists() else build()
    vae.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=opts.lr, weight_decay=1e-3)
    start, step, averages = time.time(), 0, {k: v.clone() for k, v in vae.state_dict().items()}
    while (progress := (time.time() - start) / 60 / opts.minutes) < 1:
        for group in optimiser.param_groups:
            group["lr"] = opts.lr * min(1, (step + 1) / 100) * max(0.02, 1 - progress)
        x = augment(data[torch.randint(0, len(data), (64,), generator=generator)], generator)
        loss, mse = loss_of(vae, x)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        step += 1
        for k, v in vae.state_dict().items():
            averages[k].lerp_(v, 0.005)
        if step % 200 == 0:
            print(
                f"step {step}  loss {loss:.4f}  psnr {10 * torch.log10(4 / mse):.2f}",
                flush=True,
            )
    vae.load_state_dict(averages)
    vae.save_pretrained(opts.out)


if __name__ == "__main__":
    main()
