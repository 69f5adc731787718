"""Rotations R = K1 ⊗ K2 ⊗ K3 by a few generators, applied without forming R (the Kronecker rotation of SODA, arXiv
2405.21050).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def factor_sizes(d: int) -> tuple[int, int, int]:
    """Return sizes of K1, K2, K3, ascending, of product d and least sum of squares: 320 gives 5, 8, 8."""
    splits = [
        (a, b, d // (a * b))
        for a in range(1, round(d ** (1 / 3)) + 1)
        if d % a == 0
        for b in range(a, round((d // a) ** 0.5) + 1)
        if (d // a) % b == 0
    ]
    return min(splits, key=lambda split: sum(size**2 for size in split))


def cayley(triangle: Tensor, size: int) -> Tensor:
    """Return K = (I + Q)^{-1} (I - Q), Q = (A - Aᵀ) / 2, of A's strictly lower triangle (size (size - 1) / 2,)."""
    A = triangle.new_zeros(size, size)
    row, column = torch.tril_indices(size, size, -1, device=triangle.device)
    A = A.index_put((row, column), triangle)
    Q, identity = (A - A.T) / 2, torch.eye(size, dtype=A.dtype, device=A.device)
    return torch.linalg.solve(identity + Q, identity - Q)


def triangle_of(K: Tensor) -> Tensor:
    """Return the triangle whose Cayley map is K; none has an eigenvalue -1, a half turn."""
    exact, size = K.double(), len(K)
    identity = torch.eye(size, dtype=exact.dtype, device=K.device)
    Q = torch.linalg.solve(identity + exact, identity - exact)
    row, column = torch.tril_indices(size, size, -1, device=K.device)
    return (2 * Q[row, column]).to(K.dtype)


def rotated(W: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Return W Rᵀ on the second axis of W (out, in, ...), R = K1 ⊗ K2 ⊗ K3, in out·in·(k1 + k2 + k3) products."""
    split = W.reshape(len(W), *(len(K) for K in factors), -1)
    for axis, K in enumerate(factors, start=1):
        split = torch.tensordot(split, K, dims=([axis], [1])).movedim(-1, axis)
    return split.reshape(W.shape)
