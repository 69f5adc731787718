"""Which changes of a token the text encoder's output depends on most."""

import numpy as np
import torch
from torch import Tensor

from fedsd.base.load import Base
from fedsd.base.tokens import encode_variants, token_embedding
from fedsd.lowrank import Array

_PROBE = 1e-2  # step of the differences: small beside a token's length of about 1, large beside rounding


def sensitive_basis(carrying: Base, ids: Tensor, share: float) -> Array:
    """Return q orthonormal directions (q, k·width) float32 of the token that move the text states most.

    They are singular vectors of the Jacobian, by differences, of the states of captions `ids` (N, length): as many as
    hold `share` of its squared norm, and then up to a power of two, for which orthogonal rows of ±1 exist.
    """
    theta = token_embedding(carrying).vectors.detach().cpu().numpy()
    gram = np.zeros((theta.size, theta.size))
    for caption in ids:
        moved = _change(carrying, caption, theta)
        gram += moved @ moved.T
    values, vectors = np.linalg.eigh(gram)
    held = np.cumsum(values[::-1]) / values.sum()
    needed = int(np.searchsorted(held, share) + 1)
    q = min(1 << (needed - 1).bit_length(), 1 << (theta.size.bit_length() - 1))
    return np.ascontiguousarray(vectors[:, ::-1][:, :q].T, np.float32)


def _change(carrying: Base, caption: Tensor, theta: Array, batch: int = 64) -> Array:
    """How the states of one caption change with each number of the token, (k·width, length·width) float64."""
    probes = np.eye(theta.size, dtype=np.float32).reshape(-1, *theta.shape) * np.float32(_PROBE)
    tokens, parts = np.concatenate([theta[None], theta + probes]), list[Array]()
    with torch.no_grad():
        for i in range(0, len(tokens), batch):
            part = tokens[i : i + batch]
            found = encode_variants(carrying, caption.repeat(len(part), 1), torch.arange(len(part)).to(caption), part)
            parts.append(found.flatten(1).float().cpu().numpy())
    states = np.concatenate(parts).astype(np.float64)
    return (states[1:] - states[0]) / _PROBE
