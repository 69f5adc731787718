"""Algebra of low-rank updates ΔW = B A that never forms ΔW.

Every function depends on the product only, never on how it is factored: (B G, G⁻¹ A) gives the same answer as (B, A).
float32 stays float32 and float64 stays float64; scalars come back as Python floats.

Notation (paper -> code)
    ΔW = B A                     Factor(B (d_out, rank), A (rank, d_in)); lora_alpha / rank is already folded into B
    ΔΘ                           LoRA: layer name -> Factor
    Σ                            S (k,), descending, k = min(d_out, d_in, rank)
    ‖ΔW‖_F², ‖ΔW‖_F, ‖Σ‖₁        energy, norm, nuclear_norm

Sources: stacking is FLoRA (Wang et al. 2024, arXiv 2409.05976), the best cut of a given rank is Eckart and Young
(1936).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy import linalg

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True, eq=False, slots=True)
class Factor:
    """One layer's update ΔW = B A, scale folded into B.

    B: (d_out, rank); A: (rank, d_in); both float32 or both float64. Raises ValueError when the shapes do not fit.
    """

    B: Array
    A: Array

    def __post_init__(self) -> None:
        """Check dimensions, rank and dtype."""
        if self.B.ndim != 2 or self.A.ndim != 2:
            raise ValueError(f"B and A must be matrices, got shapes {self.B.shape} and {self.A.shape}")
        if self.B.shape[1] != self.A.shape[0]:
            raise ValueError(
                f"B {self.B.shape} and A {self.A.shape} do not share a rank; B is (d_out, rank) and A is (rank, d_in)"
            )
        if 0 in self.B.shape or 0 in self.A.shape:
            raise ValueError(f"B {self.B.shape} and A {self.A.shape} must not be empty; the rank must be >= 1")
        if self.B.dtype != self.A.dtype or self.B.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"B and A must both be float32 or both float64, got {self.B.dtype} and {self.A.dtype}; cast them first"
            )

    @property
    def rank(self) -> int:
        """Number of columns of B; the numerical rank of ΔW can be lower."""
        return int(self.B.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of ΔW."""
        return int(self.B.shape[0]), int(self.A.shape[1])


LoRA: TypeAlias = Mapping[str, Factor]


def dense(factor: Factor) -> Array:
    """ΔW = B A, (d_out, d_in); for tests and tiny layers."""
    product: Array = factor.B @ factor.A
    return product


def stack(factors: Sequence[Factor], weights: Sequence[float]) -> Factor:
    """Σ_k w_k B_k A_k, exactly, as B = [B_1 … B_K] and A = [w_1 A_1; …; w_K A_K], of rank Σ_k rank_k.

    weights: (K,), any finite numbers. Raises ValueError as `check_factors` does.
    """
    check_factors(factors, weights)
    # float(w): a numpy float64 scalar would turn float32 factors into float64
    rows = [float(w) * factor.A for w, factor in zip(weights, factors, strict=True)]
    return Factor(np.concatenate([factor.B for factor in factors], axis=1), np.concatenate(rows, axis=0))


def check_factors(factors: Sequence[Factor], weights: Sequence[float]) -> None:
    """Raise ValueError unless there is one finite weight for each factor, and all have one shape and dtype."""
    if not factors or len(factors) != len(weights):
        raise ValueError(
            f"got {len(factors)} factors and {len(weights)} weights; give one weight for each, and at least one"
        )
    if not np.isfinite(weights).all():
        raise ValueError(f"weights must be finite, got {list(weights)}")
    first = factors[0]
    for factor in factors[1:]:
        if factor.shape != first.shape or factor.B.dtype != first.B.dtype:
            raise ValueError(
                f"cannot stack layers {first.shape} {first.B.dtype} and {factor.shape} {factor.B.dtype}; "
                "all clients must adapt the same layers of the same base in the same dtype"
            )


def svd(factor: Factor, rank: int | None = None) -> tuple[Array, Array, Array]:
    """U (d_out, p), S (k,), Vᵀ (p, d_in) of ΔW with p = min(rank, k), the largest entry of each column of U positive.

    By QR of B and Aᵀ and the SVD of the small core; the dense matrix is used only where that is cheaper. All singular
    values come back, but vectors of the first `rank` only.
    Raises ValueError when the factor holds NaN or Inf.
    """
    k = min(factor.rank, *factor.shape)
    p = k if rank is None else min(rank, k)
    if _dense_is_cheaper(factor):
        U, S, Vt = linalg.svd(_finite(dense(factor)), full_matrices=False, check_finite=False)
        U, Vt = U[:, :p], Vt[:p]
    else:
        (Q_B, R_B), (Q_A, R_A) = _qr(factor.B), _qr(factor.A.T)
        U, S, Vt = linalg.svd(_finite(R_B @ R_A.T), overwrite_a=True, check_finite=False)
        U, Vt = Q_B @ U[:, :p], Vt[:p] @ Q_A.T
    largest = U[np.argmax(np.abs(U), axis=0), np.arange(p)]
    signs = np.where(largest < 0, -1, 1).astype(U.dtype)
    return U * signs, S[:k], Vt * signs[:, None]


