import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from fedsd.cli.history import read_history
from fedsd.cli.watch import BARS, clock, screen, seconds_left, sparkline, watch
from fedsd.store import RunFolder

BEGAN = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)


def at(second: float, **fields: object) -> dict[str, object]:
    return {"time": (BEGAN + timedelta(seconds=second)).isoformat(), **fields}


def done(second: float, server_round: int, client: str, loss: float) -> dict[str, object]:
    about = {"rank": 4, "n": 9, "seconds": 75.0, "images_per_second": 31.4, "bytes": 1_500_000}
    return at(second, event="client.done", round=server_round, client=client, loss_first=0.4, loss_last=loss, **about)


def start(second: float = 0) -> dict[str, object]:
    about = {"run": "otter", "rounds": 3, "strategy": "style-clustered", "method": "lora"}
    return at(second, event="run.start", **about)


def asked(second: float, server_round: int) -> dict[str, object]:
    return at(second, event="round.start", round=server_round, clients=["c0", "c1"])


def shown(events: list[dict[str, object]], second: float, width: int = 120) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(screen(read_history(events), Path("/runs/otter"), BEGAN + timedelta(seconds=second), width))
    return capture.get()


def line(text: str, first: str) -> list[str]:
    return next(row for row in text.splitlines() if row.startswith(first)).split()


def test_a_round_under_way() -> None:
    failed = at(50, event="client.failed", round=2, client="c1", reason="NaN \x1b[2J at step 3")
    profile = at(1, event="client.profile", client="c0", rank=4, n=9)
    clusters = at(31, event="round.clusters", round=1, clusters={"0": ["c0"], "4": ["c1"]}, silhouette=0.71)
    closed = at(32, event="round.done", round=1, seconds=30.0, loss=0.2, change=None)
    events = [
        start(), profile, asked(2, 1), done(20, 1, "c0", 0.3), done(30, 1, "c1", 0.1), clusters, closed,
        asked(33, 2), failed,
    ]  # fmt: skip
    text = shown(events, 53)
    assert text.splitlines()[0] == (
        "otter  round 2/3  style-clustered  2 clusters, silhouette 0.71  3.0 MB up  0:53  about 0:40 left"
    )
    assert line(text, "client") == ["client", "cluster", "rank", "images", "r1", "r2", "loss", "img/s", "status"]
    assert line(text, "c0") == ["c0", "0", "4", "9", "0.300", "…", "█▁", "31", "training"]
    assert line(text, "c1") == ["c1", "4", "4", "9", "0.100", "failed", "█▁", "31", "failed"]
    assert "r2 c1 failed: NaN [2J at step 3" in text and "\x1b" not in text


def test_the_ends_of_a_run() -> None:
    events = [start(), asked(1, 1), done(20, 1, "c0", 0.3)]
    failed = shown([*events, at(90, event="run.failed", reason="no usable reply")], 500)
    assert "1:30  FAILED" in failed and "run failed: no usable reply" in failed
    assert line(failed, "c1")[-2:] == ["no", "answer"] and line(failed, "c0")[-3:] == ["sent", "after", "1:15"]
    assert (
        shown([*events, at(60, event="run.done", rounds=1, converged=True)], 500).splitlines()[0].endswith("converged")
    )
    assert shown([*events, at(60, event="run.done", rounds=1, converged=False)], 500).splitlines()[0].endswith("  done")


def test_a_narrow_terminal_shows_the_last_rounds() -> None:
    events = [start()]
    for server_round in range(1, 10):
        events += [asked(server_round, server_round), done(server_round, server_round, "c0", 1 / server_round)]
    header = line(shown(events, 10, width=90), "client")
    assert [word for word in header if word[1:].isdigit()] == ["r7", "r8", "r9"]


def test_time_left_comes_from_answers_and_then_from_whole_rounds() -> None:
    def left(events: list[dict[str, object]], second: float) -> float | None:
        return seconds_left(read_history(events), BEGAN + timedelta(seconds=second))

    first = [start(), asked(0, 1)]
    assert left([start()], 5) is None and left(first, 5) is None
    half = [*first, done(10, 1, "c0", 0.3)]
    assert left(half, 10) == pytest.approx(10 + 2 * 20)  # half the answers after 10 s: rounds of 20 s
    closed = [*half, done(20, 1, "c1", 0.3), at(24, event="round.done", round=1, seconds=24.0, loss=0.2, change=None)]
    assert left(closed, 30) == pytest.approx(48)
    assert left([*closed, asked(30, 2)], 36) == pytest.approx(18 + 24)
    assert left([*closed, asked(30, 2)], 99) == pytest.approx(24)
    assert left([*closed, at(25, event="run.done", rounds=1, converged=False)], 30) is None


def test_sparkline_and_clock() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == BARS[0] + BARS[4] + BARS[7]
    assert sparkline([0.2, 0.2]) == BARS[3] * 2 and sparkline([]) == ""
    assert (clock(9.6), clock(75), clock(4000)) == ("0:10", "1:15", "1:06:40")


def test_once_prints_the_table_and_says_how_the_run_stands(finished: RunFolder, tmp_path: Path) -> None:
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    before = (finished.path / "events.jsonl").read_bytes()
    assert watch(finished.path, once=True, console=console) == "done"
    text = console.export_text()
    assert line(text, "c5")[4:6] == ["failed", "0.140"]
    assert "<script>alert(1)</script>" in text and (finished.path / "events.jsonl").read_bytes() == before
    assert watch(tmp_path / "nothing", once=True, console=console) == "waiting"
    assert "no event yet" in console.export_text()
    assert not (tmp_path / "nothing").exists()


def test_it_waits_for_a_run_follows_it_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "otter"

    def run() -> None:
        time.sleep(0.1)
        path.mkdir()
        folder = RunFolder(path)
        for event in (start(), asked(1, 1), done(2, 1, "c0", 0.3)):
            folder.append_event({key: value for key, value in event.items() if key != "time"})
        with (path / "events.jsonl").open("ab") as file:
            file.write(b'{"time": "2026-11-20T10:00:03+00:00", "event": "run.d')
        time.sleep(0.2)
        with (path / "events.jsonl").open("ab") as file:
            file.write(b'one", "rounds": 1, "converged": false}\n')

    runner = threading.Thread(target=run)
    runner.start()
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    assert watch(path, console=console, poll=0.02) == "done"
    runner.join()
    assert "0.300" in console.export_text()
