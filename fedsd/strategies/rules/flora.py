"""FLoRA (Wang et al. 2024, arXiv 2409.05976): the exact weighted sum of the clients' updates, by stacking."""

from collections.abc import Sequence

from fedsd.lowrank import LoRA
from fedsd.strategies.rules.combination import Combination, present, weighted_sum


def flora(loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None) -> Combination:
    """B = [B_1 … B_K], A = [w_1 A_1; …; w_K A_K] (equation 3 there), of rank R, nothing lost; `rank` has no effect."""
    return weighted_sum(*present(loras, weights), None)
