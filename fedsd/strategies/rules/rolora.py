"""RoLoRA (Chen et al. 2024, arXiv 2409.02346): B and A are trained in turn, each round exact."""

from collections.abc import Sequence

from fedsd.lowrank import Array, Factor, LoRA, check_layers
from fedsd.strategies.rules.combination import Combination, check_shared, mean, on_factors, present
from fedsd.strategies.rules.ffa import ffa


def trained_side(server_round: int) -> str:
    """The factor that clients train in a round, the other being frozen: B in odd rounds, A in even ones."""
    return "B" if server_round % 2 else "A"


def rolora(loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None, *, side: str = "B") -> Combination:
    """The mean of the trained `side` beside the frozen, shared one (equations 3 and 4 there); `rank` has no effect.

    ValueError when the clients' frozen factors differ.
    """
    if side not in ("A", "B"):
        raise ValueError(f"side must be A or B, the factor that was trained; got {side!r}")
    check_layers(loras)
    if side == "B":
        return ffa(loras, weights)
    loras, parts = present(loras, weights)
    check_shared(loras, "B", "RoLoRA")
    return on_factors(loras, parts, _mean_a)


def _mean_a(factors: Sequence[Factor], weights: Array) -> Factor:
    return Factor(factors[0].B, mean([factor.A for factor in factors], weights))
