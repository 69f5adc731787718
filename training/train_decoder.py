"""Sharpen the embedded autoencoder: its decoder alone, or with `--encoder` both halves.

The decoder alone leaves every latent as it is. It is first made as deep and wide as DECODER_BLOCKS and DECODER_WIDTH,
and learns to draw clean edges, flat areas and natural textures from latents that are off: half of what it decodes has
noise added, and half is what the denoiser of `--base` made of latents, noised and denoised again, of pictures that it
does not know by heart. An adapted denoiser is off by as much as noise of 0.2 to 0.3. With `--encoder` the latents are
held near those of before, so that a denoiser trained on them goes on from where it was.

Losses: L1, L1 of image gradients, more of it where neighbours have one colour, and features of the embedded open_clip
image tower (a perceptual loss, Johnson et al. 2016). Crops of 32x32, as in train_autoencoder.py.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from pictures import (
    EMOJI_STYLES,
    GROUPS,
    OTHER_GROUPS,
    Picture,
    blocky,
    captions,
    clouds,
    derive,
    draw_all,
    leaves,
    outline,
    paint,
    pencil,
    read_emoji,
    recolour,
    scenes,
    to_pixels,
    to_uint8,
    vary,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from train_autoencoder import ALL_GROUPS, LATENT_NOISE, augment

from fedsd.base import load
from fedsd.base.denoise import encode_pixels, encode_prompts
from fedsd.base.training import noised
from fedsd.data import drawn

REDRAWN_FROM = (100, 600)  # timesteps: later ones change what is drawn, not only how
REDRAWN_STEPS = 3
DECODER_BLOCKS = (8, 4, 1)  # residual blocks at 16x16, 32x32 and 64x64
DECODER_WIDTH = 44  # channels
LEAVES = 4000  # pictures of leaves()
RIPPLES = 1.5  # weight of gradients where there should be none; 5 takes the shading of noto away as well
MOST_NOISE = 0.3  # of the latents; with `--encoder` it is LATENT_NOISE
NEARNESS = 0.1  # how strongly a trained encoder is held to the one before


def gather(root: Path, generator: torch.Generator) -> Tensor:
    """Return pixels (N, 3, 64, 64): emoji, what is made of them, what fedsd draws, and textures."""
    emoji = read_emoji(root, EMOJI_STYLES, ALL_GROUPS)
    scene = scenes(emoji)
    plain = emoji + draw_all(drawn.LOOKS + drawn.STYLES, variations=2)
    made = scene + paint(scene) + paint(emoji[::2]) + pencil(emoji[::2])
    return torch.cat([to_pixels(plain), to_pixels(made), clouds(len(emoji) // 2, generator)])


def redrawable(root: Path, seed: int) -> list[Picture]:
    """Return emoji, and moved ones as they are and as everything that is made of them."""
    emoji = read_emoji(root)
    moved = vary(read_emoji(root, groups=GROUPS + OTHER_GROUPS), times=1, seed=seed)
    made = derive(moved) + recolour(moved)[::2] + pencil(moved[::2]) + scenes(moved)
    natural = leaves(LEAVES // 2, torch.Generator().manual_seed(seed + 1))
    return emoji + moved + made + [Picture(to_uint8(one), "picture", "scene") for one in natural]


def grown(vae: AutoencoderTiny) -> AutoencoderTiny:
    """Return the autoencoder with a decoder of DECODER_BLOCKS and DECODER_WIDTH; what is new changes nothing yet."""
    old = vae.config.num_decoder_blocks
    larger = AutoencoderTiny.from_config(
        vae.config, num_decoder_blocks=DECODER_BLOCKS, decoder_block_out_channels=(DECODER_WIDTH,) * len(DECODER_BLOCKS)
    )
    larger.encoder.load_state_dict(vae.encoder.state_dict())
    here, there = iter(vae.decoder.layers), iter(larger.decoder.layers)
    for count, wanted in zip(old, DECODER_BLOCKS, strict=True):
        blocks = 0
        for layer in here:
            put(layer, next(there))
            blocks += isinstance(layer, AutoencoderTinyBlock)
            if blocks == count:
                break
        for _ in range(wanted - count):
            torch.nn.init.zeros_((last := next(there).conv[-1]).weight)  # ReLU(x + 0) = x after another ReLU
            torch.nn.init.zeros_(last.bias)
    for layer in here:
        put(layer, next(there))
    return larger


@torch.no_grad()
def put(layer: nn.Module, wider: nn.Module) -> None:
    """Write a layer's weights into a wider one, whose further inputs its outputs do not heed yet."""
    for old, new in zip(layer.parameters(), wider.parameters(), strict=True):
        new[: len(old)] = 0
        new[tuple(slice(n) for n in old.shape)] = old


