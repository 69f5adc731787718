from dataclasses import replace

import numpy as np
import pytest

from fedsd.strategies.aggregate import Settings, aggregate_round
from fedsd.strategies.lifecycle import Change, changes

SETTINGS = Settings(leave_after=2)


@pytest.fixture
def updates(make_update):
    """Three styles of two clients each."""
    return {f"c{k}": make_update(f"c{k}", k // 2, seed=k) for k in range(6)}


def at(update, angle: float):
    """The update with its style on the way from axis 0 (angle 0) to axis 1 (angle 1)."""
    turn = angle * np.pi / 2
    z = np.cos(turn) * np.eye(8)[0] + np.sin(turn) * np.eye(8)[1] + 0.01 * np.eye(8)[int(update.client[1])]
    return replace(update, z=(z / np.linalg.norm(z)).astype(np.float32))


def members(after) -> dict[int, tuple[str, ...]]:
    return {key: found.members for key, found in after.clusters.items()}


def play(rounds, settings=SETTINGS):
    """The rounds, and for each of them its changes."""
    played, told, after = [], [], None
    for server_round, updates in enumerate(rounds, start=1):
        before, after = after, aggregate_round(updates, after, settings, server_round)
        played.append(after)
        told.append(changes(before, after))
    return played, told


def test_nothing_is_told_where_nothing_changes(updates):
    _, told = play([list(updates.values())] * 3)
    assert told == [(), (), ()]


def test_a_cluster_without_members_retires_and_its_id_is_never_given_again(updates):
    everybody, four = list(updates.values()), [updates[f"c{k}"] for k in range(4)]
    played, told = play([everybody, four, four, four, everybody])
    assert [list(members(after)) for after in played] == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1], [0, 1, 3]]
    assert [[change.kind for change in changed] for changed in told] == [[], [], [], ["retired"], ["opened"]]
    assert told[3] == (Change("retired", 2, (), "c4, c5: away for 3 rounds, and nobody else was in it"),)
    assert (told[4][0].cluster, members(played[4])[3]) == (3, ("c4", "c5"))
    assert told[4][0].reason.startswith("c4, c5: not known before, and ")
    assert played[4].clients["c4"].first_round == 5  # who left and comes back is new
    assert played[4].clients["c0"].rounds == 5


def test_a_style_that_comes_when_all_others_have_left_does_not_take_over_their_id(updates):
    alone, stranger = updates["c0"], updates["c4"]
    after = aggregate_round([alone], None, SETTINGS, 1)
    later = aggregate_round([stranger], replace(after, server_round=3), SETTINGS, 4)
    assert members(later) == {1: ("c4",)}
    assert [change.kind for change in changes(after, later)] == ["retired", "opened"]


def test_styles_that_drift_together_merge_and_the_older_id_stays(updates):
    rest = [updates["c4"], updates["c5"]]
    rounds = [
        [at(updates["c0"], 0), at(updates["c1"], 0), at(updates["c2"], 1), at(updates["c3"], 1), *rest],
        [at(updates["c0"], 0.5), at(updates["c1"], 0.5), at(updates["c2"], 0.5), at(updates["c3"], 0.5), *rest],
    ]
    played, told = play(rounds)
    (merged,) = told[1]
    (stayed,) = {0, 1} - {merged.cluster}
    assert (merged.kind, merged.others) == ("merged", (stayed,))
    assert members(played[1])[stayed] == ("c0", "c1", "c2", "c3")
    assert members(played[1])[2] == ("c4", "c5")


def test_members_that_drift_apart_split_and_the_ones_that_stay_keep_the_id(updates):
    rest = [updates["c4"], updates["c5"]]
    rounds = [
        [*(at(updates[f"c{k}"], 0) for k in range(4)), *rest],
        [at(updates["c0"], 0), at(updates["c1"], 0), at(updates["c2"], 1), at(updates["c3"], 1), *rest],
    ]
    played, told = play(rounds)
    assert members(played[0]) == {0: ("c0", "c1", "c2", "c3"), 1: ("c4", "c5")}
    assert members(played[1]) == {0: ("c0", "c1"), 1: ("c4", "c5"), 2: ("c2", "c3")}
    (split,) = told[1]
    assert (split.kind, split.cluster, split.others) == ("split", 2, (0,))
    assert split.reason.startswith("c2, c3: their style is now 0.997 from cluster 0, where they were")


def test_a_client_that_drifts_to_another_style_changes_its_cluster_and_no_id(updates):
    others = [updates[f"c{k}"] for k in (2, 3, 4, 5)]
    rounds = [
        [at(updates["c0"], 0), at(updates["c1"], 0), at(updates["c2"], 1), at(updates["c3"], 1), *others[2:]],
        [at(updates["c0"], 0), at(updates["c1"], 1), at(updates["c2"], 1), at(updates["c3"], 1), *others[2:]],
    ]
    played, told = play(rounds)
    assert members(played[1]) == {0: ("c0",), 1: ("c1", "c2", "c3"), 2: ("c4", "c5")}
    assert told[1] == ()


def test_a_change_is_an_event_of_plain_values():
    assert Change("merged", 3, (0, 1), "why").event(7) == {
        "event": "cluster.merged",
        "round": 7,
        "cluster": 3,
        "others": [0, 1],
        "reason": "why",
    }
