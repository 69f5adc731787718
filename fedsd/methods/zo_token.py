"""ZOODiP: a token learnt by forward passes alone, on a quantised base (Seo et al. 2025, arXiv 2503.14868).

    g = 1/n Σ_i [L(θ + μ e_i) - L(θ)] / μ · e_i        same picture, t and noise in all n + 1 passes      (RGE)
    t ~ U(T_L, T_U)                                                       (Partial Uniform Timestep Sampling)
    g' = g - g Pᵀ P, P: directions in which the last τ tokens hardly varied                 (Subspace Gradient)

All passes of a step are one batch. Estimators, by what their error is at equal passes (benchmarks/zo.py):

    rge                 Gaussian directions, the same for all pictures of a batch
    subspace-gradient   that and Subspace Gradient, as in the paper
    orthogonal          directions of ±1, orthogonal to each other, and others for each picture of a batch
    sensitive           those, in the subspace of tokens that the text encoder's output depends on most

With directions of its own, each picture adds to the estimate what it would as a step of its own, whereas shared
directions leave the same error however large the batch. Some of a token's directions change next to nothing of what the
text encoder says; its Jacobian, by differences of its output, tells which. That costs passes of the text encoder, which
is sixty times cheaper than the U-Net on SD 1.5, and no pass of the U-Net. The subspace must be wide: at a share of 0.97
the error is a quarter of that of all directions, but the tokens that gradients find lie outside.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedsd.base.denoise import tokenize
from fedsd.base.load import Base
from fedsd.base.quantised import quantised
from fedsd.base.sensitivity import sensitive_basis
from fedsd.base.tokens import Placeholder, encode_variants, with_token
from fedsd.base.training import (
    Descent,
    Fit,
    Noised,
    Pictures,
    Progress,
    Shared,
    autocast,
    batches,
    check_timesteps,
    errors,
    noised,
)  # fmt: skip
from fedsd.lowrank import Array
from fedsd.seeded import (
    SCALARS,
    TOKEN,
    Rule,
    State,
    Trace,
    begin,
    directions,
    from_arrays,
    gradient,
    rule_of,
    saves,
    stepped,
    to_arrays,
)

ESTIMATORS = ("rge", "subspace-gradient", "orthogonal", "sensitive")
SEEDED = ("rge", "orthogonal")  # a seed and the scalars say all of their steps
TAU, NU = 128, 1e-3  # of Subspace Gradient, as in the paper
_PROBED = 4  # captions that the sensitive subspace is found by


@dataclass(frozen=True)
class Settings:
    """descent: its caption dropout does not apply. lr: ZO-Adam's. directions: n, of each picture. smoothing: μ.

    timesteps: T_L and T_U. bits: 8 or 4 to quantise the base, 0 to take it as it is. share: of the change of the text
    encoder's output that the sensitive subspace holds, (0, 1].
    """

    descent: Descent
    placeholder: Placeholder
    lr: float
    directions: int = 4
    smoothing: float = 1e-3
    estimator: str = "sensitive"
    timesteps: tuple[int, int] = (500, 900)
    bits: int = 8
    share: float = 0.999

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if self.estimator not in ESTIMATORS:
            raise ValueError(f"zo.estimator must be one of {', '.join(ESTIMATORS)}; got {self.estimator!r}")
        if self.directions < 1 or not self.smoothing > 0:
            raise ValueError(
                f"zo.directions must be at least 1 and zo.smoothing above 0; got {self.directions} and {self.smoothing}"
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"zo.share must be above 0 and at most 1, got {self.share}")

    @property
    def rule(self) -> Rule:
        """What a server needs to replay the steps."""
        return rule_of(self.estimator, self.lr)


def fit(
    base: Base, pictures: Pictures, start: Shared, own: Mapping[str, Array], *, seed: int, settings: Settings
) -> Fit:
    """Train the token from `start` (empty: from its initial words), with ZO-Adam's state from `own`.

    Shared is `token` (k, width). The base is not touched. Raises ValueError when the name is a word already, when a
    caption has no room for it, when what was kept is not for this base and estimator, and when the loss overflows.
    """
    return train(base, pictures, start, own, seed=seed, settings=settings)[0]


def fit_sparing(
    base: Base, pictures: Pictures, start: Shared, own: Mapping[str, Array], *, seed: int, settings: Settings
) -> Fit:
    """Return `fit`'s answer with the scalars of its steps for the token, where that is exact and takes fewer bytes.

    Who receives it knows the seed, and the token that it began with if that is in `start`; otherwise both are sent.
    """
    found, trace = train(base, pictures, start, own, seed=seed, settings=settings)
    token = found.shared.arrays[TOKEN]
    if settings.estimator not in SEEDED or not saves(trace.scalars.size, token.size):
        return found
    first = {} if TOKEN in start.arrays else {TOKEN: token}
    return replace(found, shared=Shared(arrays=first | {SCALARS: trace.scalars}))


def train(
    base: Base, pictures: Pictures, start: Shared, own: Mapping[str, Array], *, seed: int, settings: Settings
) -> tuple[Fit, Trace]:
    """Return `fit`'s answer, and the seed and scalars of its steps, which are all of it for the estimators SEEDED."""
    begun, placeholder = time.perf_counter(), settings.placeholder
    token = placeholder.at_start(base, start.arrays.get("token"))
    check_timesteps(base, settings.timesteps, "zo.timesteps")
    carrying = with_token(quantised(base, settings.bits) if settings.bits else base, token)
    ids = tokenize(carrying, placeholder.captions(carrying, pictures.captions))
    model = Model(carrying, pictures.latents, ids, settings)
    basis = _basis(carrying, ids, own, settings)
    state, memory = _state(token.vectors, basis, own), Memory.kept(own) if _projects(settings) else None
    losses, scalars = list[float](), list[Array]()
    generator = torch.Generator().manual_seed(seed)
    descent = settings.descent
    for index in batches(len(pictures.latents), descent.batch_size, descent.steps, generator):
        e = directions(seed, len(losses), model.count(len(index)), len(state.x), settings.rule.kind)
        loss, s = model.differences(token.vectors, basis, state.x, e, index, generator)
        losses.append(loss)
        scalars.append(s)
        if not (math.isfinite(loss) and np.isfinite(s).all()):
            raise ValueError(f"the loss became {loss} at step {len(losses)}; lower zo.lr ({settings.lr:g})")
        g = gradient(s, e)
        state = stepped(state, g if memory is None else memory.projected(g), settings.rule)
        if memory is not None:
            memory = memory.with_token(state.x)
    learnt = Shared(arrays={"token": _vectors(token.vectors, basis, state.x)})
    kept = to_arrays(state) | ({} if basis is None else {"basis": basis}) | (memory.arrays() if memory else {})
    return Fit(learnt, kept, _progress(losses, begun, model.images)), Trace(seed, np.stack(scalars))


