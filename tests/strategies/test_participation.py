from dataclasses import replace

import numpy as np
import pytest

from fedsd.lowrank import Factor, dense, lora_norm
from fedsd.strategies.aggregate import Settings, aggregate_round
from fedsd.strategies.intake import open_intake
from fedsd.strategies.participation import CUTOFF, mean_interval, still_there, weigh, weight_of_absent
from fedsd.strategies.validate import Limits
from fedsd.wire import Profile

WEIGHTED = Settings(method="agglomerative", participation="inverse-rate")


@pytest.fixture
def updates(make_update):
    """One style, unequal counts; layers of at most 12 columns keep rank 12 exact."""
    return [make_update(f"c{k}", 0, seed=k, rank=12, n=n) for k, n in enumerate((40, 60, 100))]


def rounds(updates, present, settings=WEIGHTED):
    """One round for each list of indices in `present`."""
    after = None
    for server_round, indices in enumerate(present, start=1):
        after = aggregate_round([updates[k] for k in indices], after, settings, server_round)
    return after


def assert_is(lora, wanted) -> None:
    for layer, factor in lora.items():
        np.testing.assert_allclose(dense(factor), wanted[layer], rtol=1e-4, atol=1e-4)


def test_the_history_counts_rounds_from_the_first_one(updates):
    after = rounds(updates, [[0], [0, 1], [0, 1], [0]])
    assert [(c.first_round, c.last_round, c.rounds) for c in after.clients.values()] == [(1, 4, 4), (2, 3, 2)]
    assert mean_interval(after.clients["c0"], 4) == 1.0
    assert mean_interval(after.clients["c1"], 4) == 1.5  # rounds 2, 3 and 4, there in two
    assert mean_interval(None, 4) == 1.0
    assert mean_interval(after.clients["c1"], 10**6) == CUTOFF


def test_weights_are_images_times_the_mean_interval_unless_rates_play_no_role(updates):
    after = rounds(updates, [[0, 1], [0], [0]])
    assert weigh(60, after.clients["c1"], 3, "inverse-rate") == 180
    assert weigh(60, after.clients["c1"], 3, "none") == 60
    assert weight_of_absent(["c0", "c1"], after, "inverse-rate") == 40 + 180
    assert weight_of_absent(["c1"], after, "none") == weight_of_absent(["c1"], None, "inverse-rate") == 0


def test_the_adapter_from_before_stands_in_for_the_absent(updates, dense_sum):
    loras = [update.lora for update in updates]
    first = rounds(updates, [[0, 1]])
    second = rounds(updates, [[0, 1], [0]])
    # round 1: 0.4 and 0.6; round 2: c0 with 40, and what was before with the 60 of c1
    assert_is(first.clusters[0].lora, dense_sum(loras, [0.4, 0.6, 0]))
    assert_is(second.clusters[0].lora, dense_sum(loras, [0.4 + 0.6 * 0.4, 0.6 * 0.6, 0]))
    # round 3: c1 was there in one of two rounds and counts twice
    third = rounds(updates, [[0, 1], [0], [1]])
    share = 120 / 160
    assert_is(third.clusters[0].lora, dense_sum(loras, [0.64 * (1 - share), 0.36 * (1 - share) + share, 0]))


def test_with_everybody_there_nothing_changes(updates):
    plain, weighted = (
        rounds(updates, [[0, 1, 2]] * 3, replace(WEIGHTED, participation=p)) for p in ("none", "inverse-rate")
    )
    for layer, factor in plain.clusters[0].lora.items():
        np.testing.assert_array_equal(factor.B, weighted.clusters[0].lora[layer].B)


def test_at_unequal_rates_the_mean_over_many_rounds_is_that_of_full_participation(updates, dense_sum):
    rng, settings = (
        np.random.default_rng(0),
        {name: replace(WEIGHTED, participation=name) for name in ("none", "inverse-rate")},
    )
    full = dense_sum([update.lora for update in updates], [0.2, 0.3, 0.5])
    rates, means = (1.0, 0.5, 0.1), {}
    for name, setting in settings.items():
        after = rounds(updates, [[0, 1, 2]], setting)
        total = {layer: 0.0 for layer in full}
        for server_round in range(2, 302):
            present = [update for update, rate in zip(updates, rates, strict=True) if rng.random() < rate]
            after = aggregate_round(present, after, setting, server_round)
            total = {layer: total[layer] + dense(after.clusters[0].lora[layer]) / 300 for layer in total}
        means[name] = sum(np.sum((total[layer] - full[layer]) ** 2) for layer in full) ** 0.5
    assert means["inverse-rate"] < 0.25 * means["none"]


@pytest.mark.parametrize("present", [[[0, 1, 2], [0], [0, 2]], [[0], [0, 1], [2, 1], [0]]])
def test_folded_replies_have_the_same_weights(updates, present):
    streamed = None
    for server_round, indices in enumerate(present, start=1):
        there = [updates[k] for k in indices]
        profiles = [Profile(one.client, one.z, one.n, one.rank, one.base_sha) for one in there]
        intake = open_intake(profiles, streamed, WEIGHTED, Limits(), 64)
        for update in reversed(there):
            intake.take(update, lora_norm(update.lora))
        streamed = intake.finish(server_round).after
    held = rounds(updates, present)
    assert_is(streamed.clusters[0].lora, {layer: dense(f) for layer, f in held.clusters[0].lora.items()})
    for name, client in held.clients.items():
        other = streamed.clients[name]
        assert (other.first_round, other.last_round, other.rounds) == (
            client.first_round,
            client.last_round,
            client.rounds,
        )


def test_clients_leave_after_the_rounds_that_are_set(updates):
    after = rounds(updates, [[0, 1], [0], [0]])
    assert still_there(after.clients, 4, 0).keys() == {"c0", "c1"}
    assert still_there(after.clients, 4, 3).keys() == {"c0", "c1"}
    assert still_there(after.clients, 4, 2).keys() == {"c0"}


def test_a_stand_in_is_an_adapter_among_others(updates):
    zeros = {layer: Factor(0 * factor.B, factor.A) for layer, factor in updates[0].lora.items()}
    after = rounds([updates[0], replace(updates[1], lora=zeros), updates[2]], [[0, 1], [1]])
    assert_is(after.clusters[0].lora, {layer: 0.16 * dense(factor) for layer, factor in updates[0].lora.items()})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Settings(participation="mifa"),
            r"strategy\.participation must be one of none, inverse-rate; got 'mifa'",
        ),
        (
            lambda: Settings(participation="inverse-rate", inside="trimmed-mean"),
            "weighs an exact mean of bounded rank, and trimmed-mean is none; use strategy.inside",
        ),
        (lambda: Settings(participation="inverse-rate", rule="fedavg"), "and zero-padding is none"),
        (lambda: Settings(leave_after=-1), r"cluster\.leave-after must be >= 0 rounds, got -1"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
