"""What happens to the good replies of a round: held until all are there, or folded as they come."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from fedsd.lowrank import LoRA, lora_norm
from fedsd.strategies.accumulator import Accumulator, FactorAccumulator
from fedsd.strategies.aggregate import (
    NO_CLUSTER,
    Combined,
    Groups,
    Settings,
    aggregate_round,
    client_of,
    clients_after,
    complete,
    group,
    weight_in,
)
from fedsd.strategies.clustering import centroids
from fedsd.strategies.detect import Scores, detect
from fedsd.strategies.intra import median_rank
from fedsd.strategies.participation import adapter_before, still_there, weight_of_absent
from fedsd.strategies.round import Client, Round
from fedsd.strategies.validate import Expected, Limits, beside, compare, filled, majority, shapes
from fedsd.wire import Profile, Update

LOG = logging.getLogger("flwr.fedsd")
STAND_IN = "(before)"  # whose adapter stands in for absent members; no client can have this name


@dataclass(frozen=True)
class Outcome:
    """A round, None when no reply could be used; reasons: client -> why it was dropped at the end; capped: client -> n
    used; error_bound: cluster id -> largest possible ‖error‖_F / ‖adapter‖_F of its mean, where it was streamed;
    suspected: client -> scores of those that were dropped as poisoned.
    """

    after: Round | None
    reasons: Mapping[str, str] = field(default_factory=dict)
    capped: Mapping[str, int] = field(default_factory=dict)
    error_bound: Mapping[int, float] = field(default_factory=dict)
    suspected: Mapping[str, Scores] = field(default_factory=dict)


class Intake(Protocol):
    """Takes sound updates one at a time and makes a round of them."""

    def take(self, update: Update, norm: float) -> None:
        """Take in an update whose product has norm ‖ΔΘ‖_F; ValueError with the reason when it does not fit in."""

    def finish(self, server_round: int) -> Outcome:
        """The round, when no more replies will come."""


def open_intake(
    profiles: Sequence[Profile], previous: Round | None, settings: Settings, limits: Limits, cap: int
) -> Intake:
    """The intake of a round: streamed under `cap` columns, held where that is 0 or the rule compares the clients."""
    expected = _expected(previous, profiles) if previous else None
    if cap and settings.streams:
        return Streamed(profiles, previous, settings, limits, expected, cap)
    if cap:
        why = "strategy.detect" if settings.detect else "the rule"
        LOG.info("%s compares the clients' updates, so all of a round's are held in memory", why)
    return Held(previous, settings, limits, expected)


@dataclass
class Held:
    """Keeps every reply: what rules need that compare clients, and what gives one order of summation its bits."""

    previous: Round | None
    settings: Settings
    limits: Limits
    expected: Expected | None
    updates: list[Update] = field(default_factory=list)
    norms: dict[str, float] = field(default_factory=dict)

    def take(self, update: Update, norm: float) -> None:
        """Keep it; it is judged beside the others at the end."""
        self.updates.append(update)
        self.norms[update.client] = norm

    def finish(self, server_round: int) -> Outcome:
        """Drop the odd ones and aggregate the others together."""
        verdict = compare(self.updates, self.norms, self.limits, self.expected)
        reasons: dict[str, str] = {}
        scores: dict[str, Scores] = {}
        if self.settings.detect:
            reasons, scores = _suspects(verdict.good, self.previous, self.settings, server_round)
        good = [update for update in verdict.good if update.client not in reasons]
        after = aggregate_round(good, self.previous, self.settings, server_round) if good else None
        return Outcome(after, dict(verdict.reasons) | reasons, verdict.capped, suspected=scores)


class Streamed:
    """Folds each reply into its group's accumulator and lets it go: memory grows with groups, not with clients.

    Groups are formed before the replies come, from the profiles. A reply is judged beside those that came before it.
    """

    def __init__(
        self,
        profiles: Sequence[Profile],
        previous: Round | None,
        settings: Settings,
        limits: Limits,
        expected: Expected | None,
        cap: int,
    ) -> None:
        self.previous, self.settings, self.limits, self.expected = previous, settings, limits, expected
        self._before = (
            still_there(previous.clients, previous.server_round + 1, settings.leave_after) if previous else {}
        )
        self._n_cap = int(limits.n_over_median * sorted(one.n for one in profiles)[(len(profiles) - 1) // 2])
        announced = {
            one.client: Client(NO_CLUSTER, one.rank, min(one.n, self._n_cap), one.z, np.nan, np.nan, 0, 0, 0)
            for one in profiles
        }
        self._groups = group(self._before | announced, settings)
        self._group_of = {name: k for k, members in enumerate(self._groups.members) for name in members}
        self._sums = [Accumulator(cap) for _ in self._groups.members]
        self._factors = FactorAccumulator()
        self._norms: dict[str, float] = {}
        self._came: dict[str, Client] = {}
        self._capped: dict[str, int] = {}

    def take(self, update: Update, norm: float) -> None:
        """Fold it; only who it came from, its style and its counts are kept."""
        if update.arrays:
            raise ValueError("it shares more than factors, which strategy.stack-cap cannot fold; set it to 0")
        if update.client not in self._group_of:
            raise ValueError("it sent no profile before the round, so its style is not known")
        expected = filled(self.expected, majority([update]))
        if why := beside(update, norm, self._norms, self.limits, expected):
            raise ValueError(why)
        self.expected = expected
        if update.n > self._n_cap:
            self._capped[update.client] = self._n_cap
            update = replace(update, n=self._n_cap)
        weight = weight_in(self.previous, update, self.settings)
        self._sums[self._group_of[update.client]].add(update.client, update.lora, weight)
        self._factors.add(update.lora, update.n)
        self._norms[update.client] = norm
        known = self.previous.clients if self.previous else {}
        server_round = self.previous.server_round + 1 if self.previous else 1
        self._came[update.client] = client_of(update, known.get(update.client), server_round)

    def finish(self, server_round: int) -> Outcome:
        """The round from the sums; clients that are known from nowhere but their profile do not stay in the groups."""
        if not self._came:
            return Outcome(None)
        clients = self._before | self._came
        kept = [k for k, members in enumerate(self._groups.members) if members & clients.keys()]
        members = [self._groups.members[k] & clients.keys() for k in kept]
        names = sorted(clients)
        label = {name: index for index, group in enumerate(members) for name in group}
        z_k = centroids(np.stack([clients[name].z for name in names]), [label[name] for name in names])
        found = [self._adapter(k, group) for k, group in zip(kept, members, strict=True)]
        combined = Combined(
            clients,
            Groups(tuple(members), z_k, self._groups.silhouette),
            [lora for lora, _ in found],
            self._factors.mean(),
            tuple(sorted(self._came)),
            {},
        )
        after = complete(combined, self.previous, self.settings, server_round)
        bounds = {after.clients[min(group)].cluster: bound for group, (_, bound) in zip(members, found, strict=True)}
        return Outcome(after, {}, self._capped, bounds)

    def _adapter(self, k: int, members: frozenset[str]) -> tuple[LoRA, float]:
        """A group's adapter, and the bound on its mean's error as a share of its norm."""
        came = [name for name in sorted(members) if name in self._came]
        if not came:
            return adapter_before(members, self.previous), 0.0
        absent = members - self._came.keys()
        if (weight := weight_of_absent(absent, self.previous, self.settings.participation)) > 0:
            self._sums[k].add(STAND_IN, adapter_before(absent, self.previous), weight)
        exact, bound = self._sums[k].mean()
        rank = median_rank([self._came[name].rank for name in came])
        size, off = lora_norm(exact), sum(error**2 for error in bound.values()) ** 0.5
        return self.settings.combine([exact], [1.0], rank).lora, off / size if size else 0.0


def _suspects(
    updates: Sequence[Update], previous: Round | None, settings: Settings, server_round: int
) -> tuple[dict[str, str], dict[str, Scores]]:
    """Clients whose updates look poisoned beside those of their cluster: why, and their scores."""
    present = {update.client: update for update in updates}
    clients = clients_after(updates, previous, settings, server_round)
    unproven = {name for name in present if previous and not _used(name, previous)}
    reasons: dict[str, str] = {}
    scores: dict[str, Scores] = {}
    for members in group(clients, settings).members if present else ():
        loras = {name: present[name].lora for name in sorted(members) if name in present}
        found = detect(loras, unproven)
        reasons |= found.suspected
        scores |= {name: found.scores[name] for name in found.suspected}
        if found.undecided:
            LOG.info("no client of the cluster of %s is suspected: %s", ", ".join(sorted(members)), found.undecided)
    return reasons, scores


def _used(name: str, previous: Round) -> bool:
    """Whether the round before used an update of this client."""
    return name in previous.clients and previous.clients[name].last_round == previous.server_round


def _expected(previous: Round, profiles: Sequence[Profile]) -> Expected:
    layers = shapes(previous.lora_mix, previous.arrays.get("mix", {}))
    z_size = next(iter(previous.clients.values())).z.size
    return Expected(layers, z_size, profiles[0].base_sha, previous.directions)
