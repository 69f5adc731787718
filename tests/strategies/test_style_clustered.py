import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result, Strategy
from local_grid import LocalGrid, context

from fedsd.lowrank import Factor, dense
from fedsd.strategies import Limits, Round, Schedule, Settings, StyleClusteredLoRA, from_state, to_state
from fedsd.wire import Profile, Update, lora_record, parse_order, parse_update, profile_reply, update_reply

SHAPES = {"unet.to_q": (12, 7), "unet.to_k": (9, 9), "text_encoder.q_proj": (5, 14)}
RANKS = (2, 3, 4, 6)  # c0 and c1 draw style 0, c2 and c3 style 1
FAST = Schedule(poll=0.001, profile_timeout=5)


def style_of(index: int) -> np.ndarray:
    z = np.eye(6)[index // 2] + 0.01 * np.eye(6)[2 + index % 2]
    return (z / np.linalg.norm(z)).astype(np.float32)


def trained(order, index: int) -> dict[str, Factor]:
    """Half way from where the client starts to its style's own update: what a local round does, without a model."""
    rng = np.random.default_rng(index // 2)
    lora = {}
    for layer, (d_out, d_in) in SHAPES.items():
        goal = Factor(
            rng.standard_normal((d_out, 2)).astype(np.float32), rng.standard_normal((2, d_in)).astype(np.float32)
        )
        start = dense(order.lora[layer]) if order.lora else np.zeros((d_out, d_in), np.float32)
        U, S, Vt = np.linalg.svd((start + dense(goal)) / 2, full_matrices=False)
        lora[layer] = Factor(
            np.ascontiguousarray(U[:, : order.rank] * S[: order.rank]), np.ascontiguousarray(Vt[: order.rank])
        )
    return lora


def make_app(spoil=lambda reply, order, index: reply) -> ClientApp:
    """A ClientApp with the two functions that every node has; `spoil` may break what it sends."""
    app = ClientApp()

    @app.query("profile")
    def profile(message: Message, node: Context) -> Message:
        index = int(node.node_config["partition-id"])
        return profile_reply(Profile(f"c{index}", style_of(index), 40 + index, RANKS[index], "abc123"), message)

    @app.train()
    def train(message: Message, node: Context) -> Message:
        index = int(node.node_config["partition-id"])
        order = parse_order(message)
        update = Update(
            f"c{index}", trained(order, index), style_of(index), 40 + index, order.rank, "abc123", 1.0, 0.5, 0.1, 400.0
        )
        return spoil(update_reply(update, message), order, index)

    return app


def make_grid(app: ClientApp, nodes: int = 4, **options) -> LocalGrid:
    return LocalGrid(app, {100 + i: context(100 + i, **{"partition-id": i}) for i in range(nodes)}, **options)


class Log:
    """What the two callbacks were told."""

    def __init__(self) -> None:
        self.events: list[dict] = []
        self.rounds: list[Round] = []

    def named(self, event: str) -> list[dict]:
        return [entry for entry in self.events if entry["event"] == event]

    def strategy(self, rule: str = "style-clustered", schedule: Schedule = FAST, **settings) -> StyleClusteredLoRA:
        return StyleClusteredLoRA(
            Settings(rule=rule, **settings),
            schedule=schedule,
            on_event=self.events.append,
            on_round=self.rounds.append,
        )


def products(lora) -> dict[str, np.ndarray]:
    return {layer: dense(factor) for layer, factor in lora.items()}


def assert_same(left, right, **tolerance) -> None:
    assert left.keys() == right.keys()
    for layer in left:
        np.testing.assert_allclose(dense(left[layer]), dense(right[layer]), **tolerance)


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


def test_a_client_unplugged_mid_round_is_named_and_the_run_goes_on():
    log = Log()

    def unplug(reply, order, index):
        if (order.server_round, index) == (2, 1):
            grid.unplug(101)
        return reply

    grid = make_grid(make_app(unplug))
    log.strategy().start(grid, ArrayRecord(), num_rounds=3)
    assert [(entry["round"], entry["client"]) for entry in log.named("client.failed")] == [(2, "c1")]
    assert "not available" in log.named("client.failed")[0]["reason"]
    assert [entry["clients"] for entry in log.named("round.start")] == [
        ["c0", "c1", "c2", "c3"],
        ["c0", "c1", "c2", "c3"],
        ["c0", "c2", "c3"],
    ]
    assert log.rounds[-1].clusters[0].members == ("c0", "c1")
    assert sorted(log.rounds[-1].updates) == ["c0", "c2", "c3"]


def test_a_silent_client_is_named_after_the_timeout():
    log = Log()
    grid = make_grid(make_app())
    strategy = log.strategy()
    strategy.start(grid, ArrayRecord(), num_rounds=1)
    grid.silent.add(102)
    strategy.start(grid, ArrayRecord(), num_rounds=2, timeout=0.05)
    assert log.named("client.failed") == [
        {"event": "client.failed", "round": 2, "client": "c2", "reason": "no reply within 0.05 s"}
    ]


def spoil_with(change):
    """Break the reply of c1 with `change`, which gets the reply's content."""

    def spoil(reply, order, index):
        if index == 1:
            change(reply.content)
        return reply

    return spoil


def put(value):
    def change(content):
        factors = {key: array.numpy() for key, array in content["lora"].items()}
        factors["unet.to_q.B"] = value(factors["unet.to_q.B"])
        content["lora"] = ArrayRecord({key: np_array(array) for key, array in factors.items()})

    return change


def np_array(array):
    return Array(array)


def with_entry(array, value):
    changed = array.copy()
    changed[0, 0] = value
    return changed


def drop_half(content):
    del content["lora"]["unet.to_k.A"]


def drop_layer(content):
    del content["lora"]["unet.to_k.A"]
    del content["lora"]["unet.to_k.B"]


def drop_metrics(content):
    del content["metrics"]


def nan_loss(content):
    content["metrics"]["loss-last"] = float("nan")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put(lambda B: with_entry(B, np.nan)), "unet.to_q.B holds NaN or Inf"),
        (put(lambda B: with_entry(B, np.inf)), "unet.to_q.B holds NaN or Inf"),
        (put(lambda B: np.vstack([B, B])), r"unet.to_q has shape \(24, 7\) instead of \(12, 7\)"),
        (put(lambda B: B * np.float32(1e6)), "norm .* at most 1e"),
        (put(lambda B: B * np.float32(200)), "times the median"),
        (put(lambda B: B.astype(np.float64)), "float32 or float16"),
        (drop_half, "has B but not its other half"),
        (drop_layer, "1 layers are missing, such as unet.to_k"),
        (drop_metrics, "lacks metrics"),
        (nan_loss, "its loss went from 1.0 to nan"),
    ],
)
def test_a_bad_reply_is_dropped_by_name_with_its_reason(change, reason):
    log = Log()
    log.strategy().start(make_grid(make_app(spoil_with(change))), ArrayRecord(), num_rounds=1)
    (failed,) = log.named("client.failed")
    assert failed["client"] == "c1"
    assert pytest.raises(ValueError, match=reason).matches(ValueError(failed["reason"]))
    assert sorted(log.rounds[0].updates) == ["c0", "c2", "c3"]
    for lora in (log.rounds[0].lora_mix, log.rounds[0].lora_fedavg):
        assert all(np.isfinite(product).all() for product in products(lora).values())


