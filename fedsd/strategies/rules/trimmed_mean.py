"""The metrically trimmed mean (Kim 1992, Annals of Statistics 20(3)): the mean without what is farthest out.

Yin et al. (2018, arXiv 1803.01498) trim each coordinate by itself, which needs the dense matrices. Trimming whole
updates by their distance from the geometric median needs inner products only, and no choice of factors matters.
"""

from collections.abc import Sequence

import numpy as np

from fedsd.lowrank import Array, LoRA, check_layers
from fedsd.strategies.rules.combination import Combination, present, weighted_sum
from fedsd.strategies.rules.geometric_median import distances, gram, weiszfeld


def trimmed_mean(
    loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None, *, trim: float = 0.2
) -> Combination:
    """The mean of the 1 - trim of all weight that lies nearest to the geometric median, and its best cut at `rank`.

    trim: share of the weight, in [0, 0.5). A client on the boundary counts in part.
    """
    if not 0 <= trim < 0.5:
        raise ValueError(f"trim must be in [0, 0.5), got {trim}; no rule withstands a majority")
    check_layers(loras)
    loras, parts = present(loras, weights)
    return weighted_sum(loras, trimmed_weights(gram(loras), np.array(parts), trim).tolist(), rank)


def trimmed_weights(G: Array, w: Array, trim: float) -> Array:
    """Weights (K,) after the farthest `trim` of w (K,), which sums to 1, is taken away; they sum to 1 again."""
    farthest = np.argsort(-distances(G, weiszfeld(G, w)), kind="stable")
    before = np.cumsum(w[farthest]) - w[farthest]
    kept = w.copy()
    kept[farthest] = w[farthest] - np.clip(trim - before, 0, w[farthest])
    return kept / kept.sum()
