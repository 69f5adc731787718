"""What became of the clusters between two rounds: opened, merged, split, retired, each with its reason.

Ids tell it: one that is new was opened or split off, one that is gone was merged or has retired
(`clustering.stable_ids` keeps an id with the style that it was given to, and none is given twice). Clients tell why:
those who were in a cluster before, and where they are now.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from fedsd.strategies.round import Cluster, Round


@dataclass(frozen=True)
class Change:
    """kind: opened, split, merged or retired; others: clusters that it came from or went to; reason: in words."""

    kind: str
    cluster: int
    others: tuple[int, ...]
    reason: str

    def event(self, server_round: int) -> dict[str, Any]:
        """The change as an event of the run."""
        about = {"round": server_round, "cluster": self.cluster, "others": list(self.others), "reason": self.reason}
        return {"event": f"cluster.{self.kind}", **about}


def changes(before: Round | None, after: Round) -> tuple[Change, ...]:
    """The changes from one round to the next, by cluster id; none in the first."""
    if before is None:
        return ()
    ids = sorted(before.clusters.keys() ^ after.clusters.keys())
    return tuple(_gone(key, before, after) if key in before.clusters else _new(key, before, after) for key in ids)


def _new(key: int, before: Round, after: Round) -> Change:
    found = after.clusters[key]
    came_from = Counter(before.clients[name].cluster for name in found.members if name in before.clients)
    names = ", ".join(found.members)
    if not came_from:
        nearest, distance = _nearest(found, before)
        return Change(
            "opened", key, (), f"{names}: not known before, and {distance:.3g} from cluster {nearest}, the nearest one"
        )
    moved = ", ".join(
        f"{distance:.3g} from cluster {other}" for other, distance in _distances(found, before, came_from)
    )
    return Change("split", key, tuple(sorted(came_from)), f"{names}: their style is now {moved}, where they were")


def _gone(key: int, before: Round, after: Round) -> Change:
    lost = before.clusters[key]
    went_to = Counter(after.clients[name].cluster for name in lost.members if name in after.clients)
    names = ", ".join(lost.members)
    if not went_to:
        absent = after.server_round - max(before.clients[name].last_round for name in lost.members)
        return Change("retired", key, (), f"{names}: away for {absent} rounds, and nobody else was in it")
    near = ", ".join(f"{distance:.3g} from cluster {other}" for other, distance in _distances(lost, after, went_to))
    return Change("merged", key, tuple(sorted(went_to)), f"{names}: their style was {near}, which they are in now")


def _nearest(found: Cluster, known: Round) -> tuple[int, float]:
    other = max(known.clusters, key=lambda key: float(found.z @ known.clusters[key].z))
    return other, 1 - float(found.z @ known.clusters[other].z)


def _distances(found: Cluster, known: Round, others: Counter[int]) -> list[tuple[int, float]]:
    """Cosine distances to clusters of another round."""
    return [(other, 1 - float(found.z @ known.clusters[other].z)) for other in sorted(others)]