def test_an_exception_on_a_node_is_named_with_its_last_line():
    def fail(reply, order, index):
        if index == 3:
            raise MemoryError("no memory left")
        return reply

    log = Log()
    log.strategy().start(make_grid(make_app(fail)), ArrayRecord(), num_rounds=1)
    assert log.named("client.failed")[0]["reason"] == "MemoryError: no memory left (Flower error 2)"


def test_no_good_reply_ends_the_run_with_an_error_that_names_every_client():
    log = Log()

    def fail(reply, order, index):
        raise RuntimeError(f"disk {index} is broken")

    with pytest.raises(RuntimeError, match=r"round 1 brought no usable reply; c0: .*disk 0 is broken.*; c1: .*; c3: "):
        log.strategy().start(make_grid(make_app(fail)), ArrayRecord(), num_rounds=2)
    assert log.events[-1]["event"] == "run.failed"
    assert "disk 3 is broken" in log.events[-1]["reason"]
    assert log.rounds == []


def test_dead_simulation_workers_end_the_run_and_their_client_is_not_asked_again():
    def die(reply, order, index):
        if index == 2:
            raise RuntimeError("ActorDiedError: The actor died unexpectedly before finishing this task.")
        return reply

    log = Log()
    grid = make_grid(make_app(die))
    log.strategy().start(grid, ArrayRecord(), num_rounds=3)
    assert [entry["clients"] for entry in log.named("round.start")][-1] == ["c0", "c1", "c3"]

    strict = Log()
    with pytest.raises(RuntimeError, match="simulation workers died 1 times, with c2: 1; Flower does not replace them"):
        strict.strategy(schedule=Schedule(poll=0.001, max_actor_deaths=0)).start(
            make_grid(make_app(die)), ArrayRecord(), num_rounds=3
        )
    assert len(strict.rounds) == 1


