import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from local_grid import LocalGrid, context

from fedsd.strategies.roster import ask_profiles, available, client_seed, misfits, sample, wait_for_nodes
from fedsd.wire import Profile, profile_reply

Z = np.array([0.6, 0.8], dtype=np.float32)
app = ClientApp()


@app.query("profile")
def profile(message: Message, node) -> Message:
    if node.node_config["mute"]:
        return Message(RecordDict(), reply_to=message)
    return profile_reply(Profile(f"c{node.node_id}", Z, 7, 4, "abc"), message)


def make_grid() -> LocalGrid:
    return LocalGrid(app, {node: context(node, mute=node == 2) for node in (1, 2, 3)})


def test_profiles_and_reasons_are_by_node():
    profiles, reasons, delays = ask_profiles(make_grid(), [1, 2, 3], 1.0, 0.001)
    assert {node: (found.client, found.n, found.rank) for node, found in profiles.items()} == {
        1: ("c1", 7, 4),
        3: ("c3", 7, 4),
    }
    assert delays.keys() == profiles.keys()
    assert all(0 <= delay < 5 for delay in delays.values())
    assert reasons == {2: "its profile is not valid: the message lacks about, metrics, style"}


def test_a_node_that_is_gone_has_no_profile():
    grid = make_grid()
    grid.unplug(1)
    assert ask_profiles(grid, [1], 1.0, 0.001) == ({}, {1: "the node is not available (Flower error 5)"}, {})


def test_waiting_ends_when_enough_nodes_are_online():
    assert wait_for_nodes(make_grid(), 3, 1.0, 0.001) == [1, 2, 3]
    with pytest.raises(RuntimeError, match=r"3 nodes are online and 4 are needed; waited 0\.01 s"):
        wait_for_nodes(make_grid(), 4, 0.01, 0.001)


def of(client: str, base: str = "abc") -> Profile:
    return Profile(client, Z, 1, 4, base)


def test_a_client_id_used_twice_and_another_base_do_not_fit():
    assert misfits({1: of("a"), 2: of("b"), 3: of("c")}) == {}
    assert misfits({1: of("a"), 2: of("a", "xyz"), 3: of("c"), 4: of("d", "xyz")}) == {
        2: "client id a is already used by another node; give each its own",
        4: "it has base xyz, not abc; give all nodes the same base.name",
    }
    assert misfits({}) == {}


def test_a_seed_belongs_to_a_run_a_round_and_a_client():
    seeds = {
        client_seed(run, server_round, client) for run in (0, 1) for server_round in (1, 2) for client in ("a", "b")
    }
    assert len(seeds) == 8
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert client_seed(0, 1, "c0") == 1254946064


def test_a_sample_is_a_sorted_share_that_the_seed_decides():
    clients = [f"c{i}" for i in range(10)]
    assert sample(clients, 1.0, 5) == sorted(clients)
    half = sample(clients, 0.45, 5)
    assert len(half) == 5
    assert half == sorted(set(half))
    assert half == sample(clients[::-1], 0.45, 5)
    assert {tuple(sample(clients, 0.45, seed)) for seed in range(9)} != {tuple(half)}
    assert len(sample(clients, 0.01, 5)) == 1
    assert sample([], 1.0, 5) == []


def test_clients_are_there_in_their_share_of_the_rounds_and_the_same_ones_each_time():
    clients, shares = ["c0", "c1", "c2"], {"c1": 0.1, "c2": 0.5}
    there = [available(clients, shares, 0, server_round) for server_round in range(1, 1001)]
    counts = {client: sum(client in found for found in there) for client in clients}
    assert counts["c0"] == 1000
    assert abs(counts["c1"] - 100) < 30 and abs(counts["c2"] - 500) < 50
    assert there[:50] == [available(clients[::-1], shares, 0, server_round) for server_round in range(1, 51)]
    assert there[:50] != [available(clients, shares, 1, server_round) for server_round in range(1, 51)]


def test_a_round_is_never_without_a_client_where_there_is_one():
    assert all(len(available(["a", "b"], {"a": 0.01, "b": 0.01}, 0, server_round)) == 1 for server_round in range(5))
    assert available([], {}, 0, 1) == []
