import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import Result, Strategy
from style_nodes import RANKS, SHAPES, Log, assert_same, make_app, make_grid

from fedsd.strategies import Schedule, from_state, to_state
from fedsd.wire import Profile, parse_order


def test_two_rounds_with_unequal_ranks_group_the_styles_and_send_each_client_its_clusters_adapter():
    log = Log()
    grid = make_grid(make_app())
    result = log.strategy().start(grid, ArrayRecord(), num_rounds=2)
    assert isinstance(result, Result)
    assert [entry["event"] for entry in log.events] == (
        ["client.profile"] * 4
        + ["round.start", *["client.done"] * 4, "round.clusters", "round.done"] * 2
        + ["run.done"]
    )
    assert [{key: found.members for key, found in after.clusters.items()} for after in log.rounds] == [
        {0: ("c0", "c1"), 1: ("c2", "c3")}
    ] * 2
    assert log.named("round.clusters")[0]["ranks"] == {"c0": 2, "c1": 3, "c2": 4, "c3": 6}
    assert log.named("round.clusters")[0]["median_rank"] == {"0": 2, "1": 4}
    orders = [parse_order(message) for message in grid.asked if message.metadata.message_type == "train"]
    assert [order.lora for order in orders[:4]] == [{}] * 4
    for index, order in enumerate(orders[4:]):
        assert (order.server_round, order.rank, order.cluster) == (2, RANKS[index], index // 2)
        assert {factor.rank for factor in order.lora.values()} == {RANKS[index]}
        assert_same(order.lora, log.rounds[0].clusters[index // 2].lora, rtol=1e-5, atol=1e-5)
    assert len({order.seed for order in orders}) == 8
    assert result.train_metrics_clientapp[2]["loss"] == 0.5


def test_a_padded_adapter_can_learn_in_every_direction():
    grid = make_grid(make_app())
    Log().strategy().start(grid, ArrayRecord(), num_rounds=2)
    order = parse_order(grid.asked[-1])  # c3: rank 6 from a cluster of rank 4
    for factor in order.lora.values():
        assert not factor.B[:, 4:].any()
        assert np.abs(factor.A[4:]).min() > 0


def test_the_order_of_arrival_changes_no_bit():
    logs = Log(), Log()
    for log, latest_first in zip(logs, (False, True), strict=True):
        log.strategy().start(make_grid(make_app(), latest_first=latest_first), ArrayRecord(), num_rounds=2)
    names = [[entry["client"] for entry in log.named("client.done")] for log in logs]
    assert names[0][:4] == ["c0", "c1", "c2", "c3"]
    assert names[1][:4] == ["c3", "c2", "c1", "c0"]
    for left, right in zip(logs[0].rounds, logs[1].rounds, strict=True):
        for layer in SHAPES:
            for side in ("A", "B"):
                np.testing.assert_array_equal(getattr(left.lora_mix[layer], side), getattr(right.lora_mix[layer], side))


def test_a_resumed_run_ends_with_the_bytes_of_one_that_never_stopped():
    whole, first, second = Log(), Log(), Log()
    whole.strategy().start(make_grid(make_app()), ArrayRecord(), num_rounds=3)
    first.strategy().start(make_grid(make_app()), ArrayRecord(), num_rounds=1)
    resumed = second.strategy()
    resumed.resume(from_state(*to_state(first.rounds[0])))
    resumed.start(make_grid(make_app()), ArrayRecord(), num_rounds=3)
    assert [after.server_round for after in second.rounds] == [2, 3]
    for layer in SHAPES:
        np.testing.assert_array_equal(second.rounds[-1].lora_neu[layer].B, whole.rounds[-1].lora_neu[layer].B)
        np.testing.assert_array_equal(second.rounds[-1].lora_mix[layer].A, whole.rounds[-1].lora_mix[layer].A)


def test_a_node_that_comes_later_starts_from_the_cluster_of_its_style():
    log = Log()
    grid = make_grid(make_app())
    grid.unplug(103)
    strategy = log.strategy()
    strategy.start(grid, ArrayRecord(), num_rounds=1)
    grid.online.add(103)
    strategy.start(grid, ArrayRecord(), num_rounds=2)
    order = parse_order(grid.asked[-1])
    assert log.rounds[0].clients.keys() == {"c0", "c1", "c2"}
    assert order.cluster == log.rounds[0].clients["c2"].cluster
    assert log.rounds[1].clients["c3"].cluster == order.cluster
    (arrived,) = log.named("client.arrived")
    assert (arrived["client"], arrived["kind"], arrived["cluster"]) == ("c3", "align", order.cluster)
    assert arrived["reason"].startswith(f"align: its style is {arrived['distance']:.3g} from cluster {order.cluster}")


def test_a_node_of_an_unknown_style_starts_from_the_mix():
    log = Log()
    strategy = log.strategy()
    strategy.start(make_grid(make_app(), nodes=3), ArrayRecord(), num_rounds=1)
    stranger = Profile("c9", np.eye(6, dtype=np.float32)[5], 10, 3, "abc123")
    start = strategy._start_of(stranger, {})
    assert start.cluster == -1
    assert start.lora is strategy.previous.lora_mix


def test_the_run_stops_when_the_mix_no_longer_changes():
    log = Log()
    log.strategy(schedule=Schedule(poll=0.001, tolerance=0.2)).start(
        make_grid(make_app()), ArrayRecord(), num_rounds=20
    )
    changes = [entry["change"] for entry in log.named("round.done")]
    assert changes[0] is None
    assert all(change >= 0.2 for change in changes[1:-1])
    assert changes[-1] < 0.2
    assert log.events[-1] == {"event": "run.done", "rounds": len(changes), "converged": True}


@pytest.mark.parametrize(
    ("rule", "groups"),
    [
        ("fedavg", [("c0", "c1", "c2", "c3")]),
        ("geometric-median", [("c0", "c1", "c2", "c3")]),
        ("flora", [("c0", "c1", "c2", "c3")]),
        ("local", [("c0",), ("c1",), ("c2",), ("c3",)]),
    ],
)
def test_every_baseline_runs_two_rounds_of_the_same_strategy(rule, groups):
    log = Log()
    grid = make_grid(make_app())
    log.strategy(rule).start(grid, ArrayRecord(), num_rounds=2)
    assert [found.members for found in log.rounds[-1].clusters.values()] == groups
    if rule == "local":
        starts = [parse_order(message).lora for message in grid.asked[-4:]]
        for start, update in zip(starts, log.rounds[0].updates.values(), strict=True):
            assert_same(start, update, rtol=0, atol=0)


def test_the_strategy_also_runs_in_flowers_own_round_loop():
    log = Log()
    result = Strategy.start(log.strategy(), make_grid(make_app()), ArrayRecord(), num_rounds=2)
    assert [after.server_round for after in log.rounds] == [1, 2]
    np.testing.assert_array_equal(result.arrays["unet.to_q.B"].numpy(), log.rounds[-1].lora_mix["unet.to_q"].B)


def test_only_the_adapter_the_style_embedding_and_counts_leave_a_node():
    grid = make_grid(make_app())
    Log().strategy().start(grid, ArrayRecord(), num_rounds=1)
    records = {name for message in grid.asked for name in message.content}
    assert records == {"lora", "config"}
    assert len(grid.from_nodes) == 8
    assert not any(b"partition-id" in sent for sent in grid.from_nodes)


def test_initial_arrays_and_train_config_reach_every_node():
    grid = make_grid(make_app())
    log = Log()
    first = log.strategy().start(make_grid(make_app()), ArrayRecord(), num_rounds=1).arrays
    seen = []
    log.strategy().start(
        grid,
        first,
        num_rounds=1,
        train_config=ConfigRecord({"lr": 0.5}),
        evaluate_fn=lambda server_round, arrays: seen.append((server_round, len(arrays))),
    )
    assert seen == [(0, 6), (1, 6)]
    orders = [message for message in grid.asked if message.metadata.message_type == "train"]
    assert [message.content["config"]["lr"] for message in orders] == [0.5] * 4
    assert_same(parse_order(orders[2]).lora, log.rounds[0].lora_mix, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("latest_first", [False, True])
def test_replies_folded_as_they_come_make_the_same_rounds(latest_first):
    held, streamed = Log(), Log()
    held.strategy().start(make_grid(make_app()), ArrayRecord(), num_rounds=2)
    schedule = Schedule(poll=0.001, profile_timeout=5, stack_cap=64)
    streamed.strategy(schedule=schedule).start(
        make_grid(make_app(), latest_first=latest_first), ArrayRecord(), num_rounds=2
    )
    for left, right in zip(streamed.rounds, held.rounds, strict=True):
        assert [found.members for found in left.clusters.values()] == [
            found.members for found in right.clusters.values()
        ]
        assert_same(left.lora_mix, right.lora_mix, rtol=1e-4, atol=1e-5)
        assert left.updates == {}
    assert [entry["error_bound"] for entry in streamed.named("round.clusters")] == [{"0": 0.0, "1": 0.0}] * 2


def test_clients_of_a_low_availability_are_asked_rarely_and_weigh_more():
    log = Log()
    schedule = Schedule(poll=0.001, profile_timeout=5, availability={"c1": 0.4, "c3": 0.4})
    log.strategy(schedule=schedule, participation="inverse-rate").start(
        make_grid(make_app()), ArrayRecord(), num_rounds=8
    )
    asked = [entry["clients"] for entry in log.named("round.start")]
    assert all({"c0", "c2"} <= set(clients) for clients in asked)
    assert 0 < sum("c1" in clients for clients in asked) < 8
    assert log.named("client.failed") == []
    for name, client in log.rounds[-1].clients.items():
        assert client.rounds == sum(name in clients for clients in asked)


def test_a_name_in_the_availability_that_nobody_bears_is_told_once_and_before_a_round_is_lost():
    log = Log()
    schedule = Schedule(poll=0.001, profile_timeout=5, availability={"c1": 1.0, "c03": 0.4})
    log.strategy(schedule=schedule).start(make_grid(make_app()), ArrayRecord(), num_rounds=2)
    (told,) = log.named("client.unknown")
    assert (told["round"], told["client"], told["nearest"]) == (1, "c03", "c3")
    assert told["reason"].startswith("run.availability names c03, and no client online bears that name")
    events = [entry["event"] for entry in log.events]
    assert events.index("client.unknown") < events.index("round.start")


def test_a_slow_upload_brings_a_cheaper_order_and_the_round_goes_on_with_it():
    def slow(reply, order, index):
        if index == 1:
            reply.metadata.created_at -= 100.0  # 100 s on the way
        return reply

    log, grid = Log(), make_grid(make_app(slow))
    log.strategy(schedule=Schedule(poll=0.001, profile_timeout=5, upload_seconds=20)).start(
        grid, ArrayRecord(), num_rounds=2
    )
    done = {(entry["round"], entry["client"]): entry for entry in log.named("client.done")}
    first = done[1, "c1"]
    assert first["encoding"] == "float32"
    assert first["bandwidth"] == pytest.approx(first["bytes"] / 100, rel=0.05)
    orders = {parse_order(m).seed: parse_order(m) for m in grid.asked if m.metadata.message_type == "train"}
    second = [order for order in orders.values() if order.server_round == 2]
    assert [(order.rank, order.encoding) for order in second][1] == ("int8", 3)[::-1]
    assert [order.encoding for order in second] == ["float32", "int8", "float32", "float32"]
    assert done[2, "c1"]["encoding"] == "int8"
    assert done[2, "c0"]["bandwidth"] > 10 * first["bandwidth"]


def test_what_becomes_of_clusters_is_told():
    log = Log()
    grid = make_grid(make_app())
    strategy = log.strategy(leave_after=1)
    strategy.start(grid, ArrayRecord(), num_rounds=1)
    for node in (102, 103):
        grid.unplug(node)
    strategy.start(grid, ArrayRecord(), num_rounds=3)
    (retired,) = log.named("cluster.retired")
    assert (retired["round"], retired["cluster"]) == (3, 1)
    assert retired["reason"] == "c2, c3: away for 2 rounds, and nobody else was in it"
    grid.online.update((102, 103))
    strategy.start(grid, ArrayRecord(), num_rounds=4)
    (opened,) = log.named("cluster.opened")
    assert (opened["round"], opened["cluster"]) == (4, 2)
    assert [entry["kind"] for entry in log.named("client.arrived")] == ["new", "new"]
