import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsd.lowrank import Factor, dense
from fedsd.strategies.accumulator import Accumulator, FactorAccumulator
from fedsd.strategies.rules.flora import flora
from fedsd.strategies.rules.hetlora import zero_padding

RANKS = (2, 3, 4, 1, 5, 2)
N = [5, 1, 3, 7, 2, 4]


@pytest.fixture
def loras(make_lora):
    return [make_lora(seed, rank, dtype=np.float32) for seed, rank in enumerate(RANKS)]


def fill(accumulator: Accumulator, loras, n, order) -> Accumulator:
    for k in order:
        accumulator.add(f"c{k}", loras[k], n[k])
    return accumulator


def off(left: Factor, right: np.ndarray) -> float:
    return float(np.linalg.norm(left.B.astype(float) @ left.A.astype(float) - right))


def test_below_the_cap_any_order_gives_the_bits_of_all_at_once(loras):
    together = flora(loras, N).lora
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 4, 2]):
        mean, bound = fill(Accumulator(17), loras, N, order).mean()
        assert set(bound.values()) == {0.0}
        for layer, factor in mean.items():
            np.testing.assert_array_equal(factor.B, together[layer].B)
            np.testing.assert_array_equal(factor.A, together[layer].A)


def test_over_the_cap_the_error_stays_within_the_bound_that_is_reported(loras, dense_sum):
    exact = dense_sum(loras, np.array(N) / sum(N))
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 4, 2]):
        accumulator = fill(Accumulator(8), loras, N, order)
        mean, bound = accumulator.mean()
        assert accumulator.rank <= 8
        assert accumulator.recompressions > 0
        for layer, product in exact.items():
            assert bound[layer] > 0
            assert off(mean[layer], product) <= bound[layer] + 1e-5


def test_at_twice_a_layers_dimensions_nothing_is_lost(make_lora, dense_sum):
    loras = [make_lora(seed, 4) for seed in range(20)]
    mean, bound = fill(Accumulator(18), loras, [1] * 20, range(20)).mean()
    for layer, product in dense_sum(loras, [1 / 20] * 20).items():
        assert bound[layer] < 1e-12
        np.testing.assert_allclose(dense(mean[layer]), product, atol=1e-12)


def test_clients_of_one_subspace_are_summed_without_loss_at_any_number(make_lora):
    common = make_lora(0, 3)
    accumulator = Accumulator(8)
    for k in range(50):
        accumulator.add(f"c{k}", {layer: Factor(k * f.B, f.A) for layer, f in common.items()}, 2)
    mean, bound = accumulator.mean()
    for layer, factor in common.items():
        np.testing.assert_allclose(dense(mean[layer]), 24.5 * dense(factor), rtol=1e-10, atol=1e-10)
        assert bound[layer] < 1e-6


@given(
    ranks=st.lists(st.integers(1, 12), min_size=1, max_size=25), cap=st.integers(2, 60), seed=st.integers(0, 2**32 - 1)
)
@settings(max_examples=30)
def test_the_bound_holds_for_any_clients_cap_and_order(ranks, cap, seed):
    rng = np.random.default_rng(seed)
    loras = [{"q": Factor(rng.standard_normal((9, r)), rng.standard_normal((r, 7)))} for r in ranks]
    n = rng.integers(1, 50, len(ranks)).tolist()
    exact = sum(w * dense(lora["q"]) for w, lora in zip(n, loras, strict=True)) / sum(n)
    mean, bound = fill(Accumulator(cap), loras, n, rng.permutation(len(n)).tolist()).mean()
    assert off(mean["q"], exact) <= bound["q"] + 1e-10 * np.linalg.norm(exact)
    if sum(ranks) <= cap:
        assert bound["q"] == 0


def test_factors_are_averaged_as_zero_padding_does(loras):
    together = zero_padding(loras, N).lora
    for order in (range(6), [4, 2, 0, 5, 1, 3]):
        accumulator = FactorAccumulator()
        for k in order:
            accumulator.add(loras[k], N[k])
        for layer, factor in accumulator.mean().items():
            np.testing.assert_allclose(factor.B, together[layer].B, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(factor.A, together[layer].A, rtol=1e-5, atol=1e-6)
            assert factor.B.dtype == np.float32


def test_the_adapters_that_came_stay_as_they_were(loras):
    before = loras[0]["unet.attn.to_q"].B.copy()
    factors = FactorAccumulator()
    for lora in loras:
        factors.add(lora, 3)
    fill(Accumulator(4), loras, N, range(6))
    np.testing.assert_array_equal(loras[0]["unet.attn.to_q"].B, before)


def test_what_cannot_be_summed_is_named(loras):
    accumulator = Accumulator(2)
    for empty in (accumulator, FactorAccumulator()):
        with pytest.raises(ValueError, match="the mean of no updates is undefined"):
            empty.mean()
    accumulator.add("c0", loras[0], 1)
    with pytest.raises(ValueError, match="c0 is already in the sum; a client counts once"):
        accumulator.add("c0", loras[0], 1)
    with pytest.raises(ValueError, match="adapt different layers"):
        accumulator.add("c1", {}, 1)
    with pytest.raises(ValueError, match=r"strategy\.stack-cap must be >= 2 columns, got 1"):
        Accumulator(1)
