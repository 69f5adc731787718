"""The methods by name: what the run config says of each, how it is trained, and how the base carries what is shared."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedsd.base import adapters
from fedsd.base.load import Base
from fedsd.base.training import Descent, Fit, Shared
from fedsd.config import Config
from fedsd.methods import lora, soda, spire


@dataclass(frozen=True)
class Place:
    """Where something is trained or used. rank: of factors; cache: folder of what is worked out from the base alone."""

    config: Config
    rank: int
    cache: Path


@dataclass(frozen=True)
class Method:
    """settings: of a place; fit: (base, pictures, start, own, *, seed, settings) -> Fit; factors: whether it has any.

    carried: within the block the base is the model that a cluster shares; directions: hash of the decomposition that
    shared numbers refer to, "" where they refer to none.
    """

    settings: Callable[[Place], Any]
    fit: Callable[..., Fit]
    factors: Callable[[Config], bool]
    carried: Callable[[Base, Shared, Place], AbstractContextManager[None]]
    directions: Callable[[Base, Place], str] = lambda base, place: ""


def descent(config: Config) -> Descent:
    """Return what all methods have in common."""
    train = config.train
    return Descent(train.steps, train.batch_size, train.min_snr_gamma, train.precision, train.caption_dropout)


def _lora(place: Place) -> lora.Settings:
    train, of = place.config.train, place.config.lora
    return lora.Settings(descent(place.config), train.lr, train.text_lr, of.text_encoder, place.rank, of.convolutions)


def _spire(place: Place) -> spire.Settings:
    train, of, own = place.config.train, place.config.lora, place.config.spire
    return spire.Settings(
        descent(place.config), train.lr, train.text_lr, own.embedding_lr, of.text_encoder, place.rank, own.drop,
        own.form, own.size, own.backbone, of.convolutions,
    )  # fmt: skip


def _soda(place: Place) -> soda.Settings:
    of = place.config.soda
    return soda.Settings(
        descent(place.config), of.shift_lr, of.turn_lr, place.config.lora.text_encoder, of.convolutions, of.form,
        of.optimiser, place.cache,
    )  # fmt: skip


METHODS: Mapping[str, Method] = MappingProxyType({
    "lora": Method(_lora, lora.fit, lambda config: True, lambda base, shared, _: adapters.adapted(base, shared.lora)),
    "spire": Method(
        _spire, spire.fit, lambda config: config.spire.backbone == "lora",
        lambda base, shared, _: spire.carried(base, shared),
    ),
    "soda": Method(
        _soda, soda.fit, lambda config: False,
        lambda base, shared, place: soda.adapted(base, shared, place.config.soda.form, place.cache),
        lambda base, place: soda.directions(base, _soda(place)),
    ),
})  # fmt: skip
