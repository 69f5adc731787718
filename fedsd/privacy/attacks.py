"""What somebody who sees a device's messages can tell of its style: the attacks A1 to A6, one function each.

The attacker knows which styles there may be (S candidates), the base, the open_clip model, the settings of the run,
and has public pictures of every candidate. Each function returns the number of the style that it takes for the right
one, and knows nothing of the truth. Ties go to the first, as everywhere in numpy.
"""

from collections.abc import Sequence
from itertools import permutations
from math import perm
from typing import Any, TypeAlias

import numpy as np
from scipy.optimize import linear_sum_assignment, quadratic_assignment

from fedsd.lowrank import Array, LoRA, inner, singular_values

Guesses: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

TRIED_ALL = 50_000  # assignments that are tried one by one; above, a search takes their place


def nearest_vocabulary(vectors: Array, words: Array, *, metric: str = "cosine") -> int:
    """A1: the word whose embedding lies nearest to a token's (k, width); words (S, width), metric: "cosine" or "l2".

    Each vector is held against each word, and the nearest pair counts. The projection step of PEZ (Wen et al. 2023,
    arXiv 2302.03668, algorithm 1) on a learnt token of Gal et al. 2022 (arXiv 2208.01618).
    """
    if metric == "cosine":
        near = _unit(vectors) @ _unit(words).T
    elif metric == "l2":
        near = -np.linalg.norm(vectors[:, None] - words[None], axis=-1)
    else:
        raise ValueError(f"metric must be cosine or l2, got {metric!r}")
    return int(near.max(axis=0).argmax())


def encoder_match(states: Array, candidates: Array) -> int:
    """A2: the candidate whose prompts the text encoder reads most alike.

    states (P, width): of P prompts with the token; candidates (S, P, width): of the same with each style's word. What
    is common to all candidates, the rest of the prompt, is taken out first. Inversion of text embeddings by comparing
    with known texts: Song and Raghunathan 2020, arXiv 2004.00053, section 3.
    """
    common = candidates.mean(axis=0)
    flat = _unit((states - common).reshape(-1))
    return int((_unit((candidates - common).reshape(len(candidates), -1)) @ flat).argmax())


def drawn_style(pictures: Array, bank: Array) -> int:
    """A3: the style of what the base draws with a token or an adapter.

    pictures (N, D): embeddings of the drawings; bank (S, D): mean embedding of public drawings or pictures of each
    style. Zero-shot classification of model outputs, as inversion by generating (Fredrikson et al. 2015) does it.
    """
    return nearest_style(pictures.mean(axis=0), bank)


def zero_shot(z: Array, texts: Array) -> int:
    """A4: the style whose description open_clip's text tower puts nearest to z (D,); texts (S, D).

    Zero-shot classification of Radford et al. 2021, arXiv 2103.00020, section 3.1.2, on a mean of image embeddings.
    """
    return int((_unit(texts) @ _unit(z)).argmax())


def nearest_style(z: Array, bank: Array) -> int:
    """A4 with pictures in place of words: the style whose public pictures lie nearest to z (D,); bank (S, D)."""
    common = bank.mean(axis=0)
    return int((_unit(bank - common) @ _unit(z - common)).argmax())


def geometry(Z: Array, groups: Sequence[int], bank: Array) -> Guesses:
    """A4 against a key that keeps cosines: the styles (N,) that make the mutual cosines of Z (N, D) most probable.

    groups (N,): which clients are of one style, as the server's own clustering says, from 0; bank (S, D). Groups are
    assigned to styles so that their centroids' cosines and the bank's differ least (a quadratic assignment, as in
    Gromov-Wasserstein alignment of embeddings, Alvarez-Melis and Jaakkola 2018, arXiv 1809.00013). Of more groups than
    styles the smallest have no guess (-1).
    """
    marks = np.asarray(groups)
    largest = np.argsort(-np.bincount(marks), kind="stable")[: len(bank)]
    centroids = _unit(np.stack([Z[marks == group].mean(axis=0) for group in largest]))
    wanted = _assignment(centroids @ centroids.T, _unit(bank) @ _unit(bank).T)
    guess = {int(group): int(style) for group, style in zip(largest, wanted, strict=True)}
    return np.array([guess.get(int(mark), -1) for mark in marks], np.int64)


