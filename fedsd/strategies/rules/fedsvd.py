"""FedSVD (Lee et al. 2025, arXiv 2505.12805): clients send B alone, and the server turns A."""

from collections.abc import Sequence
from dataclasses import replace

from fedsd.lowrank import Factor, LoRA, svd
from fedsd.strategies.rules.combination import Combination
from fedsd.strategies.rules.ffa import ffa


def fedsvd(loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None) -> Combination:
    """B̄ A = U Σ Vᵀ, then B ← U Σ and A ← Vᵀ (equation 5 there): the same product, with orthonormal rows in A.

    `rank` has no effect. ValueError when the clients' A differ.
    """
    found = ffa(loras, weights)
    return replace(found, lora={layer: _turned(factor) for layer, factor in found.lora.items()})


def _turned(factor: Factor) -> Factor:
    U, S, Vt = svd(factor)
    return Factor(U * S, Vt)
