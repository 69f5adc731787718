"""Zeroth-order steps as seeds and scalars (FwdLLM and MeZO's idea, arXiv 2305.17333; here for ZOODiP, 2503.14868).

    g = 1/D Σ_i s_i e_i,   s_i = (L(x + μ e_i) - L(x)) / μ        i = 1 … D
    m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g²,   x = x - lr m̂ / (√v̂ + eps)      (ZO-Adam)

The directions e_i follow from a seed and the number of the step. So whoever knows where a client began, and its m and
v, needs only the seed and its scalars to have its x: the client itself takes its steps by the same functions, and all
arithmetic is element by element in float32 in a fixed order, so that both have the same bits.

That is right when directions are drawn in the whole space of x, which the server knows. It is not for directions in a
subspace that a client found with the base, nor for a gradient that was projected by what a client remembers; then x
must be sent. It saves bytes as long as a round has fewer scalars than x has numbers (`saves`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedsd.lowrank import Array
from fedsd.tangent_mean import tangent_mean

KINDS = ("gaussian", "hadamard")
TOKEN, SCALARS = "token", "scalars"  # names among what is shared


@dataclass(frozen=True)
class Rule:
    """What all nodes must agree on. kind: of the directions; lr: ZO-Adam's, with the authors' b1, b2 and eps."""

    kind: str
    lr: float
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-3

    def __post_init__(self) -> None:
        """Check kind and rate."""
        if self.kind not in KINDS:
            raise ValueError(f"directions must be one of {', '.join(KINDS)}; got {self.kind!r}")
        if not self.lr > 0:
            raise ValueError(f"zo.lr must be above 0, got {self.lr}")


def rule_of(estimator: str, lr: float) -> Rule:
    """Return the rule of an estimator of `methods.zo_token`."""
    return Rule("gaussian" if estimator in ("rge", "subspace-gradient") else "hadamard", lr)


@dataclass(frozen=True, eq=False)
class State:
    """x (d,), ZO-Adam's moments m, v (d,), float32, and the steps they have seen."""

    x: Array
    m: Array
    v: Array
    steps: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError unless the three are as long as each other and finite."""
        if len({part.shape for part in (self.x, self.m, self.v)}) > 1 or self.x.ndim != 1:
            raise ValueError(
                f"x, m and v must be vectors of one length, got {self.x.shape}, {self.m.shape} and {self.v.shape}; "
                "remove the kept state, or keep the setting that it was made with"
            )
        if not all(np.isfinite(part).all() for part in (self.x, self.m, self.v)):
            raise ValueError("x, m or v holds NaN or Inf; lower zo.lr and remove the kept state")


@dataclass(frozen=True, eq=False)
class Trace:
    """A client's round: its seed and the scalars (steps, D) float32."""

    seed: int
    scalars: Array

    def __post_init__(self) -> None:
        """Raise ValueError unless the scalars are a finite table of float32."""
        if self.scalars.ndim != 2 or self.scalars.dtype != np.float32 or not np.isfinite(self.scalars).all():
            raise ValueError(
                f"scalars must be a finite float32 table (steps, directions), got {self.scalars.dtype} of shape "
                f"{self.scalars.shape}; drop that client's update"
            )


def begin(x: Array) -> State:
    """Return the state before the first step at x."""
    x = x.astype(np.float32)
    return State(x, np.zeros_like(x), np.zeros_like(x))


