import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg
from peft_nodes import (
    EQUAL,
    HEAD,
    SQUARE,
    UNEQUAL,
    UNITED,
    Fleet,
    N,
    assert_products,
    initial,
    lora_config,
    make_model,
    numpy_state,
    products,
    run,
    strategy_of,
)

from fedsd.lowrank import dense
from fedsd.strategies import RULES
from fedsd.strategies.lora_strategy import frozen_side


def test_with_the_factor_mean_the_result_is_that_of_fedavg():
    config = lora_config(4)
    ours, theirs = Fleet(), Fleet()
    _, result = run(ours, "fedit", rounds=2)
    expected = FedAvg().start(grid=theirs.grid, initial_arrays=initial(config), num_rounds=2)
    assert list(result.arrays) == list(initial(config))
    for key, array in numpy_state(result.arrays).items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected.arrays[key].numpy(), rtol=1e-5, atol=1e-6)
    assert dict(result.train_metrics_clientapp[2]) == pytest.approx(dict(expected.train_metrics_clientapp[2]))
    assert dict(result.evaluate_metrics_clientapp[2]) == pytest.approx({"accuracy": (0 * 10 + 1 * 20 + 2 * 30) / 60})


@pytest.mark.parametrize("rule", RULES)
def test_clients_of_every_rule_can_load_what_they_are_sent(rule):
    one_rank = RULES[rule].one_rank
    fleet = Fleet(EQUAL if one_rank else UNEQUAL)
    _, result = run(fleet, rule, rounds=3, ask_ranks=not one_rank)
    assert [len(sent) for sent in fleet.sent] == [3, 3, 3]
    assert {key: array.shape for key, array in numpy_state(result.arrays).items()} == {
        key: array.shape for key, array in numpy_state(initial(lora_config(4))).items()
    }
    assert all(np.isfinite(array).all() for array in numpy_state(result.arrays).values())


@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"rank_pattern": {"second": 11, "image": 12}, "alpha_pattern": {"image": 5}}],
)
def test_the_result_is_the_exact_mean_of_products_of_unequal_rank(options):
    fleet, config = Fleet(UNEQUAL, **options), lora_config(UNITED, **options)
    _, result = run(fleet, config=config, rounds=2, ask_ranks=True)
    assert_products(products(numpy_state(result.arrays), config), fleet.mean(2))


def test_a_client_with_its_own_alpha_is_weighed_by_it():
    fleet, config = Fleet(UNEQUAL, alphas=(2.0, 24.0, 7.0)), lora_config(UNITED)
    _, result = run(fleet, config=config, rounds=2, ask_ranks=True)
    assert_products(products(numpy_state(result.arrays), config), fleet.mean(2))


def test_every_client_gets_the_best_cut_at_its_own_rank():
    fleet, config = Fleet(UNEQUAL), lora_config(UNITED)
    run(fleet, config=config, rounds=2, ask_ranks=True)
    mean = fleet.mean(1)
    for index, rank in enumerate(UNEQUAL):
        sent = products(numpy_state(fleet.received[index][1].content["arrays"]), fleet.configs[index])
        for layer, delta in mean.items():
            S = np.linalg.svd(delta, compute_uv=False)
            assert np.linalg.norm(sent[layer] - delta) == pytest.approx(np.sum(S[rank:] ** 2) ** 0.5, rel=1e-4)


def test_arrays_that_are_no_adapter_are_averaged_plainly():
    fleet = Fleet()
    _, result = run(fleet)
    expected = sum(n / 60 * fleet.sent[k][0][HEAD].astype(np.float64) for k, n in enumerate(N))
    np.testing.assert_allclose(result.arrays[HEAD].numpy(), expected, rtol=1e-6)


def test_nodes_of_the_configs_rank_get_the_global_arrays_bit_for_bit():
    config = lora_config(3, lora_alpha=7)  # 7 / 3 is no power of 2: folding it in and out again would round
    fleet, strategy = Fleet((3, 3, 3), lora_alpha=7), strategy_of("flexlora", config)
    rng = np.random.default_rng(0)
    state = {k: rng.standard_normal(a.shape).astype(np.float32) for k, a in numpy_state(initial(config)).items()}
    arrays = ArrayRecord({key: Array(array) for key, array in state.items()})
    strategy.start(grid=fleet.grid, initial_arrays=arrays, num_rounds=1)
    for key, array in numpy_state(fleet.received[0][0].content["arrays"]).items():
        np.testing.assert_array_equal(array, state[key])


def test_the_order_of_arrival_changes_no_bit():
    found = []
    for turn in (1, -1):
        fleet, strategy = Fleet(), strategy_of("flexlora", lora_config(4))
        asked = strategy.configure_train(1, initial(lora_config(4)), ConfigRecord(), fleet.grid)
        arrays, _ = strategy.aggregate_train(1, list(fleet.grid.send_and_receive(asked))[::turn])
        found.append(numpy_state(arrays))
    for key, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][key])


# --- rules that ask something of clients


@pytest.mark.parametrize(("rule", "sides"), [("ffa", "AAA"), ("fedsvd", "AAA"), ("rolora", "ABA")])
def test_the_train_config_names_the_factor_to_freeze(rule, sides):
    fleet = Fleet()
    _, result = run(fleet, rule, config=(config := lora_config(4)), rounds=3)
    assert [message.content["config"]["lora-frozen"] for message in fleet.received[0]] == list(sides)
    assert [frozen_side(rule, r) for r in (1, 2, 3)] == list(sides)
    assert_products(products(numpy_state(result.arrays), config), fleet.mean(3))


