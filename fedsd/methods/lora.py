"""LoRA on the attention projections (Hu et al. 2021, arXiv 2106.09685), as arXiv 2508.04745 trains it (Algorithm 1,
line 29).

L_SD = E_{(p, x), eps, t} w(t) || eps - eps_theta(x_t, t, c(p)) ||^2
"""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsd.base import adapters
from fedsd.base.denoise import encode_prompts
from fedsd.base.load import PRECISIONS, Base
from fedsd.lowrank import Factor, LoRA


@dataclass(frozen=True)
class Settings:
    """steps: optimiser steps; lr, text_lr: AdamW rates; min_snr_gamma: 0 for none; dropout: share without caption."""

    steps: int
    batch_size: int
    lr: float
    text_lr: float
    min_snr_gamma: float
    precision: str
    caption_dropout: float
    text_encoder: bool


@dataclass(frozen=True)
class Fit:
    """What training gave: the adapter, and the mean loss over the first and the last fifth of the steps."""

    lora: dict[str, Factor]
    loss_first: float
    loss_last: float
    seconds: float
    images_per_second: float


def fit(
    base: Base, latents: Tensor, captions: list[str], start: LoRA, *, rank: int, seed: int, settings: Settings
) -> Fit:
    """Train an adapter of `rank` on scaled latents (N, 4, h, w) and their captions, from `start` (empty: a fresh one).

    The base is as before afterwards. Raises ValueError when `rank` does not fit the base, when `start` is not for
    this base, and when the loss stops being finite.
    """
    if len(latents) == 0 or len(latents) != len(captions):
        raise ValueError(
            f"{len(latents)} latents and {len(captions)} captions; each picture needs one, and one is the least"
        )
    begun, losses = time.perf_counter(), []
    generator = torch.Generator().manual_seed(seed)
    with adapters.trainable(base, start, rank, seed, settings.text_encoder) as parameters:
        groups: list[dict[str, Any]] = [{"params": parameters["unet"], "lr": settings.lr}]
        if settings.text_encoder:
            groups.append({"params": parameters["text_encoder"], "lr": settings.text_lr})
        optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        warmup = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / 10))
        text = None if settings.text_encoder else _encode_once(base, captions)
        scaler = torch.amp.GradScaler(base.device.type, enabled=settings.precision == "float16")
        for index in _batches(len(latents), settings.batch_size, settings.steps, generator):
            dropped = torch.rand(len(index), generator=generator) < settings.caption_dropout
            shown = ["" if drop else captions[i] for i, drop in zip(index, dropped.tolist(), strict=True)]
            with _autocast(base, settings.precision):
                states = (
                    encode_prompts(base, shown) if text is None else torch.stack([text[caption] for caption in shown])
                )
                loss = diffusion_loss(base, latents[index], states, generator, settings.min_snr_gamma)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise ValueError(
                    f"the loss became {losses[-1]} at step {len(losses)}; lower train.lr ({settings.lr:g})"
                )
            optimiser.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimiser)
            torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
            scaler.step(optimiser)
            scaler.update()
            warmup.step()
        lora = adapters.current(base)
    seconds, fifth = time.perf_counter() - begun, max(1, len(losses) // 5)
    images = settings.steps * min(settings.batch_size, len(latents))
    return Fit(lora, float(np.mean(losses[:fifth])), float(np.mean(losses[-fifth:])), seconds, images / seconds)


def diffusion_loss(base: Base, x0: Tensor, states: Tensor, generator: torch.Generator, gamma: float) -> Tensor:
    """Return L_SD of a batch at uniform timesteps; the target is the one that the base predicts (eps or v).

    x0: (N, 4, h, w); states: (N, tokens, width). gamma: min-SNR weights (Hang et al. 2023, arXiv 2303.09556, eq. 4),
    min(SNR, gamma) / SNR for eps and min(SNR, gamma) / (SNR + 1) for v; 0 weighs all timesteps alike.
    """
    abar = base.scheduler.alphas_cumprod
    t = torch.randint(0, len(abar), (len(x0),), generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    signal, noise = abar[t].sqrt().view(-1, 1, 1, 1), (1 - abar[t]).sqrt().view(-1, 1, 1, 1)
    x_t = signal * x0 + noise * eps
    is_v = base.scheduler.config.prediction_type == "v_prediction"
    target = signal * eps - noise * x0 if is_v else eps
    output = base.unet(x_t.to(base.device, base.unet.dtype), t.to(base.device), states.to(base.unet.dtype)).sample
    error = F.mse_loss(output.float(), target.to(base.device), reduction="none").mean((1, 2, 3))
    if gamma == 0:
        return error.mean()
    snr = abar[t] / (1 - abar[t])
    weight = snr.clamp(max=gamma) / (snr + 1 if is_v else snr)
    return (weight.to(base.device) * error).mean()


def _batches(n: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `steps` index tensors of min(size, n): shuffled passes over 0..n-1, one after another."""
    size, order = min(size, n), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.cat([order, torch.randperm(n, generator=generator)])
        yield order[:size]
        order = order[size:]


def _encode_once(base: Base, captions: list[str], batch: int = 64) -> dict[str, Tensor]:
    different = sorted({*captions, ""})
    with torch.no_grad():
        states = [encode_prompts(base, different[i : i + batch]) for i in range(0, len(different), batch)]
    return dict(zip(different, torch.cat(states), strict=True))


def _autocast(base: Base, precision: str) -> torch.autocast | nullcontext[None]:
    if precision == "float32":
        return nullcontext()
    return torch.autocast(base.device.type, dtype=PRECISIONS[precision])
