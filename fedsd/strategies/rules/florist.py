"""FLoRIST (MLSys 2026): the exact mean, each layer cut where a share of its energy is reached."""

from collections.abc import Sequence

import numpy as np

from fedsd.lowrank import Factor, LoRA, check_layers, stack, svd
from fedsd.strategies.rules.combination import Combination, LayerReport, present


def florist(
    loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None, *, share: float = 0.9
) -> Combination:
    """Each layer at the smallest p with Σ_{i<=p} σ_i² / Σ_i σ_i² >= share (τ there), and at most `rank`.

    share: in (0, 1]; 1 keeps the full numerical rank. The paper takes three SVDs; thin QR gives the same spectrum.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}; FLoRIST's own default is 0.9")
    loras, parts = present(loras, weights)
    lora, report = {}, {}
    check_layers(loras)
    for layer in loras[0]:
        factor = stack([one[layer] for one in loras], parts)
        lora[layer], lost = _cut(factor, share, rank)
        report[layer] = LayerReport(factor.rank, lora[layer].rank, lost)
    return Combination(lora, report, tuple(parts))


def _cut(factor: Factor, share: float, rank: int | None) -> tuple[Factor, float]:
    U, S, Vt = svd(factor)
    energies = np.square(S, dtype=np.float64)
    numerical = int(np.sum(S[0] * max(factor.shape) * np.finfo(S.dtype).eps < S))
    enough = int(np.sum(np.cumsum(energies) < share * energies.sum())) + 1
    p = max(1, min(enough, numerical, rank or numerical))
    root = np.sqrt(S[:p])
    total = float(energies.sum())
    return Factor(U[:, :p] * root, root[:, None] * Vt[:p]), float(energies[p:].sum()) / total if total else 0.0
