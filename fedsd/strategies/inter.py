"""Step 3 of Algorithm 1: two adapters over all clusters (l.13-19), after arXiv 2508.04745, section 3.2, phase 3.

    Path 1, style-weighted fusion     ΔΘ_g,mix = Σ_k β_k ΔΘ_k,  β_k = w_k / Σ_j w_j,  w_k = α / d_k + (1 - α) τ_k
    Path 2, statistical neutrality    ΔΘ_g,neu = argmin_ΔΘ Σ_k ‖ΔΘ - ΔΘ_k‖²

Notation: DED_k d (K,), SNT_k tau (K,), w (K,), β beta (K,), α alpha in [0, 1].
"""

from collections.abc import Sequence

import numpy as np

from fedsd.lowrank import Array, Factor, LoRA, energy, singular_values, truncate_lora
from fedsd.strategies.rules import Combination, Rule
from fedsd.strategies.rules.flexlora import flexlora
from fedsd.tangent_mean import Arrays

NEAREST = 0.1  # floor of d_k as a share of its mean: a cluster at the very centre gets a large weight, not all of it
TINY = 1e-6  # the same floor, absolute, for the literal formula


def style_distance(z_k: Array) -> Array:
    """DED: d_k = ‖z_k - z_g‖₂, (K,), with z_g the L2-normalised mean of the z_k (K, D): each style counts once."""
    z_g = z_k.mean(axis=0)
    length = float(np.linalg.norm(z_g))
    d: Array = np.linalg.norm(z_k - (z_g / length if length > 0 else z_g), axis=1)
    return d


def normalised_trace(lora: LoRA) -> float:
    """SNT: τ_k = ‖Σ_k‖₁ / rank(ΔΘ_k) (section 3.2), its mean over layers; rank is the numerical one, so padding is
    free.

    The paper defines τ_k for one matrix and uses one number for each cluster; the mean over layers joins the two.
    """
    return float(np.mean([_layer_trace(factor) for factor in lora.values()]))


def strength(lora: LoRA, arrays: Arrays) -> float:
    """τ_k of what a cluster shares: SNT of its factors; without any, the mean length of its arrays.

    A vector is a matrix of one singular value, its length, so the second is the first for shifts and generators.
    """
    if lora or not arrays:
        return normalised_trace(lora) if lora else 0.0
    return float(np.mean([np.linalg.norm(values.astype(np.float64)) for values in arrays.values()]))


def strengths(loras: Sequence[LoRA], arrays: Sequence[Arrays]) -> Array:
    """τ (K,). Where clusters share different things, it is in units of the mean of those that share the same."""
    tau = np.array([strength(*both) for both in zip(loras, arrays, strict=True)])
    what = [("factors",) if lora else tuple(sorted(held)) for lora, held in zip(loras, arrays, strict=True)]
    if len(set(what)) == 1:
        return tau
    for kind in set(what):
        alike = np.array([one == kind for one in what])
        tau[alike] = _over_mean(tau[alike])
    return tau


def mix_weights(d: Array, tau: Array, alpha: float, formula: str = "normalised") -> Array:
    """β (K,), sums to 1 (l.16).

    formula "literal": w = α / d + (1 - α) τ, whose terms have different units; "normalised": 1 / d and τ are each
    divided by their mean over clusters first, so that α = 0.5 means half and half. d = 0 is finite in both. Raises
    ValueError.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"mix.alpha must be in [0, 1], got {alpha}")
    d, tau = np.asarray(d, dtype=np.float64), np.asarray(tau, dtype=np.float64)
    if formula == "literal":
        w = alpha / np.maximum(d, TINY) + (1 - alpha) * tau
    elif formula == "normalised":
        floor = NEAREST * d.mean()
        w = alpha * _over_mean(1 / np.maximum(d, floor) if floor > 0 else np.ones_like(d)) + (1 - alpha) * _over_mean(
            tau
        )
    else:
        raise ValueError(f"mix.formula must be normalised or literal; got {formula!r}")
    # with alpha = 0 and untrained adapters every weight is 0
    beta: Array = w / w.sum() if w.sum() > 0 else np.full(len(w), 1 / len(w))
    return beta


def mix(loras: Sequence[LoRA], beta: Sequence[float], rank_cap: int, rule: Rule = flexlora) -> tuple[LoRA, float]:
    """ΔΘ_g,mix = Σ_k β_k ΔΘ_k (l.15), of rank at most `rank_cap`, and the share of energy that the cap cost.

    Over the clusters that share factors, whose β then sum to 1; without any it is empty.
    """
    return _over_factors(loras, beta, rank_cap, rule)


def neutral(loras: Sequence[LoRA], rank_cap: int, rule: Rule = flexlora) -> tuple[LoRA, float]:
    """ΔΘ_g,neu (l.18-19), of rank at most `rank_cap`, and the share of energy that the cap cost.

    The minimum of line 18 is the mean, so the stack of line 19 carries the weights 1 / K; unweighted it is K times
    too large. K counts the clusters that share factors.
    """
    return _over_factors(loras, [1 / len(loras)] * len(loras), rank_cap, rule)


def _over_factors(loras: Sequence[LoRA], weights: Sequence[float], rank_cap: int, rule: Rule) -> tuple[LoRA, float]:
    """Σ_k w_k ΔΘ_k / Σ_k w_k over those that are not empty; equal weights where all of theirs are 0."""
    held = [k for k, lora in enumerate(loras) if lora]
    if not held:
        return {}, 0.0
    theirs = [weights[k] for k in held]
    return _capped(rule([loras[k] for k in held], theirs if any(theirs) else [1.0] * len(held), rank_cap), rank_cap)


def _capped(found: Combination, rank_cap: int) -> tuple[LoRA, float]:
    """The adapter at `rank_cap`, which not every rule keeps to, and the share of the whole energy that was lost."""
    kept = {layer: energy(factor) for layer, factor in found.lora.items()}
    lost = sum(kept[layer] / (1 - entry.discarded) - kept[layer] for layer, entry in found.report.items())
    lora, above = found.lora, 0.0
    if any(factor.rank > rank_cap for factor in lora.values()):
        lora, above = truncate_lora(lora, rank_cap)
    total = sum(kept.values()) + lost
    return lora, (lost + above * sum(kept.values())) / total if total > 0 else 0.0


def _layer_trace(factor: Factor) -> float:
    S = singular_values(factor)
    negligible = S[0] * max(factor.shape) * np.finfo(S.dtype).eps
    rank = int((negligible < S).sum())
    return float(S.sum(dtype=np.float64)) / rank if rank else 0.0


def _over_mean(values: Array) -> Array:
    mean = values.mean()
    return values / mean if mean > 0 else np.ones_like(values)
