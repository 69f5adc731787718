"""FedEx-LoRA (Singhal et al. 2024, arXiv 2410.09432): the factor mean, and a residual for the base."""

from collections.abc import Sequence
from dataclasses import replace

from fedsd.lowrank import LoRA, check_layers, stack, truncate
from fedsd.strategies.rules.combination import Combination, present
from fedsd.strategies.rules.hetlora import zero_padding


def fedex(
    loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None, *, residual_rank: int | None = None
) -> Combination:
    """B̄, Ā, and the residual Σ_k w_k B_k A_k - B̄ Ā (equations 5 to 8 there), which clients add to their frozen base.

    The residual has rank at most R + r and travels as factors, not as a matrix of the base's size; `residual_rank` cuts
    it to its best approximation (section 6 there). Unequal ranks are padded. `rank` has no effect.
    """
    check_layers(loras)
    found = zero_padding(loras, weights)
    loras, parts = present(loras, weights)
    residual = {}
    for layer, average in found.lora.items():
        missed = stack([*(lora[layer] for lora in loras), average], [*parts, -1.0])
        residual[layer] = missed if residual_rank is None else truncate(missed, residual_rank)[0]
    return replace(found, residual=residual)
