"""FFA-LoRA (Sun et al. 2024, arXiv 2403.12313): A is drawn once, shared and frozen; only B is trained and averaged."""

from collections.abc import Sequence

from fedsd.lowrank import Array, Factor, LoRA, check_layers
from fedsd.strategies.rules.combination import Combination, check_shared, mean, on_factors, present


def ffa(loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None) -> Combination:
    """B̄ = Σ_k w_k B_k beside the shared A: exact, as (Σ w_k B_k) A = Σ w_k B_k A (section 4 there).

    `rank` has no effect. ValueError when the clients' A differ.
    """
    check_layers(loras)
    loras, parts = present(loras, weights)
    check_shared(loras, "A", "FFA-LoRA")
    return on_factors(loras, parts, _mean_b)


def _mean_b(factors: Sequence[Factor], weights: Array) -> Factor:
    return Factor(mean([factor.B for factor in factors], weights), factors[0].A)