def directions(seed: int, step: int, count: int, d: int, kind: str) -> Array:
    """Return D = `count` directions (count, d) float32 with mean 0 and covariance I.

    "gaussian": as the paper's. "hadamard": rows of ±1 of a Hadamard matrix with its rows shuffled and the signs of its
    columns drawn, anew after as many rows as it has; orthogonal to each other where d is a power of two, nearly
    otherwise. They come from raw bits, which NumPy promises to keep between versions, as it does not for Gaussians.
    """
    bits = np.random.Philox(np.random.SeedSequence([seed, step]))
    if kind == "gaussian":
        drawn: Array = np.random.Generator(bits).standard_normal((count, d), np.float32)
        return drawn
    side = 1 << (d - 1).bit_length()
    blocks = [_hadamard_rows(bits, side, d) for _ in range(-(-count // side))]
    return np.concatenate(blocks)[:count]


def _hadamard_rows(bits: np.random.Philox, side: int, d: int) -> Array:
    """Sylvester's matrix of `side` rows, shuffled, and d of its columns, each by a random sign."""
    order = np.argsort(bits.random_raw(side), kind="stable").astype(np.uint64)
    signs = 1 - 2 * (bits.random_raw(d) & np.uint64(1)).astype(np.float32)
    odd = np.bitwise_count(order[:, None] & np.arange(d, dtype=np.uint64)) & 1
    return (1 - 2 * odd.astype(np.float32)) * signs


def gradient(scalars: Array, e: Array) -> Array:
    """1/D Σ_i s_i e_i, (d,): summed one after another, for a product's order of summation is the machine's own."""
    summed = np.zeros(e.shape[1], np.float32)
    for s, e_i in zip(scalars.astype(np.float32), e, strict=True):
        summed += s * e_i
    return summed / np.float32(len(e))


def stepped(state: State, g: Array, rule: Rule) -> State:
    """Take one step of ZO-Adam down g (d,)."""
    b1, b2, steps = np.float32(rule.b1), np.float32(rule.b2), state.steps + 1
    m = b1 * state.m + (1 - b1) * g
    v = b2 * state.v + (1 - b2) * (g * g)
    m_hat = m / np.float32(1 - _power(rule.b1, steps))
    v_hat = v / np.float32(1 - _power(rule.b2, steps))
    x = state.x - np.float32(rule.lr) * (m_hat / (np.sqrt(v_hat) + np.float32(rule.eps)))
    return State(x, m, v, steps)


def replay(state: State, trace: Trace, rule: Rule) -> State:
    """Return where a client is that began the round at `state`, from its seed and scalars: the same bits as its own."""
    for step, scalars in enumerate(trace.scalars):
        e = directions(trace.seed, step, len(scalars), len(state.x), rule.kind)
        state = stepped(state, gradient(scalars, e), rule)
    return state


def seeded_mean(
    states: Sequence[State], traces: Sequence[Trace], n: Sequence[float], rule: Rule
) -> tuple[Array, list[State]]:
    """Σ_i n_i x_i / Σ_i n_i (d,) of the clients' vectors, and their states at it, to begin the next round with.

    states: of each client at the start of the round. The mean has the same bits as that of the vectors they would
    have sent (`tangent_mean`). Raises ValueError as it does.
    """
    ended = [replay(state, trace, rule) for state, trace in zip(states, traces, strict=True)]
    mean = tangent_mean([{"x": state.x} for state in ended], n)["x"]
    return mean, [replace(state, x=mean) for state in ended]


def saves(scalars: int, d: int) -> bool:
    """Say whether a round's seed and scalars take fewer bytes than the vector (d,) in float32."""
    return 8 + 4 * scalars < 4 * d


def to_arrays(state: State) -> dict[str, Array]:
    """As arrays, to be kept."""
    return {"x": state.x, "m": state.m, "v": state.v, "steps": np.array([state.steps], np.int64)}


def from_arrays(arrays: Mapping[str, Array]) -> State:
    """What `to_arrays` gave; ValueError when something is missing."""
    try:
        return State(arrays["x"], arrays["m"], arrays["v"], int(arrays["steps"][0]))
    except KeyError as error:
        raise ValueError(f"the kept optimiser state lacks {error}; remove it, and it begins anew") from error


def _power(b: float, n: int) -> float:
    """Return b to the n by squaring: products round alike everywhere, as a library's power does not."""
    result = 1.0
    while n:
        result, b, n = result * b if n & 1 else result, b * b, n >> 1
    return result
