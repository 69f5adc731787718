import json

import numpy as np
import pytest

from fedsd.strategies.aggregate import Settings, aggregate_round
from fedsd.strategies.round import from_state, to_state


@pytest.fixture
def after(make_update):
    updates = [make_update("c0", 0, seed=1), make_update("c1", 1, seed=2, n=10), make_update("c2", 1, seed=3)]
    first = aggregate_round(updates, None, Settings(), 1)
    return aggregate_round(updates[:2], first, Settings(), 2)


def test_a_round_survives_json_bit_for_bit(after):
    state, adapters = to_state(after)
    back = from_state(json.loads(json.dumps(state)), adapters)
    assert back.server_round == 2
    assert (back.change, back.silhouette, back.next_id) == (after.change, after.silhouette, after.next_id)
    assert back.neutral_discarded == after.neutral_discarded
    assert list(back.clients) == list(after.clients)
    assert list(back.updates) == list(after.updates)
    for key, found in after.clusters.items():
        other = back.clusters[key]
        assert (other.members, other.n, other.rank) == (found.members, found.n, found.rank)
        assert (other.beta, other.d, other.tau) == (found.beta, found.d, found.tau)
        np.testing.assert_array_equal(other.z, found.z)
        assert other.z.dtype == np.float32
        assert other.lora is found.lora
    for name, client in after.clients.items():
        np.testing.assert_array_equal(back.clients[name].z, client.z)
        assert back.clients[name].cluster == client.cluster
        history = ("first_round", "last_round", "rounds", "parts")
        assert [getattr(back.clients[name], key) for key in history] == [getattr(client, key) for key in history]


def test_the_state_has_what_reports_read(after):
    state, adapters = to_state(after)
    assert state["round"] == 2
    assert state["clusters"]["0"].keys() == {"members", "n", "rank", "z", "beta", "d", "tau"}
    assert state["clients"]["c2"].keys() == {
        *("cluster", "rank", "n", "z", "loss_first", "loss_last", "first_round", "last_round", "rounds", "parts")
    }
    assert set(adapters) == {"mix", "neutral", "fedavg", "cluster-0", "cluster-1", "clients/c0", "clients/c1"}


def test_the_loss_is_that_of_the_clients_that_took_part(after):
    assert after.loss == 0.5
    assert "c2" not in after.updates


def test_the_reach_is_the_distance_of_the_clusters(after):
    z = [found.z for found in after.clusters.values()]
    assert after.reach == pytest.approx(1 - float(z[0] @ z[1]), abs=1e-6)
