"""`fedsd watch`: a run as a live table, clients by rounds, from its events; in another shell or over ssh."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedsd.cli.history import History, read_history
from fedsd.store import RunFolder

BARS = "▁▂▃▄▅▆▇█"
ANSI = ("blue", "red", "green", "magenta", "cyan", "yellow")
FIXED_WIDTH, ROUND_WIDTH, LOSSES = 66, 8, 12


def watch(run_folder: Path, once: bool = False, console: Console | None = None, poll: float = 0.5) -> str:
    """Show the run in `run_folder` until it ends, or once; waits for a run that has not begun.

    poll: seconds between two looks at events.jsonl. Returns "waiting", "running", "done" or "failed". Ctrl-C ends the
    watching and not the run. Nothing in the folder is changed.
    """
    console = console or Console()
    folder = RunFolder(run_folder)
    history = read_history(folder.events())
    if once:
        console.print(screen(history, folder.path, datetime.now(UTC), console.width))
        return history.status
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                history = read_history(folder.events())
                live.update(screen(history, folder.path, datetime.now(UTC), console.width), refresh=True)
                if history.status in ("done", "failed"):
                    break
                time.sleep(poll)
    except KeyboardInterrupt:
        console.print("stopped watching; the run goes on")
    return history.status


def screen(history: History, path: Path, now: datetime, width: int) -> RenderableType:
    """Return all that is shown at the moment `now`, for a terminal of `width` columns."""
    if history.status == "waiting":
        return Text(
            f"waiting for {path / 'events.jsonl'}: no event yet (fedsd run starts one, Ctrl-C ends the watching)"
        )
    parts: list[RenderableType] = [_summary(history, now), _table(history, width)]
    parts += [
        Text(f"r{server_round} {client} failed: {event['reason']}", style="red", overflow="ellipsis", no_wrap=True)
        for (server_round, client), event in list(history.failures.items())[-5:]
    ]
    if history.status == "failed":
        parts.append(Text(f"run failed: {history.reason}", style="bold red"))
    return Group(*parts)


def seconds_left(history: History, now: datetime) -> float | None:
    """Return how long the run will still take, in seconds; None before the first client of the first round answered.

    A round is taken to be as long as the mean round, or as its answers so far let it seem.
    """
    if history.status != "running" or not history.current_round or not history.round_started:
        return None
    spent, typical = 0.0, history.seconds / len(history.rounds) if history.rounds else None
    if history.current_round not in history.rounds:
        spent = (now - history.round_started).total_seconds()
        answered = sum(r == history.current_round for r, _ in {*history.trained, *history.failures})
        if typical is None and answered:
            typical = spent * len(history.asked[history.current_round]) / answered
    if typical is None:
        return None
    left_here = 0.0 if history.current_round in history.rounds else max(typical - spent, 0.0)
    return left_here + typical * max(history.planned - history.current_round, 0)


def sparkline(values: Sequence[float]) -> str:
    """Return one bar for each value, the lowest for the least; all of them in the middle when they are equal."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high == low:
        return BARS[3] * len(values)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in values)


def clock(seconds: float) -> str:
    """Return 75 -> "1:15", 4000 -> "1:06:40"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _summary(history: History, now: datetime) -> Text:
    end = now if history.status == "running" else history.latest or now
    elapsed = (end - history.started).total_seconds() if history.started else 0.0
    words = [history.run, f"round {history.current_round}/{history.planned}", history.strategy]
    if history.clusters:
        event = history.clusters[max(history.clusters)]
        quality = "" if event["silhouette"] is None else f", silhouette {event['silhouette']:.2f}"
        words.append(f"{len(event['clusters'])} clusters{quality}")
    words.append(f"{history.uploaded / 1e6:.1f} MB up")
    words.append(clock(elapsed))
    left = seconds_left(history, now)
    state = {"running": "starting" if left is None else f"about {clock(left)} left", "failed": "FAILED"}
    words.append(state.get(history.status, "converged" if history.converged else "done"))
    return Text("  ".join(words), style="bold")


def _table(history: History, width: int) -> Table:
    begun = sorted({*history.asked, *(r for r, _ in history.trained)})
    shown = begun[-max((width - FIXED_WIDTH) // ROUND_WIDTH, 1) :]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name, justify in (("client", "left"), ("cluster", "right"), ("rank", "right"), ("images", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for server_round in shown:
        table.add_column(f"r{server_round}", justify="right", no_wrap=True)
    table.add_column("loss", no_wrap=True)
    table.add_column("img/s", justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    cluster_of = history.cluster_of
    for client in history.clients:
        table.add_row(*_row(history, client, shown, cluster_of.get(client, "")))
    return table


def _row(history: History, client: str, shown: Sequence[int], cluster: str) -> list[Text]:
    sent = [event for (_, name), event in sorted(history.trained.items()) if name == client]
    about = history.profiles.get(client) or (sent[-1] if sent else {})
    losses = [event["loss_first"] for event in sent[:1]] + [event["loss_last"] for event in sent]
    colour = ANSI[int(cluster) % len(ANSI)] if cluster else "dim"
    cells = [
        Text(client),
        Text(cluster or "-", style=colour),
        Text(str(about.get("rank", ""))),
        Text(str(about.get("n", ""))),
    ]
    cells += [_cell(history, server_round, client) for server_round in shown]
    speed = f"{sent[-1]['images_per_second']:.0f}" if sent else ""
    return [*cells, Text(sparkline(losses[-LOSSES:]), style=colour), Text(speed), _status(history, client)]


def _cell(history: History, server_round: int, client: str) -> Text:
    """The loss at the end of a client's round, or what became of it."""
    key = (server_round, client)
    if key in history.failures:
        return Text("failed", style="red")
    if key in history.trained:
        return Text(f"{history.trained[key]['loss_last']:.3f}")
    return Text("…" if client in history.asked.get(server_round, ()) else "-", style="dim")


def _status(history: History, client: str) -> Text:
    key = (history.current_round, client)
    if key in history.failures:
        return Text("failed", style="red")
    if key in history.trained:
        return Text(f"sent after {clock(history.trained[key]['seconds'])}", style="green")
    if client not in history.asked.get(history.current_round, ()):
        return Text("not asked", style="dim")
    return Text("training" if history.status == "running" else "no answer", style="yellow")