class Model:
    """The loss as a function of the token, for many values of it in one batch."""

    def __init__(self, carrying: Base, latents: Tensor, ids: Tensor, settings: Settings) -> None:
        self.base, self.latents, self.ids, self.settings, self.images = carrying, latents, ids, settings, 0
        self.fresh = settings.estimator in ("orthogonal", "sensitive")

    def count(self, pictures: int) -> int:
        """How many directions a step over so many pictures has."""
        return self.settings.directions * (pictures if self.fresh else 1)

    def differences(
        self, start: Array, basis: Array | None, x: Array, e: Array, index: Tensor, generator: torch.Generator
    ) -> tuple[float, Array]:
        """Return L(θ), and s_i = (L(θ + μ e_i) - L(θ)) / μ for each of the directions e, float32.

        The i-th direction is that of picture i mod B of the batch, where each has its own.
        """
        mu, settings = np.float32(self.settings.smoothing), self.settings
        tokens = np.stack([_vectors(start, basis, at) for at in (x, *(x + mu * e))])
        gamma = settings.descent.min_snr_gamma
        given = noised(self.base, self.latents[index], generator, gamma, settings.timesteps)
        found = self.losses(tokens, index, given).astype(np.float64)
        self.images += len(index)
        s = (found[1:] - found[0]).flatten() if self.fresh else found[1:].mean(1) - found[0].mean()
        return float(found[0].mean()), (s / mu).astype(np.float32)

    def losses(self, tokens: Array, index: Tensor, given: Noised) -> Array:
        """Return the loss of every picture, without perturbation and then direction by direction, (n + 1, B).

        tokens: (1 + n, k, width), or (1 + n B, k, width) with directions of each picture's own.
        """
        n, B = self.settings.directions, len(index)
        which = torch.arange(1, n * B + 1).view(n, B) if self.fresh else torch.arange(1, n + 1)[:, None].expand(n, B)
        which = torch.cat([torch.zeros(1, B, dtype=torch.long), which]).flatten().to(self.base.device)
        with torch.no_grad(), autocast(self.base, self.settings.descent.precision):
            states = encode_variants(self.base, self.ids[index].repeat(n + 1, 1), which, tokens)
            found = errors(self.base, given.repeated(n + 1), states)
        values: Array = found.view(n + 1, B).cpu().numpy()
        return values