def test_a_node_that_answers_in_another_name_is_dropped():
    def impersonate(reply, order, index):
        if index == 3:
            reply.content["about"] = ConfigRecord({"client-id": "c0", "base-sha": "abc123"})
        return reply

    log = Log()
    log.strategy().start(make_grid(make_app(impersonate)), ArrayRecord(), num_rounds=1)
    assert [(entry["client"], entry["reason"]) for entry in log.named("client.failed")] == [
        ("c3", "it answers as c0; a node must keep its client id for the whole run")
    ]


def test_a_poisoned_update_is_told_and_left_out_where_detection_is_on():
    def enlarge(reply, order, index):
        if index == 1:
            update = parse_update(reply)
            larger = {layer: Factor(5 * factor.B, factor.A) for layer, factor in update.lora.items()}
            reply.content["lora"] = lora_record(larger)
        return reply

    log = Log()
    log.strategy("everyone", detect=True).start(make_grid(make_app(enlarge)), ArrayRecord(), num_rounds=1)
    (suspected,), (failed,) = log.named("client.suspected"), log.named("client.failed")
    assert (suspected["round"], suspected["client"], suspected["reason"]) == (1, "c1", failed["reason"])
    assert failed["client"] == "c1" and "times as large as the median of its cluster" in failed["reason"]
    assert suspected["size_z"] > 0
    assert log.rounds[0].present == ("c0", "c2", "c3")


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
    cluster, lora, _ = strategy._start_of(stranger, {})
    assert cluster == -1
    assert lora is strategy.previous.lora_mix


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


def test_two_nodes_with_one_client_id_and_a_node_with_another_base_are_named():
    app = ClientApp()

    @app.query("profile")
    def profile(message: Message, node: Context) -> Message:
        index = int(node.node_config["partition-id"])
        sha = "other" if index == 3 else "abc123"
        return profile_reply(Profile("same" if index < 2 else f"c{index}", style_of(index), 9, 2, sha), message)

    @app.train()
    def train(message: Message, node: Context) -> Message:
        index = int(node.node_config["partition-id"])
        order = parse_order(message)
        name = "same" if index < 2 else f"c{index}"
        return update_reply(Update(name, trained(order, index), style_of(index), 9, 2, "abc123", 1, 1, 1, 1), message)

    log = Log()
    log.strategy().start(make_grid(app), ArrayRecord(), num_rounds=1)
    assert {entry["client"]: entry["reason"] for entry in log.named("client.failed")} == {
        "same": "client id same is already used by another node; give each its own",
        "c3": "it has base other, not abc123; give all nodes the same base.name",
    }


def test_too_few_nodes_end_the_run():
    schedule = Schedule(poll=0.001, min_nodes=5, profile_timeout=0.02)
    with pytest.raises(RuntimeError, match=r"4 nodes are online and 5 are needed; waited 0\.02 s"):
        Log().strategy(schedule=schedule).start(make_grid(make_app()), ArrayRecord())


def test_limits_are_the_callers():
    strategy = StyleClusteredLoRA(limits=Limits(max_norm=1e-3), schedule=FAST)
    with pytest.raises(RuntimeError, match=r"at most 0\.001 is accepted"):
        strategy.start(make_grid(make_app()), ArrayRecord(), num_rounds=1)


def test_the_content_of_an_unknown_record_is_refused():
    def extra(reply, order, index):
        if index == 0:
            reply.content["captions"] = ConfigRecord({"text": "a red house"})
        return reply

    log = Log()
    log.strategy().start(make_grid(make_app(extra)), ArrayRecord(), num_rounds=1)
    assert log.named("client.failed")[0]["reason"] == "the message has unknown captions"


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
