"""Prompts to pictures with a base and the adapter that it carries: encode, denoise, decode.

The loop is written out so that it can be cut at any step. Notation of DDIM (Song et al. 2020): x_t latents, already
times the VAE's scaling factor; t timesteps of the scheduler, descending.
"""

import copy

import numpy as np
import torch
from torch import Tensor

from fedsd.base.load import Base


def encode_prompts(base: Base, prompts: list[str]) -> Tensor:
    """Return the text encoder's last hidden states, (N, tokens, width)."""
    ids = tokenize(base, prompts)
    return base.text_encoder(ids).last_hidden_state


def tokenize(base: Base, prompts: list[str]) -> Tensor:
    """Return token ids (N, tokens); captions that are too long lose their end."""
    length = base.text_encoder.config.max_position_embeddings
    ids = base.tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return ids.input_ids.to(base.device)


def encode_pixels(base: Base, pixels: Tensor, batch: int = 32) -> Tensor:
    """Return scaled latents (N, 4, h, w) of pixels (N, 3, H, W) in [-1, 1]; a KL autoencoder gives its mean."""
    factor, shift = base.vae.config.scaling_factor, getattr(base.vae.config, "shift_factor", None) or 0
    parts = []
    with torch.no_grad():
        for part in pixels.split(batch):
            encoded = base.vae.encode(part.to(base.device, base.vae.dtype))
            latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
            parts.append(((latents - shift) * factor).float().cpu())
    return torch.cat(parts).contiguous()  # another memory layout rounds otherwise, and training must repeat to the byte


def decode_latents(base: Base, latents: Tensor, batch: int = 32) -> np.ndarray:
    """Return uint8 pictures (N, H, W, 3) of scaled latents (N, 4, h, w)."""
    factor, shift = base.vae.config.scaling_factor, getattr(base.vae.config, "shift_factor", None) or 0
    with torch.no_grad():
        parts = [base.vae.decode(x.to(base.vae.dtype) / factor + shift).sample for x in latents.split(batch)]
    pixels = torch.cat(parts).float().cpu()
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def initial_latents(base: Base, seeds: list[int], size: int | None = None) -> Tensor:
    """Return x_T (N, 4, h, w) from N(0, I), each picture from its own seed, the same on every device."""
    side = (size or base.size) // 2 ** (len(base.vae.config.block_out_channels) - 1)
    noise = [torch.randn(4, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(base.device, base.unet.dtype)


def denoise(base: Base, x: Tensor, text: Tensor, empty: Tensor, *, steps: int, guidance: float) -> Tensor:
    """Return x_0 from x_T by `steps` scheduler steps with classifier-free guidance (Ho and Salimans 2022).

    x: (N, 4, h, w). text, empty: states (N, tokens, width) with and without the prompt. guidance 1 skips `empty`.
    """
    scheduler = copy.deepcopy(base.scheduler)
    scheduler.set_timesteps(steps, device=base.device)
    x = x * scheduler.init_noise_sigma
    states = torch.cat([empty, text]) if guidance != 1 else text
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, t)
        output = base.unet(torch.cat([model_input] * (len(states) // len(x))), t, states).sample
        if guidance != 1:
            without, with_prompt = output.chunk(2)
            output = without + guidance * (with_prompt - without)
        x = scheduler.step(output, t, x).prev_sample
    return x


def generate(
    base: Base, prompts: list[str], seeds: list[int], *, steps: int = 25, guidance: float = 1.5, batch: int = 16,
    size: int | None = None,
) -> np.ndarray:  # fmt: skip
    """Return uint8 pictures (N, H, W, 3), one per prompt and seed, with whatever adapter the base carries."""
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
    pictures = []
    with torch.no_grad():
        for i in range(0, len(prompts), batch):
            text = encode_prompts(base, prompts[i : i + batch])
            empty = encode_prompts(base, [""]).expand(len(text), -1, -1)
            x = initial_latents(base, seeds[i : i + batch], size)
            pictures.append(decode_latents(base, denoise(base, x, text, empty, steps=steps, guidance=guidance)))
    return np.concatenate(pictures)
