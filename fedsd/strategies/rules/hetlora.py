"""Zero padding and HetLoRA (Cho et al. 2024, arXiv 2401.06432): factor means of unequal ranks.

Smaller factors get columns of zeros up to the largest rank, and the factors are then averaged one by one. This inherits
the faults of FedIT: it is not the mean of the products and depends on the clients' factoring.
"""

from collections.abc import Sequence

from fedsd.lowrank import Array, Factor, LoRA, check_layers, lora_norm, pad
from fedsd.strategies.rules.combination import Combination, on_factors, present, shares
from fedsd.strategies.rules.fedit import factor_mean


def zero_padding(loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None) -> Combination:
    """B̄ = Σ_k w_k [B_k 0] and Ā = Σ_k w_k [A_k; 0], at the largest rank; `rank` has no effect."""
    check_layers(loras)
    return on_factors(*present(loras, weights), padded_mean)


def hetlora(loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None) -> Combination:
    """The same with the paper's sparsity weights w_k = ‖ΔΘ_k‖_F / Σ_j ‖ΔΘ_j‖_F (section 3.2 there).

    The given weights only say who takes part. Where all updates are zero they count alike.
    """
    check_layers(loras)
    loras, weights = present(loras, weights)
    norms = [lora_norm(lora) for lora in loras]
    return on_factors(loras, shares(norms if any(norms) else [1.0] * len(norms)), padded_mean)


def padded_mean(factors: Sequence[Factor], weights: Array) -> Factor:
    """B̄ and Ā of factors of any ranks, at the largest."""
    rank = max(factor.rank for factor in factors)
    return factor_mean([factor if factor.rank == rank else pad(factor, rank) for factor in factors], weights)
