"""Nodes that fail, lie or send what they must not: each is named, and the run goes on as long as it can."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from style_nodes import FAST, Log, make_app, make_grid, products, style_of, trained

from fedsd.lowrank import Factor
from fedsd.strategies import Limits, Schedule, StyleClusteredLoRA
from fedsd.wire import Profile, Update, lora_record, parse_order, parse_update, profile_reply, update_reply


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
            reply.content["about"] = ConfigRecord({"client-id": "c0", "base-sha": "abc123", "method": "lora"})
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