def singular_values(factor: Factor) -> Array:
    """S (k,) of ΔW, descending."""
    k = min(factor.rank, *factor.shape)
    values: Array = linalg.svd(_core(factor), compute_uv=False, check_finite=False)[:k]
    return values


def truncate(factor: Factor, rank: int) -> tuple[Factor, float]:
    """Best approximation of ΔW of at most `rank`, split as B = U √Σ, A = √Σ Vᵀ, and the energy Σ_{i>rank} σ_i² lost.

    The result has min(rank, k) columns. Raises ValueError when rank < 1.
    """
    _check_rank(rank)
    if factor.B.dtype == np.float32 and 4 * rank <= factor.rank and not _dense_is_cheaper(factor):
        U, S, Vt, lost = _leading(factor, rank)
    else:
        U, S, Vt = svd(factor, rank)
        S, lost = S[:rank], _sum_of_squares(S[rank:])
    root = np.sqrt(S)
    return Factor(U * root, root[:, None] * Vt), lost


def pad(factor: Factor, rank: int) -> Factor:
    """The same ΔW with exact zero columns in B and zero rows in A up to `rank`; ValueError when rank is lower."""
    extra = rank - factor.rank
    if extra < 0:
        raise ValueError(f"cannot pad rank {factor.rank} down to {rank}; use truncate")
    return Factor(np.pad(factor.B, ((0, 0), (0, extra))), np.pad(factor.A, ((0, extra), (0, 0))))


def resize(factor: Factor, rank: int) -> Factor:
    """ΔW at exactly `rank` columns: the best cut when that is fewer, exact zeros when it is more."""
    _check_rank(rank)
    return pad(truncate(factor, rank)[0], rank) if rank < factor.rank else pad(factor, rank)


def reseed(factor: Factor, seed: int | Sequence[int]) -> Factor:
    """The same ΔW, bit for bit, able to learn in every direction.

    Where a column of B and its row of A are both zero, neither ever gets a gradient. Such rows of A are drawn from
    U(-1/√d_in, 1/√d_in), as a fresh LoRA's are (Hu et al. 2021, arXiv 2106.09685, section 4.1; PEFT's bound).
    """
    dead = ~factor.B.any(axis=0) & ~factor.A.any(axis=1)
    if not dead.any():
        return factor
    d_in = factor.shape[1]
    A = factor.A.copy()
    A[dead] = np.random.default_rng(seed).uniform(-(d_in**-0.5), d_in**-0.5, (int(dead.sum()), d_in))
    return Factor(factor.B, A)


def inner(left: Factor, right: Factor) -> float:
    """⟨ΔW_l, ΔW_r⟩ = tr((B_lᵀ B_r)(A_r A_lᵀ)); ValueError when the layer shapes differ."""
    if left.shape != right.shape:
        raise ValueError(f"cannot compare layers of shapes {left.shape} and {right.shape}")
    return float(np.sum((left.B.T @ right.B) * (left.A @ right.A.T), dtype=np.float64))


def energy(factor: Factor) -> float:
    """‖ΔW‖_F², from the core, so that a difference of nearly equal stacks keeps its digits."""
    return _sum_of_squares(_core(factor))


def norm(factor: Factor) -> float:
    """‖ΔW‖_F."""
    return energy(factor) ** 0.5


def nuclear_norm(factor: Factor) -> float:
    """‖Σ‖₁ = Σ_i σ_i."""
    return float(singular_values(factor).sum(dtype=np.float64))


def check_layers(loras: Sequence[LoRA]) -> None:
    """Raise ValueError unless there is at least one LoRA and all adapt the same layers."""
    if not loras:
        raise ValueError("no LoRA to combine; at least one client must have sent an update")
    for index, lora in enumerate(loras[1:], start=1):
        different = sorted(set(loras[0]) ^ set(lora))
        if different:
            raise ValueError(
                f"LoRA {index} and LoRA 0 adapt different layers ({len(different)}, such as {different[0]}); "
                "all clients must adapt the same layers"
            )