@torch.no_grad()
def redraw(base: load.Base, pictures: list[Picture], seed: int) -> Tensor:
    """Return latents (N, 4, 16, 16): of `pictures`, noised to a random timestep and denoised in a few DDIM steps."""
    made, rng, generator = [], np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    abar = base.scheduler.alphas_cumprod
    for start in range(0, len(pictures), 32):
        part = pictures[start : start + 32]
        states = encode_prompts(base, [captions(picture, rng) for picture in part])
        given = noised(base, encode_pixels(base, to_pixels(part)), generator, 0, REDRAWN_FROM)
        x, t = given.x_t, given.t
        for left in range(REDRAWN_STEPS, 0, -1):  # by hand: each picture has timesteps of its own
            now, then = t * left // REDRAWN_STEPS, t * (left - 1) // REDRAWN_STEPS
            a, s = abar[now].sqrt().view(-1, 1, 1, 1), (1 - abar[now]).sqrt().view(-1, 1, 1, 1)
            v = base.unet(x, now, states).sample
            x0, eps = a * x - s * v, s * x + a * v
            x = abar[then].sqrt().view(-1, 1, 1, 1) * x0 + (1 - abar[then]).sqrt().view(-1, 1, 1, 1) * eps
        made.append(x0)
    return torch.cat(made)


