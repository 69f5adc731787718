"""Mixing weights by gradient descent on the diffusion loss: the theorem of SPIRE (arXiv 2506.12303), as numbers.

    p_w = w N(mu, I) + (1 - w) N(-mu, I) in R^d        X_t = a X_0 + s Z,  a = e^{-t},  s² = 1 - a²,  mu_t = a mu
    score  s_b(x) = tanh(<mu_t, x> + b) mu_t - x       b = ½ log(w / (1 - w))

The weight w enters the score as a bias b of a network that is shared otherwise, as a client's embedding does. The loss
L(b) = E || s_b(X_t) + Z / s ||² has one stationary point, since the sign of L'(b) is that of b - b*; so descent from
anywhere finds w*. Only the projection of the data on mu enters L', so the error does not depend on d.
"""

from collections.abc import Sequence

import numpy as np

from fedsd.lowrank import Array


def sample(n: int, mu: Array, w: float, rng: np.random.Generator) -> Array:
    """Draw (n, d) from p_w."""
    sign = np.where(rng.random(n) < w, 1.0, -1.0)
    drawn: Array = sign[:, None] * mu + rng.standard_normal((n, len(mu)))
    return drawn


def mixing_weight(
    x0: Array, mu: Array, times: Sequence[float], *, start: float = 0.5, steps: int = 2000, seed: int = 0
) -> float:
    """Estimate w of p_w from x0 (n, d) by descent on L(b) at `times`, with noise drawn once for each sample and time.

    start: w to begin with, in (0, 1); steps: the most to take, fewer once b has come to rest.
    """
    rng = np.random.default_rng(seed)
    parts = [_projected(x0, mu, t, rng) for t in times]
    b = bias(start)
    for _ in range(steps):
        step = 0.5 * float(np.mean([_slope(b, *part) for part in parts]))
        b -= step
        if abs(step) < 1e-9:
            break
    return 1 / (1 + float(np.exp(-2 * b)))


def bias(w: float) -> float:
    """Return b = ½ log(w / (1 - w))."""
    return 0.5 * float(np.log(w / (1 - w)))


def _projected(x0: Array, mu: Array, t: float, rng: np.random.Generator) -> tuple[Array, Array]:
    """<mu_t, X_t> (n,), and <Z / s, mu_t> (n,), each over ||mu_t||² where L' needs it."""
    a = np.exp(-t)
    s, mu_t = np.sqrt(1 - a**2), a * mu
    z = rng.standard_normal(x0.shape)
    u = (a * x0 + s * z) @ mu_t
    return u, (u - z @ mu_t / s) / (mu_t @ mu_t)


def _slope(b: float, u: Array, wanted: Array) -> float:
    """L'(b) / ||mu_t||² = 2 E[(tanh(u + b) - wanted) sech²(u + b)]; wanted: what the tanh should be, given Z."""
    found = np.tanh(u + b)
    return 2 * float(np.mean((found - wanted) * (1 - found**2)))
