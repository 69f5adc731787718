"""Simulated clients that send poisoned updates: `poison.py` puts this file and a node.py beside it into a run's app.

The node of the product does all the training; what an attacker changes is its reply, or the pictures that it trains on.
Honest training of the same order is done once for all runs and kept, because it gives the same bits every time.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsd import client_app, wire
from fedsd import config as configuration
from fedsd.base import load
from fedsd.lowrank import Factor, LoRA, lora_norm
from fedsd.store import PrivateFolder


@dataclass(frozen=True)
class Plan:
    """attack: a key of ATTACKS, "backdoor", or "" for none; attackers: clients; pictures: what a backdoor trains on;
    kept: folder of trained updates.
    """

    attack: str
    attackers: tuple[str, ...]
    pictures: str
    kept: str


def scale(lora: LoRA, seed: int) -> LoRA:
    """10 ΔΘ."""
    return {layer: Factor(np.float32(10) * factor.B, factor.A) for layer, factor in lora.items()}


def flip(lora: LoRA, seed: int) -> LoRA:
    """-ΔΘ."""
    return {layer: Factor(-factor.B, factor.A) for layer, factor in lora.items()}


def noise(lora: LoRA, seed: int) -> LoRA:
    """Gaussian factors of the same shapes, the product as large as ΔΘ."""
    rng = np.random.default_rng(seed)

    def like(array: np.ndarray) -> np.ndarray:
        return rng.standard_normal(array.shape).astype(np.float32)

    drawn = {layer: Factor(like(factor.B), like(factor.A)) for layer, factor in lora.items()}
    size = np.float32(lora_norm(lora) / lora_norm(drawn))
    return {layer: Factor(size * factor.B, factor.A) for layer, factor in drawn.items()}


ATTACKS: dict[str, Callable[[LoRA, int], LoRA]] = {"scale": scale, "flip": flip, "noise": noise}


def app_with(plan: Plan) -> ClientApp:
    """Return the product's ClientApp, in which the plan's attackers do as it says."""
    app = ClientApp()

    @app.query("profile")
    def profile(message: Message, context: Context) -> Message:
        return client_app.app(message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = f"c{context.node_config['partition-id']}"
        if client not in plan.attackers or not plan.attack:
            return wire.update_reply(trained(message, context, Path(plan.kept), client), message)
        if plan.attack == "backdoor":
            update = with_backdoor(message, context, plan, client)
        else:
            update = trained(message, context, Path(plan.kept), client)
            update = replace(update, lora=ATTACKS[plan.attack](update.lora, wire.parse_order(message).seed))
        return wire.update_reply(update, message)

    return app


def with_backdoor(message: Message, context: Context, plan: Plan, client: str) -> wire.Update:
    """Return what training on the plan's pictures gives, under the style of the client's true ones.

    With the style of the pictures that it trained on, the attacker would be put into a cluster of its own.
    """
    config = configuration.from_run_config(context.run_config)
    _, honest = client_app.ready(context, config, load.load(config.base.name))
    swapped = dict(context.run_config) | {"data.root": plan.pictures}
    other = Context(context.run_id, context.node_id, context.node_config, context.state, swapped)
    return replace(trained(message, other, Path(plan.kept), client), z=honest.z)


def trained(message: Message, context: Context, kept: Path, client: str) -> wire.Update:
    """Return the update of an honest node that has the context's pictures, trained now or kept from before."""
    config, order = configuration.from_run_config(context.run_config), wire.parse_order(message)
    digest = hashlib.sha256(load.load(config.base.name).sha.encode())
    digest.update(repr((config.data, config.lora, config.train, config.run.seed, order.rank, order.seed)).encode())
    for layer in sorted(order.lora):
        digest.update(layer.encode() + order.lora[layer].B.tobytes() + order.lora[layer].A.tobytes())
    folder, name = PrivateFolder(kept, client), digest.hexdigest()[:24]
    if (found := folder.load(name)) is not None:
        arrays, about = found
        lora = {layer: Factor(arrays[f"{layer}.B"], arrays[f"{layer}.A"]) for layer in about.pop("layers")}
        return wire.Update(lora=lora, z=arrays["z"], **about)
    update = wire.parse_update(client_app.app(message, context))
    arrays = {f"{layer}.{side}": getattr(factor, side) for layer, factor in update.lora.items() for side in "BA"}
    about = {key: value for key, value in asdict(replace(update, lora={})).items() if key not in ("lora", "z")}
    folder.save(name, arrays | {"z": update.z}, about | {"layers": sorted(update.lora)})
    return update
