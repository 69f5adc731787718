"""Four nodes of two styles behind a real ClientApp, and what a run over them tells."""

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from local_grid import LocalGrid, context

from fedsd.lowrank import Factor, dense
from fedsd.strategies import Round, Schedule, Settings, StyleClusteredLoRA
from fedsd.wire import Profile, Update, parse_order, profile_reply, update_reply

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
