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
    """settings: of a place; fit: (base, pictures, start, own, *, seed, settings) -> Fit.

    carried: within the block the base is the model that a cluster shares; numbers: how many a client shares;
    directions: hash of the decomposition that they refer to, "" where they refer to none.
    """

    settings: Callable[[Place], Any]
    fit: Callable[..., Fit]
    carried: Callable[[Base, Shared, Place], AbstractContextManager[None]]
    numbers: Callable[[Base, Place], int]
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


def _factors(base: Base, place: Place) -> int:
    of = place.config.lora
    shapes = adapters.target_shapes(base, of.text_encoder, of.convolutions)
    return place.rank * sum(sum(shape) for shape in shapes.values())


def _numbers_of_spire(base: Base, place: Place) -> int:
    of, width = place.config.spire, spire.width(base)
    maps = width * (of.size + width) if of.form == "projected" else 0
    whole = sum(p.numel() for p in base.unet.parameters()) - width
    return maps + (_factors(base, place) if of.backbone == "lora" else whole)


def _numbers_of_soda(base: Base, place: Place) -> int:
    settings = _soda(place)
    layers = tuple(soda.targets(base, settings.text_encoder, settings.convolutions))
    return sum(values.size for values in soda.fresh(base, layers).values())


METHODS: Mapping[str, Method] = MappingProxyType({
    "lora": Method(_lora, lora.fit, lambda base, shared, _: adapters.adapted(base, shared.lora), _factors),
    "spire": Method(_spire, spire.fit, lambda base, shared, _: spire.carried(base, shared), _numbers_of_spire),
    "soda": Method(
        _soda, soda.fit, lambda base, shared, at: soda.adapted(base, shared, at.config.soda.form, at.cache),
        _numbers_of_soda, lambda base, place: soda.directions(base, _soda(place)),
    ),
})  # fmt: skip
