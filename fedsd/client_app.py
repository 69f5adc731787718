"""The node's side in Flower: it unpacks an order, trains, and replies (Algorithm 1, ClientUpdate, lines 28-31).

The same code runs in simulation, where `partition-id` picks a share of one folder, and in deployment, where the node
config names the node's own folder: `name`, `data-root`, `private-dir`, `rank`, `method`, `key`.
"""

import logging
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads per actor on a busy machine were 100 times slower

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsd import config as configuration
from fedsd import wire
from fedsd.base import adapters, load
from fedsd.base.denoise import encode_pixels
from fedsd.base.training import Pictures, Shared
from fedsd.codec import with_feedback
from fedsd.data import shares
from fedsd.data.example import Example
from fedsd.data.images import pixels as read_pixels
from fedsd.lowrank import Array, Factor, LoRA
from fedsd.methods.table import METHODS, Method, Place, rates_in
from fedsd.privacy import key as federation
from fedsd.privacy.style import prompt_embedding, style_embedding
from fedsd.store import PrivateFolder
from fedsd.values import unknown_method

OWN = "own"  # name in the private folder of what a method keeps there
CACHE = ".cache"  # below the private folders: what any node of a machine finds of the base alone

app = ClientApp()
Own = Mapping[str, Array]


@dataclass(frozen=True)
class Node:
    """Who this node is and what it has: its stable id, its private folder and its pictures; place: where it trains."""

    client: str
    place: Place
    private: PrivateFolder
    examples: tuple[Example, ...]

    @property
    def method(self) -> Method:
        """What it trains."""
        return METHODS[self.place.config.method.name]


def private_root(directory: str) -> Path:
    """Return the folder under which nodes keep what never leaves them."""
    return Path(directory).expanduser() if directory else Path.home() / ".fedsd" / "nodes"


def identify(context: Context, config: configuration.Config) -> Node:
    """Return this node: by partition-id in simulation, by its node config in deployment.

    Its settings name the method that it trains, and its rank is 1 where that has no factors.
    """
    own = context.node_config
    if not _deployed(context):
        number, clients = int(own["partition-id"]), int(own["num-partitions"])
        client, rank = f"c{number}", config.lora.rank_of(number)
        config = config.of(client)
        root = private_root(config.node.private_dir)
        examples = shares.share(config.data, number, clients, config.run.seed, root)
    else:
        client, rank = str(own["name"]), int(own.get("rank", config.lora.rank_of(0)))
        config = config.training(str(own["method"])) if "method" in own else config.of(client)
        root = Path(str(own["private-dir"]))
        examples = shares.own(config.data, Path(str(own["data-root"])).expanduser())
    if not config.shares_factors:
        rank = 1
    return Node(client, Place(config, rank, root / CACHE), PrivateFolder(root, client), examples)


def hidden_style(z: np.ndarray, context: Context, config: configuration.Config) -> np.ndarray:
    """Return z (D,) as the server may see it: by the key of this node's federation, unless style.key is none."""
    if config.style.key == "none":
        return z
    if not _deployed(context):
        key = federation.simulated_key(private_root(config.node.private_dir))
    else:
        own = context.node_config
        key = federation.read_key(Path(str(own.get("key", Path(str(own["private-dir"])) / federation.FILE))))
    return federation.turn(z, key)


def _deployed(context: Context) -> bool:
    """Say whether this is a node with a folder of its own; ValueError names what its node config lacks or mistakes."""
    own = context.node_config
    if "partition-id" in own and "data-root" not in own:
        return False
    missing = [key for key in ("name", "data-root", "private-dir") if key not in own]
    if missing:
        raise ValueError(
            f'the node config lacks {", ".join(missing)}; pass --node-config \'name="a" data-root="…" private-dir="…"\''
        )
    if "method" in own and (why := unknown_method(str(own["method"]))):
        raise ValueError(f"the method in the node config is not known: {why}")
    return True


def style_of(node: Node, config: configuration.Config, pixels: np.ndarray) -> np.ndarray:
    """Return z_i (D,) from the pictures or the captions (line 30)."""
    if config.style.source == "prompts":
        return prompt_embedding(load.load_clip(), [example.caption for example in node.examples])
    return style_embedding(load.load_clip(), pixels)


@dataclass(frozen=True)
class Prepared:
    """What training needs of the pictures: scaled latents (N, 4, h, w) and z (D,)."""

    latents: torch.Tensor
    z: np.ndarray


def prepare(node: Node, config: configuration.Config, base: load.Base) -> Prepared:
    """Return latents and z, computed once and then read from the node's private folder."""
    size = config.base.size or base.size
    key = shares.fingerprint(node.examples, f"{base.sha}/{load.clip_sha()}/{size}/{config.style.source}")
    kept = node.private.load(f"prepared-{key}")
    if kept is not None:
        arrays, _ = kept
    else:
        pixels = read_pixels(node.examples, size)
        arrays = {"latents": encode_pixels(base, torch.from_numpy(pixels)).numpy(), "z": style_of(node, config, pixels)}
        node.private.save(f"prepared-{key}", arrays)
    return Prepared(torch.from_numpy(arrays["latents"]), arrays["z"].astype(np.float32))


