"""Weights that make the mean of a cluster unbiased although its members take part at unequal rates.

Averaging whoever is there pulls the cluster towards the members that are there often: late replies, sleeping devices
and slow networks become a bias of style. Let C be the cluster, S ⊆ C the members whose update of this round can be
used, n_i their images, p_i the rate at which i takes part, and ΔΘ the cluster's adapter before the round. Then

    ΔΘ_c = Σ_{i∈S} u_i ΔΘ_i + Σ_{j∈C, j∉S} u_j ΔΘ,      u_i = n_i ω_i / Σ_{j∈C} n_j ω_j,      ω_i = 1 / p_i.

Every member has its place in the sum, and the adapter from before stands in for an absent one. With
ΔΘ* = Σ_{i∈C} n_i / n_c ΔΘ_i, the mean at full participation, and because S does not depend on the updates,

    E[ΔΘ_c | ΔΘ] = (1 - η) ΔΘ + η ΔΘ*,      η = Σ_j n_j / Σ_j n_j ω_j    in (0, 1],

so that a cluster whose members no longer change has ΔΘ* as its mean, whatever the rates are. The weights are >= 0 and
sum to 1, so the result stays among the updates; the same estimator with η = 1 overshoots when a rare client comes. The
price is time: what the cluster started with fades by 1 - η a round. With everybody there in every round ω = η = 1, and
it is line 11 of Algorithm 1 (arXiv 2508.04745).

Sources: inverse probability weights, Horvitz and Thompson (1952, JASA 47); on the difference to a value known before,
so that few present members do not shrink the sum, Cassel, Särndal and Wretman (1976, Biometrika 63); rates that nobody
knows are learned as the mean interval between two rounds of a client, with a cutoff, Wang and Ji (2024, arXiv
2306.03401, FedAU). Theirs counts whole intervals; here the one that is still open counts too, so that a rare client has
its weight from the second time it comes. MIFA (Gu et al. 2021, arXiv 2106.04159) needs no rates, but keeps an update
for each client.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace

from fedsd.lowrank import Array, LoRA
from fedsd.strategies.intra import median_rank
from fedsd.strategies.parts import FACTORS, of_parts
from fedsd.strategies.round import Client, Round
from fedsd.strategies.rules.flexlora import flexlora
from fedsd.tangent_mean import tangent_mean

PARTICIPATION = ("none", "inverse-rate")
CUTOFF = 50  # longest mean interval believed, in rounds: the weight of a client that may never come again is bounded


def mean_interval(client: Client | None, rounds_done: int) -> float:
    """ω_i = 1 / p_i of the round after `rounds_done`: rounds since its first, over those it took part in; in [1, 50].

    A client that was never there before counts as one that always is.
    """
    if client is None:
        return 1.0
    return min((rounds_done - client.first_round + 1) / client.rounds, CUTOFF)


def weigh(n: int, client: Client | None, rounds_done: int, participation: str) -> float:
    """n_i ω_i of a client with n images that is known as `client` from earlier rounds; n_i where rates play no role."""
    return n * mean_interval(client, rounds_done) if participation == "inverse-rate" else float(n)


def weight_of_absent(absent: Iterable[str], previous: Round | None, participation: str) -> float:
    """Σ_{j∈C, j∉S} n_j ω_j, the weight of the adapter from before; 0 where absent members are left out."""
    if previous is None or participation == "none":
        return 0.0
    known = [previous.clients[name] for name in sorted(absent)]
    return sum(weigh(client.n, client, previous.server_round, participation) for client in known)


def took_part(client: Client, before: Client | None, server_round: int) -> Client:
    """The client as its update shows it, with its history: `before` is what was known of it, None for a new one."""
    first, rounds = (before.first_round, before.rounds) if before else (server_round, 0)
    return replace(client, first_round=first, last_round=server_round, rounds=rounds + 1)


def still_there(clients: Mapping[str, Client], server_round: int, leave_after: int) -> dict[str, Client]:
    """The clients that took part in one of the `leave_after` rounds before `server_round`; where it is 0, all."""
    return {
        name: client
        for name, client in clients.items()
        if leave_after == 0 or server_round - client.last_round <= leave_after
    }


def adapter_before(members: AbstractSet[str], previous: Round | None, part: str = FACTORS) -> LoRA:
    """The adapter of a group of which nobody took part: the mean of the clusters that its members were in.

    part: see `parts`; empty for another one than the factors.
    """
    if previous is None:
        raise RuntimeError(f"clients {sorted(members)} are known from no round and sent no update")
    if part != FACTORS:
        return {}
    before = [previous.clients[name] for name in sorted(members)]
    if len({client.cluster for client in before}) == 1:
        return previous.clusters[before[0].cluster].lora
    rank = median_rank([client.rank for client in before])
    loras = [previous.clusters[client.cluster].lora for client in before]
    return flexlora(loras, [client.n for client in before], rank).lora


def arrays_before(members: AbstractSet[str], previous: Round | None, part: str) -> dict[str, Array]:
    """The same of one part of the arrays, see `parts`."""
    if previous is None:
        raise RuntimeError(f"clients {sorted(members)} are known from no round and sent no update")
    before = [previous.clients[name] for name in sorted(members)]
    held = [of_parts({part}, {}, previous.clusters[client.cluster].arrays)[1] for client in before]
    return tangent_mean(held, [client.n for client in before])
