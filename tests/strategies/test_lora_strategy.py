"""Real PEFT models behind a real ClientApp; only the training itself is replaced, by seeded noise."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from local_grid import LocalGrid, context
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from fedsd.lowrank import dense
from fedsd.strategies import RULES, LoRAStrategy
from fedsd.strategies.lora_strategy import frozen_side
from fedsd.strategies.peft_state import from_peft, is_lora

N = (10, 20, 30)
EQUAL, UNEQUAL = (4, 4, 4), (2, 3, 4)
UNITED = 9  # the sum of the unequal ranks: nothing is cut
LINEAR, SQUARE, IMAGE = (f"base_model.model.{name}" for name in ("first", "second", "image"))
HEAD = "base_model.model.head.weight"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(14, 11), nn.Linear(11, 11)
        self.image, self.head = nn.Conv2d(3, 12, 2), nn.Linear(11, 3)


def lora_config(rank: int, **options) -> LoraConfig:
    settings = {"r": rank, "lora_alpha": 8, "target_modules": ["first", "second", "image"], "modules_to_save": ["head"]}
    return LoraConfig(**(settings | options))


def make_model(config: LoraConfig):
    torch.manual_seed(0)
    return get_peft_model(Net(), config)


def initial(config: LoraConfig) -> ArrayRecord:
    return ArrayRecord(get_peft_model_state_dict(make_model(config)))


class Fleet:
    """Nodes 100, 101, …, their ranks, what they were sent, and what they sent back."""

    def __init__(
        self, ranks=EQUAL, *, alphas=None, obedient=True, answers=True, spoil=lambda reply, index: reply, **of
    ):
        self.configs = [lora_config(r, **of) for r in ranks]
        if alphas:
            self.configs = [lora_config(r, **of, lora_alpha=a) for r, a in zip(ranks, alphas, strict=True)]
        self.alphas, self.obedient, self.answers, self.spoil = alphas, obedient, answers, spoil
        self.received: list[list[Message]] = [[] for _ in ranks]
        self.sent: list[list[dict[str, np.ndarray]]] = [[] for _ in ranks]
        contexts = {100 + i: context(100 + i, **{"partition-id": i}) for i in range(len(ranks))}
        self.grid = LocalGrid(self.app(), contexts)

    def app(self) -> ClientApp:
        app = ClientApp()
        if self.answers:
            app.query("lora")(self.query)
        app.train()(self.train)
        app.evaluate()(self.evaluate)
        return app

    def query(self, message: Message, node: Context) -> Message:
        index = int(node.node_config["partition-id"])
        alpha = {"lora-alpha": self.alphas[index]} if self.alphas else {}
        record = MetricRecord({"rank": self.configs[index].r, **alpha})
        return Message(RecordDict({"lora": record}), reply_to=message)

    def train(self, message: Message, node: Context) -> Message:
        index = int(node.node_config["partition-id"])
        self.received[index].append(message)
        model = self.load(message, index)
        rng = np.random.default_rng([index, int(message.content["config"]["server-round"])])
        frozen = message.content["config"].get("lora-frozen", "") if self.obedient else ""
        state = {}
        for key, value in get_peft_model_state_dict(model).items():
            step = 0 if frozen and f".lora_{frozen}." in key else 0.1
            state[key] = (value.numpy() + step * rng.standard_normal(value.shape)).astype(np.float32)
        self.sent[index].append(state)
        records = {
            "arrays": ArrayRecord({key: Array(array) for key, array in state.items()}),
            "metrics": MetricRecord({"num-examples": N[index], "loss": float(index)}),
        }
        return self.spoil(Message(RecordDict(records), reply_to=message), index)

    def evaluate(self, message: Message, node: Context) -> Message:
        index = int(node.node_config["partition-id"])
        self.load(message, index)
        records = {"metrics": MetricRecord({"num-examples": N[index], "accuracy": float(index)})}
        return self.spoil(Message(RecordDict(records), reply_to=message), index)

    def load(self, message: Message, index: int):
        """As a stock client does it: PEFT raises when a shape does not fit."""
        model = make_model(self.configs[index])
        result = set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
        assert not result.unexpected_keys
        return model

    def mean(self, server_round: int, present=(0, 1, 2)) -> dict[str, np.ndarray]:
        """The exact mean of the products that were sent, dense, in float64."""
        loras = {k: products(self.sent[k][server_round - 1], self.configs[k]) for k in present}
        total = sum(N[k] for k in present)
        return {layer: sum(N[k] / total * loras[k][layer] for k in present) for layer in loras[present[0]]}


def products(state, config: LoraConfig) -> dict[str, np.ndarray]:
    factors = from_peft({k: a.astype(np.float64) for k, a in state.items() if is_lora(k)}, config.to_dict())
    return {layer: dense(factor) for layer, factor in factors.items()}


def numpy_state(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {key: array.numpy() for key, array in record.items()}


def strategy_of(rule: str, config: LoraConfig, **options) -> LoRAStrategy:
    return LoRAStrategy(rule=rule, peft_config=config.to_dict(), **options)


def run(fleet: Fleet, rule="flexlora", config=None, rounds=1, **options):
    config = config or lora_config(4)
    strategy = strategy_of(rule, config, **options)
    return strategy, strategy.start(grid=fleet.grid, initial_arrays=initial(config), num_rounds=rounds, timeout=5)


def assert_products(found, expected, rtol=1e-5):
    assert found.keys() == expected.keys()
    for layer, delta in expected.items():
        np.testing.assert_allclose(found[layer], delta, rtol=rtol, atol=rtol * np.abs(delta).max())


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


# --- what is refused before any node is asked


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
