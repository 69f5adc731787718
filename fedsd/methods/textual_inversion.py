"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): the vectors of a new word, by gradients, the base as it is.

The word is the node's own: nothing of it is shared. arXiv 2508.04745 (section 3.4) trains it on prompts such as "A cat
with <user-s> style", so that the word for a style need not be said.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from fedsd.base.load import Base
from fedsd.base.tokens import Placeholder, token_embedding, with_token
from fedsd.base.training import Descent, Fit, Pictures, Shared, descend
from fedsd.lowrank import Array


@dataclass(frozen=True)
class Settings:
    """lr: AdamW's, on the vectors; no caption is dropped, for it would be a step that teaches the token nothing."""

    descent: Descent
    placeholder: Placeholder
    lr: float


def fit(
    base: Base, pictures: Pictures, start: Shared, own: Mapping[str, Array], *, seed: int, settings: Settings
) -> Fit:
    """Train the token from own["token"] (k, width), or from its initial words; shared is `start` as it came.

    Raises ValueError when the name is a word already, when a caption has no room for it, when what is kept is not for
    this base, when the base is quantised, and when the loss stops being finite.
    """
    carrying = with_token(base, settings.placeholder.at_start(base, own.get("token")))
    vectors = token_embedding(carrying).vectors.requires_grad_(True)
    group = {"params": [vectors], "lr": settings.lr, "setting": "token.lr"}
    spoken = Pictures(pictures.latents, settings.placeholder.captions(carrying, pictures.captions))
    descent, generator = replace(settings.descent, caption_dropout=0.0), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW([group], weight_decay=0.0)
    progress = descend(carrying, spoken, [optimiser], descent, generator, text_trained=True)
    return Fit(start, {"token": vectors.detach().cpu().numpy().copy()}, progress)