def test_clients_that_train_a_frozen_factor_are_dropped_by_name():
    with pytest.raises(RuntimeError, match=r"node 100: it has trained .*lora_A.weight, which ffa keeps as it was sent"):
        run(Fleet(obedient=False), "ffa")


def test_a_node_of_another_rank_is_left_out_where_the_rule_needs_one(caplog):
    fleet = Fleet((4, 2, 4))
    with caplog.at_level(logging.WARNING, logger="flwr.fedsd"):
        run(fleet, "fedit", ask_ranks=True)
    assert [len(sent) for sent in fleet.sent] == [1, 0, 1]
    assert (
        "round 1: node 101 dropped: it has rank 2 and lora_alpha 8, and fedit needs 4 and 8 of all; use flexlora"
        in (caplog.messages)
    )


def test_fedsa_gives_every_client_its_own_b_and_the_common_a():
    fleet = Fleet(UNEQUAL)
    run(fleet, "fedsa", rounds=2, ask_ranks=True)
    sides = [{k: sent[0][f"{SQUARE}.lora_{k}.weight"] for k in "AB"} for sent in fleet.sent]
    mean_a = sum(
        n / 60 * np.pad(side["A"], ((0, 4 - len(side["A"])), (0, 0))) for n, side in zip(N, sides, strict=True)
    )
    for index, rank in enumerate(UNEQUAL):
        received = numpy_state(fleet.received[index][1].content["arrays"])
        np.testing.assert_allclose(received[f"{SQUARE}.lora_B.weight"], sides[index]["B"], rtol=1e-6)
        np.testing.assert_allclose(received[f"{SQUARE}.lora_A.weight"], mean_a[:rank], rtol=1e-5, atol=1e-7)


def test_fedex_base_residual_and_adapter_are_the_exact_mean_in_every_round():
    fleet, config = Fleet(), lora_config(4)
    strategy, result = run(fleet, "fedex", rounds=3, config=config)
    assert "residual" not in fleet.received[0][0].content
    base = {layer: np.zeros_like(delta) for layer, delta in fleet.mean(1).items()}
    for server_round in (1, 2, 3):
        if server_round > 1:
            record = numpy_state(fleet.received[0][server_round - 1].content["residual"])
            base = {layer: record[f"{layer}.B"].astype(float) @ record[f"{layer}.A"] for layer in base}
        exact = {layer: base[layer] + delta for layer, delta in fleet.mean(server_round).items()}
    adapter = products(numpy_state(result.arrays), config)
    total = {layer: adapter[layer] + dense(strategy.residual[layer]) for layer in adapter}
    assert_products(total, exact)
    assert all(factor.rank <= min(factor.shape) for factor in strategy.residual.values())


def test_the_summary_says_what_the_rule_asks_of_clients(caplog):
    with caplog.at_level(logging.INFO, logger="flwr.fedsd"):
        strategy_of("ffa", lora_config(4)).summary()
        strategy_of("flexlora", lora_config(4)).summary()
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["the rule ffa asks something of clients: clients freeze A"]
    assert "\t└──> Rule: flexlora" in caplog.messages


# --- docs/lora-strategy.md

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "lora-strategy.md").read_text(encoding="utf-8")


def snippet(containing: str) -> str:
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if containing in code]
    return found


def test_the_page_lists_every_rule():
    table = PAGE.partition("## Rules")[2]
    assert sorted(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == sorted(RULES)
    assert len(RULES) == 18  # README.md says eighteen


def test_the_pages_way_to_freeze_freezes_that_factor_alone():
    fleet = Fleet()
    run(fleet, "ffa")
    model = make_model(lora_config(4))
    exec(snippet("lora-frozen"), {"message": fleet.received[0][0], "model": model})
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            assert parameter.requires_grad == (".lora_B." in name)


def test_the_pages_way_to_add_the_residual_adds_it_to_the_base():
    fleet = Fleet()
    run(fleet, "fedex", rounds=2)
    exact = fleet.mean(1)  # in the second round, base and adapter are the exact mean of the first
    message, model = fleet.received[0][1], fleet.load(fleet.received[0][1], 0)
    fresh = make_model(lora_config(4))
    exec(snippet("residual"), {"message": message, "model": model, "torch": torch})
    for layer, delta in exact.items():
        module = model.get_submodule(layer)
        moved = module.base_layer.weight + module.get_delta_weight("default")
        added = (moved - fresh.get_submodule(layer).base_layer.weight).detach().numpy()
        np.testing.assert_allclose(added.reshape(delta.shape), delta, rtol=1e-4, atol=1e-6)


def test_a_node_that_does_not_say_its_rank_is_left_out_and_none_at_all_ends_the_run():
    with pytest.raises(RuntimeError, match=r'no node can take part; node 100: it did not answer @app.query\("lora"\)'):
        run(Fleet(answers=False), ask_ranks=True)


def test_a_node_is_asked_for_its_rank_once():
    fleet = Fleet(UNEQUAL)
    run(fleet, rounds=3, ask_ranks=True)
    assert [message.metadata.message_type for message in fleet.grid.asked].count("query.lora") == 3


def test_it_needs_neither_torch_nor_peft():
    heavy = {"torch", "diffusers", "transformers", "peft"}
    code = f"import sys, fedsd.strategies; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
