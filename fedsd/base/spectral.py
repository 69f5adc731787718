"""The spectral decomposition of a base's weights, W0 = U diag(S) Vᵀ or W0 = L Q, once for each weight.

Everybody must use the same: a spectrum shift belongs to its directions. Signs cancel, but directions of nearly equal
singular values differ between machines; so the decomposition is computed in float64 and has a hash.

A convolution's weight (out, in, kh, kw) is taken as the matrix (out, in·kh·kw); k = min of the two sides.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fedsd.base.load import Base
from fedsd.store import write_file

FORMS = ("svd", "lq")
_GRID = 1e-3  # of the hash: far above rounding in float64, far below what other directions would change


@dataclass(frozen=True, eq=False)
class Decomposition:
    """U (out, k), S (k,) and Vt (k, columns), float32.

    In form "lq", W0 = L Q, Vt is Q, U the first k unit vectors and S the diagonal of L, which is positive.
    """

    form: str
    U: Tensor
    S: Tensor
    Vt: Tensor

    @property
    def rank(self) -> int:
        """How many numbers a spectrum shift has."""
        return len(self.S)

    def change(self, shift: Tensor) -> Tensor:
        """ΔW (out, columns) of a spectrum shift δ (k,): U (relu(S + δ) - S) Vᵀ, or [diag(δ); 0] Q."""
        if self.form == "lq":
            return torch.nn.functional.pad(shift[:, None] * self.Vt, (0, 0, 0, len(self.U) - self.rank))
        spectrum = self.S + shift
        # unlike relu's, the gradient at 0 is 1: a singular value that is 0 can grow
        spectrum = torch.where(spectrum >= 0, spectrum, 0)
        return (self.U * (spectrum - self.S)) @ self.Vt


def decompose(weight: Tensor, form: str) -> Decomposition:
    """Decompose a weight of a Linear or Conv2d in float64; ValueError when it is not finite or the form unknown."""
    if form not in FORMS:
        raise ValueError(f"soda.form must be one of {', '.join(FORMS)}; got {form!r}")
    W = weight.detach().flatten(1).to("cpu", torch.float64)
    if not torch.isfinite(W).all():
        raise ValueError("a weight of the base holds NaN or Inf and has no decomposition; check base.name")
    if form == "svd":
        U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    else:
        Q, R = torch.linalg.qr(W.T)  # Wᵀ = Q R, so L = Rᵀ
        signs = torch.where(R.diagonal() < 0, -1.0, 1.0)
        U, S, Vt = torch.eye(len(W), Q.shape[1]), R.diagonal().abs(), (Q * signs).T
    U, S, Vt = (part.to(weight.device, torch.float32).contiguous() for part in (U, S, Vt))
    return Decomposition(form, U, S, Vt)


def decomposed(weight: Tensor, form: str, cache: Path | None) -> Decomposition:
    """Return `decompose`'s answer, read from the folder `cache` where it was kept under the weight's hash and form."""
    if cache is None:
        return decompose(weight, form)
    values = weight.detach().cpu().float().contiguous().numpy()
    sha = hashlib.sha256(f"{values.shape}".encode() + values.tobytes()).hexdigest()
    file = cache / f"{sha[:32]}-{form}.safetensors"
    if file.exists():
        try:
            kept = load_file(file, device=str(weight.device))
            return Decomposition(form, kept["U"], kept["S"], kept["Vt"])
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{file} cannot be read ({error}); remove it, and it will be computed again") from error
    parts = decompose(weight, form)
    write_file(file, save({"U": parts.U, "S": parts.S, "Vt": parts.Vt}))
    return parts


@lru_cache(maxsize=2)
def decompositions(
    base: Base, layers: tuple[str, ...], form: str, cache: Path | None = None
) -> Mapping[str, Decomposition]:
    """Return the decomposition of each layer (component + module path), kept in memory for the last two bases."""
    return {
        layer: decomposed(getattr(base, component).get_submodule(path).weight, form, cache)
        for layer, (component, _, path) in ((layer, layer.partition(".")) for layer in layers)
    }


def fingerprint(parts: Mapping[str, Decomposition]) -> str:
    """Return a SHA-256 that two nodes share if and only if shifts mean the same to both, up to rounding.

    It is taken of S and of (u_j · a)(v_j · b) for fixed random a, b, which a flip of both signs leaves, on a grid.
    """
    digest = hashlib.sha256()
    for layer, part in sorted(parts.items()):
        U, S, Vt = (half.cpu().double().numpy() for half in (part.U, part.S, part.Vt))
        rng = np.random.default_rng([*U.shape, Vt.shape[1]])
        seen = (rng.standard_normal(len(U)) @ U) * (Vt @ rng.standard_normal(Vt.shape[1]))
        digest.update(f"{layer}{part.form}{U.shape}{Vt.shape}".encode())
        digest.update(np.rint(np.concatenate([S / max(S.max(), 1e-30), seen]) / _GRID).astype("<i8").tobytes())
    return digest.hexdigest()
