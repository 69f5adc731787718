"""Which updates of a cluster look poisoned: too large, turned away from the others, or shaped like noise.

Every score is one of the product ΔΘ_i, taken from inner products and singular values of the factors, so that it cannot
be dodged by (c B, A / c) or by padding, and no dense matrix is formed:

    size       s_i = ‖ΔΘ_i‖_F / √erank_i     norm for each direction in use: a higher rank alone makes it no larger
    direction  c_i = cos(ΔΘ_i, Σ_{j≠i} ΔΘ_j / ‖ΔΘ_j‖)     of unit updates: nobody's norm can turn the others' mean
    top        t_i = σ_1² / Σ_{k≤p} σ_k²     share of the first direction at the cluster's median rank p

erank is the effective rank of Roy and Vetterli (2007, A measure of effective dimensionality). ln s and the log-odds of
t are compared by their distance from the median in robust standard deviations, 1.4826 times the median absolute
deviation (Iglewicz and Hoaglin 1993). An update is suspected where that distance exceeds both what chance allows among
so few (CUTS) and what honest clients differ by at all (SIZE, ODDS), or its size is beyond all measure (LARGEST); and
where it has, unlike the others, no direction in common with them (ALIGNED). From the second round on sizes spread with
ranks, and chance allows more; so an update of a client whose last one was not used, perhaps because it was suspected,
must be within SIZE whatever the spread. No weights are used: a client's image count is its own word.

Seen of honest clients on emoji pictures (ranks 4 to 16, one style or two in a cluster, rounds 1 and 2): s within 1.4
times the median, odds of t above 0.5 times, c above 0.2 times. Noise has c below 0.01 times and odds 0.06 to 0.4 times.
A backdoor, trained on one picture under many captions, has s of 1.6 to 1.9 times. One that keeps to the others' size
looks like any well-trained update, and only a robust rule bounds what it does.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsd.lowrank import Array, LoRA, check_layers, singular_values
from fedsd.strategies.intra import median_rank
from fedsd.strategies.rules.geometric_median import gram

MEMBERS = 4  # of three, one that is turned round leaves the other two without a common direction
SIZE = 1.5  # times the median
LARGEST = 5.0  # times the median, however widely the members' sizes spread: that of five says little
ODDS = 4.0  # the median's over a client's
ALIGNED = 0.1  # of the median cosine
AGREEMENT = 0.02  # median cosine below which the members share no direction; chance gives 0.002 on the embedded base
# The largest of so many normal values lies further above their median, in robust deviations, in one case of twenty.
CUTS = {4: 4.7, 5: 5.8, 6: 4.4, 7: 4.7, 8: 4.1, 9: 4.2, 10: 3.9}
CUT = 3.8  # of more


@dataclass(frozen=True)
class Scores:
    """s, c and t of an update; size_z, top_z: robust deviations of ln s and of the log-odds of t from the median."""

    size: float
    direction: float
    top: float
    size_z: float
    top_z: float


@dataclass(frozen=True)
class Finding:
    """scores: by client; suspected: client -> why, in words; undecided: why nobody can be suspected, or ""."""

    scores: Mapping[str, Scores]
    suspected: Mapping[str, str]
    undecided: str = ""


def detect(loras: Mapping[str, LoRA], unproven: Collection[str] = ()) -> Finding:
    """Hold the updates of a cluster's members against each other; the order of `loras` does not matter.

    unproven: members whose update was not used in the round before, where there was one.
    Nobody is suspected among fewer than MEMBERS, nor where half of them or more would be: then nothing says which half
    is honest. Raises ValueError when the updates do not adapt the same layers.
    """
    if len(loras) < MEMBERS:
        few = f"{len(loras)} updates cannot say which of them is the odd one; {MEMBERS} are needed"
        return Finding({}, {}, few)
    names = sorted(loras)
    check_layers([loras[name] for name in names])
    p = median_rank([max(factor.rank for factor in loras[name].values()) for name in names])
    spectra = [_spectrum(loras[name], p) for name in names]
    G = gram([loras[name] for name in names])
    s = np.sqrt(np.diag(G) / np.array([erank for erank, _ in spectra]))
    t = np.array([top for _, top in spectra])
    c = direction(G)
    size_z, top_z = robust_z(np.log(np.maximum(s, 1e-12))), robust_z(np.log(_odds(t)))
    rows = zip(names, zip(s, c, t, size_z, top_z, strict=True), strict=True)
    scores = {name: Scores(*map(float, row)) for name, row in rows}
    medians = Scores(float(np.median(s)), float(np.median(c)), float(np.median(t)), 0.0, 0.0)
    found = {name: why for name, score in scores.items() if (why := _why(score, medians, len(names), name in unproven))}
    if 2 * len(found) >= len(names):
        return Finding(scores, {}, f"{len(found)} of {len(names)} updates are odd, too many to say who is honest")
    return Finding(scores, found)


def direction(G: Array) -> Array:
    """Cosines c (K,) from the inner products G (K, K): (r_i - 1) / √(Σ C - 2 r_i + 1), where
    C_ij = G_ij / √(G_ii G_jj) and r = C 1.

    0 for an update of norm 0, and where the others cancel out.
    """
    norms = np.sqrt(np.diag(G))
    unit = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    C = G * unit[:, None] * unit[None, :]
    r, own = C.sum(axis=1), np.diag(C)
    others = np.sqrt(np.clip(C.sum() - 2 * r + own, 0, None))
    cosine: Array = np.divide(r - own, others, out=np.zeros_like(norms), where=others > 1e-9)
    return cosine


def robust_z(x: Array) -> Array:
    """(x_i - median) / (1.4826 MAD), (K,); infinite off the median where more than half of all values are equal."""
    off = x - np.median(x)
    spread = 1.4826 * float(np.median(np.abs(off)))
    if spread == 0:
        return np.where(off == 0, 0.0, np.copysign(np.inf, off))
    return np.asarray(off / spread)


def _spectrum(lora: LoRA, p: int) -> tuple[float, float]:
    """The layers' effective rank, weighed by their energy, and the first direction's share of the first p's energy."""
    total = first = leading = weighed = 0.0
    for factor in lora.values():
        S = singular_values(factor).astype(np.float64)
        if S[0] == 0:
            continue
        shares = S[S > 0] / S.sum()
        energy = float(np.square(S).sum())
        weighed += energy * math.exp(-float(np.sum(shares * np.log(shares))))
        total, first, leading = total + energy, first + S[0] ** 2, leading + float(np.square(S[:p]).sum())
    return (weighed / total, first / leading) if total else (1.0, 1.0)


def _why(score: Scores, median: Scores, members: int, unproven: bool) -> str:
    """Why an update is suspected, with the figures, or ""."""
    cut, reasons = CUTS.get(members, CUT), []
    large = score.size > SIZE * median.size and (unproven or score.size_z > cut)
    if (large or score.size > LARGEST * median.size) and median.size > 0:
        reasons.append(f"it is {score.size / median.size:.3g} times as large as the median of its cluster")
    if median.direction >= AGREEMENT and score.direction < ALIGNED * median.direction:
        way = "points against" if score.direction < -ALIGNED * median.direction else "has no direction in common with"
        reasons.append(
            f"it {way} the others of its cluster (cosine {score.direction:.3f}, the median is {median.direction:.3f})"
        )
    if _odds(score.top) * ODDS < _odds(median.top) and score.top_z < -cut:
        reasons.append(
            f"its spectrum is as flat as noise (first direction {score.top:.0%} of the energy, the median is "
            f"{median.top:.0%})"
        )
    return "; ".join(reasons)


def _odds(share: Any) -> Any:
    """Odds share / (1 - share), at most about 1000: at the median rank 1 the first direction is all there is."""
    return share / np.maximum(1 - share, 1e-3)
