"""Step 1 of Algorithm 1: clients grouped by style, with an unknown number of groups (l.7-8).

Distances are cosine distances between style embeddings (arXiv 2508.04745, section 3.2). A mean over n images carries
sampling noise: two clients of one style that have n_i and n_j images are expected (1/n_i + 1/n_j) v / 2 apart, where
v is the spread of the style's images. So the methods only propose groupings, from plain distances; which of them is
taken, and what is merged in it, is told by the `evidence`. A threshold given by the user is applied as it is.

Notation: Z (N, D) one row per client; z_k (K, D) one row per cluster; n (N,) images per client; labels (N,) 0 … K-1.
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import squareform
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.metrics import silhouette_score

from fedsd.lowrank import Array
from fedsd.strategies.evidence import Labels, merged

Candidates: TypeAlias = Callable[[Array, Array], list[Labels]]

MAX_CLUSTERS = 32  # tried when K is chosen by silhouette: the cost grows with it, and styles are few
MAX_GROUPS = 256  # of a proposal that is judged: the cost grows with their square


@dataclass(frozen=True)
class Clusters:
    """labels (N,) from 0 in order of first appearance; silhouette in [-1, 1], None when K is 1 or N."""

    labels: tuple[int, ...]
    silhouette: float | None


def cluster(
    Z: Array,
    n: Sequence[int],
    *,
    method: str = "agglomerative",
    threshold: float = 0.0,
    outliers: str = "singleton",
) -> Clusters:
    """{C_1 … C_K} ← Cluster({z_i}) (l.8).

    method: agglomerative, k-means or hdbscan; threshold: cosine distance in [0, 2) at which average linkage is cut
    (0: from the data); outliers: "singleton" clusters, or merged into the "nearest" one. Raises ValueError on unknown
    names.
    """
    if method not in METHODS:
        raise ValueError(f"cluster.method must be one of {', '.join(METHODS)}; got {method!r}")
    if outliers not in ("singleton", "nearest"):
        raise ValueError(f"cluster.outliers must be singleton or nearest; got {outliers!r}")
    if threshold and method != "agglomerative":
        raise ValueError(f"cluster.threshold applies to agglomerative clustering only, and cluster.method is {method}")
    if not 0 <= threshold < 2:
        raise ValueError(f"cluster.threshold must be a cosine distance in [0, 2), got {threshold}")
    Z = _unit(np.asarray(Z, dtype=np.float64))
    distances = _cosine_distances(Z)
    if len(Z) == 1:
        labels = np.zeros(1, dtype=np.int64)
    elif threshold:
        labels = fcluster(_average_linkage(distances), threshold, "distance")
    else:
        labels = _from_data(Z, distances, np.asarray(n, dtype=np.float64), METHODS[method])
    labels = _settle_outliers(Z, labels, outliers)
    score = silhouette_score(distances, labels, metric="precomputed") if 1 < _count(labels) < len(Z) else None
    return Clusters(tuple(int(label) for label in labels), None if score is None else float(score))


def centroids(Z: Array, labels: Sequence[int]) -> Array:
    """z_k (K, D): L2-normalised mean of the members' z_i."""
    marks = np.asarray(labels)
    means = np.stack([Z[marks == label].mean(axis=0) for label in range(int(marks.max()) + 1)])
    return _unit(means).astype(Z.dtype)


def reach(z_k: Array) -> float:
    """Cosine distance within which a style counts as a known one: the smallest between two clusters, 2 when K is 1."""
    if len(z_k) == 1:
        return 2.0
    distances = _cosine_distances(z_k)
    return float(distances[np.triu_indices(len(z_k), 1)].min())


@dataclass(frozen=True)
class Known:
    """A cluster of the round before: its id's centroid (D,) and the clients that were in it."""

    z: Array
    members: AbstractSet[str]


