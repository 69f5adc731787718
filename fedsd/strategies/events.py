"""The longer events of a run, as the dicts that the run folder keeps one to a line."""

from collections.abc import Mapping
from typing import Any

from fedsd.strategies.detect import Scores
from fedsd.strategies.round import Round
from fedsd.wire import Update


def client_done(
    server_round: int, update: Update, encoding: str = "float32", bandwidth: float | None = None
) -> dict[str, Any]:
    """A client has sent an update that is sound by itself.

    bytes: payload of its arrays; encoding: in which they were asked for; bandwidth: bytes per second of the upload.
    """
    return {
        "event": "client.done",
        "round": server_round,
        "client": update.client,
        "rank": update.rank,
        "n": update.n,
        "loss_first": update.loss_first,
        "loss_last": update.loss_last,
        "seconds": update.seconds,
        "images_per_second": update.images_per_second,
        "bytes": update.bytes,
        "encoding": encoding,
        "bandwidth": bandwidth,
    }


def client_suspected(server_round: int, client: str, reason: str, scores: Scores) -> dict[str, Any]:
    """A client's update looks poisoned beside its cluster's and is left out; scores: see `detect.Scores`."""
    told = {"event": "client.suspected", "round": server_round, "client": client, "reason": reason}
    # JSON has no infinity
    return told | {key: float(min(max(value, -1e9), 1e9)) for key, value in vars(scores).items()}


def round_clusters(after: Round, error_bound: Mapping[int, float] | None = None) -> dict[str, Any]:
    """How a round grouped its clients; beta, d and tau are those of Algorithm 1, line 16.

    error_bound: see `intake.Outcome`; it is in the event when the replies were folded as they came.
    """
    clusters = {str(key): found for key, found in after.clusters.items()}
    folded = (
        {"error_bound": {str(key): bound for key, bound in sorted((error_bound or {}).items())}} if error_bound else {}
    )
    return folded | {
        "event": "round.clusters",
        "round": after.server_round,
        "clusters": {key: list(found.members) for key, found in clusters.items()},
        "silhouette": after.silhouette,
        "ranks": {name: client.rank for name, client in after.clients.items()},
        "median_rank": {key: found.rank for key, found in clusters.items()},
        "beta": {key: found.beta for key, found in clusters.items()},
        "d": {key: found.d for key, found in clusters.items()},
        "tau": {key: found.tau for key, found in clusters.items()},
    }
