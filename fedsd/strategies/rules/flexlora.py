"""FlexLoRA (Bai et al. 2024, arXiv 2402.11505): the exact mean of the products, cut by its SVD.

The paper forms the dense mean; here the same comes from the factors by thin QR and the SVD of the small core. It is
also step 2 of Algorithm 1 (arXiv 2508.04745, l.11): ΔΘ_c = Σ_i n_i / n_c ΔΘ_i. "Components exceeding r_median are
truncated" (section 3.2 there) is read as singular directions of the mean: dropping columns by index would depend on how
each client happened to factor its update.
"""

from collections.abc import Sequence

from fedsd.lowrank import LoRA
from fedsd.strategies.rules.combination import Combination, present, weighted_sum


def flexlora(loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None) -> Combination:
    """ΔW = Σ_k w_k B_k A_k and its best cut at `rank` (equations 2 and 3 there), split as U √Σ and √Σ Vᵀ."""
    return weighted_sum(*present(loras, weights), rank)
