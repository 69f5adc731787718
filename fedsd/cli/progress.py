"""Plain progress lines of a run, one per client and round, from its events.jsonl."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]


class Progress:
    """Prints what is new in a run's events at each `poll`."""

    def __init__(self, folder: Path, show: Callable[[str], None]) -> None:
        self._file = folder / "events.jsonl"
        self._show = show
        self._read = self._file.stat().st_size if self._file.exists() else 0
        self._rounds = 0
        self._heard = time.monotonic()
        self._clients: dict[str, Event] = {}
        self.ended = False
        self.failures = 0
        self.messages = 0
        self.rounds = 0
        self.reason = ""

    @property
    def quiet_for(self) -> float:
        """Seconds since the last event."""
        return time.monotonic() - self._heard

    def rest(self) -> None:
        """Count silence from now."""
        self._heard = time.monotonic()

    def poll(self) -> None:
        """Print all events that were written since the last call."""
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            file.seek(self._read)
            for line in file.read().splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._heard = time.monotonic()
                self._print(json.loads(line))

    def _print(self, event: Event) -> None:
        where = f"r{event.get('round', 0)}/{self._rounds}"
        match event["event"]:
            case "run.start":
                self._rounds = event["rounds"]
            case "client.profile":
                self._clients[event["client"]] = event
            case "round.start":
                self.messages += len(event["clients"])
                self._show(f"{where}  {len(event['clients'])} clients start")
            case "client.done" | "client.failed" | "client.unknown":
                self._show(f"{where}  {event['client']:<4} {self._client(event)}")
            case "round.clusters":
                self._show(f"{where}  {_clusters(event)}")
            case "round.done":
                self.rounds = event["round"]
                change = "" if event["change"] is None else f"  change {event['change']:.2f}"
                self._show(f"{where}  loss {event['loss']:.3f}{change}  {event['seconds']:.1f} s")
            case "run.done":
                self.ended = True
                self._show("converged" if event["converged"] else f"done  {event['rounds']} rounds")
            case "run.failed":
                self.ended, self.reason = True, _one_line(event["reason"])

    def _client(self, event: Event) -> str:
        if event["event"] == "client.done":
            return (
                f"rank {event['rank']:<3} loss {event['loss_first']:.3f} > {event['loss_last']:.3f}  "
                f"{event['images_per_second']:.0f} img/s  {event['bytes'] / 1e6:.2f} MB"
            )
        if event["event"] == "client.unknown":
            return f"UNKNOWN  {_one_line(event['reason'])}"
        self.failures += 1
        return f"FAILED  {_one_line(event['reason'])}"


def _clusters(event: Event) -> str:
    groups = " ".join("{" + ",".join(members) + "}" for members in event["clusters"].values())
    score = "" if event["silhouette"] is None else f"  silhouette {event['silhouette']:.2f}"
    ranks = ",".join(str(rank) for rank in event["median_rank"].values())
    beta = " ".join(f"{b:.2f}" for b in event["beta"].values())
    return f"clusters {len(event['clusters'])} {groups}{score}  median rank {ranks}  beta {beta}"


def _one_line(text: str) -> str:
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return "".join(c if c.isprintable() else " " for c in (lines[-1] if lines else "no reason given"))[:300]
