"""RBLA (Tavallaie et al. 2024, arXiv 2408.08699): the mean of each rank column over the clients that have it."""

from collections.abc import Sequence

import numpy as np

from fedsd.lowrank import Array, Factor, LoRA, check_layers
from fedsd.strategies.rules.combination import Combination, on_factors, present


def rbla(loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None) -> Combination:
    """Column j of B̄ is Σ_{k: r_k >= j} w_k B_k[:, j] / Σ_{k: r_k >= j} w_k, row j of Ā likewise; `rank` has no effect.

    Unlike zero padding, a column that few clients have is not diluted by the others' zeros. A mean of factors all the
    same: it depends on the clients' factoring.
    """
    check_layers(loras)
    return on_factors(*present(loras, weights), _column_means)


def _column_means(factors: Sequence[Factor], weights: Array) -> Factor:
    (d_out, d_in), largest = factors[0].shape, max(factor.rank for factor in factors)
    B, A = np.zeros((d_out, largest), factors[0].B.dtype), np.zeros((largest, d_in), factors[0].B.dtype)
    having = np.zeros(largest)
    for w, factor in zip(weights.tolist(), factors, strict=True):
        B[:, : factor.rank] += w * factor.B
        A[: factor.rank] += w * factor.A
        having[: factor.rank] += w
    having = having.astype(B.dtype)
    return Factor(B / having, A / having[:, None])
