"""LoRA-FAIR (Bian et al. 2025, ICCV, arXiv 2411.14961): Ā is kept as the warm start, and B̄ is moved towards the exact
mean.

    ΔB = argmin_ΔB  1 - cos(ΔW, (B̄ + ΔB) Ā) + λ ‖ΔB‖_F²     (equation 8 there)

Everything needed is small: M = ΔW Āᵀ (d_out, r), G = Ā Āᵀ (r, r), ‖ΔW‖; with X = B̄ + ΔB, ⟨ΔW, X Ā⟩ = ⟨M, X⟩ and
‖X Ā‖² = ⟨X G, X⟩. The paper takes SGD steps; here each step solves the linear system of the stationary point for the
current cosine, which is a preconditioned gradient step, and is halved until the objective falls.
"""

from collections.abc import Sequence

import numpy as np

from fedsd.lowrank import Array, Factor, LoRA, check_layers, norm, stack
from fedsd.strategies.rules.combination import Combination, on_factors, present
from fedsd.strategies.rules.hetlora import padded_mean

STEPS = 100
FLAT = 1e-12  # share of its first length at which the gradient counts as zero
SHORTEST = 2.0**-20


def lora_fair(
    loras: Sequence[LoRA], weights: Sequence[float], rank: int | None = None, *, penalty: float = 0.01
) -> Combination:
    """B̄ + ΔB and Ā; penalty: λ > 0, the paper's 0.01. Unequal ranks are padded; `rank` has no effect."""
    if not penalty > 0:
        raise ValueError(f"penalty must be > 0, got {penalty}; the paper takes 0.01")
    check_layers(loras)

    def combine(factors: Sequence[Factor], w: Array) -> Factor:
        return _corrected(stack(factors, w.tolist()), padded_mean(factors, w), penalty)

    return on_factors(*present(loras, weights), combine)


def _corrected(exact: Factor, start: Factor, penalty: float) -> Factor:
    """Minimise f(X) = 1 - ⟨M, X⟩ / (‖ΔW‖ ‖X Ā‖) + λ ‖X - B̄‖² from X = B̄."""
    A, B_bar = start.A.astype(np.float64), start.B.astype(np.float64)
    size = norm(exact)
    if size == 0 or norm(start) == 0:
        return start
    g, Q = np.linalg.eigh(A @ A.T)
    pair = np.stack([exact.B @ (exact.A @ A.T) / size @ Q, B_bar @ Q])
    a, b = _minimum(np.einsum("adr,bdr->abr", pair, pair), g, penalty)
    return Factor(((a * pair[0] + b * pair[1]) @ Q.T).astype(start.B.dtype), start.A)


def _minimum(K: Array, g: Array, penalty: float) -> Array:
    """Coefficients (2, r) of the columns of M Q and B̄ Q in X Q, where Q diagonalises G = Q diag(g) Qᵀ.

    K: (2, 2, r) inner products of these columns. No step leaves their span, so d_out does not matter here.
    """
    M, B_bar = np.zeros((2, len(g))), np.zeros((2, len(g)))
    M[0], B_bar[1] = 1, 1

    def inner(X: Array, Y: Array) -> float:
        return float(np.einsum("ar,abr,br->", X, K, Y))

    def length(X: Array) -> float:
        return float(np.sqrt(max(inner(X * g, X), np.finfo(np.float64).tiny)))

    def value(X: Array) -> float:
        return 1 - inner(M, X) / length(X) + penalty * inner(X - B_bar, X - B_bar)

    X, first = B_bar, None
    for _ in range(STEPS):
        s, c = length(X), inner(M, X)
        gradient = c / s**3 * X * g - M / s + 2 * penalty * (X - B_bar)
        steepness = inner(gradient, gradient)
        first = steepness if first is None else first
        if steepness <= FLAT**2 * first:
            break
        # the gradient is X H - const for fixed s and c, and H is positive definite: a direction of descent
        direction = gradient / (max(c, 0.0) / s**3 * g + 2 * penalty)
        step, here = 1.0, value(X)
        while step >= SHORTEST and value(X - step * direction) >= here:
            step /= 2
        if step < SHORTEST:
            break
        X = X - step * direction
    return X
