import numpy as np
import pytest

from fedsd.strategies.clustering import METHODS, Known, centroids, cluster, reach, stable_ids

every_method = pytest.mark.parametrize("method", METHODS)
D = 64


def clients(styles: list[int], n: list[int], seed: int = 0, apart: float = 0.5) -> np.ndarray:
    """Style embeddings as nodes make them: each the mean of n unit image embeddings around its style's centre."""
    rng = np.random.default_rng(seed)
    everyone = rng.standard_normal(D)
    centres = everyone + apart * rng.standard_normal((max(styles) + 1, D))
    Z = []
    for style, count in zip(styles, n, strict=True):
        images = centres[style] + rng.standard_normal((count, D))
        mean = (images / np.linalg.norm(images, axis=1, keepdims=True)).mean(axis=0)
        Z.append(mean / np.linalg.norm(mean))
    return np.array(Z, dtype=np.float32)


def partition(labels: tuple[int, ...]) -> set[frozenset[int]]:
    return {frozenset(i for i, label in enumerate(labels) if label == k) for k in set(labels)}


@every_method
@pytest.mark.parametrize("seed", range(3))
def test_clients_of_one_style_are_found_without_being_told_how_many_there_are(method, seed):
    styles, n = [0, 0, 1, 1, 2, 2, 3, 3], [40, 60, 50, 50, 80, 20, 45, 55]
    found = cluster(clients(styles, n, seed), n, method=method)
    assert found.labels == tuple(styles)
    assert 0.5 < found.silhouette <= 1


@pytest.mark.parametrize("method", ["agglomerative", "k-means"])
def test_two_styles_near_each_other_are_told_apart_although_the_images_are_few(method):
    # on plain distances the near pair is one cluster in 11 of these 20 draws
    styles, n = [0, 0, 1, 1, 2, 2], [20] * 6
    right = [cluster(near_pair(styles, n[0], seed), n, method=method).labels == tuple(styles) for seed in range(20)]
    assert sum(right) >= 16


