import json

import pytest

from fedsd import config as configuration
from fedsd.cli.launch import plan
from fedsd.cli.progress import Progress


def test_a_share_for_a_client_that_there_is_not_is_an_error_before_anything_starts():
    flat = configuration.defaults() | {"run.availability": "c1=0.5,c9=0.1"}
    with pytest.raises(ValueError, match=r"names c9, and the clients are c0 to c3; did you mean c\d\?"):
        plan(flat, 4, print)


def test_a_method_for_a_client_that_there_is_not_is_an_error_before_anything_starts():
    flat = configuration.defaults() | {"method.of-clients": "c1=soda,c9=spire"}
    with pytest.raises(ValueError, match=r"of-clients names c9, and the clients are c0 to c3; did you mean c\d\?"):
        plan(flat, 4, print)


def test_the_plan_of_a_mixed_fleet_counts_its_methods(tmp_path):
    given = {"method.of-clients": "c1=spire,c3=zo-token", "node.private-dir": str(tmp_path), "data.per-style": 4}
    shown: list[str] = []
    plan(configuration.defaults() | given, 4, shown.append)
    assert "lora x 2, spire x 1, zo-token x 1 ranks 4,8,16  upload" in shown[-1]


@pytest.mark.parametrize(
    ("clients", "ranks", "said"),
    [
        (4, "8", "lora rank 8  upload"),
        (4, "4,8", "lora ranks 4,8,4,8  upload"),
        (9, "8,4", "ranks 4 x 4, 8 x 5  upload"),
    ],
)
def test_the_plan_says_the_ranks_of_a_large_fleet_by_their_counts(clients, ranks, said, tmp_path):
    given = {"lora.ranks": ranks, "node.private-dir": str(tmp_path), "data.per-style": 8}
    shown: list[str] = []
    plan(configuration.defaults() | given, clients, shown.append)
    assert said in shown[-1]


def test_the_progress_shows_the_server_warning_of_a_name_that_nobody_bears(tmp_path):
    shown: list[str] = []
    progress = Progress(tmp_path, shown.append)
    event = {"event": "client.unknown", "round": 1, "client": "ana", "nearest": "anna", "reason": "did you mean anna?"}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    progress.poll()
    assert shown == ["r1/0  ana  UNKNOWN  did you mean anna?"]
