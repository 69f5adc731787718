"""The server's half of Algorithm 1 (arXiv 2508.04745): one round as a pure function, in the paper's order.

Updates are summed in order of client id, so the order of arrival changes no bit of the result.

Notation: ΔΘ_i update.lora, ΔΘ_c loras[k], ΔΘ_g,mix lora_mix, ΔΘ_g,neu lora_neu; z_k (K, D); d, tau, beta (K,).
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from fedsd.lowrank import Array, LoRA
from fedsd.strategies.change import relative_change
from fedsd.strategies.clustering import Clusters, Known, centroids, cluster, stable_ids
from fedsd.strategies.inter import mix, mix_weights, neutral, strengths, style_distance
from fedsd.strategies.intra import median_rank
from fedsd.strategies.participation import (
    PARTICIPATION,
    adapter_before,
    arrays_before,
    still_there,
    took_part,
    weigh,
    weight_of_absent,
)
from fedsd.strategies.parts import FACTORS, PARTS, SHIFTS, of_parts, parts_in
from fedsd.strategies.round import Client, Cluster, Round
from fedsd.strategies.rules import RULES, Rule
from fedsd.strategies.rules.hetlora import zero_padding
from fedsd.tangent_mean import Arrays, mean_where_held, tangent_mean
from fedsd.wire import Update

NO_CLUSTER = -1

# name -> (who forms a group, the rule that combines a group's updates, "" for Settings.inside)
STRATEGIES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "style-clustered": ("style", ""),
        "everyone": ("everyone", ""),
        "fedavg": ("everyone", "zero-padding"),
        "geometric-median": ("everyone", "geometric-median"),
        "flora": ("everyone", "flora"),
        "local": ("alone", "flora"),
    }
)


@dataclass(frozen=True)
class Settings:
    """How a round is aggregated.

    rule: a key of STRATEGIES; method, threshold, outliers: see `clustering.cluster`; alpha, formula: see
    `inter.mix_weights`; rank_cap: largest rank of mix and neutral; inside, across: the rules of `rules.RULES` that
    combine the clients of a cluster, where `rule` leaves it open, and the clusters in the mix and the neutral adapter;
    participation: how unequal rates of taking part are weighed, see `participation`; leave_after: rounds without a
    client after which it leaves the grouping, 0 for never;
    detect: updates that `detect.detect` suspects in their cluster are left out.
    """

    rule: str = "style-clustered"
    method: str = "agglomerative"
    threshold: float = 0.0
    outliers: str = "singleton"
    alpha: float = 0.5
    formula: str = "normalised"
    rank_cap: int = 64
    inside: str = "flexlora"
    across: str = "flexlora"
    participation: str = "none"
    leave_after: int = 0
    detect: bool = False

    def __post_init__(self) -> None:
        """Check the names and the cap."""
        if self.rule not in STRATEGIES:
            raise ValueError(f"strategy.name must be one of {', '.join(STRATEGIES)}; got {self.rule!r}")
        if self.rank_cap < 1:
            raise ValueError(f"neutral.rank must be >= 1, got {self.rank_cap}")
        if self.leave_after < 0:
            raise ValueError(f"cluster.leave-after must be >= 0 rounds, got {self.leave_after}")
        if self.participation not in PARTICIPATION:
            raise ValueError(
                f"strategy.participation must be one of {', '.join(PARTICIPATION)}; got {self.participation!r}"
            )
        if self.participation != "none" and self._inside != "flexlora":
            raise ValueError(
                f"strategy.participation weighs an exact mean of bounded rank, and {self._inside} is none; "
                'use strategy.inside = "flexlora", or strategy.participation = "none"'
            )
        usable = [name for name, entry in RULES.items() if not entry.asks_clients]
        for key, name in (("strategy.inside", self.inside), ("strategy.across", self.across)):
            if name not in usable:
                asked = f" ({RULES[name].asks_clients})" if name in RULES else ""
                raise ValueError(f"{key} must be one of {', '.join(usable)}; got {name!r}{asked}")

    @property
    def combine(self) -> Rule:
        """The rule that makes one adapter of a group's updates."""
        return RULES[self._inside].combine

    @property
    def streams(self) -> bool:
        """Whether the clients' updates can be folded as they come: nothing compares them, and the rule is a sum."""
        return RULES[self._inside].streams and not self.detect

    @property
    def _inside(self) -> str:
        return STRATEGIES[self.rule][1] or self.inside


