"""Sums of adapters that come one at a time, in memory that does not grow with their number."""

from collections.abc import Mapping

import numpy as np

from fedsd.lowrank import Array, Factor, LoRA, check_layers, pad, stack, stack_loras, truncate


class Accumulator:
    """Σ_k w_k ΔΘ_k as a stack that is recompressed to cap / 2 columns a layer whenever it passes `cap`.

    While it never passes the cap nothing is lost, and the order of arrival changes no bit. What a recompression cuts
    off has a known norm; by the triangle inequality the sum is off by no more than the sum of these norms.
    Recompressing to as many columns as a layer has dimensions loses nothing either.
    """

    def __init__(self, cap: int) -> None:
        if cap < 2:
            raise ValueError(
                f"strategy.stack-cap must be >= 2 columns, got {cap}; a few times the largest rank is good"
            )
        self.cap = cap
        self.weight = 0.0
        self.recompressions = 0
        self.names: set[str] = set()
        self._parts: dict[str, tuple[LoRA, float]] = {}
        self._cut_off: dict[str, float] = {}

    @property
    def rank(self) -> int:
        """Largest number of columns held for a layer."""
        held: dict[str, int] = {}
        for lora, _ in self._parts.values():
            for layer, factor in lora.items():
                held[layer] = held.get(layer, 0) + factor.rank
        return max(held.values(), default=0)

    def add(self, name: str, lora: LoRA, weight: float) -> None:
        """Take in w ΔΘ of a client; ValueError when it has been taken in before, or adapts other layers."""
        if name in self.names:
            raise ValueError(f"{name} is already in the sum; a client counts once")
        if self._parts:
            check_layers([next(iter(self._parts.values()))[0], lora])
        self._parts[name] = (lora, weight)
        self.names.add(name)
        self.weight += weight
        if self.rank > self.cap:
            self._recompress()

    def mean(self) -> tuple[dict[str, Factor], dict[str, float]]:
        """Σ w ΔΘ / Σ w, and for each layer a bound on ‖mean - exact mean‖_F, 0 where nothing was cut off."""
        if not self.weight > 0:
            raise ValueError("the mean of no updates is undefined; at least one must have a positive weight")
        names = sorted(self._parts)
        lora = stack_loras(
            [self._parts[name][0] for name in names], [self._parts[name][1] / self.weight for name in names]
        )
        return lora, {layer: self._cut_off.get(layer, 0.0) / self.weight for layer in lora}

    def _recompress(self) -> None:
        names = sorted(self._parts)
        loras, weights = [self._parts[name][0] for name in names], [self._parts[name][1] for name in names]
        compressed = {}
        for layer in loras[0]:
            whole = stack([lora[layer] for lora in loras], weights)
            compressed[layer], lost = truncate(whole, self.cap // 2)
            self._cut_off[layer] = self._cut_off.get(layer, 0.0) + lost**0.5
        self._parts = {"": (compressed, 1.0)}
        self.recompressions += 1


class FactorAccumulator:
    """Σ_k w_k B_k and Σ_k w_k A_k at the largest rank so far: zero padding's mean, one client at a time."""

    def __init__(self) -> None:
        self.weight = 0.0
        self._B: dict[str, Array] = {}
        self._A: dict[str, Array] = {}

    def add(self, lora: LoRA, weight: float) -> None:
        """Take in a client's factors; ValueError when it adapts other layers."""
        if self._B:
            check_layers([{layer: Factor(B, self._A[layer]) for layer, B in self._B.items()}, lora])
        for layer, factor in lora.items():
            self._B[layer], self._A[layer] = _added(self._B.get(layer), self._A.get(layer), factor, weight)
        self.weight += weight

    def mean(self) -> Mapping[str, Factor]:
        """B̄ and Ā of each layer."""
        if not self.weight > 0:
            raise ValueError("the mean of no updates is undefined; at least one must have a positive weight")
        return {
            layer: Factor(B / B.dtype.type(self.weight), self._A[layer] / B.dtype.type(self.weight))
            for layer, B in self._B.items()
        }


def _added(B: Array | None, A: Array | None, factor: Factor, weight: float) -> tuple[Array, Array]:
    if B is None or A is None:
        return weight * factor.B, weight * factor.A
    if factor.rank > B.shape[1]:
        wider = pad(Factor(B, A), factor.rank)
        B, A = wider.B, wider.A
    B[:, : factor.rank] += np.multiply(factor.B, weight)
    A[: factor.rank] += np.multiply(factor.A, weight)
    return B, A
