"""Norm clipping (Sun et al. 2019, arXiv 1911.07963): no update counts for more than a given norm of its product.

A clip on the factors' norms is dodged by (c B, A / c), and scales the product by the square of its factor.
"""

from collections.abc import Sequence

from fedsd.lowrank import LoRA, check_layers, lora_norm
from fedsd.strategies.rules.combination import Combination, present, weighted_sum


def norm_clipping(
    loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None, *, bound: float | None = None
) -> Combination:
    """Σ_k w_k min(1, C / ‖ΔΘ_k‖_F) ΔΘ_k (section 4 there), and its best cut at `rank`.

    bound: C > 0; None takes the weighted lower median of the norms, so that less than half of the weight cannot move it
    at will.
    """
    if bound is not None and not bound > 0:
        raise ValueError(f"bound must be > 0, got {bound}; leave it out to take the median norm")
    check_layers(loras)
    loras, parts = present(loras, weights)
    norms = [lora_norm(lora) for lora in loras]
    limit = lower_median(norms, parts) if bound is None else bound
    return weighted_sum(
        loras, [w * min(1.0, limit / size) if size else w for w, size in zip(parts, norms, strict=True)], rank
    )


def lower_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """The smallest value at which at least half of the weight lies at or below it."""
    half, total = sum(weights) / 2, 0.0
    for value, w in sorted(zip(values, weights, strict=True)):
        total += w
        if total >= half * (1 - 1e-12):
            return value
    raise ValueError("the median of no values is undefined")