@dataclass(frozen=True)
class Groups:
    """members: names in each of K groups; z_k: (K, D) their centroids; silhouette: of the clustering."""

    members: tuple[frozenset[str], ...]
    z_k: Array
    silhouette: float | None


@dataclass(frozen=True)
class Combined:
    """A round after step 2. clients: all that are known; loras: (K,) adapter of each group; lora_fedavg: factor mean of
    everybody; present: names of those who took part, sorted; updates: their adapters, where they are kept; arrays:
    (K,) what each group shares besides, none without it; arrays_fedavg: mean of everybody's; directions: see `Round`.
    """

    clients: Mapping[str, Client]
    groups: Groups
    loras: Sequence[LoRA]
    lora_fedavg: LoRA
    present: tuple[str, ...]
    updates: Mapping[str, LoRA]
    arrays: Sequence[Arrays] = ()
    arrays_fedavg: Arrays = field(default_factory=dict)
    directions: str = ""


def aggregate_round(updates: Sequence[Update], previous: Round | None, settings: Settings, server_round: int) -> Round:
    """One round of Algorithm 1, lines 7 to 21, from valid updates; ValueError when there is none.

    Clients that took no part keep their last z and stay in the grouping; a cluster without a part keeps its adapter.
    """
    if not updates:
        raise ValueError("no update to aggregate; a round needs at least one good reply")
    present = {update.client: update for update in sorted(updates, key=lambda update: update.client)}
    clients = clients_after(updates, previous, settings, server_round)
    # Step 1: dynamic clustering by style (l.7-8)
    groups = group(clients, settings)
    # Step 2: intra-cluster aggregation (l.9-12)
    found = [_shared(members, clients, present, previous, settings) for members in groups.members]
    loras = {name: update.lora for name, update in present.items() if update.lora}
    n = [update.n for update in present.values()]
    combined = Combined(
        clients,
        groups,
        [lora for lora, _ in found],
        zero_padding(list(loras.values()), [present[name].n for name in loras]).lora if loras else {},
        tuple(present),
        loras,
        [arrays for _, arrays in found],
        mean_where_held([update.arrays for update in present.values()], n),
        _directions(present.values(), previous),
    )
    return complete(combined, previous, settings, server_round)


def clients_after(
    updates: Sequence[Update], previous: Round | None, settings: Settings, server_round: int
) -> dict[str, Client]:
    """Everybody who is in the grouping of a round in which these updates came."""
    before = previous.clients if previous else {}
    came = {update.client: client_of(update, before.get(update.client), server_round) for update in updates}
    return still_there(before, server_round, settings.leave_after) | came


def complete(combined: Combined, previous: Round | None, settings: Settings, server_round: int) -> Round:
    """Step 3, inter-cluster aggregation (l.13-19), and everything the server knows after the round."""
    clients, members, loras = combined.clients, combined.groups.members, combined.loras
    z_k, arrays = combined.groups.z_k, combined.arrays or [{}] * len(loras)
    d, tau = style_distance(z_k), strengths(loras, arrays)
    beta = mix_weights(d, tau, settings.alpha, settings.formula)
    across = RULES[settings.across].combine
    lora_mix, _ = mix(loras, beta.tolist(), settings.rank_cap, across)
    lora_neu, discarded = neutral(loras, settings.rank_cap, across)
    arrays_mix, arrays_neu = mean_where_held(arrays, beta.tolist()), mean_where_held(arrays, [1] * len(arrays))

    ids, next_id = _ids(z_k, members, previous)
    of_client = {name: ids[k] for k, group in enumerate(members) for name in group}
    clients = {name: replace(clients[name], cluster=of_client[name]) for name in sorted(of_client)}
    clusters = {}
    for k in np.argsort(ids).tolist():
        names, rank = tuple(sorted(members[k])), max((factor.rank for factor in loras[k].values()), default=0)
        n = sum(clients[name].n for name in names)
        weighed = float(beta[k]), float(d[k]), float(tau[k])
        clusters[ids[k]] = Cluster(names, n, rank, z_k[k], *weighed, loras[k], arrays[k])
    return Round(
        server_round=server_round,
        clusters=clusters,
        clients=clients,
        present=combined.present,
        updates=combined.updates,
        lora_mix=lora_mix,
        lora_neu=lora_neu,
        lora_fedavg=combined.lora_fedavg,
        silhouette=combined.groups.silhouette,
        neutral_discarded=discarded,
        change=relative_change(lora_mix, arrays_mix, previous),
        next_id=next_id,
        arrays={"mix": arrays_mix, "neutral": arrays_neu, "fedavg": combined.arrays_fedavg},
        directions=combined.directions,
    )


