from dataclasses import replace

import numpy as np
import pytest

from fedsd.lowrank import dense
from fedsd.strategies.aggregate import Settings, aggregate_round
from fedsd.strategies.arrivals import arrive, start_of


@pytest.fixture
def known(make_update):
    """Two styles of two clients each, 50 images a client."""
    updates = [make_update(f"c{k}", k // 2, seed=k) for k in range(4)]
    return aggregate_round(updates, None, Settings(), 1)


def between(left: np.ndarray, right: np.ndarray, share: float) -> np.ndarray:
    z = (1 - share) * left + share * right
    return (z / np.linalg.norm(z)).astype(np.float32)


def test_a_client_of_a_known_style_reuses_its_clusters_adapter(known, make_update):
    for style in (0, 1):
        newcomer = make_update("new", style, seed=77)
        found = arrive(newcomer.z, newcomer.n, known)
        assert (found.kind, found.cluster) == ("reuse", style)
        assert found.distance <= found.inner < found.outer
        assert start_of(found, known) is known.clusters[style].lora


def test_a_style_never_seen_is_new_and_starts_from_the_mix(known, make_update):
    found = arrive(make_update("new", 5).z, 50, known)
    assert found.kind == "new"
    assert found.distance > found.outer
    assert start_of(found, known) is known.lora_mix


def test_a_style_near_a_known_one_starts_between_it_and_the_mix(known):
    z = between(known.clusters[0].z, np.eye(8, dtype=np.float32)[5], 0.4)
    found = arrive(z, 50, known)
    assert (found.kind, found.cluster) == ("align", 0)
    share = (found.distance - found.inner) / (found.outer - found.inner)
    for layer, factor in start_of(found, known).items():
        expected = (1 - share) * dense(known.clusters[0].lora[layer]) + share * dense(known.lora_mix[layer])
        U, S, Vt = np.linalg.svd(expected)
        np.testing.assert_allclose(dense(factor), (U[:, :3] * S[:3]) @ Vt[:3], atol=1e-4)


def test_few_images_make_a_client_harder_to_tell_from_a_known_style(known):
    z = between(known.clusters[0].z, np.eye(8, dtype=np.float32)[5], 0.1)
    many, few = arrive(z, 5000, known), arrive(z, 5, known)
    assert few.inner > many.inner
    assert (few.kind, many.kind) == ("reuse", "align")


def test_beside_one_cluster_only_another_style_is_new(make_update):
    known = aggregate_round([make_update(f"c{k}", 0, seed=k) for k in range(3)], None, Settings(rule="everyone"), 1)
    assert known.clusters.keys() == {0}
    assert arrive(make_update("same", 0, seed=9).z, 50, known).kind == "reuse"
    assert arrive(make_update("other", 1, seed=9).z, 50, known).kind == "new"


def test_the_reason_says_what_was_decided_and_by_which_numbers(known, make_update):
    found = replace(arrive(make_update("new", 5).z, 50, known), distance=0.9, inner=0.01, outer=0.5)
    assert found.reason == (
        f"new: its style is 0.9 from cluster {found.cluster}, beyond the thresholds 0.01 (same style) and 0.5 "
        "(nearer to no other)"
    )


def test_before_the_first_round_nothing_can_be_decided(known):
    with pytest.raises(ValueError, match="no cluster is known yet"):
        arrive(np.ones(8), 5, replace(known, clusters={}))