def _assignment(seen: Array, known: Array) -> Guesses:
    """The style of each group, all different, with least ‖seen - known[styles, styles]‖²."""
    k, s = len(seen), len(known)
    if perm(s, k) <= TRIED_ALL:
        tried = np.array(list(permutations(range(s), k)))
        errors = np.square(seen[None] - known[tried[:, :, None], tried[:, None, :]]).sum((1, 2))
        return tried[int(errors.argmin())].astype(np.int64)
    padded = np.zeros_like(known)
    padded[:k, :k] = seen
    found = quadratic_assignment(padded, known, method="2opt", options={"maximize": True, "rng": 0})
    return np.asarray(found.col_ind[:k], np.int64)


def linkage(similarity: Array) -> Guesses:
    """A5: which of N known devices each of M uploads under other names comes from; similarity (M, N), -1 for none.

    The assignment of largest total similarity (Kuhn 1955): linking records across releases, as Narayanan and Shmatikov
    2008 (arXiv cs/0610105) do it.
    """
    rows, columns = linear_sum_assignment(-similarity)
    linked = np.full(len(similarity), -1, np.int64)
    linked[rows] = columns
    return linked


def shadow(observed: Array, shadows: Array, styles: Sequence[int]) -> int:
    """A6: the style of the nearest shadow, each feature in units of what the shadows vary by.

    observed (F,): features of an upload; shadows (M, F): the same of uploads that the attacker made himself from public
    pictures of styles (M,). Shadow models: Shokri et al. 2017, arXiv 1610.05820, section V; on a property of the whole
    training set: Ganju et al. 2018.
    """
    scale = shadows.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    distances = np.linalg.norm((shadows - observed) / scale, axis=1)
    return int(styles[int(distances.argmin())])


def shadow_adapter(observed: LoRA, shadows: Sequence[LoRA], styles: Sequence[int]) -> int:
    """A6 on adapters: the style whose shadows' products point most nearly the same way, their common part taken out.

    Nothing is formed densely, and how a product is factored does not matter.
    """
    products = inner_products([observed, *shadows], [observed, *shadows])
    # centred on the shadows' mean, in the space that the inner products span
    weights = np.array([0.0, *[1 / len(shadows)] * len(shadows)])
    mean = products @ weights
    centred = products - mean[None] - mean[:, None] + weights @ mean
    length = np.sqrt(np.clip(np.diag(centred), 1e-30, None))
    cosines = (centred / np.outer(length, length))[0, 1:]
    means = {style: cosines[[s == style for s in styles]].mean() for style in dict.fromkeys(styles)}
    return max(means, key=lambda style: means[style])


def inner_products(left: Sequence[LoRA], right: Sequence[LoRA]) -> Array:
    """<ΔΘ_i, ΔΘ_j> over the layers that both have, (len(left), len(right)) float64."""
    return np.array([[sum(inner(a[layer], b[layer]) for layer in a.keys() & b.keys()) for b in right] for a in left])


def spectrum(lora: LoRA, keep: int = 4) -> Array:
    """What no orthogonal key hides of an adapter: log of each layer's `keep` largest singular values and its norm."""
    rows = []
    for layer in sorted(lora):
        S = singular_values(lora[layer])[:keep]
        rows.append(np.log(np.concatenate([[np.linalg.norm(S)], S, np.zeros(keep - len(S))]) + 1e-8))
    features: Array = np.concatenate(rows)
    return features


def _unit(rows: Array) -> Array:
    """Rows of length 1; a zero row stays zero."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit: Array = rows / np.where(length > 0, length, 1)
    return unit
