"""Multi-Krum (Blanchard et al. 2017, arXiv 1703.02757): the mean of the updates with the nearest neighbours."""

from collections.abc import Sequence

import numpy as np

from fedsd.lowrank import Array, LoRA, check_layers
from fedsd.strategies.rules.combination import Combination, present, shares, weighted_sum
from fedsd.strategies.rules.geometric_median import gram


def multi_krum(
    loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None, *, byzantine: float = 0.2
) -> Combination:
    """The mean of the K - f updates of lowest Krum score, and its best cut at `rank`; f = ⌊byzantine · K⌋.

    byzantine: share of the clients that may be hostile, in [0, 0.5). Distances are those of the products.
    """
    if not 0 <= byzantine < 0.5:
        raise ValueError(f"byzantine must be in [0, 0.5), got {byzantine}; no rule withstands a majority")
    check_layers(loras)
    loras, parts = present(loras, weights)
    score = krum_scores(gram(loras), f := int(byzantine * len(loras)))
    chosen = np.argsort(score, kind="stable")[: len(loras) - f]
    kept = np.zeros(len(loras))
    kept[chosen] = np.array(parts)[chosen]
    return weighted_sum(loras, shares(kept.tolist()), rank)


def krum_scores(G: Array, f: int) -> Array:
    """s(k) = Σ of ‖ΔΘ_k - ΔΘ_j‖² over the K - f - 2 nearest others (definition 4 there; at least one), (K,)."""
    squared = np.clip(np.diag(G)[:, None] + np.diag(G)[None, :] - 2 * G, 0, None)
    np.fill_diagonal(squared, np.inf)
    nearest = np.sort(squared, axis=1)[:, : max(1, len(G) - f - 2)]
    return nearest.sum(axis=1) if len(G) > 1 else np.zeros(1)
