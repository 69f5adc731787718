"""What happened in a run, folded from the lines of events.jsonl."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Event = Mapping[str, Any]


@dataclass
class History:
    """A run so far. Of two events about the same thing the later one counts: a resumed run does a round again.

    status: "waiting" (no event yet), "running", "done" or "failed"; reason: why it failed; planned: number of rounds;
    profiles: by client; asked: clients by round; trained: client.done by (round, client); failures: client.failed by
    (round, client), in order of time; clusters: round.clusters by round; rounds: round.done by round; started: of the
    last start, which is a resume's.
    """

    status: str = "waiting"
    reason: str = ""
    converged: bool = False
    run: str = ""
    strategy: str = ""
    method: str = ""
    planned: int = 0
    started: datetime | None = None
    latest: datetime | None = None
    round_started: datetime | None = None
    profiles: dict[str, Event] = field(default_factory=dict)
    asked: dict[int, list[str]] = field(default_factory=dict)
    trained: dict[tuple[int, str], Event] = field(default_factory=dict)
    failures: dict[tuple[int, str], Event] = field(default_factory=dict)
    clusters: dict[int, Event] = field(default_factory=dict)
    rounds: dict[int, Event] = field(default_factory=dict)

    @property
    def clients(self) -> list[str]:
        """Every client that was heard of, in natural order: c2 before c10."""
        named = {*self.profiles, *(c for _, c in self.trained), *(c for _, c in self.failures)}
        return sorted(named.union(*self.asked.values()), key=natural)

    @property
    def current_round(self) -> int:
        """The last round that began; 0 before the first."""
        return max(self.asked, default=0)

    @property
    def cluster_of(self) -> dict[str, str]:
        """Client -> id of the cluster it was last seen in."""
        found: dict[str, str] = {}
        for server_round in sorted(self.clusters):
            for key, members in self.clusters[server_round]["clusters"].items():
                found |= dict.fromkeys(members, key)
        return found

    @property
    def seconds(self) -> float:
        """Time that the complete rounds took; a break before a resumed round does not count."""
        return sum(event["seconds"] for event in self.rounds.values())

    @property
    def uploaded(self) -> int:
        """Payload of all updates received, in bytes."""
        return sum(event["bytes"] for event in self.trained.values())


def read_history(events: Iterable[Event]) -> History:
    """Return the history of `events`, in the order in which they were written; kinds not known are passed over."""
    history = History()
    for event in events:
        history.latest = datetime.fromisoformat(event["time"])
        _fold(history, event)
    return history


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers inside names by value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def printable(text: str) -> str:
    """Return text from another machine on one line, without control characters, so that it cannot steer a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _fold(history: History, event: Event) -> None:
    key = (event.get("round", 0), event.get("client", ""))
    match event["event"]:
        case "run.start":
            _start(history, event)
        case "client.profile":
            history.profiles[key[1]] = event
        case "round.start":
            history.asked[key[0]] = event["clients"]
            history.round_started = history.latest
        case "client.done":
            history.trained[key] = event
            history.failures.pop(key, None)
        case "client.failed":
            history.failures[key] = {**event, "reason": printable(event["reason"])}
        case "round.clusters":
            history.clusters[key[0]] = event
        case "round.done":
            history.rounds[key[0]] = event
        case "run.done":
            history.status, history.converged = "done", event["converged"]
        case "run.failed":
            history.status, history.reason = "failed", printable(event["reason"])


def _start(history: History, event: Event) -> None:
    history.status, history.reason, history.converged = "running", "", False
    history.run, history.planned = event["run"], event["rounds"]
    history.strategy, history.method = event["strategy"], event["method"]
    history.started = history.latest