def ready(context: Context, config: configuration.Config, base: load.Base) -> tuple[Node, Prepared]:
    """Return who this node is and its pictures, prepared, with z as it may leave.

    Flower sends an error's text to the server. The text of one about a deployed node's pictures or key names paths and
    captions, so it goes to the node's own log, and the server learns no more than that there is one.
    """
    deployed = _deployed(context)
    try:
        node = identify(context, config)
        prepared = prepare(node, config, base)
        return node, replace(prepared, z=hidden_style(prepared.z, context, config))
    except Exception as error:
        if not deployed:
            raise
        logging.getLogger(__name__).exception("the pictures or the key of this node cannot be used")
        kind = type(error).__name__
        what = "the pictures or the key of this node"
        raise ValueError(f"{what} cannot be used ({kind}); the node's own log says why") from None


def kept_before(private: PrivateFolder, run: str, last_round: int) -> dict[str, Array]:
    """Return what the node had kept to itself after `last_round` of this run, or nothing: then it begins anew.

    A reply that the server did not use is forgotten here as well, so that both know the same.
    """
    kept = private.load(OWN)
    rounds = {kept[1]["round"]: "after.", kept[1]["before"]: "before."} if kept and kept[1]["run"] == run else {}
    if kept is None or last_round not in rounds:
        return {}
    part = rounds[last_round]
    return {key.removeprefix(part): values for key, values in kept[0].items() if key.startswith(part)}


def keep(private: PrivateFolder, run: str, order: wire.Order, before: Own, after: Own) -> None:
    """Keep what stays on the node after a round, and what it began with; a method that keeps nothing leaves no file."""
    if before or after:
        both = {"before": before, "after": after}
        arrays = {f"{part}.{key}": values for part, held in both.items() for key, values in held.items()}
        private.save(OWN, arrays, {"run": run, "round": order.server_round, "before": order.last_round})


def with_kept_feedback(private: PrivateFolder, update: LoRA, run_id: int) -> LoRA:
    """Return what to send in int8 for `update`, and keep what rounding takes away for the next round of this run."""
    kept = private.load("owed")
    owed: LoRA = {}
    if kept is not None and kept[1]["run"] == run_id:
        owed = {layer: Factor(kept[0][f"{layer}.B"], kept[0][f"{layer}.A"]) for layer in kept[1]["layers"]}
    sent, owed = with_feedback(update, owed)
    arrays = {f"{layer}.{side}": getattr(factor, side) for layer, factor in owed.items() for side in ("A", "B")}
    private.save("owed", arrays, {"run": run_id, "layers": sorted(owed)})
    return sent


@app.query("profile")
def profile(message: Message, context: Context) -> Message:
    """Answer who this node is, what style its pictures have, what it trains and at what rank."""
    config = configuration.from_run_config(context.run_config)
    base = load.load(config.base.name)
    node, prepared = ready(context, config, base)
    own = node.place.config
    if own.shares_factors:
        adapters.check_rank(base, node.place.rank, own.lora.text_encoder, own.lora.convolutions)
    who = wire.Profile(node.client, prepared.z, len(node.examples), node.place.rank, base.sha, own.method.name)
    return wire.profile_reply(who, message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the node's own pictures from what is in the order; reply with what is shared, z, n, rank and loss.

    The order says at what rank and in which encoding the adapter is wanted. What the method does not share stays in the
    private folder for the next round.
    """
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config = configuration.from_run_config(context.run_config)
    order = wire.parse_order(message)
    base = load.load(config.base.name)
    node, prepared = ready(context, config, base)
    rates = rates_in(order.server_round, config.run.rounds)
    place, run = replace(node.place, rank=order.rank, rates=rates), config.run.folder or str(context.run_id)
    own = kept_before(node.private, run, order.last_round)
    pictures = Pictures(prepared.latents, [example.caption for example in node.examples])
    start, settings = Shared(order.lora, order.arrays), node.method.settings(place)
    fit = node.method.fit(base, pictures, start, own, seed=order.seed, settings=settings)
    keep(node.private, run, order, own, fit.own)
    lora = fit.shared.lora
    if order.encoding == "int8" and lora:
        lora = with_kept_feedback(node.private, lora, context.run_id)
    directions = node.method.directions(base, place)
    update = wire.Update(
        node.client, lora, prepared.z, len(pictures.captions), order.rank, base.sha, **vars(fit.progress),
        arrays=fit.shared.arrays, directions=directions, begun=int(own["steps"][0]) if "steps" in own else 0,
        method=place.config.method.name,
    )  # fmt: skip
    return wire.update_reply(update, message, encoding=order.encoding)
