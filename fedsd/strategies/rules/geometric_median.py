"""FedGeoMed: the geometric median of the clients' updates (Weiszfeld 1937; RFA, Pillutla et al. 2019, arXiv
1912.13445).

min_X Σ_k w_k ‖X - ΔΘ_k‖ over whole updates, all layers together. Its solution is Σ_k u_k ΔΘ_k, so only the K x K
matrix of inner products is needed: nothing dense is formed, and no choice of factors matters.
"""

from collections.abc import Sequence

import numpy as np

from fedsd.lowrank import Array, Factor, LoRA, check_factors, check_layers
from fedsd.strategies.rules.combination import Combination, present, weighted_sum

STEPS = 200  # Weiszfeld's method halves the error every few steps; this ends in float64 rounding
SMOOTHING = 1e-8  # share of the typical distance below which a client counts as lying on the median


def geometric_median(loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None) -> Combination:
    """Σ_k u_k ΔΘ_k with Weiszfeld's weights u (algorithm 2 of RFA), and its best cut at `rank`."""
    check_layers(loras)
    loras, parts = present(loras, weights)
    return weighted_sum(loras, weiszfeld(gram(loras), np.array(parts)).tolist(), rank)


def gram(loras: Sequence[LoRA]) -> Array:
    """G_ij = ⟨ΔΘ_i, ΔΘ_j⟩ over all layers, (K, K) float64."""
    total: Array = sum((factor_gram([lora[layer] for lora in loras]) for layer in loras[0]), np.zeros(()))
    return total


def factor_gram(factors: Sequence[Factor]) -> Array:
    """⟨ΔW_i, ΔW_j⟩ of all pairs, (K, K) float64, by one product of all B and one of all A."""
    check_factors(factors, [1.0] * len(factors))
    B = np.concatenate([factor.B for factor in factors], axis=1, dtype=np.float64)
    A = np.concatenate([factor.A for factor in factors], axis=0, dtype=np.float64)
    starts = np.cumsum([0, *(factor.rank for factor in factors[:-1])])
    gram: Array = np.add.reduceat(np.add.reduceat((B.T @ B) * (A @ A.T), starts, axis=0), starts, axis=1)
    return gram


def distances(G: Array, u: Array) -> Array:
    """‖Σ_j u_j ΔΘ_j - ΔΘ_k‖ of each client, (K,): its square is uᵀ G u - 2 (G u)_k + G_kk."""
    distance: Array = np.sqrt(np.clip(u @ G @ u - 2 * G @ u + np.diag(G), 0, None))
    return distance


def weiszfeld(G: Array, w: Array) -> Array:
    """Weights u (K,), which sum to 1, of the geometric median as a mixture of the updates; w (K,) >= 0."""
    u = w / w.sum()
    for _ in range(STEPS):
        distance = distances(G, u)
        if not distance.any():
            break
        closer = w / np.maximum(distance, SMOOTHING * distance.mean())
        u = closer / closer.sum()
    return u
