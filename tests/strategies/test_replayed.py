"""Scalars of zeroth-order steps in rounds: the same bits as vectors, moments that go on, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from fedsd.seeded import Trace, begin, replay, rule_of, to_arrays
from fedsd.strategies.aggregate import Settings, aggregate_round
from fedsd.strategies.replayed import replayed, with_moments
from fedsd.strategies.round import arrays_of, from_state, to_state

RULE, SHAPE = rule_of("orthogonal", 0.05), (2, 16)


def steps(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, 4)).astype(np.float32)


@pytest.fixture
def client(make_update):
    """A client that sends scalars; arrays: what else it sends."""

    def make(name: str, scalars: np.ndarray, begun: int = 0, **arrays: np.ndarray):
        return make_update(name, lora={}, rank=1, arrays={"scalars": scalars, **arrays}, begun=begun)

    return make


def test_two_rounds_have_the_bits_of_vectors(client):
    """Round 1 brings token and scalars, round 2 scalars alone; m and v go on between them."""
    token = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    mine, firsts = {}, []
    for seed, name in enumerate(("c0", "c1")):
        mine[name] = replay(begin(token.flatten()), Trace(seed, steps(seed)), RULE)
        sent = client(name, steps(seed), token=mine[name].x.reshape(SHAPE))
        found, moments = replayed(sent, seed, None, None, RULE)
        np.testing.assert_array_equal(found.arrays["token"], sent.arrays["token"])
        assert found.arrays.keys() == {"token"}
        for key in ("m", "v", "steps"):
            np.testing.assert_array_equal(moments[key], to_arrays(mine[name])[key])
        firsts.append((found, moments))
    after = aggregate_round([found for found, _ in firsts], None, Settings(), 1)
    after = with_moments(after, None, {found.client: moments for found, moments in firsts})
    after = from_state(*to_state(after), arrays_of(after))  # as a resumed run has it
    common = after.clusters[0].arrays["token"]
    for seed, name in enumerate(("c0", "c1"), 7):
        ended = replay(replace(mine[name], x=common.flatten()), Trace(seed, steps(seed)), RULE)
        found, moments = replayed(client(name, steps(seed), begun=3), seed, common, after, RULE)
        assert found.arrays["token"].tobytes() == ended.x.tobytes() and found.arrays["token"].shape == SHAPE
        assert moments["steps"][0] == 6


def test_the_moments_of_an_unused_reply_are_forgotten(client, make_update):
    token = np.ones(SHAPE, np.float32)
    good, moments = replayed(client("c0", steps(1), token=token), 1, None, None, RULE)
    other, of_other = replayed(client("c1", steps(2), token=token), 2, None, None, RULE)
    first = with_moments(aggregate_round([good, other], None, Settings(), 1), None, {"c0": moments, "c1": of_other})
    later = {"c0": {"steps": np.array([9])}, "c1": {"steps": np.array([9])}}
    second = with_moments(aggregate_round([good], first, Settings(), 2), first, later)
    assert {name: int(found["steps"][0]) for name, found in second.optimisers.items()} == {"c0": 9, "c1": 3}


def test_a_reply_without_scalars_is_left_as_it_is(make_update):
    update = make_update("c0")
    assert replayed(update, 1, None, None, None) == (update, {})


@pytest.mark.parametrize(
    ("change", "sent", "rule", "said"),
    [
        ({}, np.ones(SHAPE), None, r"give it the run's method\.name"),
        ({}, None, RULE, "scalars and no token that they begin at"),
        ({"begun": 3}, np.ones(SHAPE), RULE, "has seen 3 steps and the server knows of 0; remove own.safetensors"),
        ({"arrays": {"scalars": np.ones((9, 9), np.float32)}}, np.ones(SHAPE), RULE, "81 scalars for a token of 32"),
        ({"arrays": {"scalars": np.full((2, 2), np.nan, np.float32)}}, np.ones(SHAPE), RULE, "finite float32 table"),
        ({"arrays": {"scalars": np.ones(5, np.float32)}}, np.ones(SHAPE), RULE, "finite float32 table"),
    ],
)
def test_scalars_that_cannot_be_are_refused(client, change, sent, rule, said):
    with pytest.raises(ValueError, match=said):
        replayed(replace(client("c0", steps(1)), **change), 1, sent, None, rule)
