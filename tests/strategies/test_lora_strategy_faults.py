"""Replies that cannot be used, and models and settings that are refused before any node is asked."""

import logging
import re

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from peft_nodes import HEAD, LINEAR, Fleet, initial, lora_config, numpy_state, products, run, strategy_of

from fedsd.strategies import LoRAStrategy


def with_arrays(reply: Message, change) -> Message:
    state = change(numpy_state(reply.content["arrays"]))
    reply.content["arrays"] = ArrayRecord({key: Array(array) for key, array in state.items()})
    return reply


def poked(state, key, value):
    changed = state[key].copy()
    changed.flat[-1] = value
    return state | {key: changed}


def without(reply: Message, name: str) -> Message:
    del reply.content[name]
    return reply


def with_metrics(reply: Message, **metrics) -> Message:
    reply.content["metrics"] = MetricRecord(metrics)
    return reply


A_KEY, B_KEY = f"{LINEAR}.lora_A.weight", f"{LINEAR}.lora_B.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: with_arrays(r, lambda s: poked(s, B_KEY, np.nan)), f"{B_KEY} holds NaN or Inf"),
        (lambda r: with_arrays(r, lambda s: poked(s, HEAD, np.inf)), f"{HEAD} holds NaN or Inf"),
        (lambda r: with_arrays(r, lambda s: {k: s[k] for k in s if k != A_KEY}), f"its reply lacks {A_KEY}"),
        (lambda r: with_arrays(r, lambda s: s | {"x": s[HEAD]}), "its reply has unknown x"),
        (lambda r: with_arrays(r, lambda s: s | {HEAD: s[HEAD].T.copy()}), rf"{HEAD} is float32 \(11, 3\), not"),
        (lambda r: with_arrays(r, lambda s: s | {HEAD: s[HEAD].astype(np.float64)}), f"{HEAD} is float64"),
        (lambda r: with_arrays(r, lambda s: s | {A_KEY: s[A_KEY][:, :-1].copy()}), rf"{A_KEY} is float32 \(4, 13\)"),
        (lambda r: with_arrays(r, lambda s: s | {A_KEY: s[A_KEY][:2].copy()}), "has rank 2, not 4; .* ask_ranks=True"),
        (lambda r: with_arrays(r, lambda s: s | {B_KEY: s[B_KEY][:, :2].copy()}), "are not of rank 4"),
        (lambda r: without(r, "arrays"), "its reply holds 0 ArrayRecords"),
        (lambda r: without(r, "metrics"), "its reply holds 0 MetricRecords"),
        (lambda r: with_metrics(r, loss=1.0), "num-examples is None; it must be a number above 0"),
        (lambda r: with_metrics(r, **{"num-examples": 0}), "num-examples is 0"),
        (lambda r: with_metrics(r, **{"num-examples": float("nan")}), "num-examples is nan"),
        (lambda r: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_bad_reply_is_dropped_by_name_and_the_others_count(spoil, message, caplog):
    fleet = Fleet(spoil=lambda reply, index: spoil(reply) if index == 1 and "arrays" in reply.content else reply)
    with caplog.at_level(logging.WARNING, logger="flwr.fedsd"):
        strategy, result = run(fleet, config=(config := lora_config(4)))
    (record,) = [record for record in caplog.records if "dropped" in record.message]
    assert record.message.startswith("round 1: node 101 dropped: ")
    assert re.search(message, record.message)
    cut = fleet.mean(1, present=(0, 2))
    found = products(numpy_state(result.arrays), config)
    for layer, delta in cut.items():
        S = np.linalg.svd(delta, compute_uv=False)
        assert np.linalg.norm(found[layer] - delta) == pytest.approx(np.sum(S[4:] ** 2) ** 0.5, rel=1e-4, abs=1e-6)
    assert strategy.combination is not None and strategy.combination.weights == pytest.approx((0.25, 0.75))
    assert dict(result.train_metrics_clientapp[1]) == pytest.approx({"loss": 2 * 0.75})


def test_a_node_that_stays_silent_is_named(caplog):
    fleet = Fleet()
    fleet.grid.silent.add(102)
    with caplog.at_level(logging.WARNING, logger="flwr.fedsd"):
        run(fleet)
    assert "round 1: node 102 dropped: no reply within the timeout" in caplog.messages


def test_a_node_that_went_away_is_named_though_the_server_answers_for_it(caplog):
    fleet = Fleet(spoil=lambda reply, index: (fleet.grid.unplug(101), reply)[1] if index == 1 else reply)
    with caplog.at_level(logging.WARNING, logger="flwr.fedsd"):
        run(fleet, min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    assert any(
        message.startswith("round 1: node 101 dropped: the node is not available") for message in caplog.messages
    )


def test_a_round_without_a_usable_reply_ends_the_run_and_says_why():
    fleet = Fleet(spoil=lambda reply, index: without(reply, "metrics"))
    with pytest.raises(
        RuntimeError, match="round 1 brought no usable reply; node 100: its reply holds 0 MetricRecords"
    ):
        run(fleet)


def test_metrics_of_another_form_do_not_spoil_the_mean():
    def spoil(reply, index):
        return with_metrics(reply, **{"num-examples": 10, "loss": [1.0, 2.0]}) if index == 0 else reply

    _, result = run(Fleet(spoil=spoil))
    assert dict(result.train_metrics_clientapp[1]) == pytest.approx({"loss": (1 * 20 + 2 * 30) / 50})


def test_an_evaluation_without_a_good_reply_has_no_metrics():
    fleet = Fleet(spoil=lambda reply, index: reply if "arrays" in reply.content else with_metrics(reply, accuracy=1.0))
    _, result = run(fleet)
    assert result.evaluate_metrics_clientapp == {}


def test_without_training_there_is_nothing_to_aggregate():
    _, result = run(Fleet(), fraction_train=0.0)
    assert len(result.arrays) == 0 and len(result.evaluate_metrics_clientapp) == 1


def with_extra(**extra) -> ArrayRecord:
    state = numpy_state(initial(lora_config(4)))
    return ArrayRecord({key: Array(array) for key, array in (state | extra).items()})


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (
            lambda: LoRAStrategy("fedavg", peft_config={"r": 1, "lora_alpha": 1}),
            "rule must be one of fedit, .*'fedavg'",
        ),
        (lambda: LoRAStrategy(peft_config=lora_config(4)), r"pass LoraConfig\.to_dict\(\)"),
        (lambda: LoRAStrategy(peft_config={"r": 4}), "peft_config must be a mapping with r and lora_alpha"),
        (lambda: strategy_of("flexlora", lora_config(4, use_dora=True)), "use_dora is set: DoRA"),
        (lambda: strategy_of("flexlora", lora_config(4, bias="lora_only")), "the config trains a bias"),
        (lambda: LoRAStrategy(peft_config={"r": 4, "lora_alpha": 4, "peft_type": "LOHA"}), "peft_type is LOHA"),
    ],
)
def test_what_cannot_be_combined_is_refused_at_once(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (with_extra(**{f"{LINEAR}.lora_magnitude_vector": np.ones(11, np.float32)}), "lora_magnitude_vector is DoRA"),
        (with_extra(**{f"{LINEAR}.lora_B.bias": np.ones(11, np.float32)}), r"lora_B\.bias is a bias"),
        (ArrayRecord({"w": Array(np.ones(2, np.float32))}), "no LoRA factor; send what get_peft_model_state_dict"),
        (initial(lora_config(2)), "are not of rank 4"),
        (with_extra(**{HEAD: np.ones((3, 11), bool)}), f"{HEAD} is of type bool"),
    ],
)
def test_arrays_that_are_no_such_adapter_are_refused_before_a_message_is_sent(arrays, message):
    fleet = Fleet()
    with pytest.raises(ValueError, match=message):
        strategy_of("flexlora", lora_config(4)).start(grid=fleet.grid, initial_arrays=arrays)
    assert fleet.grid.asked == []
