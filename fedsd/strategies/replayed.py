"""Replies that are the scalars of zeroth-order steps, turned into the tokens that they stand for (see `seeded`)."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedsd.lowrank import Array
from fedsd.seeded import SCALARS, TOKEN, Rule, State, Trace, begin, replay, saves, to_arrays
from fedsd.strategies.round import Round
from fedsd.tangent_mean import Arrays
from fedsd.wire import Update


def replayed(
    update: Update, seed: int, sent: Array | None, previous: Round | None, rule: Rule | None
) -> tuple[Update, Arrays]:
    """Return the update with its token instead of its scalars, bit for bit the client's own, and its moments.

    seed: that of its order; sent: the token in it, (k, width), None for none. An update without scalars comes back as
    it is, without moments. Raises ValueError when the scalars cannot be what the client's steps gave.
    """
    scalars = update.arrays.get(SCALARS)
    if scalars is None:
        return update, {}
    if rule is None:
        raise ValueError("it sends scalars of zeroth-order steps; give it the run's method.name")
    token = update.arrays.get(TOKEN) if sent is None else sent
    if token is None:
        raise ValueError("it sends scalars and no token that they begin at; give it this version of fedsd")
    if not saves(scalars.size, token.size):
        raise ValueError(f"it sends {scalars.size} scalars for a token of {token.size} numbers, which is no saving")
    start = _start(update, np.zeros_like(token) if sent is None else sent, previous)
    ended = replay(start, Trace(seed, scalars), rule)
    found = token if sent is None else ended.x.reshape(sent.shape)
    others = {name: values for name, values in update.arrays.items() if name not in (SCALARS, TOKEN)}
    moments = {name: values for name, values in to_arrays(ended).items() if name != "x"}
    return replace(update, arrays=others | {TOKEN: found}), moments


def with_moments(after: Round, previous: Round | None, moved: Mapping[str, Arrays]) -> Round:
    """The round with everybody's moments: those that moved, and those before of whoever's reply was not used."""
    before = previous.optimisers if previous else {}
    held = {name: (moved if name in after.present else before).get(name, {}) for name in after.clients}
    return replace(after, optimisers={name: moments for name, moments in held.items() if moments})


def _start(update: Update, token: Array, previous: Round | None) -> State:
    """Where the client began. Moments follow from the scalars alone, so those of a first round need no token."""
    kept = previous.optimisers.get(update.client) if previous else None
    steps = int(kept["steps"][0]) if kept else 0
    if update.begun == 0:
        return begin(token.flatten())
    if kept is None or update.begun != steps:
        raise ValueError(
            f"its optimiser has seen {update.begun} steps and the server knows of {steps}; remove own.safetensors from "
            "its private folder, and it begins anew"
        )
    return State(token.flatten().astype(np.float32), kept["m"], kept["v"], steps)
