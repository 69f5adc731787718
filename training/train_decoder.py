"""Sharpen the embedded autoencoder: its decoder alone, or with `--encoder` both halves.

The decoder alone leaves every latent as it is. With `--encoder` the latents are held near those of before, so that a
denoiser trained on them goes on from where it was.

Losses: L1, L1 of image gradients, features of the embedded open_clip image tower (a perceptual loss, Johnson et al.
2016), and a small patch discriminator (hinge loss, Isola et al. 2017), which keeps edges crisp. Crops of 32x32, as
in train_autoencoder.py.
"""

import argparse
import json
import time
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from pictures import EMOJI_STYLES, blocky, clouds, draw_all, outline, paint, pencil, read_emoji, scenes, to_pixels
from safetensors.torch import load_file
from torch import Tensor, nn
from train_autoencoder import ALL_GROUPS, LATENT_NOISE, augment

from fedsd.data import drawn

NEARNESS = 0.1  # how strongly a trained encoder is held to the one before


def gather(root: Path, generator: torch.Generator) -> Tensor:
    """Return pixels (N, 3, 64, 64): emoji, what is made of them, what fedsd draws, and textures."""
    emoji = read_emoji(root, EMOJI_STYLES, ALL_GROUPS)
    scene = scenes(emoji)
    plain = emoji + draw_all(drawn.LOOKS + drawn.STYLES, variations=2)
    made = scene + paint(scene) + paint(emoji[::2]) + pencil(emoji[::2])
    return torch.cat([to_pixels(plain), to_pixels(made), clouds(len(emoji) // 2, generator)])


def discriminator() -> nn.Sequential:
    """Return a patch discriminator: (N, 3, H, W) -> (N, 1, H/4, W/4) scores."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(24, 48, 4, 2, 1), nn.GroupNorm(6, 48),
        nn.LeakyReLU(0.2), nn.Conv2d(48, 64, 3, 1, 1), nn.GroupNorm(8, 64), nn.LeakyReLU(0.2),
        nn.Conv2d(64, 1, 3, 1, 1),
    )  # fmt: skip


class Perception(nn.Module):
    """Features of the stem and the first stage of the embedded image tower."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
        model = open_clip.model.CLIP(**config)
        model.load_state_dict(
            {k: v.float() for k, v in load_file(folder / "open_clip_model.safetensors").items()}, strict=False
        )
        self.visual = model.visual.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return two feature maps of pixels in [-1, 1]."""
        v = self.visual
        first = v.act1(v.bn1(v.conv1(x)))
        second = v.act3(v.bn3(v.conv3(v.act2(v.bn2(v.conv2(first))))))
        return [first, second, v.layer1(v.avgpool(second))]


def restyle(x: Tensor, generator: torch.Generator) -> Tensor:
    """Make a third of the pictures coarse pixels and a sixth outlines: (N, 3, 64, 64) in [-1, 1] -> the same.

    Edges at arbitrary places of the latent grid are what a decoder of soft pictures cannot draw.
    """
    out = x.clone()
    for i, kind in enumerate(torch.rand(len(x), generator=generator).tolist()):
        if kind < 0.35:
            out[i] = blocky(x[i], int(torch.randint(8, 25, (1,), generator=generator)))
        elif kind < 0.5:
            out[i] = outline(x[i], int(torch.randint(1, 4, (1,), generator=generator)))
    return out


def main() -> None:
    """Train for `--minutes`, resuming from `--out` where it exists."""
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--emoji", type=Path, required=True)
    args.add_argument("--vae", type=Path, required=True)
    args.add_argument("--clip", type=Path, required=True)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--minutes", type=float, default=15)
    args.add_argument("--lr", type=float, default=1.5e-3)
    args.add_argument("--encoder", action="store_true", help="train the encoder too")
    args.add_argument("--adversarial", type=float, default=0.05)
    args.add_argument("--batch", type=int, default=48)
    args.add_argument("--threads", type=int, default=1)
    train(args.parse_args())


def train(opts: argparse.Namespace) -> None:
    """Train, and write the averaged weights to `opts.out`."""
    torch.set_num_threads(opts.threads)
    generator = torch.Generator().manual_seed(int(time.time()))
    data = gather(opts.emoji, generator)
    vae = AutoencoderTiny.from_pretrained(opts.out if (opts.out / "config.json").exists() else opts.vae)
    before = AutoencoderTiny.from_pretrained(opts.vae).requires_grad_(False)
    vae.encoder.requires_grad_(opts.encoder)
    trained = [p for p in vae.parameters() if p.requires_grad]
    perceive, critic = Perception(opts.clip), discriminator()
    for module in (vae, before, perceive, critic):
        module.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(trained, lr=opts.lr, betas=(0.9, 0.99), fused=True)
    critics = torch.optim.AdamW(critic.parameters(), lr=5e-4, betas=(0.5, 0.99))
    averages = {k: v.clone() for k, v in vae.state_dict().items()}
    start, step = time.time(), 0
    while (progress := (time.time() - start) / 60 / opts.minutes) < 1:
        for group in optimiser.param_groups:
            group["lr"] = opts.lr * min(1, (step + 1) / 50) * max(0.02, 1 - progress)
        chosen = data[torch.randint(0, len(data), (opts.batch,), generator=generator)]
        x = augment(restyle(chosen, generator), generator)
        z = vae.encode(x).latents
        y = vae.decode(z + LATENT_NOISE * torch.randn_like(z)).sample
        edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
        seen = sum(F.l1_loss(a, b) for a, b in zip(perceive(y), perceive(x), strict=True))
        adversarial = -critic(y).mean() if progress > 0.15 else torch.zeros(())
        loss = F.l1_loss(y, x) + 0.5 * edges + 0.3 * seen + opts.adversarial * adversarial
        if opts.encoder:
            loss = loss + NEARNESS * F.mse_loss(z, before.encode(x).latents)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        scores = critic(x), critic(y.detach())
        critic_loss = F.relu(1 - scores[0]).mean() + F.relu(1 + scores[1]).mean()
        critics.zero_grad()
        critic_loss.backward()
        critics.step()
        step += 1
        with torch.no_grad():
            for k, v in vae.state_dict().items():
                averages[k].lerp_(v, 0.01)
        if step % 100 == 0:
            psnr = 10 * torch.log10(4 / F.mse_loss(y.detach(), x))
            print(
                f"step {step}  psnr {psnr:.2f}  seen {seen.item():.4f}  critic {critic_loss.item():.3f}",
                flush=True,
            )
    vae.load_state_dict(averages)
    vae.save_pretrained(opts.out)


if __name__ == "__main__":
    main()
