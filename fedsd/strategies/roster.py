"""Which nodes there are, who they say they are, and which of them take part in a round (l.3 of Algorithm 1)."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from flwr.serverapp import Grid

from fedsd.strategies.exchange import exchange, patiently
from fedsd.wire import Profile, parse_profile, profile_query


def client_seed(run_seed: int, server_round: int, client: str) -> int:
    """A seed in [0, 2³¹) for one client in one round, the same on every machine."""
    digest = hashlib.sha256(f"{run_seed}/{server_round}/{client}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def wait_for_nodes(grid: Grid, at_least: int, timeout: float, poll: float) -> list[int]:
    """Ids of the nodes online, sorted, as soon as there are enough; RuntimeError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while len(nodes := sorted(patiently(grid.get_node_ids))) < at_least:
        if time.monotonic() >= deadline:
            raise RuntimeError(f"{len(nodes)} nodes are online and {at_least} are needed; waited {timeout:g} s")
        time.sleep(poll)
    return nodes


def ask_profiles(
    grid: Grid, nodes: Iterable[int], timeout: float, poll: float
) -> tuple[dict[int, Profile], dict[int, str], dict[int, float]]:
    """Profiles by node id, the reason for each node that has none, and the profiles' delays, see `exchange.Answer`."""
    profiles: dict[int, Profile] = {}
    reasons: dict[int, str] = {}
    delays: dict[int, float] = {}
    for found in exchange(grid, (profile_query(node) for node in nodes), timeout, poll):
        if found.reply is None:
            reasons[found.node_id] = found.problem
            continue
        try:
            profiles[found.node_id] = parse_profile(found.reply)
            delays[found.node_id] = found.delay
        except ValueError as error:
            reasons[found.node_id] = f"its profile is not valid: {error}"
    return profiles, reasons, delays


def misfits(profiles: Mapping[int, Profile]) -> dict[int, str]:
    """Nodes that cannot take part beside the others, with the reason: a client id used twice, or another base."""
    reasons: dict[int, str] = {}
    owner: dict[str, int] = {}
    for node in sorted(profiles):
        first = owner.setdefault(profiles[node].client, node)
        if first != node:
            reasons[node] = f"client id {profiles[node].client} is already used by another node; give each its own"
    bases = Counter(profile.base_sha for node, profile in profiles.items() if node not in reasons)
    for node, profile in profiles.items():
        most = bases.most_common(1)[0][0]
        if node not in reasons and profile.base_sha != most:
            reasons[node] = f"it has base {profile.base_sha[:12]}, not {most[:12]}; give all nodes the same base.name"
    return reasons


def available(clients: Sequence[str], shares: Mapping[str, float], run_seed: int, server_round: int) -> list[str]:
    """Those that may be asked in this round, sorted: each is in its own share of the rounds, 1 where none is given.

    Where that leaves nobody it is the one that came nearest to being there.
    """
    luck = {
        client: client_seed(run_seed, server_round, f"available/{client}") / 2**31 / shares.get(client, 1.0)
        for client in sorted(clients)
    }
    return [client for client in luck if luck[client] < 1] or sorted(luck, key=lambda client: luck[client])[:1]


def sample(clients: Sequence[str], fraction: float, seed: int) -> list[str]:
    """S_r ← random client subset (l.3): ⌈fraction · N⌉ of the clients, sorted; at least one where there is any."""
    size = min(len(clients), max(1, int(np.ceil(fraction * len(clients)))))
    if not clients:
        return []
    chosen = np.random.default_rng(seed).choice(len(clients), size, replace=False)
    return sorted(sorted(clients)[index] for index in chosen)
