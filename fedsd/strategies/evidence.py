"""How well a grouping explains the clients' style embeddings, each group by its own spread.

A client with n_i pictures has z_i ~ N(μ_g, v_g / n_i): the mean of its pictures, which lie about the centre μ_g of its
style with the spread v_g. Styles differ in it by a factor of 50 (one-coloured drawings beside colourful ones), so none
is shared. Centres may be anywhere near the mean m of all: μ_g ~ N(m, WIDTH). Both unknowns are integrated out, μ in
closed form and v over a grid, which leaves the evidence of a group (Kass and Raftery 1995, section 3):

    log p(z_g) = log Σ_v p(v) exp(-P/2 [(m_g - 1) ln v + S_g / v + ln(n_g WIDTH + v) + |z̄_g - m|² / (WIDTH + v / n_g)]),

up to what is the same for all groupings. m_g clients have n_g = Σ n_i pictures, z̄_g = Σ n_i z_i / n_g and
S_g = Σ n_i |z_i - z̄_g|². All variances are sums over P effective directions. A grouping's evidence is the sum over its
groups; one more group has to pay for its centre, so clients of one style are not parted for their noise.

Notation: Z (N, D) unit rows; n (N,) pictures; labels (N,) of K groups.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy.special import logsumexp

from fedsd.lowrank import Array

Labels: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

DIRECTIONS = 8.0  # P; the eigenvalues of the pictures' covariance have a participation ratio of 4 to 10
WIDTH = 1.0  # of the centres: unit vectors can be no farther from their mean in the mean square
SPREADS = np.geomspace(0.03, 60, 24)  # grid for v; of seven drawn styles and eight emoji fonts it is 0.2 to 11
USUAL, FACTOR = 1.5, 1.3  # ln v ~ N(ln USUAL, FACTOR²), which has those as its middle 90 %


@dataclass(frozen=True)
class Groups:
    """What the evidence needs to know of K groups: clients, n (K,); Σ n_i z_i (K, D); Σ n_i |z_i|² (K,)."""

    clients: Array
    n: Array
    total: Array
    square: Array

    def __add__(self, other: "Groups") -> "Groups":
        """Each group together with the other's; shapes are broadcast."""
        return Groups(*(mine + theirs for mine, theirs in zip(self.parts, other.parts, strict=True)))

    def take(self, which: int | Array) -> "Groups":
        """Some of the groups."""
        return Groups(*(part[which] for part in self.parts))

    @property
    def parts(self) -> tuple[Array, Array, Array, Array]:
        """The four arrays, which can be written to."""
        return self.clients, self.n, self.total, self.square


def groups_of(Z: Array, n: Array, labels: Labels) -> Groups:
    """The groups of a labelling, by label from 0."""
    member = np.eye(int(labels.max()) + 1)[labels].T
    return Groups(member.sum(axis=1), member @ n, member @ (n[:, None] * Z), member @ (n * (Z**2).sum(axis=1)))


def evidence(groups: Groups, origin: Array) -> Array:
    """Log p(z_g) of each group (K,) beside the mean of all (D,), in nats."""
    mean = groups.total / groups.n[..., None]
    scatter = np.maximum(groups.square - groups.n * (mean**2).sum(axis=-1), 0)[..., None]
    away, n = ((mean - origin) ** 2).sum(axis=-1)[..., None], groups.n[..., None]
    misfit = (groups.clients[..., None] - 1) * np.log(SPREADS) + scatter / SPREADS
    misfit += np.log(n * WIDTH + SPREADS) + away / (WIDTH + SPREADS / n)
    found: Array = logsumexp(_log_prior() - DIRECTIONS / 2 * misfit, axis=-1)
    return found


def merged(Z: Array, n: Array, labels: Labels) -> tuple[float, Labels]:
    """The evidence of a grouping, and the grouping, after the two groups that gain most by it have become one, again
    and again, until no two gain (Heller and Ghahramani 2005). O(K² D) for K groups.
    """
    origin, groups = Z.mean(axis=0), groups_of(Z, n, labels)
    alone, labels = evidence(groups, origin), labels.copy()

    def gains(k: int) -> Array:
        gain: Array = evidence(groups + groups.take(k), origin) - alone - alone[k]
        gain[~alive], gain[k] = -np.inf, -np.inf
        return gain

    alive = np.ones(len(alone), dtype=bool)
    gain = np.stack([gains(k) for k in range(len(alone))])
    while gain.max() > 0:
        keep, gone = sorted(int(k) for k in np.unravel_index(int(gain.argmax()), gain.shape))
        for part, of_both in zip(groups.parts, (groups.take(keep) + groups.take(gone)).parts, strict=True):
            part[keep] = of_both
        alone[keep], alive[gone], labels[labels == gone] = evidence(groups.take(keep), origin), False, keep
        gain[gone], gain[:, gone] = -np.inf, -np.inf
        gain[keep] = gain[:, keep] = gains(keep)
    return float(alone[alive].sum()), labels


def _log_prior() -> Array:
    weight = -0.5 * (np.log(SPREADS / USUAL) / FACTOR) ** 2
    prior: Array = weight - logsumexp(weight)
    return prior
