"""FedSA-LoRA (Guo et al. 2024, arXiv 2410.01463): A is shared and averaged, every client keeps its own B."""

from collections.abc import Sequence
from dataclasses import replace

from fedsd.lowrank import Factor, LoRA, check_layers, pad
from fedsd.strategies.rules.combination import Combination
from fedsd.strategies.rules.hetlora import zero_padding


def fedsa(loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None) -> Combination:
    """Ā = Σ_k w_k A_k; `personal` holds (B_k, Ā) for each client (section 4 there), at the largest rank.

    `lora` is (B̄, Ā), for a client that has no B of its own yet. Unequal ranks are padded; `rank` has no effect.
    """
    check_layers(loras)
    found = zero_padding(loras, weights)
    largest = {layer: factor.rank for layer, factor in found.lora.items()}
    personal = tuple(
        {layer: Factor(pad(factor, largest[layer]).B, found.lora[layer].A) for layer, factor in lora.items()}
        for lora in loras
    )
    return replace(found, personal=personal)
