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
        change = _change(carrying, caption, theta)
        gram += change @ change.T
    values, vectors = np.linalg.eigh(gram)
    held = np.cumsum(values[::-1]) / values.sum()
    needed = int(np.searchsorted(held, share) + 1)
    q = min(1 << (needed - 1).bit_length(), 1 << (theta.size.bit_length() - 1))
    return np.ascontiguousarray(vectors[:, ::-1][:, :q].T, np.float32)


def _change(carrying: Base, caption: Tensor, theta: Array, batch: int = 64) -> Array:
    """How the states of one caption change with each number of the token, (k·width, length·width) float32.

    On SD 1.5 that is 182 MB, the largest array here, so there is no second one of its size.
    """
    probes = np.eye(theta.size, dtype=np.float32).reshape(-1, *theta.shape) * np.float32(_PROBE)
    moved: list[Array] = []
    with torch.no_grad():
        still = encode_variants(carrying, caption[None], torch.zeros(1).long().to(caption), theta[None])
        for i in range(0, len(probes), batch):
            tokens = theta + probes[i : i + batch]
            which = torch.arange(len(tokens)).to(caption)
            states = encode_variants(carrying, caption.repeat(len(tokens), 1), which, tokens)
            moved.append(((states - still) / _PROBE).flatten(1).float().cpu().numpy())
    return np.concatenate(moved)
