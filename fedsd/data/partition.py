"""Examples dealt out to clients: by style, in unequal shares, or by a Dirichlet mixture of styles."""

from collections.abc import Sequence

import numpy as np

from fedsd.data.example import Example

SCHEMES = ("by-style", "unequal", "dirichlet")


def partition(
    examples: Sequence[Example],
    scheme: str,
    num_clients: int,
    seed: int,
    concentration: float = 0.5,
    ratio: float = 2.0,
    min_pictures: int = 2,
) -> tuple[tuple[int, ...], ...]:
    """Deal examples out to clients, each to exactly one.

    "by-style": each client holds one style; the clients are spread evenly over the styles (in order of their names),
    and a style's pictures evenly over its clients. "unequal": the same, but each further client of a style gets
    1/ratio of the share before it. "dirichlet": equal counts, but each client mixes the styles in proportions drawn
    from a symmetric Dirichlet distribution (Hsu et al. 2019, arXiv 1909.06335, sec. 2), scaled up for the others when a
    style runs out.

    Args:
        examples: what to deal out.
        scheme: one of SCHEMES.
        num_clients: number of clients, at least 1, and for the first two schemes at least the number of styles.
        seed: the same seed gives the same parts.
        concentration: of the Dirichlet distribution, above 0; small: nearly one style per client.
        ratio: share of a client over that of the next, 1 or more.
        min_pictures: fewest pictures that a client may get.

    Returns:
        For each client the indices of its examples, in rising order.

    Raises:
        ValueError: for an unknown scheme, a number out of range, or too few pictures, styles or clients.
    """
    _validate(scheme, num_clients, concentration, ratio, min_pictures)
    if len(examples) < num_clients * min_pictures:
        raise ValueError(
            f"{len(examples)} pictures are too few for {num_clients} clients of at least {min_pictures}: "
            f"add pictures or lower num_clients to {max(1, len(examples) // min_pictures)} or less"
        )
    rng = np.random.default_rng(seed)
    if scheme == "dirichlet":
        parts = _mixed(examples, num_clients, concentration, rng)
    else:
        parts = _by_style(examples, num_clients, ratio if scheme == "unequal" else 1.0, min_pictures, rng)
    return tuple(tuple(sorted(part)) for part in parts)


def _validate(scheme: str, num_clients: int, concentration: float, ratio: float, min_pictures: int) -> None:
    if scheme not in SCHEMES:
        raise ValueError(f"partition scheme {scheme!r} is unknown: choose one of {', '.join(SCHEMES)}")
    if num_clients < 1:
        raise ValueError(f"num_clients = {num_clients} is too small: choose at least 1")
    if not 0 < concentration < float("inf"):
        raise ValueError(f"concentration = {concentration} is out of range: choose a number above 0")
    if not 1 <= ratio < float("inf"):
        raise ValueError(f"ratio = {ratio} is out of range: choose 1 or more")
    if min_pictures < 1:
        raise ValueError(f"min_pictures = {min_pictures} is too small: choose at least 1")


def _by_style(
    examples: Sequence[Example], num_clients: int, ratio: float, min_pictures: int, rng: np.random.Generator
) -> list[list[int]]:
    styles = sorted({example.style for example in examples})
    if num_clients < len(styles):
        raise ValueError(
            f"num_clients = {num_clients} is fewer than the {len(styles)} styles ({', '.join(styles)}): "
            f"choose at least {len(styles)}, or fewer styles"
        )
    parts: list[list[int]] = []
    for i, style in enumerate(styles):
        clients = num_clients // len(styles) + (i < num_clients % len(styles))
        shares = np.power(1 / ratio, np.arange(clients))
        dealt = _dealt([j for j, example in enumerate(examples) if example.style == style], shares, rng)
        fewest = min(len(part) for part in dealt)
        if fewest < min_pictures:
            raise ValueError(
                f"style {style!r} has {sum(map(len, dealt))} pictures for {clients} clients, and one of them would get "
                f"{fewest} (min_pictures = {min_pictures}): add pictures, or lower num_clients, ratio or min_pictures"
            )
        parts += dealt
    return parts


def _dealt(mine: list[int], shares: np.ndarray, rng: np.random.Generator) -> list[list[int]]:
    ends = np.round(np.cumsum(shares) / shares.sum() * len(mine)).astype(int)
    return [part.tolist() for part in np.split(np.array(mine)[rng.permutation(len(mine))], ends[:-1])]


def _mixed(
    examples: Sequence[Example], num_clients: int, concentration: float, rng: np.random.Generator
) -> list[list[int]]:
    styles = sorted({example.style for example in examples})
    pools = [[i for i, example in enumerate(examples) if example.style == style] for style in styles]
    pools = [[pool[j] for j in rng.permutation(len(pool))] for pool in pools]
    mixtures = rng.dirichlet(np.full(len(styles), concentration), size=num_clients)
    parts: list[list[int]] = [[] for _ in range(num_clients)]
    for turn in range(len(examples)):
        client = turn % num_clients
        left = np.array([len(pool) for pool in pools])
        chances = mixtures[client] * (left > 0)
        # A client whose styles have all run out takes what is left, in proportion.
        chances = chances if chances.sum() > 0 else left.astype(float)
        style = int(rng.choice(len(styles), p=chances / chances.sum()))
        parts[client].append(pools[style].pop())
    return parts
