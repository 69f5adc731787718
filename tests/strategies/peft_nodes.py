"""Real PEFT models behind a real ClientApp; only the training itself is replaced, by seeded noise."""

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from local_grid import LocalGrid, context
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from fedsd.lowrank import dense
from fedsd.strategies import LoRAStrategy
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