def crops(z: Tensor, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut 8x8 of latents (N, 4, 16, 16) and the 32x32 of pixels (N, 3, 64, 64) that lie there."""
    places = torch.randint(0, 9, (len(z), 2), generator=generator).tolist()
    latents = [one[:, i : i + 8, j : j + 8] for one, (i, j) in zip(z, places, strict=True)]
    pixels = [one[:, 4 * i : 4 * i + 32, 4 * j : 4 * j + 32] for one, (i, j) in zip(x, places, strict=True)]
    return torch.stack(latents), torch.stack(pixels)


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


def flat(x: Tensor, dim: int) -> Tensor:
    """Return 1 where neighbours along `dim` of (N, 3, H, W) have one colour, else 0: (N, 1, ...), `dim` one less."""
    return (x.diff(dim=dim).abs().amax(1, keepdim=True) < 1e-3).float()


class Samples:
    """What is decoded in training: latents (N, 4, 8, 8), and the pixels (N, 3, 32, 32) that they should become."""

    def __init__(self, root: Path, base: Path | None, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.pixels, self.natural = gather(root, self.generator), leaves(LEAVES, self.generator)
        known = redrawable(root, seed) if base else []
        self.shown = to_pixels(known) if known else torch.empty(0)
        self.redrawn = redraw(load.load(str(base)), known, seed) if known else torch.empty(0)

    def right(self, vae: AutoencoderTiny, n: int) -> tuple[Tensor, Tensor]:
        """Return the encoder's own latents of n crops."""
        few = n // 3
        made = self.pixels[torch.randint(0, len(self.pixels), (n - few,), generator=self.generator)]
        natural = self.natural[torch.randint(0, len(self.natural), (few,), generator=self.generator)]
        x = augment(torch.cat([restyle(made, self.generator), natural]), self.generator)
        return vae.encode(x).latents, x

    def off(self, vae: AutoencoderTiny, n: int) -> tuple[Tensor, Tensor]:
        """Return latents of n crops, half of them with noise of any strength up to MOST_NOISE and half drawn again."""
        z, x = self.right(vae, n // 2)
        z = z + MOST_NOISE * torch.rand(len(z), 1, 1, 1, generator=self.generator) * torch.randn_like(z)
        index = torch.randint(0, len(self.shown), (n - n // 2,), generator=self.generator)
        drawn_z, drawn_x = crops(self.redrawn[index], self.shown[index], self.generator)
        return torch.cat([z, drawn_z]), torch.cat([x, drawn_x])


def main() -> None:
    """Train for `--minutes`, resuming from `--out` where it exists."""
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--emoji", type=Path, required=True)
    args.add_argument("--base", type=Path, required=True, help="a diffusers folder; its autoencoder is where to begin")
    args.add_argument("--clip", type=Path, required=True)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--minutes", type=float, default=15)
    args.add_argument("--lr", type=float, default=1.5e-3)
    args.add_argument("--encoder", action="store_true", help="train the encoder too")
    args.add_argument("--batch", type=int, default=48)
    args.add_argument("--threads", type=int, default=1)
    train(args.parse_args())


def train(opts: argparse.Namespace) -> None:
    """Train, and write the averaged weights to `opts.out`."""
    torch.set_num_threads(opts.threads)
    samples = Samples(opts.emoji, None if opts.encoder else opts.base, seed=int(time.time()))
    sample = samples.right if opts.encoder else samples.off
    vae = AutoencoderTiny.from_pretrained(opts.out if (opts.out / "config.json").exists() else opts.base / "vae")
    vae = vae if opts.encoder else grown(vae)
    before = AutoencoderTiny.from_pretrained(opts.base / "vae").requires_grad_(False)
    vae.encoder.requires_grad_(opts.encoder)
    trained = [p for p in vae.parameters() if p.requires_grad]
    perceive = Perception(opts.clip)
    for module in (vae, before, perceive):
        module.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(trained, lr=opts.lr, betas=(0.9, 0.99), fused=True)
    averages = {k: v.clone() for k, v in vae.state_dict().items()}
    start, step = time.time(), 0
    while (progress := (time.time() - start) / 60 / opts.minutes) < 1:
        for group in optimiser.param_groups:
            group["lr"] = opts.lr * min(1, (step + 1) / 50) * max(0.02, 1 - progress)
        z, x = sample(vae, opts.batch)
        y = vae.decode(z + LATENT_NOISE * torch.randn_like(z)).sample
        edges = sum((y.diff(dim=d) - x.diff(dim=d)).abs().mean() for d in (2, 3))
        seen = sum(F.l1_loss(a, b) for a, b in zip(perceive(y), perceive(x), strict=True))
        ripples = sum((y.diff(dim=d).abs() * flat(x, d)).mean() for d in (2, 3))
        loss = F.l1_loss(y, x) + 0.5 * edges + RIPPLES * ripples + 0.3 * seen
        if opts.encoder:
            loss = loss + NEARNESS * F.mse_loss(z, before.encode(x).latents)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            for k, v in vae.state_dict().items():
                averages[k].lerp_(v, 0.01)
        if step % 100 == 0:
            psnr = 10 * torch.log10(4 / F.mse_loss(y.detach(), x))
            print(f"step {step}  psnr {psnr:.2f}  seen {seen.item():.4f}  ripples {ripples.item():.4f}", flush=True)
        if step % 500 == 0:
            save(vae, averages, opts.out)
    save(vae, averages, opts.out)


def save(vae: AutoencoderTiny, averages: dict[str, Tensor], out: Path) -> None:
    """Write the averaged weights; training goes on with the present ones."""
    present = {k: v.clone() for k, v in vae.state_dict().items()}
    vae.load_state_dict(averages)
    vae.save_pretrained(out)
    vae.load_state_dict(present)


if __name__ == "__main__":
    main()
