"""LoRA on the attention projections (Hu et al. 2021, arXiv 2106.09685), as arXiv 2508.04745 trains it (Algorithm 1,
line 29), and where asked for on the U-Net's convolutions and projections of time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedsd.base import adapters
from fedsd.base.load import Base
from fedsd.base.training import Descent, Fit, Pictures, Shared, descend
from fedsd.lowrank import Array


@dataclass(frozen=True)
class Settings:
    """lr, text_lr: AdamW rates of the U-Net's and the text encoder's factors; ratio: of B's rate to A's."""

    descent: Descent
    lr: float
    text_lr: float
    text_encoder: bool
    rank: int = 4
    convolutions: bool = False
    ratio: float = 1.0


def fit(
    base: Base, pictures: Pictures, start: Shared, own: Mapping[str, Array], *, seed: int, settings: Settings
) -> Fit:
    """Train an adapter from `start` (empty: a fresh one); nothing is kept on the node.

    The base is as before afterwards. Raises ValueError when the rank does not fit the base, when `start` is not for
    this base, and when the loss stops being finite.
    """
    text_encoder = settings.text_encoder
    carried = adapters.trainable(base, start.lora, settings.rank, seed, text_encoder, settings.convolutions)
    with carried:
        groups = adapters.rates(base, settings.lr, settings.text_lr, settings.ratio)
        optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        generator = torch.Generator().manual_seed(seed)
        progress = descend(base, pictures, [optimiser], settings.descent, generator, text_trained=text_encoder)
        return Fit(Shared(adapters.current(base)), {}, progress)
