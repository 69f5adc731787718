"""What every rule for combining LoRAs takes and gives back, and the exact sum that most of them are built on.

A rule is a function of the clients' adapters, their weights and a rank:

    rule(loras (K), weights (K,) >= 0 and not all 0, rank) -> Combination

Weights are normalised to sum to 1, and a client of weight 0 is treated as absent. `rank` is the most columns that a
layer of the result may have, None for no cut; only rules that say so look at it. Every factor carries its own rank, and
its scale in B. Notation: K clients, w_k weights, r_k ranks, ΔW_k = B_k A_k, R = Σ_k r_k.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from fedsd.lowrank import Array, Factor, LoRA, check_factors, check_layers, inner, stack, truncate

Product: TypeAlias = Callable[[Sequence[Factor], Array], Factor]


@dataclass(frozen=True)
class LayerReport:
    """What became of a layer. received: R; rank: columns of the result; discarded: share of energy cut, in [0, 1]."""

    received: int
    rank: int
    discarded: float = 0.0


@dataclass(frozen=True)
class Combination:
    """The result of a rule.

    lora: the combined adapter; report: by layer; weights: (K,) of the clients as the rule used them, which sum to 1
    unless it clips; residual: what clients must add to their frozen base, empty but for FedEx-LoRA; personal: client
    k's own adapter, empty but for rules that give each client another one.
    """

    lora: LoRA
    report: Mapping[str, LayerReport]
    weights: tuple[float, ...]
    residual: LoRA = field(default_factory=dict)
    personal: tuple[LoRA, ...] = ()

    @property
    def discarded(self) -> float:
        """Largest share of energy that any layer lost, in [0, 1]."""
        return max(layer.discarded for layer in self.report.values())


class Rule(Protocol):
    """The interface of a rule; further settings are keyword arguments with defaults."""

    def __call__(self, loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None, /) -> Combination:
        """Combine the adapters; ValueError when they do not fit together or break what the rule assumes."""


def shares(weights: Sequence[float]) -> list[float]:
    """w_k / Σ w, which sum to 1; ValueError when a weight is negative or not finite, or all are 0."""
    total = float(sum(weights))
    if not len(weights) or not np.isfinite(total) or min(weights) < 0 or total == 0:
        raise ValueError(f"weights must be >= 0, finite and not all 0, got {list(weights)}")
    return [float(w) / total for w in weights]


def present(loras: Sequence[LoRA], weights: Sequence[float]) -> tuple[list[LoRA], list[float]]:
    """The clients of positive weight and their shares."""
    if len(loras) != len(weights):
        raise ValueError(f"got {len(loras)} adapters and {len(weights)} weights; give one weight for each")
    parts = shares(weights)
    return [lora for lora, w in zip(loras, parts, strict=True) if w > 0], [w for w in parts if w > 0]


def weighted_sum(loras: Sequence[LoRA], weights: Sequence[float], rank: int | None) -> Combination:
    """Σ_k w_k ΔW_k, exact, then each layer's best cut at `rank`; weights are taken as they are."""
    check_layers(loras)
    lora, report = {}, {}
    for layer in loras[0]:  # one after another, so that no more than one layer's stack is held
        exact = stack([one[layer] for one in loras], weights)
        lora[layer], lost = (exact, 0.0) if rank is None else truncate(exact, rank)
        report[layer] = LayerReport(exact.rank, lora[layer].rank, share_lost(lora[layer], lost))
    return Combination(lora, report, tuple(weights))


def share_lost(kept: Factor, lost: float) -> float:
    """Energy lost over all energy, in [0, 1]."""
    return lost / (inner(kept, kept) + lost) if lost > 0 else 0.0


def on_factors(loras: Sequence[LoRA], weights: Sequence[float], combine: Product) -> Combination:
    """A rule that works layer by layer on the factors; weights are taken as they are."""
    lora, report = {}, {}
    for layer in loras[0]:
        factors = [one[layer] for one in loras]
        check_factors(factors, weights)
        lora[layer] = combine(factors, np.asarray(weights))
        report[layer] = LayerReport(sum(factor.rank for factor in factors), lora[layer].rank)
    return Combination(lora, report, tuple(weights))


def mean(arrays: Sequence[Array], weights: Sequence[float] | np.ndarray[Any, Any]) -> Array:
    """Σ_k w_k X_k of equal shapes, in their dtype, read once and without a temporary for each."""
    total = arrays[0] * float(weights[0])
    scaled = np.empty_like(total)
    for w, array in zip(weights[1:], arrays[1:], strict=True):
        np.multiply(array, float(w), out=scaled)
        np.add(total, scaled, out=total)
    return total


def check_shared(loras: Sequence[LoRA], side: str, rule: str) -> None:
    """Raise ValueError unless all clients have the same `side` ("A" or "B") in every layer, bit for bit."""
    for layer, factor in loras[0].items():
        for index, lora in enumerate(loras[1:], start=1):
            if not np.array_equal(getattr(lora[layer], side), getattr(factor, side)):
                raise ValueError(
                    f"{rule} needs the same {side} on all clients, and client {index} differs from client 0 in layer "
                    f"{layer}; start all clients from one {side}, freeze it, and give them one rank"
                )