def near_pair(styles: list[int], n: int, seed: int) -> np.ndarray:
    """Three styles, two of them half as far apart as the images of one style are from its centre."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal(D)
    centres = [first, first + 0.5 * rng.standard_normal(D), first + 1.2 * rng.standard_normal(D)]
    images = np.stack([centres[style] + rng.standard_normal((n, D)) for style in styles])
    means = (images / np.linalg.norm(images, axis=2, keepdims=True)).mean(axis=1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


@every_method
def test_a_style_with_a_single_client_is_a_cluster_of_its_own(method):
    styles, n = [0, 0, 1, 0, 2, 2], [50] * 6
    assert partition(cluster(clients(styles, n), n, method=method).labels) == {
        frozenset({0, 1, 3}),
        frozenset({2}),
        frozenset({4, 5}),
    }


@every_method
@pytest.mark.parametrize("n", [[50] * 6, [8, 100, 20, 8, 50, 30], [50, 50]])
@pytest.mark.parametrize("seed", range(3))
def test_clients_of_one_style_only_are_one_cluster(method, n, seed):
    found = cluster(clients([0] * len(n), n, seed), n, method=method)
    assert found.labels == (0,) * len(n)
    assert found.silhouette is None


@every_method
@pytest.mark.parametrize("count", [2, 3, 6])
def test_clients_that_all_differ_are_a_cluster_each(method, count):
    # as far apart as drawn styles are; at 0.2 it could as well be one style of wide spread, and evidence has it so
    Z = clients(list(range(count)), [100] * count, apart=1.0)
    found = cluster(Z, [100] * count, method=method)
    assert found.labels == tuple(range(count))
    assert found.silhouette is None


@every_method
def test_one_client_is_one_cluster(method):
    assert cluster(clients([0], [10]), [10], method=method).labels == (0,)


@every_method
def test_two_clients_with_the_same_embedding_are_together(method):
    Z = np.repeat(clients([0, 1], [50, 50]), 2, axis=0)
    assert cluster(Z, [50] * 4, method=method).labels == (0, 0, 1, 1)


def test_a_threshold_cuts_plain_cosine_distances():
    angles = np.radians([0, 10, 50, 60])  # 1 - cos: 0.015 within the pairs, 0.36 to 0.5 between them
    Z = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    partitions = [cluster(Z, [50] * 4, threshold=threshold).labels for threshold in (0.001, 0.1, 0.6)]
    assert partitions == [(0, 1, 2, 3), (0, 0, 1, 1), (0, 0, 0, 0)]


@every_method
def test_outliers_can_join_the_nearest_cluster(method):
    styles, n = [0, 0, 1, 2, 2], [50] * 5
    Z = clients(styles, n)
    alone = cluster(Z, n, method=method).labels
    joined = cluster(Z, n, method=method, outliers="nearest").labels
    assert alone == (0, 0, 1, 2, 2)
    nearest = np.argmax(Z[2] @ Z.T - 2 * np.eye(5)[2])
    assert joined[2] == joined[nearest]
    assert len(set(joined)) == 2


@every_method
def test_the_labels_do_not_depend_on_chance(method):
    Z, n = clients([0, 0, 1, 1, 2], [30] * 5), [30] * 5
    assert cluster(Z, n, method=method) == cluster(Z, n, method=method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "kmean"}, r"cluster\.method must be one of agglomerative, k-means, hdbscan; got 'kmean'"),
        ({"outliers": "drop"}, r"cluster\.outliers must be singleton or nearest; got 'drop'"),
        ({"threshold": 2.5}, r"cluster\.threshold must be a cosine distance in \[0, 2\), got 2\.5"),
        ({"threshold": 0.2, "method": "k-means"}, "applies to agglomerative clustering only"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        cluster(np.eye(3), [1, 1, 1], **options)


def test_centroids_are_normalised_means():
    Z = np.array([[1, 0], [0, 1], [0, 1]], dtype=np.float32)
    z_k = centroids(Z, (0, 0, 1))
    np.testing.assert_allclose(z_k, [[0.5**0.5, 0.5**0.5], [0, 1]], rtol=1e-6)
    assert z_k.dtype == np.float32


def test_the_reach_is_the_smallest_distance_between_clusters():
    z_k = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert reach(z_k) == pytest.approx(0.2)  # 1 - 0.8
    assert reach(z_k[:1]) == 2.0


def known(**clusters: tuple[float, set[str]]) -> dict[int, Known]:
    """Centroids by their angle in degrees."""
    return {int(key[1:]): Known(at(angle), members) for key, (angle, members) in clusters.items()}


def at(angle: float) -> np.ndarray:
    return np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])


def test_ids_follow_the_centroids_whatever_the_order_of_the_clusters():
    before = known(_0=(0, set()), _1=(90, set()), _5=(180, set()))
    assert stable_ids(np.stack([at(175), at(5), at(92)]), [set(), set(), set()], before, 0.1, 6) == [5, 0, 1]


def test_ids_are_assigned_for_the_best_total():
    # greedily 40° would take id 0 (20° away) and leave 90° with id 1, 100° away
    before = known(_0=(60, set()), _1=(-10, set()))
    assert stable_ids(np.stack([at(40), at(90)]), [set(), set()], before, 0.5, 2) == [1, 0]


def test_a_new_style_gets_a_new_id_and_an_old_id_is_not_given_to_another_style():
    before = known(_0=(0, {"a"}), _1=(90, {"b"}))
    assert stable_ids(np.stack([at(0), at(180)]), [{"a"}, {"c"}], before, 0.3, 2) == [0, 2]
    assert stable_ids(np.stack([at(0), at(90), at(180)]), [{"a"}, {"b"}, {"c"}], before, 0.3, 4) == [0, 1, 4]


def test_a_cluster_keeps_its_id_when_its_members_change_their_style():
    assert stable_ids(np.stack([at(80)]), [{"a"}], known(_4=(0, {"a", "b"})), 0.1, 5) == [4]


def test_the_first_round_counts_from_the_next_id():
    assert stable_ids(np.eye(2), [{"a"}, {"b"}], {}, 2.0, 0) == [0, 1]


@pytest.mark.parametrize("method", ["hdbscan", "agglomerative", "k-means"])
def test_a_client_alone_in_its_style_is_told_from_the_style_nearest_to_it(method):
    # pairs 0.005 apart, and a client 0.08 to 0.12 from the nearer pair: 0.46 from the other one
    turns = [0.0, 0.1, 0.5, 1.5, 1.6]
    Z = np.array([[np.cos(turn), np.sin(turn)] for turn in turns])
    assert cluster(Z, [50] * 5, method=method).labels == (0, 0, 1, 2, 2)
    # little farther than clients of one style usually are, it is of that style
    turns[2] = 0.3
    Z = np.array([[np.cos(turn), np.sin(turn)] for turn in turns])
    assert cluster(Z, [50] * 5, method=method).labels == (0, 0, 0, 1, 1)


@every_method
@pytest.mark.parametrize("per_style", [2, 3, 4, 5])
def test_few_clients_of_styles_of_unequal_spread_are_neither_parted_nor_joined(method, per_style):
    rng = np.random.default_rng(per_style)
    centres, spreads = rng.standard_normal((3, 8)), (0.5, 2.0, 6.0)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    styles = [style for style in range(3) for _ in range(per_style)]
    noise = [(spreads[style] / 8 / 60) ** 0.5 * rng.standard_normal(8) for style in styles]
    Z = np.stack([centres[style] + one for style, one in zip(styles, noise, strict=True)])
    assert cluster(Z, [60] * len(styles), method=method).labels == tuple(styles)