@dataclass(frozen=True, eq=False)
class Memory:
    """Subspace Gradient's: the last tokens (up to τ, d), and P (r, d), the directions that are taken out of g."""

    tokens: Array
    P: Array

    @classmethod
    def kept(cls, own: Mapping[str, Array]) -> "Memory":
        """Return what a node kept of earlier rounds, or an empty memory."""
        d = own["x"].size if "x" in own else 0
        nothing = np.zeros((0, d), np.float32)
        return cls(own.get("sg.tokens", nothing), own.get("sg.P", nothing))

    def projected(self, g: Array) -> Array:
        """Return g (I - Pᵀ P)."""
        if not len(self.P):
            return g
        left: Array = g - self.P.T @ (self.P @ g)
        return left

    def with_token(self, x: Array) -> "Memory":
        """Remember x; after every τ tokens, find P anew."""
        tokens = np.concatenate([self.tokens.reshape(-1, len(x)), x[None]])
        if len(tokens) < TAU:
            return replace(self, tokens=tokens)
        return Memory(tokens[:0], steady_directions(tokens, NU))

    def arrays(self) -> dict[str, Array]:
        """As arrays, to be kept."""
        return {"sg.tokens": self.tokens, "sg.P": self.P}


def steady_directions(tokens: Array, nu: float) -> Array:
    """Principal components (r, d) of standardised tokens (τ, d) but those of 1 - ν of the variance (Alg. 2)."""
    deviation = tokens.std(0)
    standard = (tokens - tokens.mean(0)) / np.where(deviation > 0, deviation, 1)
    _, S, Vt = np.linalg.svd(standard.astype(np.float64), full_matrices=False)
    held = np.cumsum(S**2) / max(float((S**2).sum()), 1e-30)
    first = int(np.searchsorted(held, 1 - nu, side="right")) + 1
    return Vt[first:].astype(np.float32)


def _projects(settings: Settings) -> bool:
    return settings.estimator == "subspace-gradient"


def _basis(carrying: Base, ids: Tensor, own: Mapping[str, Array], settings: Settings) -> Array | None:
    """The rows (q, k·width) in which x are coordinates, relative to where the round began; None: x is the token."""
    if settings.estimator != "sensitive":
        return None
    return own["basis"] if "basis" in own else sensitive_basis(carrying, ids[:_PROBED], settings.share)


def _state(start: Array, basis: Array | None, own: Mapping[str, Array]) -> State:
    """ZO-Adam's moments as they were kept, at where this round begins."""
    x = start.astype(np.float32).flatten() if basis is None else np.zeros(len(basis), np.float32)
    return replace(from_arrays(own), x=x) if "m" in own else begin(x)


def _vectors(start: Array, basis: Array | None, x: Array) -> Array:
    """The token (k, width) float32 at x."""
    if basis is None:
        return x.reshape(start.shape)
    return start + (x @ basis).reshape(start.shape)


def _progress(losses: Sequence[float], begun: float, images: int) -> Progress:
    seconds, fifth = time.perf_counter() - begun, max(1, len(losses) // 5)
    return Progress(float(np.mean(losses[:fifth])), float(np.mean(losses[-fifth:])), seconds, images / seconds)
