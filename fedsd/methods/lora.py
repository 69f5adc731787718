"""LoRA on the attention projections (Hu et al. 2021, arXiv 2106.09685), as arXiv 2508.04745 trains it (Algorithm 1,
line 29), and where asked for on the U-Net's convolutions.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsd.base import adapters
from fedsd.base.load import Base
from fedsd.base.training import Descent, Pictures, descend
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
    convolutions: bool = False


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
    pictures = Pictures(latents, captions)
    descent = Descent(
        settings.steps, settings.batch_size, settings.min_snr_gamma, settings.precision, settings.caption_dropout
    )
    carried = adapters.trainable(base, start, rank, seed, settings.text_encoder, settings.convolutions)
    with carried as parameters:
        groups: list[dict[str, Any]] = [{"params": parameters["unet"], "lr": settings.lr, "setting": "train.lr"}]
        if settings.text_encoder:
            groups.append({"params": parameters["text_encoder"], "lr": settings.text_lr, "setting": "train.text-lr"})
        optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        generator = torch.Generator().manual_seed(seed)
        done = descend(base, pictures, [optimiser], descent, generator, text_trained=settings.text_encoder)
        lora = adapters.current(base)
    return Fit(lora, done.loss_first, done.loss_last, done.seconds, done.images_per_second)
