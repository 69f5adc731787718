"""What a client that was never seen before starts from, decided by its style embedding alone (arrivals after round r).

Two thresholds come from the data. Two clients of one style that have n_i and n_j images lie about (1/n_i + 1/n_j) v / 2
apart (see `clustering`); the largest v that the known members show beside the rest of their clusters says how far a
client of the same style may be: `inner`. Half of the smallest distance between two clusters is `outer`: what is nearer
than that to a cluster is nearer to no other.

    reuse   within inner: the cluster's adapter as it is
    align   within outer: between the cluster's adapter and the mix, the more of the mix the farther away
    new     beyond: the mix; the next clustering gives it a group of its own, or not
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedsd.lowrank import Array, LoRA
from fedsd.strategies.intra import median_rank
from fedsd.strategies.parts import FACTORS
from fedsd.strategies.round import Client, Round
from fedsd.strategies.rules.flexlora import flexlora
from fedsd.tangent_mean import Arrays, tangent_sum

ALONE = 6.0  # distance, in units of the sampling noise, beyond which a client beside one cluster is of another style


@dataclass(frozen=True)
class Arrival:
    """kind: reuse, align or new; cluster: the nearest one; distance, inner, outer: cosine distances in [0, 2]."""

    kind: str
    cluster: int
    distance: float
    inner: float
    outer: float

    @property
    def reason(self) -> str:
        """The decision in words."""
        place = {"reuse": "within", "align": "between", "new": "beyond"}[self.kind]
        return (
            f"{self.kind}: its style is {self.distance:.3g} from cluster {self.cluster}, {place} the thresholds "
            f"{self.inner:.3g} (same style) and {self.outer:.3g} (nearer to no other)"
        )


def arrive(z: Array, n: int, known: Round) -> Arrival:
    """Decide for a client with style z (D,) and n images; ValueError when no cluster is known."""
    if not known.clusters:
        raise ValueError("no cluster is known yet; arrivals are decided after the first round")
    distances = {key: 1 - float(z @ found.z) for key, found in known.clusters.items()}
    nearest = min(distances, key=lambda key: (distances[key], key))
    inner = _spread(known) * (1 / n + 1 / max(known.clusters[nearest].n, 1))
    # one cluster has no neighbour to measure by: what two clients of another style are apart, in units of noise
    outer = known.reach / 2 if len(known.clusters) > 1 else (ALONE * inner or 1.0)
    outer = max(inner, outer)
    distance = distances[nearest]
    kind = "reuse" if distance <= inner else "align" if distance <= outer else "new"
    return Arrival(kind, nearest, distance, inner, outer)


def start_of(arrival: Arrival, known: Round) -> LoRA:
    """The adapter that the client starts from."""
    cluster = known.clusters[arrival.cluster]
    if arrival.kind == "new" or not cluster.lora:
        return known.lora_mix
    if arrival.kind == "reuse":
        return cluster.lora
    rank = median_rank([client.rank for client in known.clients.values() if FACTORS in client.parts])
    return flexlora([cluster.lora, known.lora_mix], _shares(arrival), rank).lora


def arrays_start_of(arrival: Arrival, known: Round) -> Arrays:
    """The arrays that the client starts from; the mix's where the cluster has none of a name."""
    mix, near = known.arrays.get("mix", {}), known.clusters[arrival.cluster].arrays
    between = [near, {name: values for name, values in mix.items() if name in near}]
    return {**mix, **tangent_sum(between, _shares(arrival))}


def _shares(arrival: Arrival) -> list[float]:
    """Of the nearest cluster and of the mix, summing to 1."""
    if arrival.kind != "align":
        return [1.0, 0.0] if arrival.kind == "reuse" else [0.0, 1.0]
    share = (arrival.distance - arrival.inner) / (arrival.outer - arrival.inner)
    return [1 - share, share]


def _spread(known: Round) -> float:
    """Largest distance of a member to the centroid of the others in its cluster, in units of 1/n_i + 1/n_others."""
    largest = 0.0
    for found in known.clusters.values():
        members: Mapping[str, Client] = {name: known.clients[name] for name in found.members}
        for name, client in members.items():
            others = [other for key, other in members.items() if key != name]
            if others:
                centre = np.mean([other.z for other in others], axis=0)
                distance = 1 - float(client.z @ centre / np.linalg.norm(centre))
                largest = max(largest, distance / (1 / client.n + 1 / sum(other.n for other in others)))
    return largest
