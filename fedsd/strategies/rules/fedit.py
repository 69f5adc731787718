"""FedIT (Zhang et al. 2023, arXiv 2305.05644): FedAvg on the factors, B and A one by one.

mean(B) mean(A) is not the mean of B A, and depends on how each client factors its update; it is kept as the
literature has it.
"""

from collections.abc import Sequence

from fedsd.lowrank import Array, Factor, LoRA, check_layers
from fedsd.strategies.rules.combination import Combination, mean, on_factors, present


def fedit(loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None) -> Combination:
    """B̄ = Σ_k w_k B_k and Ā = Σ_k w_k A_k (section 3.2 there: FedAvg on LoRA's parameters); `rank` has no effect.

    ValueError where ranks differ: such factors have no mean.
    """
    check_layers(loras)
    loras, weights = present(loras, weights)
    for layer in loras[0]:
        ranks = sorted({lora[layer].rank for lora in loras})
        if len(ranks) > 1:
            raise ValueError(
                f"FedIT needs one rank, and layer {layer} comes at ranks {ranks}; use zero-padding or flexlora"
            )
    return on_factors(loras, weights, factor_mean)


def factor_mean(factors: Sequence[Factor], weights: Array) -> Factor:
    """B̄ and Ā of factors of one rank."""
    return Factor(mean([factor.B for factor in factors], weights), mean([factor.A for factor in factors], weights))