def stable_ids(
    z_k: Array, members: Sequence[AbstractSet[str]], known: Mapping[int, Known], within: float, next_id: int
) -> list[int]:
    """An id for each of the K clusters: that of a known cluster where centroids match best in total, else a new one.

    A match holds when the two share a client or lie within the cosine distance. New ids count up from `next_id`, so
    an id is never given to another style. Assignment: Kuhn (1955), as in scipy's linear_sum_assignment.
    """
    ids = [-1] * len(z_k)
    known_ids = sorted(known)
    if known_ids:
        cost = 1 - _unit(z_k) @ _unit(np.stack([known[cluster_id].z for cluster_id in known_ids])).T
        for row, column in zip(*linear_sum_assignment(cost), strict=True):
            before = known[known_ids[column]]
            if cost[row, column] <= within or members[row] & before.members:
                ids[row] = known_ids[column]
    for row, cluster_id in enumerate(ids):
        if cluster_id < 0:
            ids[row], next_id = next_id, next_id + 1
    return ids


def _from_data(Z: Array, distances: Array, n: Array, candidates: Candidates) -> Labels:
    """The grouping of most evidence among those that the method proposes and what merging makes of them.

    Methods that compare distances alone part a style of few clients, or join two of little spread; so no proposal is
    taken as it is, and every client alone is one of them.
    """
    proposals = [np.zeros(len(Z), dtype=np.int64), np.arange(len(Z)), *candidates(Z, distances)]
    of_few = [_numbered(labels) for labels in proposals if _count(labels) <= MAX_GROUPS]
    _, labels = max((merged(Z, n, labels) for labels in of_few), key=lambda found: found[0])
    return labels


def _agglomerative(Z: Array, distances: Array) -> list[Labels]:
    """Cuts of average linkage into 2 … N-1 clusters."""
    tree = _average_linkage(distances)
    return [fcluster(tree, k, "maxclust") for k in range(2, min(len(Z), MAX_CLUSTERS + 1))]


def _kmeans(Z: Array, distances: Array) -> list[Labels]:
    """k-means (Lloyd 1982) for K = 2 … N-1, seeded."""
    distinct = len(np.unique(Z, axis=0))
    sizes = range(2, min(len(Z), distinct + 1, MAX_CLUSTERS + 1))
    return [KMeans(k, n_init=10, random_state=0).fit_predict(Z) for k in sizes]


def _hdbscan(Z: Array, distances: Array) -> list[Labels]:
    """HDBSCAN (Campello et al. 2013) with clusters of 2 or more; each outlier gets a label of its own."""
    labels = HDBSCAN(min_cluster_size=2, min_samples=1, metric="precomputed", copy=True).fit(distances).labels_
    alone = labels < 0
    labels[alone] = labels.max() + 1 + np.arange(int(alone.sum()))
    return [labels]


METHODS: Mapping[str, Candidates] = {"agglomerative": _agglomerative, "k-means": _kmeans, "hdbscan": _hdbscan}


def _settle_outliers(Z: Array, labels: Labels, outliers: str) -> Labels:
    """Relabel from 0 in order of first appearance, singletons merged into the nearest larger cluster when asked."""
    sizes = {label: int((labels == label).sum()) for label in set(labels.tolist())}
    larger = sorted(label for label, size in sizes.items() if size > 1)
    if outliers == "nearest" and larger:
        z_k = _unit(np.stack([Z[labels == label].mean(axis=0) for label in larger]))
        nearest = np.array(larger)[np.argmax(Z @ z_k.T, axis=1)]
        labels = np.where([sizes[label] == 1 for label in labels.tolist()], nearest, labels)
    order = {label: index for index, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([order[label] for label in labels.tolist()], dtype=np.int64)


def _average_linkage(distances: Array) -> Array:
    tree: Array = linkage(squareform(distances, checks=False), "average")
    return tree


def _cosine_distances(Z: Array) -> Array:
    distances = np.clip(1 - _unit(Z) @ _unit(Z).T, 0, 2)
    np.fill_diagonal(distances, 0)
    symmetric: Array = (distances + distances.T) / 2
    return symmetric


def _numbered(labels: Labels) -> Labels:
    """The same groups, numbered from 0."""
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _unit(Z: Array) -> Array:
    """Rows of length 1; a zero row stays zero."""
    length = np.linalg.norm(Z, axis=-1, keepdims=True)
    unit: Array = Z / np.where(length > 0, length, 1)
    return unit


def _count(labels: Labels) -> int:
    return len(set(labels.tolist()))
