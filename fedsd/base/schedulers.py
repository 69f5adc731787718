"""Which samplers a picture's steps may be cut by, and where they draw their noise.

A run can be cut after any step, and finished elsewhere from the latents alone, if a step depends on nothing but them, t
and fresh noise. DDIM (Song et al. 2020, arXiv 2010.02502), DDPM (Ho et al. 2020, arXiv 2006.11239), Euler (Karras et
al. 2022, arXiv 2206.00364) and LCM (Luo et al. 2023, arXiv 2310.04378) are so. Solvers that keep earlier outputs are
not: whoever resumes lacks those.
"""

import copy
import hashlib
import json
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, LCMScheduler

from fedsd.base.load import Base

WITHOUT_MEMORY: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "euler": EulerDiscreteScheduler,
    "lcm": LCMScheduler,
}


def scheduler_named(base: Base, name: str) -> Any:
    """Return the sampler `name`, a key of WITHOUT_MEMORY, with the noise schedule of the base.

    Raises ValueError with the reason for any other name.
    """
    if name not in WITHOUT_MEMORY:
        raise ValueError(refusal(name))
    kind = WITHOUT_MEMORY[name]
    if isinstance(base.scheduler, kind):
        return copy.deepcopy(base.scheduler)
    return kind.from_config(base.scheduler.config)


def refusal(name: str) -> str:
    """Say why a run of sampler `name` cannot be cut."""
    return (
        f"scheduler {name!r} cannot be split: whoever resumes would lack its memory of earlier steps, as with PNDM, "
        f"DPM++ and UniPC; choose from {', '.join(WITHOUT_MEMORY)}"
    )


def most_steps(scheduler: Any) -> int:
    """Return how many steps a sampler can be set to: LCM takes those of its distillation, others one per timestep."""
    config = scheduler.config
    offset = int(config.get("steps_offset", 0))
    return min(int(config.num_train_timesteps) - offset, int(config.get("original_inference_steps", 2**31)))


def check_without_memory(scheduler: Any) -> None:
    """Raise ValueError unless a run of `scheduler` can be cut."""
    if type(scheduler) not in WITHOUT_MEMORY.values():
        raise ValueError(refusal(type(scheduler).__name__.removesuffix("Scheduler")))


def scheduler_sha(scheduler: Any) -> str:
    """Return the SHA-256 of a sampler's kind and settings, so that two machines can tell that theirs agree."""
    settings = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    text = json.dumps([type(scheduler).__name__, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def step_noise(seeds: list[int], step: int) -> list[torch.Generator]:
    """Return the source of noise of each picture at a step; nothing before it matters, so no cut can shift it."""
    return [torch.Generator().manual_seed(_mixed(seed, step)) for seed in seeds]


def _mixed(seed: int, step: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:7], "little")