def stack_loras(loras: Sequence[LoRA], weights: Sequence[float]) -> dict[str, Factor]:
    """Σ_k w_k ΔΘ_k layer by layer, exactly; see `stack`."""
    check_layers(loras)
    return {layer: stack([lora[layer] for lora in loras], weights) for layer in loras[0]}


def truncate_lora(lora: LoRA, rank: int) -> tuple[dict[str, Factor], float]:
    """Each layer's best cut at `rank`, and the share of the whole energy that was lost, in [0, 1]."""
    cut = {layer: truncate(factor, rank) for layer, factor in lora.items()}
    kept, lost = sum(energy(factor) for factor, _ in cut.values()), sum(lost for _, lost in cut.values())
    return {layer: factor for layer, (factor, _) in cut.items()}, lost / (kept + lost) if lost > 0 else 0.0


def resize_lora(lora: LoRA, rank: int) -> dict[str, Factor]:
    """Each layer at exactly `rank`; see `resize`."""
    return {layer: resize(factor, rank) for layer, factor in lora.items()}


def lora_norm(lora: LoRA) -> float:
    """‖ΔΘ‖_F over all layers."""
    return sum(energy(factor) for factor in lora.values()) ** 0.5


def _core(factor: Factor) -> Array:
    """A small matrix with the singular values of ΔW."""
    if _dense_is_cheaper(factor):
        return _finite(dense(factor))
    R_B, R_A = (linalg.qr(side, mode="r", check_finite=False)[0][: factor.rank] for side in (factor.B, factor.A.T))
    return _finite(R_B @ R_A.T)


def _leading(factor: Factor, rank: int) -> tuple[Array, Array, Array, float]:
    """The first `rank` singular triples of a float32 ΔW, and the energy of the others.

    With BᵀB = L Lᵀ, the eigenvectors W of H = Lᵀ A Aᵀ L give V S = Aᵀ L W and U S = B A V. All in float64, where the
    squares cost 1e-8 of ‖B‖ ‖A‖, less than float32's own rounding; two QRs and the SVD of the core take twice the time.
    """
    B, A = factor.B.astype(np.float64), factor.A.astype(np.float64)
    L = _cholesky(_finite(B.T @ B))
    H = _finite(L.T @ (A @ A.T) @ L)
    squares, W = linalg.eigh(H, subset_by_index=(len(H) - rank, len(H) - 1), check_finite=False)
    squares, W = np.clip(squares[::-1], 0, None), W[:, ::-1]
    V = _orthonormal(A.T @ (L @ W))
    U = _orthonormal(B @ (A @ V))
    signs = np.where(U[np.argmax(np.abs(U), axis=0), np.arange(rank)] < 0, -1.0, 1.0)
    U, S, Vt = (found.astype(np.float32) for found in (U * signs, np.sqrt(squares), (V * signs).T))
    return U, S, Vt, max(float(np.trace(H) - squares.sum()), 0.0)


def _cholesky(G: Array) -> Array:
    """L with G = L Lᵀ for a semidefinite G, of rows in G's order; pivoted, as G is singular where updates repeat."""
    (pstrf,) = linalg.get_lapack_funcs(("pstrf",), (G,))
    factor, pivots, found, _ = pstrf(G, lower=1)
    L = np.empty_like(factor)
    L[pivots - 1] = np.tril(factor)
    L[:, found:] = 0
    return L


def _orthonormal(X: Array) -> Array:
    """X's columns divided by their lengths, and orthonormal also where those are too small to divide by."""
    Q, R = _qr(X)
    return np.multiply(Q, np.where(np.diag(R) < 0, -1.0, 1.0))


def _qr(matrix: Array) -> tuple[Array, Array]:
    """Thin Q and R of a tall matrix."""
    Q, R = linalg.qr(matrix, mode="economic", check_finite=False)
    return Q, R


def _dense_is_cheaper(factor: Factor) -> bool:
    """Floating-point operations of the SVD of B A against those of two thin QRs and the SVD of the core."""
    (m, n), rank = factor.shape, factor.rank
    small, large = min(m, n), max(m, n)
    if rank >= small:
        return True
    by_dense = 2 * rank * m * n + 14 * large * small**2 + 8 * small**3
    by_core = 4 * (m + n) * rank**2 + 24 * rank**3 + 2 * (m + n) * rank**2
    return by_dense < by_core


def _finite(matrix: Array) -> Array:
    if not np.isfinite(matrix).all():
        raise ValueError("a LoRA factor holds NaN or Inf; drop that client's update")
    return matrix


def _sum_of_squares(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _check_rank(rank: int) -> None:
    if rank < 1:
        raise ValueError(f"rank must be >= 1, got {rank} (check lora.ranks)")
