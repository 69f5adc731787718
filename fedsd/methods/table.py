"""The methods by name: what the run config says of each, how it is trained, and how the base carries what is shared."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedsd.base import adapters
from fedsd.base.load import Base
from fedsd.base.tokens import Placeholder, Token, with_token
from fedsd.base.training import Descent, Fit, Shared
from fedsd.config import Config
from fedsd.methods import lora, soda, spire, zo_token
from fedsd.seeded import TOKEN


@dataclass(frozen=True)
class Place:
    """Where something is trained or used. rank: of factors; cache: folder of what is worked out from the base alone.

    rates: shares of the learning rates, when training begins and when it ends.
    """

    config: Config
    rank: int
    cache: Path
    rates: tuple[float, float] = (1.0, 0.0)


def rates_in(server_round: int, rounds: int) -> tuple[float, float]:
    """Return the shares of the learning rates when round 1..rounds begins and ends: over all they fall evenly to 0.

    Raises ValueError for a later round, whose rates would be below 0.
    """
    if server_round > rounds:
        raise ValueError(
            f"the server is in round {server_round} and run.rounds is {rounds}; set run.rounds to the number of rounds "
            "that the strategy is started with"
        )
    return 1 - (server_round - 1) / rounds, 1 - server_round / rounds


@dataclass(frozen=True)
class Method:
    """settings: of a place; fit: (base, pictures, start, own, *, seed, settings) -> Fit.

    carried: within the block, yields the model that a cluster shares; numbers: how many a client shares; directions:
    hash of the decomposition that they refer to, "" where they refer to none; written: prompts in that model's words.
    """

    settings: Callable[[Place], Any]
    fit: Callable[..., Fit]
    carried: Callable[[Base, Shared, Place], AbstractContextManager[Base]]
    numbers: Callable[[Base, Place], int]
    directions: Callable[[Base, Place], str] = lambda base, place: ""
    written: Callable[[Base, Place, Sequence[str]], list[str]] = lambda model, place, prompts: list(prompts)


def descent(place: Place) -> Descent:
    """Return what all methods have in common."""
    train = place.config.train
    return Descent(
        train.steps, train.batch_size, train.min_snr_gamma, train.precision, train.caption_dropout, train.span,
        place.rates,
    )  # fmt: skip


def _lora(place: Place) -> lora.Settings:
    train, of = place.config.train, place.config.lora
    return lora.Settings(
        descent(place), train.lr, train.text_lr, of.text_encoder, place.rank, of.convolutions, train.lr_ratio
    )


def _spire(place: Place) -> spire.Settings:
    train, of, own = place.config.train, place.config.lora, place.config.spire
    return spire.Settings(
        descent(place), train.lr, train.text_lr, own.embedding_lr, of.text_encoder, place.rank, own.drop,
        own.form, own.size, own.backbone, of.convolutions, train.lr_ratio,
    )  # fmt: skip


def _soda(place: Place) -> soda.Settings:
    of = place.config.soda
    return soda.Settings(
        descent(place), of.shift_lr, of.turn_lr, place.config.lora.text_encoder, of.convolutions, of.form,
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


def placeholder(config: Config) -> Placeholder:
    """Return the word that clients learn."""
    of = config.token
    return Placeholder(of.name, of.vectors, of.initial, of.template)


def token(config: Config, shared: Shared) -> Token:
    """Return the word that clients share; ValueError when they share none."""
    if TOKEN not in shared.arrays:
        raise ValueError("this round has no token; it belongs to a run of another method.name")
    return Token(config.token.name, shared.arrays[TOKEN])


def _zo(place: Place) -> zo_token.Settings:
    of = place.config.zo
    return zo_token.Settings(
        descent(place), placeholder(place.config), of.lr, of.directions, of.smoothing, of.estimator, of.span,
        of.bits, of.share,
    )  # fmt: skip


@contextmanager
def _in_place(base: Base, changed: AbstractContextManager[None]) -> Iterator[Base]:
    with changed:
        yield base


METHODS: Mapping[str, Method] = MappingProxyType({
    "lora": Method(
        _lora, lora.fit, lambda base, shared, _: _in_place(base, adapters.adapted(base, shared.lora)), _factors
    ),
    "spire": Method(
        _spire, spire.fit, lambda base, shared, _: _in_place(base, spire.carried(base, shared)), _numbers_of_spire
    ),
    "soda": Method(
        _soda, soda.fit,
        lambda base, shared, at: _in_place(base, soda.adapted(base, shared, at.config.soda.form, at.cache)),
        _numbers_of_soda, lambda base, place: soda.directions(base, _soda(place)),
    ),
    "zo-token": Method(
        _zo, zo_token.fit_sparing, lambda base, shared, at: nullcontext(with_token(base, token(at.config, shared))),
        lambda base, place: place.config.token.vectors * base.text_encoder.config.hidden_size,
        written=lambda model, place, prompts: placeholder(place.config).captions(model, prompts),
    ),
})  # fmt: skip
