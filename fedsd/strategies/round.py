"""What the server knows after a round, and the same as JSON values and named adapters for the store."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsd.lowrank import Array, LoRA
from fedsd.strategies.clustering import reach
from fedsd.strategies.parts import FACTORS, parts_in
from fedsd.tangent_mean import Arrays

GLOBAL, OPTIMISERS = ("mix", "neutral", "fedavg"), "optimisers"  # names among a round's arrays


@dataclass(frozen=True)
class Client:
    """What the server knows of a client. z: (D,); losses are those of the last round it took part in.

    first_round, last_round: the first and the last one it took part in; rounds: in how many it did. parts: what it
    shares, see `parts`.
    """

    cluster: int
    rank: int
    n: int
    z: Array
    loss_first: float
    loss_last: float
    first_round: int
    last_round: int
    rounds: int
    parts: tuple[str, ...] = (FACTORS,)


@dataclass(frozen=True)
class Cluster:
    """One style. n: images of all members; rank: of its adapter, 0 without factors; z: (D,) centroid; beta, d, tau: see
    `inter`; arrays: what its members share besides factors.
    """

    members: tuple[str, ...]
    n: int
    rank: int
    z: Array
    beta: float
    d: float
    tau: float
    lora: LoRA
    arrays: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """Everything the server knows after a round.

    present: names of the clients that took part, sorted; updates: their adapters, empty when they were folded as they
    came; lora_fedavg: their factor mean, for comparison; neutral_discarded:
    share of energy that the rank cap cost; change: ‖mix - mix before‖ / ‖mix before‖, None in the first round;
    next_id: first unused cluster id; silhouette: of the clustering, None when there is one cluster or no member has
    company; arrays: those of "mix", "neutral" and "fedavg"; directions: hash of the decomposition that arrays refer to;
    optimisers: client -> moments of its zeroth-order steps, where it sends scalars.
    """

    server_round: int
    clusters: Mapping[int, Cluster]
    clients: Mapping[str, Client]
    present: tuple[str, ...]
    updates: Mapping[str, LoRA]
    lora_mix: LoRA
    lora_neu: LoRA
    lora_fedavg: LoRA
    silhouette: float | None
    neutral_discarded: float
    change: float | None
    next_id: int
    arrays: Mapping[str, Arrays] = field(default_factory=dict)
    directions: str = ""
    optimisers: Mapping[str, Arrays] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Mean last loss of this round's clients, by images."""
        present = [self.clients[name] for name in self.present]
        return sum(client.n * client.loss_last for client in present) / sum(client.n for client in present)

    @property
    def reach(self) -> float:
        """Cosine distance within which a new client belongs to its nearest cluster."""
        return reach(np.stack([found.z for found in self.clusters.values()]))


def to_state(after: Round) -> tuple[dict[str, Any], dict[str, LoRA]]:
    """The round as JSON values and as named adapters: mix, neutral, fedavg, cluster-<id>, clients/<client>."""
    state = {
        "round": after.server_round,
        "clusters": {str(cluster_id): _plain(found, "lora", "arrays") for cluster_id, found in after.clusters.items()},
        "clients": {name: _plain(client) for name, client in after.clients.items()},
        "silhouette": after.silhouette,
        "neutral_discarded_energy": after.neutral_discarded,
        "change": after.change,
        "next_id": after.next_id,
        "present": list(after.present),
        "directions": after.directions,
    }
    adapters = {"mix": after.lora_mix, "neutral": after.lora_neu, "fedavg": after.lora_fedavg}
    adapters |= {f"cluster-{cluster_id}": found.lora for cluster_id, found in after.clusters.items()}
    return state, adapters | {f"clients/{name}": lora for name, lora in after.updates.items()}


def arrays_of(after: Round) -> dict[str, Arrays]:
    """The round's named arrays as named in `to_state`; empty where all that is shared are factors."""
    found = dict(after.arrays) | {f"cluster-{cluster_id}": one.arrays for cluster_id, one in after.clusters.items()}
    found |= {f"{OPTIMISERS}/{client}": moments for client, moments in after.optimisers.items()}
    return {name: arrays for name, arrays in found.items() if arrays}


def from_state(
    state: Mapping[str, Any], adapters: Mapping[str, LoRA], arrays: Mapping[str, Arrays] | None = None
) -> Round:
    """The round that `to_state` and `arrays_of` took apart, bit for bit."""
    arrays = arrays or {}
    clusters = {}
    for cluster_id, entry in state["clusters"].items():
        name = f"cluster-{cluster_id}"
        parts = {"members": tuple(entry["members"]), "lora": adapters[name], "arrays": arrays.get(name, {})}
        clusters[int(cluster_id)] = Cluster(**_numbers(entry) | parts)
    updates = {name.removeprefix("clients/"): lora for name, lora in adapters.items() if name.startswith("clients/")}
    return Round(
        server_round=state["round"],
        clusters=clusters,
        clients={name: _client(entry, clusters) for name, entry in state["clients"].items()},
        present=tuple(state["present"]),
        updates=updates,
        lora_mix=adapters["mix"],
        lora_neu=adapters["neutral"],
        lora_fedavg=adapters["fedavg"],
        silhouette=state["silhouette"],
        neutral_discarded=state["neutral_discarded_energy"],
        change=state["change"],
        next_id=state["next_id"],
        arrays={name: found for name, found in arrays.items() if name in GLOBAL},
        directions=state.get("directions", ""),
        optimisers={
            name.removeprefix(f"{OPTIMISERS}/"): found for name, found in arrays.items() if name.startswith(OPTIMISERS)
        },
    )


def _client(entry: Mapping[str, Any], clusters: Mapping[int, Cluster]) -> Client:
    """A client; where its parts were not kept, all clients of its cluster shared the same."""
    home = clusters[entry["cluster"]]
    parts = entry.get("parts", sorted(parts_in(home.lora, home.arrays)))
    return Client(**_numbers(entry) | {"parts": tuple(parts)})


def _plain(entry: Client | Cluster, *left_out: str) -> dict[str, Any]:
    values = {key: value for key, value in vars(entry).items() if key not in left_out}
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in values.items()}


def _numbers(entry: Mapping[str, Any]) -> dict[str, Any]:
    return dict(entry) | {"z": np.asarray(entry["z"], dtype=np.float32)}
