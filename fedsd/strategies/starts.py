"""What a client of a round starts from: of what its cluster shares, the parts that its method can use."""

from dataclasses import dataclass

from fedsd.lowrank import Factor, LoRA, reseed
from fedsd.strategies.aggregate import NO_CLUSTER
from fedsd.strategies.arrivals import Arrival, arrays_start_of, arrive, start_of
from fedsd.strategies.parts import Parts, of_parts
from fedsd.strategies.round import Round
from fedsd.tangent_mean import Arrays
from fedsd.wire import Profile


@dataclass(frozen=True)
class Start:
    """cluster: id, -1 for none; last_round: the last in which the client's reply was used, 0 for never; arrival: how it
    was decided for a client that was never seen before.
    """

    cluster: int
    lora: LoRA
    arrays: Arrays
    last_round: int = 0
    arrival: Arrival | None = None


def start_for(profile: Profile, previous: Round | None, initial: LoRA, parts: Parts) -> Start:
    """Its own cluster's parts, the nearest one's for a new client, or the mix's; `initial` in the first round."""
    if previous is None:
        return Start(NO_CLUSTER, *of_parts(parts, initial, {}))
    if profile.client in previous.clients:
        client = previous.clients[profile.client]
        home = previous.clusters[client.cluster]
        return Start(client.cluster, *of_parts(parts, home.lora, home.arrays), client.last_round)
    found = arrive(profile.z, profile.n, previous)
    usable = of_parts(parts, start_of(found, previous), arrays_start_of(found, previous))
    return Start(NO_CLUSTER if found.kind == "new" else found.cluster, *usable, arrival=found)


def warm_start(lora: LoRA, seed: int) -> dict[str, Factor]:
    """The same ΔΘ, able to learn in every direction: see `lowrank.reseed`."""
    return {layer: reseed(lora[layer], [seed, index]) for index, layer in enumerate(sorted(lora))}
