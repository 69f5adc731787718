from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsd.seeded import (
    KINDS,
    Rule,
    State,
    Trace,
    begin,
    directions,
    from_arrays,
    gradient,
    replay,
    saves,
    seeded_mean,
    stepped,
    to_arrays,
)
from fedsd.tangent_mean import tangent_mean

D = 48


def a_trace(seed: int, steps: int = 5, count: int = 3) -> Trace:
    return Trace(seed, np.random.default_rng(seed).standard_normal((steps, count)).astype(np.float32))


def a_start(seed: int = 7) -> State:
    return begin(np.random.default_rng(seed).standard_normal(D))


def on_a_client(state: State, trace: Trace, rule: Rule) -> State:
    """What a client does, step by step, without knowing of replays."""
    for step in range(len(trace.scalars)):
        e = directions(trace.seed, step, trace.scalars.shape[1], D, rule.kind)
        state = stepped(state, gradient(trace.scalars[step], e), rule)
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_mean_of_seeds_and_scalars_is_that_of_vectors_bit_for_bit(kind: str) -> None:
    """Three rounds of three clients with unequal numbers of pictures, whose moments go on."""
    rule, n = Rule(kind, 0.01), [5, 64, 16]
    clients = [a_start() for _ in n]
    servers = list(clients)
    for server_round in range(3):
        traces = [a_trace(10 * server_round + i, steps=4 + i) for i in range(3)]
        clients = [on_a_client(state, trace, rule) for state, trace in zip(clients, traces, strict=True)]
        sent = tangent_mean([{"x": state.x} for state in clients], n)["x"]
        mean, servers = seeded_mean(servers, traces, n, rule)
        assert mean.dtype == np.float32 and mean.tobytes() == sent.tobytes()
        clients = [replace(state, x=sent) for state in clients]
        for one, other in zip(clients, servers, strict=True):
            assert one.m.tobytes() == other.m.tobytes() and one.v.tobytes() == other.v.tobytes()
            assert one.steps == other.steps == sum(4 + clients.index(one) for _ in range(server_round + 1))


@given(st.integers(0, 2**63 - 1), st.integers(1, 6), st.integers(1, 90), st.sampled_from(KINDS))
def test_replay_is_the_client(seed: int, count: int, d: int, kind: str) -> None:
    rule, trace = Rule(kind, 0.02), Trace(seed, np.linspace(-1, 1, 2 * count, dtype=np.float32).reshape(2, count))
    state = begin(np.zeros(d))
    for step in range(2):
        e = directions(seed, step, count, d, kind)
        state = stepped(state, gradient(trace.scalars[step], e), rule)
    assert replay(begin(np.zeros(d)), trace, rule).x.tobytes() == state.x.tobytes()


def test_a_step_is_adam() -> None:
    """First steps of Adam are lr g / (|g| + eps), whatever the size of g; here eps = 1e-3."""
    g = np.array([1.0, -0.5, 0.0, 1e-3], np.float32)
    once = stepped(begin(np.zeros(4)), g, Rule("gaussian", 0.1))
    np.testing.assert_allclose(once.x, [-0.1 / 1.001, 0.1 * 0.5 / 0.501, 0, -0.05], rtol=1e-5, atol=0)
    m, v, x = np.zeros(4), np.zeros(4), np.zeros(4)
    state = begin(np.zeros(4))
    for step, factor in enumerate([1.0, 3.0, -2.0], 1):
        state = stepped(state, factor * g, Rule("gaussian", 0.1))
        m, v = 0.9 * m + 0.1 * factor * g, 0.999 * v + 0.001 * (factor * g) ** 2
        x -= 0.1 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-3)
    np.testing.assert_allclose(state.x, x, rtol=1e-4, atol=1e-6)


def test_gradient_by_hand() -> None:
    e = np.array([[1, 1], [1, -1]], np.float32)
    np.testing.assert_array_equal(gradient(np.array([3.0, 1.0]), e), [2, 1])


def test_estimate_is_unbiased() -> None:
    """For a linear loss, s_i = g · e_i; the mean over many steps is g."""
    g = np.array([1.0, -2.0, 0.5, 0.0, 3.0], np.float32)
    for kind in KINDS:
        drawn = [directions(3, step, 4, 5, kind) for step in range(3000)]
        mean = np.mean([gradient(e @ g, e) for e in drawn], axis=0)
        np.testing.assert_allclose(mean, g, rtol=0, atol=0.2)


@pytest.mark.parametrize(("count", "d"), [(3, 8), (8, 8), (20, 8), (4, 1), (2, 80)])
def test_hadamard_directions(count: int, d: int) -> None:
    e = directions(5, 2, count, d, "hadamard")
    assert e.shape == (count, d) and e.dtype == np.float32 and set(np.unique(e)) <= {-1, 1}
    if d == 8:
        for block in np.split(e, range(8, count, 8)):
            np.testing.assert_array_equal(block @ block.T, 8 * np.eye(len(block)))
    np.testing.assert_array_equal(e, directions(5, 2, count, d, "hadamard"))
    if d == 80:
        others = [directions(*key, count, d, "hadamard") for key in ((5, 3), (6, 2))]
        assert not any(np.array_equal(e, other) for other in others)


def test_all_directions_of_a_space_give_the_gradient_itself() -> None:
    g = np.arange(16, dtype=np.float32)
    e = directions(0, 0, 16, 16, "hadamard")
    np.testing.assert_allclose(gradient(e @ g, e), g, rtol=1e-6, atol=1e-5)


def test_raw_bits_are_those_of_every_numpy() -> None:
    """What two machines must agree on, written down."""
    assert directions(1, 0, 2, 8, "hadamard").tolist() == [[-1, -1, -1, 1, 1, 1, -1, -1], [-1, -1, 1, -1, 1, 1, 1, 1]]


@pytest.mark.parametrize(("scalars", "d", "wanted"), [(100, 768, True), (765, 768, True), (766, 768, False)])
def test_when_seeds_and_scalars_are_smaller(scalars: int, d: int, wanted: bool) -> None:
    assert saves(scalars, d) is wanted


def test_state_comes_back() -> None:
    state = on_a_client(a_start(), a_trace(1), Rule("hadamard", 0.1))
    again = from_arrays(to_arrays(state))
    assert again.steps == 5 and all(np.array_equal(getattr(again, k), getattr(state, k)) for k in "xmv")


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one of gaussian, hadamard; got 'x'"):
        Rule("x", 0.1)
    with pytest.raises(ValueError, match=r"zo\.lr must be above 0, got 0"):
        Rule("gaussian", 0)
    with pytest.raises(ValueError, match=r"one length, got \(3,\), \(2,\) and \(3,\); remove the kept state"):
        State(np.zeros(3), np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="holds NaN or Inf"):
        State(np.zeros(3), np.full(3, np.nan), np.zeros(3))
    for wrong in (np.zeros(3, np.float32), np.zeros((2, 2)), np.full((2, 2), np.inf, np.float32)):
        with pytest.raises(ValueError, match="finite float32 table"):
            Trace(0, wrong)
    with pytest.raises(ValueError, match="lacks 'm'; remove it"):
        from_arrays({"x": np.zeros(3)})
