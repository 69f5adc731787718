import json

import pytest

from fedsd.cli.history import natural, printable, read_history
from fedsd.store import RunFolder


def at(second: int, **fields: object) -> dict[str, object]:
    return {"time": f"2026-11-20T10:00:{second:02d}.000+00:00", **fields}


START = {"event": "run.start", "run": "otter", "rounds": 3, "strategy": "style-clustered", "method": "lora"}
DONE = {"rank": 4, "n": 9, "loss_first": 0.3, "loss_last": 0.2, "seconds": 5.0, "images_per_second": 9.0, "bytes": 100}


def test_a_finished_run(finished: RunFolder) -> None:
    history = read_history(finished.events())
    assert (history.status, history.run, history.planned, history.strategy) == ("done", "otter", 2, "style-clustered")
    assert history.clients == ["c0", "c1", "c2", "c3", "c4", "c5"]
    assert history.current_round == 2 and sorted(history.rounds) == [1, 2]
    assert list(history.failures) == [(1, "c5")] and (1, "c5") not in history.trained
    assert history.cluster_of == {"c0": "0", "c3": "0", "c1": "1", "c4": "1", "c2": "2", "c5": "2"}
    assert history.seconds == pytest.approx(32.5 + 33.5)
    assert history.uploaded == sum(event["bytes"] for event in history.trained.values())


def test_no_event_is_a_run_that_waits() -> None:
    history = read_history([])
    assert (history.status, history.clients, history.current_round) == ("waiting", [], 0)
    assert history.seconds == 0


def test_a_resumed_run_goes_on_and_its_later_events_count() -> None:
    events = [
        at(0, **START),
        at(1, event="round.start", round=1, clients=["c0"]),
        at(2, event="client.failed", round=1, client="c0", reason="out of memory"),
        at(3, event="run.failed", reason="round 1 brought no usable reply"),
    ]
    stopped = read_history(events)
    assert (stopped.status, stopped.reason) == ("failed", "round 1 brought no usable reply")
    events += [
        at(20, **START),
        at(21, event="round.start", round=1, clients=["c0"]),
        at(25, event="client.done", round=1, client="c0", **DONE),
        at(26, event="something.new", round=1),
    ]
    history = read_history(events)
    assert (history.status, history.reason, history.failures) == ("running", "", {})
    assert history.started and history.started.second == 20
    assert history.round_started and history.round_started.second == 21
    assert history.latest and history.latest.second == 26
    assert history.trained[1, "c0"]["loss_last"] == 0.2


def test_clients_are_in_natural_order() -> None:
    assert sorted(["c10", "c2", "node-b", "c1", "10"], key=natural) == ["10", "c1", "c2", "c10", "node-b"]


def test_reasons_from_other_machines_cannot_steer_the_terminal() -> None:
    assert printable("loss\n is\x1b[31m NaN\x07  at\tstep 3") == "loss is [31m NaN at step 3"
    event = at(1, event="client.failed", round=1, client="c0", reason="a\x1b]0;b\nc")
    assert read_history([json.loads(json.dumps(event))]).failures[1, "c0"]["reason"] == "a ]0;b c"