def client_of(update: Update, before: Client | None, server_round: int) -> Client:
    """A client as its update shows it, in no cluster yet; before: what was known of it."""
    losses, parts = (update.loss_first, update.loss_last), tuple(sorted(parts_in(update.lora, update.arrays)))
    client = Client(NO_CLUSTER, update.rank, update.n, update.z, *losses, 0, 0, 0, parts)
    return took_part(client, before, server_round)


def group(clients: Mapping[str, Client], settings: Settings) -> Groups:
    """Group the clients by style, or as the strategy has it (l.8)."""
    names = sorted(clients)
    Z = np.stack([clients[name].z for name in names])
    grouping = STRATEGIES[settings.rule][0]
    if grouping == "style":
        n = [clients[name].n for name in names]
        found = cluster(Z, n, method=settings.method, threshold=settings.threshold, outliers=settings.outliers)
    else:
        found = Clusters(tuple(range(len(Z))) if grouping == "alone" else (0,) * len(Z), None)
    members: list[set[str]] = [set() for _ in range(max(found.labels) + 1)]
    for name, label in zip(names, found.labels, strict=True):
        members[label].add(name)
    return Groups(tuple(frozenset(group) for group in members), centroids(Z, found.labels), found.silhouette)


def _ids(z_k: Array, members: Sequence[AbstractSet[str]], previous: Round | None) -> tuple[list[int], int]:
    if previous is None:
        return list(range(len(z_k))), len(z_k)
    staying = set().union(*members)
    # a cluster that all members have left has no successor: its id goes with it, whoever comes into its place
    known = {
        cluster_id: Known(found.z, set(found.members))
        for cluster_id, found in previous.clusters.items()
        if staying & set(found.members)
    }
    ids = stable_ids(z_k, members, known, previous.reach, previous.next_id)
    return ids, max([previous.next_id - 1, *ids]) + 1


def _shared(
    members: AbstractSet[str], clients: Mapping[str, Client], present: Mapping[str, Update], previous: Round | None,
    settings: Settings,
) -> tuple[LoRA, Arrays]:  # fmt: skip
    """ΔΘ_c and arrays of a group (l.11): each part from those members whose method shares it."""
    lora: LoRA = {}
    arrays: dict[str, Array] = {}
    for part in PARTS:
        holders = {name for name in members if part in clients[name].parts}
        if holders:
            of_factors, of_arrays = _part(part, holders, present, previous, settings)
            lora, arrays = of_factors or lora, arrays | of_arrays
    return lora, arrays


def _part(
    part: str, members: AbstractSet[str], present: Mapping[str, Update], previous: Round | None, settings: Settings
) -> tuple[LoRA, dict[str, Array]]:
    """One part from the members that took part, see `participation`; else from the clusters that they were in."""
    taking_part = [present[name] for name in sorted(members) if name in present]
    if not taking_part:
        return adapter_before(members, previous, part), arrays_before(members, previous, part)
    rank = median_rank([update.rank for update in taking_part])
    held = [of_parts({part}, update.lora, update.arrays) for update in taking_part]
    loras, arrays = [lora for lora, _ in held], [values for _, values in held]
    weights = [weight_in(previous, update, settings) for update in taking_part]
    absent = members - present.keys()
    if (weight := weight_of_absent(absent, previous, settings.participation)) > 0:
        loras, weights = [*loras, adapter_before(absent, previous, part)], [*weights, weight]
        arrays = [*arrays, arrays_before(absent, previous, part)]
    lora = settings.combine(loras, weights, rank).lora if part == FACTORS else {}
    return lora, tangent_mean(arrays, weights)


def _directions(updates: Iterable[Update], previous: Round | None) -> str:
    """Hash of the decomposition of those that share shifts, all of which have one; else that known before."""
    found = (update.directions for update in updates if SHIFTS in parts_in(update.lora, update.arrays))
    return next(found, previous.directions if previous else "")


def weight_in(previous: Round | None, update: Update, settings: Settings) -> float:
    """The weight of an update in the sum of its group, before the weights are made to sum to 1."""
    if previous is None:
        return float(update.n)
    return weigh(update.n, previous.clients.get(update.client), previous.server_round, settings.participation)
