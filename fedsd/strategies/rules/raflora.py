"""raFLoRA (2026, arXiv 2602.13486): rank-partitioned sums of products, against the collapse onto the lowest rank.

In a plain mean, directions beyond the smallest rank come from few clients and shrink. Here the singular directions of
each client's product are parted at the ranks that occur, and a part is averaged over those who can hold it. The
abstract names the partition and the effective contributions; which directions form a part (by singular value) is our
reading.
"""

from collections.abc import Sequence

import numpy as np

from fedsd.lowrank import Factor, LoRA, check_layers, svd
from fedsd.strategies.rules.combination import Combination, present, weighted_sum


def raflora(loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None) -> Combination:
    """ΔW = Σ_k Σ_j (w_k / Σ_{l: r_l >= j} w_l) σ_kj u_kj v_kjᵀ over singular triples j, then the cut."""
    check_layers(loras)
    loras, parts = present(loras, weights)
    return weighted_sum([_weighed(loras, k, parts) for k in range(len(loras))], [1.0] * len(loras), rank)


def _weighed(loras: Sequence[LoRA], k: int, parts: Sequence[float]) -> dict[str, Factor]:
    """Client k's adapter with each singular value times the share that it has among those of sufficient rank."""
    weighed = {}
    for layer, factor in loras[k].items():
        U, S, Vt = svd(factor)
        able = np.array(
            [sum(w for w, other in zip(parts, loras, strict=True) if other[layer].rank > j) for j in range(len(S))]
        )
        root = np.sqrt(S * (parts[k] / able).astype(S.dtype))
        weighed[layer] = Factor(U * root, root[:, None] * Vt)
    return weighed
