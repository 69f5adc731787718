"""x_mid for ComfyUI: the early steps are made here with the neutral adapter, ComfyUI's KSampler makes the late ones.

ComfyUI's scheduler `ddim_uniform` takes timesteps 1, 1 + 1000 / T, …; DDIM on the same ones is used here, so that the
sigmas on both sides of the cut are equal.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler

from fedsd.base import adapters, denoise
from fedsd.base.load import Base
from fedsd.export import comfy_latent
from fedsd.lowrank import LoRA


@dataclass(frozen=True)
class Start:
    """What the early steps are made of: the generic prompt, the seed, and the cut."""

    prompt: str
    seed: int
    split: denoise.Split


def make_latent(base: Base, lora_neu: LoRA, start: Start) -> bytes:
    """Return x_mid as a .latent file; its header says how KSamplerAdvanced must be set to go on.

    Raises ValueError for numbers of steps that ComfyUI and DDIM do not space alike.
    """
    sampler = comfy_sampler(base, start.split.steps)
    with torch.no_grad(), adapters.adapted(base, lora_neu):
        batch = denoise.encode_batch(base, [start.prompt], [start.seed])
        x_mid = denoise.early(base, batch, start.split, scheduler=sampler)
    sampler.set_timesteps(start.split.steps)
    abar = float(sampler.alphas_cumprod[sampler.timesteps[start.split.server_steps]])
    about = {
        "add_noise": "disable", "start_at_step": start.split.server_steps, "steps": start.split.steps,
        "sampler_name": "ddim", "scheduler": "ddim_uniform", "cfg": start.split.guidance, "noise_seed": start.seed,
        "prompt": start.prompt,
    }  # fmt: skip
    scaling = float(base.vae.config.scaling_factor)
    return comfy_latent(x_mid.float().cpu().numpy(), abar, scaling, {"fedsd.ksampler": json.dumps(about)})


def comfy_sampler(base: Base, steps: int) -> Any:
    """DDIM on ComfyUI's timesteps."""
    trained = int(base.scheduler.config.num_train_timesteps)
    if trained % steps:
        raise ValueError(f"--steps {steps} does not divide {trained}, so ComfyUI would space them otherwise; take 20")
    return DDIMScheduler.from_config(
        base.scheduler.config, timestep_spacing="leading", steps_offset=1, clip_sample=False
    )
