"""A PEFT state taken apart into products and arrays that are trained whole, and put together at any ranks.

Arrays without "lora" in their key, such as a classifier head in modules_to_save, are no products; their mean is the
plain weighted one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fedsd.lowrank import Array, Factor, LoRA, energy, reseed, resize
from fedsd.strategies.peft_state import from_peft, is_lora, layer_rank, to_peft
from fedsd.strategies.rules import shares

State: TypeAlias = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Parts:
    """lora: layer -> product of scale 1, in float32 or float64; whole: key -> array that is no LoRA factor."""

    lora: LoRA
    whole: State


def take_apart(state: State, config: Mapping[str, Any]) -> Parts:
    """The parts of a model's state under its PEFT config; ValueError naming what cannot be combined."""
    factors = {key: _computable(array) for key, array in state.items() if is_lora(key)}
    if not factors:
        raise ValueError("the arrays hold no LoRA factor; send what get_peft_model_state_dict returns")
    return Parts(from_peft(factors, config), {key: array for key, array in state.items() if not is_lora(key)})


def put_together(
    parts: Parts, config: Mapping[str, Any], like: State, seed: Sequence[int], *, by_index: bool = False
) -> dict[str, np.ndarray[Any, Any]]:
    """The state that a model with `config` loads, with the keys, order and dtypes of `like`.

    Each layer gets the config's rank: `fit` says how. Directions that could never learn are drawn anew from `seed`,
    which changes no product.
    """
    lora = {
        layer: reseed(fit(parts.lora[layer], layer_rank(layer, config), by_index=by_index), [*seed, index])
        for index, layer in enumerate(sorted(parts.lora))
    }
    state = to_peft(lora, config, {key: array for key, array in like.items() if is_lora(key)})
    return {key: state[key].astype(like[key].dtype) if key in state else parts.whole[key] for key in like}


def fit(factor: Factor, rank: int, *, by_index: bool = False) -> Factor:
    """ΔW at `rank` columns: zeros are added; surplus is cut to the best approximation or, `by_index`, cut off.

    Rules that average factors one by one compare columns of the same index, which the best cut would turn.
    """
    if by_index and rank < factor.rank:
        return Factor(factor.B[:, :rank], factor.A[:rank])
    return resize(factor, rank)


def share_cut(before: LoRA, after: LoRA) -> float:
    """Largest share of energy, in [0, 1], that a layer lost in `fit`; below what float32 resolves it is 0."""
    return max((_share(energy(factor), energy(after[layer])) for layer, factor in before.items()), default=0.0)


def check_alike(state: State, like: State) -> None:
    """Raise ValueError unless a reply's arrays are those that were sent, but for the rank, and hold finite numbers."""
    missing, unknown = sorted(set(like) - set(state)), sorted(set(state) - set(like))
    if missing or unknown:
        which = f"lacks {missing[0]}" if missing else f"has unknown {unknown[0]}"
        raise ValueError(
            f"its reply {which}; it must send the arrays that it was sent ({len(missing + unknown)} differ)"
        )
    for key, array in state.items():
        if array.dtype != like[key].dtype or _shape(key, array) != _shape(key, like[key]):
            raise ValueError(f"{key} is {array.dtype} {array.shape}, not {like[key].dtype} {like[key].shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{key} holds NaN or Inf; lower the learning rate on that node")


def check_ranks(state: State, config: Mapping[str, Any]) -> None:
    """Raise ValueError unless each layer has the rank that the config gives it."""
    for key, array in state.items():
        layer, side, _ = key.partition(".lora_A")
        if side and len(array) != (rank := layer_rank(layer, config)):
            raise ValueError(
                f'{key} has rank {len(array)}, not {rank}; a client of another rank must answer @app.query("lora"), '
                "and the strategy must be built with ask_ranks=True"
            )


def mean_whole(wholes: Sequence[State], weights: Sequence[float]) -> dict[str, np.ndarray[Any, Any]]:
    """Σ_k w_k X_k / Σ_k w_k of each array, in its own dtype; whole numbers are rounded."""
    parts = shares(weights)
    return {key: _mean([whole[key] for whole in wholes], parts) for key in wholes[0]}


def _mean(arrays: Sequence[np.ndarray[Any, Any]], parts: Sequence[float]) -> np.ndarray[Any, Any]:
    total = np.zeros(arrays[0].shape)
    for array, w in zip(arrays, parts, strict=True):
        total += w * array
    return (np.rint(total) if arrays[0].dtype.kind in "iu" else total).astype(arrays[0].dtype)


def _computable(array: np.ndarray[Any, Any]) -> Array:
    return array if array.dtype == np.float64 else array.astype(np.float32, copy=False)


def _shape(key: str, array: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """The shape without the rank, which is axis 0 of A and axis 1 of B."""
    if not is_lora(key) or array.ndim < 2:
        return array.shape
    return array.shape[1:] if ".lora_A" in key else (*array.shape[:1], 0, *array.shape[2:])


def _share(before: float, after: float) -> float:
    lost = 1 - after / before if before else 0.0
    return lost if lost > 1e-6 else 0.0
