"""Prompts to pictures with a base and the adapter that it carries: encode, denoise, decode.

The loop is written out so that it can be cut after any step: `early` makes x_mid and `late` finishes it (section 3.3 of
arXiv 2508.04745), perhaps on two machines, each with its own adapter. Notation of
DDIM (Song et al. 2020): x_t latents, already times the VAE's scaling factor; t timesteps of the scheduler, descending.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsd.base.load import Base
from fedsd.base.schedulers import check_without_memory, step_noise
from fedsd.base.tokens import expanded


def encode_prompts(base: Base, prompts: list[str]) -> Tensor:
    """Return the text encoder's last hidden states, (N, tokens, width)."""
    ids = tokenize(base, prompts)
    return base.text_encoder(ids).last_hidden_state


def tokenize(base: Base, prompts: list[str]) -> Tensor:
    """Return token ids (N, tokens); captions that are too long lose their end."""
    length = base.text_encoder.config.max_position_embeddings
    prompts = expanded(base.tokenizer, prompts)
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


def pixels_per_latent(base: Base) -> int:
    """Return the side of a picture over that of its latents."""
    return int(2 ** (len(base.vae.config.block_out_channels) - 1))


def initial_latents(base: Base, seeds: list[int], size: int | None = None) -> Tensor:
    """Return x_T (N, 4, h, w) from N(0, I), each picture from its own seed, the same on every device."""
    side = (size or base.size) // pixels_per_latent(base)
    noise = [torch.randn(4, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(base.device, base.unet.dtype)


@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures to draw together: what guides each of them, and its seed.

    text, empty: states (N, tokens, width) with and without the prompt (or of a negative one). seeds: N of them; None
    draws the noise that DDPM and LCM add at each step from torch's own generator.
    """

    text: Tensor
    empty: Tensor
    seeds: list[int] | None


@dataclass(frozen=True)
class Split:
    """How a run of T = `steps` is cut after T_early = `server_steps` of them; guidance 1 skips `empty`."""

    steps: int
    server_steps: int
    guidance: float

    def __post_init__(self) -> None:
        """Raise ValueError unless 0 <= server_steps <= steps."""
        if not 0 <= self.server_steps <= self.steps:
            raise ValueError(f"server_steps must be from 0 to the {self.steps} steps; got {self.server_steps}")


OnStep = Callable[[int, Tensor], None]


def encode_batch(base: Base, prompts: list[str], seeds: list[int], negative: str = "") -> Batch:
    """Return what guides a batch of prompts, in the words of the adapter that the base carries now."""
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
    text = encode_prompts(base, prompts)
    return Batch(text, encode_prompts(base, [negative]).expand(len(text), -1, -1), seeds)


def early(
    base: Base, batch: Batch, split: Split, *, scheduler: Any = None, size: int | None = None,
    on_step: OnStep | None = None,
) -> Tensor:  # fmt: skip
    """Return x_mid (N, 4, h, w) after steps 1 to T_early, with whatever adapter the base carries.

    scheduler: None for the base's own. on_step: told each step's number and latents; what it raises ends the run.
    Raises ValueError for samplers with memory.
    """
    if batch.seeds is None:
        raise ValueError("the early steps need the seeds of their pictures: x_T and the noise come from them")
    check_without_memory(scheduler or base.scheduler)
    scheduler = _with_steps(base, scheduler, split.steps)
    x = initial_latents(base, batch.seeds, size) * scheduler.init_noise_sigma
    return _steps(base, x, batch, split.guidance, range(split.server_steps), scheduler, on_step)


def late(
    base: Base, x_mid: Tensor, batch: Batch, split: Split, *, scheduler: Any = None, on_step: OnStep | None = None
) -> Tensor:
    """Return x_final (N, 4, h, w) from x_mid by steps T_early + 1 to T; `scheduler` must be that of `early`.

    In float32 on one device this is bit for bit what the uncut run gives, for noise is drawn by seed and step.
    """
    check_without_memory(scheduler or base.scheduler)
    scheduler, part = _with_steps(base, scheduler, split.steps), range(split.server_steps, split.steps)
    return _steps(base, x_mid.to(base.device, base.unet.dtype), batch, split.guidance, part, scheduler, on_step)


def denoise(
    base: Base, x: Tensor, text: Tensor, empty: Tensor, *, steps: int, guidance: float, seeds: list[int] | None = None
) -> Tensor:
    """Return x_0 from x_T by `steps` scheduler steps with classifier-free guidance (Ho and Salimans 2022).

    x: (N, 4, h, w). text, empty, seeds: as in `Batch`. guidance 1 skips `empty`. Any sampler will do: nothing is cut.
    """
    scheduler = _with_steps(base, None, steps)
    part = range(len(scheduler.timesteps))  # of some samplers more than `steps`
    return _steps(base, x * scheduler.init_noise_sigma, Batch(text, empty, seeds), guidance, part, scheduler)


def _with_steps(base: Base, scheduler: Any, steps: int) -> Any:
    """Return a sampler of this run's own, set to `steps`: they keep state as they go."""
    own = copy.deepcopy(scheduler or base.scheduler)
    own.set_timesteps(steps, device=base.device)
    return own


def _steps(
    base: Base, x: Tensor, batch: Batch, guidance: float, part: range, scheduler: Any, on_step: OnStep | None = None
) -> Tensor:
    """Return the latents after the steps of `part`, counted from 0."""
    noisy = "generator" in inspect.signature(scheduler.step).parameters
    for step in part:
        t = scheduler.timesteps[step]
        output = predict(base, scheduler.scale_model_input(x, t), t, batch, guidance)
        source = {"generator": step_noise(batch.seeds, step)} if noisy and batch.seeds is not None else {}
        x = scheduler.step(output, t, x, **source).prev_sample
        if on_step is not None:
            on_step(step, x)
    return x


def predict(base: Base, x: Tensor, t: Tensor, batch: Batch, guidance: float) -> Tensor:
    """Return the U-Net's output for latents x (N, 4, h, w), extrapolated from the empty prompt to the prompt.

    t: one timestep for all. x is as the sampler's `scale_model_input` leaves it; for DDIM that is x itself.
    """
    if guidance == 1:
        output: Tensor = base.unet(x, t, batch.text).sample
        return output
    without, with_prompt = base.unet(torch.cat([x, x]), t, torch.cat([batch.empty, batch.text])).sample.chunk(2)
    return without + guidance * (with_prompt - without)


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
            part = encode_batch(base, prompts[i : i + batch], seeds[i : i + batch])
            x = initial_latents(base, seeds[i : i + batch], size)
            x = denoise(base, x, part.text, part.empty, steps=steps, guidance=guidance, seeds=part.seeds)
            pictures.append(decode_latents(base, x))
    return np.concatenate(pictures)
