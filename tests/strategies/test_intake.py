from dataclasses import replace

import numpy as np
import pytest
from trained import honest, scaled

from fedsd.lowrank import dense, lora_norm, stack_loras
from fedsd.strategies.aggregate import Settings
from fedsd.strategies.intake import Held, Streamed, open_intake
from fedsd.strategies.validate import Limits
from fedsd.wire import Profile

LIMITS = Limits()


def profile_of(update) -> Profile:
    return Profile(update.client, update.z, update.n, update.rank, update.base_sha)


@pytest.fixture
def updates(make_update):
    """Two styles, unequal ranks and counts."""
    return [make_update(f"c{k}", k // 3, seed=k, rank=rank, n=20 + 5 * k) for k, rank in enumerate((2, 4, 3, 3, 5, 2))]


def run(updates, cap, previous=None, settings=None, limits=LIMITS):
    intake = open_intake([profile_of(update) for update in updates], previous, settings or Settings(), limits, cap)
    for update in updates:
        intake.take(update, lora_norm(update.lora))
    return intake.finish(1 if previous is None else previous.server_round + 1)


def assert_same(left, right, tolerance=1e-6) -> None:
    assert left.keys() == right.keys()
    for layer, factor in left.items():
        np.testing.assert_allclose(dense(factor), dense(right[layer]), rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("rule", ["style-clustered", "flora", "everyone"])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (5, 2, 4, 0, 3, 1)])
def test_folding_replies_as_they_come_gives_the_round_of_all_at_once(updates, rule, order):
    settings = Settings(rule=rule)
    held = run(updates, 0, settings=settings).after
    streamed = run([updates[k] for k in order], 64, settings=settings)
    after = streamed.after
    assert set(streamed.error_bound.values()) == {0.0}
    assert {key: found.members for key, found in after.clusters.items()} == {
        key: found.members for key, found in held.clusters.items()
    }
    for key, found in after.clusters.items():
        assert_same(found.lora, held.clusters[key].lora)
        assert (found.n, found.rank) == (held.clusters[key].n, held.clusters[key].rank)
        np.testing.assert_allclose([found.beta, found.d, found.tau], vars_of(held.clusters[key]), rtol=1e-5)
    for name in ("lora_mix", "lora_neu"):
        assert_same(getattr(after, name), getattr(held, name), 1e-5)
    for layer, factor in after.lora_fedavg.items():
        np.testing.assert_allclose(factor.B, held.lora_fedavg[layer].B, rtol=1e-5, atol=1e-6)
    assert (after.present, after.loss) == (held.present, pytest.approx(held.loss))
    assert after.updates == {}


def vars_of(found) -> list[float]:
    return [found.beta, found.d, found.tau]


def test_over_the_cap_the_mean_is_off_by_no_more_than_the_bound(make_update):
    updates = [make_update(f"c{k}", 0, seed=k, rank=2) for k in range(8)]
    settings = Settings(rule="flora")
    exact, streamed = run(updates, 0, settings=settings).after, run(updates, 6, settings=settings)
    found, whole = streamed.after.clusters[0].lora, exact.clusters[0].lora
    off = lora_norm(stack_loras([found, whole], [1, -1])) / lora_norm(found)
    assert 0 < off <= streamed.error_bound[0]
    assert max(factor.rank for factor in found.values()) <= 6


def test_a_second_round_goes_on_from_the_first_and_keeps_who_was_away(updates):
    first = run(updates, 64).after
    second = run(updates[1:], 64, previous=first).after
    assert {key: found.members for key, found in second.clusters.items()} == {
        0: ("c0", "c1", "c2"),
        1: ("c3", "c4", "c5"),
    }
    assert second.present == ("c1", "c2", "c3", "c4", "c5")
    third = run(updates[:3], 64, previous=second).after
    assert third.clusters[1].lora is second.clusters[1].lora


def test_a_client_that_announced_itself_and_sent_nothing_is_in_no_group(updates):
    intake = open_intake([profile_of(update) for update in updates], None, Settings(), LIMITS, 64)
    for update in updates[:3]:
        intake.take(update, lora_norm(update.lora))
    after = intake.finish(1).after
    assert {key: found.members for key, found in after.clusters.items()} == {0: ("c0", "c1", "c2")}
    assert after.clients.keys() == {"c0", "c1", "c2"}


def test_no_reply_is_no_round(updates):
    intake = open_intake([profile_of(update) for update in updates], None, Settings(), LIMITS, 64)
    assert intake.finish(1).after is None


def test_replies_that_do_not_fit_are_refused_as_they_come(updates):
    intake = open_intake([profile_of(update) for update in updates[:5]], None, Settings(), LIMITS, 64)
    for update in updates[:3]:
        intake.take(update, lora_norm(update.lora))
    with pytest.raises(ValueError, match=r"its update has norm 1e.06, .* times the median"):
        intake.take(updates[3], 1e6)
    with pytest.raises(ValueError, match="3 layers are missing"):
        intake.take(replace(updates[3], lora={}), 1.0)
    with pytest.raises(ValueError, match="it sent no profile before the round"):
        intake.take(updates[5], 1.0)
    intake.take(updates[3], lora_norm(updates[3].lora))
    assert intake.finish(1).after.present == ("c0", "c1", "c2", "c3")


def test_an_image_count_above_the_cap_counts_as_the_cap(updates):
    boasting = [*updates[:2], replace(updates[2], n=10**6)]
    outcome = run(boasting, 64, limits=Limits(n_over_median=2))
    assert outcome.capped == {"c2": 50}
    assert outcome.after.clusters[0].n == 20 + 25 + 50


def test_rules_that_compare_clients_hold_their_updates_and_say_so(updates, caplog):
    profiles = [profile_of(update) for update in updates]
    assert isinstance(open_intake(profiles, None, Settings(inside="flexlora"), LIMITS, 64), Streamed)
    with caplog.at_level("INFO", "flwr.fedsd"):
        assert isinstance(open_intake(profiles, None, Settings(inside="multi-krum"), LIMITS, 64), Held)
    assert "the rule compares the clients' updates, so all of a round's are held in memory" in caplog.text
    assert isinstance(open_intake(profiles, None, Settings(), LIMITS, 0), Held)


@pytest.fixture
def fleet(make_update):
    """Five clients of one style and two of another; c0 turns its update round and c5 its own too."""
    updates = [make_update(f"c{k}", k // 5, rank=4, lora=honest(k, 4, style=k // 5)) for k in range(7)]
    return [
        replace(update, lora=scaled(update.lora, -1)) if update.client in ("c0", "c5") else update for update in updates
    ]


def test_with_detection_an_update_turned_round_is_left_out_with_the_reason(fleet):
    settings = Settings(detect=True)
    outcome = run(fleet, 0, settings=settings)
    assert outcome.reasons.keys() == outcome.suspected.keys() == {"c0"}
    assert outcome.reasons["c0"].startswith("it points against the others of its cluster")
    assert outcome.suspected["c0"].direction < 0
    # two members, of whom one is turned round, cannot say which
    assert outcome.after.present == ("c1", "c2", "c3", "c4", "c5", "c6")
    without = run(fleet[1:], 0).after
    for key, found in outcome.after.clusters.items():
        assert_same(found.lora, without.clusters[key].lora, 1e-7)


def test_without_detection_everybody_counts(fleet):
    outcome = run(fleet, 0)
    assert (outcome.reasons, outcome.suspected) == ({}, {})
    assert len(outcome.after.present) == 7


def test_clients_of_a_cluster_are_compared_even_when_they_were_known_before(fleet):
    settings = Settings(detect=True)
    first = run([replace(update, lora=honest(9, 4)) for update in fleet], 0).after
    outcome = run(fleet, 0, previous=first, settings=settings)
    assert outcome.suspected.keys() == {"c0"}
    # it took no part, and stays where its style puts it
    assert "c0" not in outcome.after.present
    assert outcome.after.clients["c0"].cluster == outcome.after.clients["c1"].cluster


def test_an_update_of_odd_size_is_judged_harder_where_the_last_one_was_not_used(make_update):
    sizes = (1.8, 0.7, 0.75, 1.0, 1.05)
    fleet = [make_update(f"c{k}", 0, rank=8, lora=honest(k, 8, size=size)) for k, size in enumerate(sizes)]
    settings = Settings(detect=True)
    used, left_out = run(fleet, 0).after, run(fleet[1:], 0).after
    assert run(fleet, 0, previous=used, settings=settings).suspected == {}
    assert run(fleet, 0, previous=left_out, settings=settings).suspected.keys() == {"c0"}
    assert run(fleet, 0, settings=settings).suspected == {}  # of the first round nothing is known


def test_detection_holds_the_updates_where_they_would_be_folded(fleet, caplog):
    with caplog.at_level("INFO", "flwr.fedsd"):
        intake = open_intake([profile_of(one) for one in fleet], None, Settings(detect=True), LIMITS, 64)
    assert isinstance(intake, Held) and "strategy.detect compares" in caplog.text
    assert isinstance(open_intake([profile_of(one) for one in fleet], None, Settings(), LIMITS, 64), Streamed)


def test_a_cluster_too_small_to_judge_is_named_in_the_log(fleet, caplog):
    with caplog.at_level("INFO", "flwr.fedsd"):
        run(fleet, 0, settings=Settings(detect=True))
    assert "no client of the cluster of c5, c6 is suspected: 2 updates cannot say" in caplog.text
