import numpy as np
import pytest

from fedsd.lowrank import Factor, dense
from fedsd.strategies.rules.hetlora import hetlora, zero_padding


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unequal_ranks_are_padded_with_zeros_to_the_largest(make_lora, dtype):
    loras = [make_lora(0, 2, dtype=dtype), make_lora(1, 4, dtype=dtype)]
    for layer, factor in zero_padding(loras, [0.5, 0.5]).lora.items():
        assert factor.rank == 4
        assert factor.B.dtype == dtype
        np.testing.assert_allclose(factor.B[:, 2:], loras[1][layer].B[:, 2:] / 2, rtol=1e-6)
        np.testing.assert_allclose(factor.A[:2], (loras[0][layer].A + loras[1][layer].A[:2]) / 2, rtol=1e-6)


def test_it_is_not_the_mean_of_the_products_and_depends_on_the_factors(make_lora, dense_sum):  # I7
    loras = [make_lora(0), make_lora(1)]
    flipped = [loras[0], {layer: Factor(-factor.B, -factor.A) for layer, factor in loras[1].items()}]
    exact = dense_sum(loras, [0.5, 0.5])
    mean, other = zero_padding(loras, [1, 1]).lora, zero_padding(flipped, [1, 1]).lora
    for layer, product in exact.items():
        assert np.linalg.norm(dense(mean[layer]) - product) > 0.1 * np.linalg.norm(product)
        assert np.linalg.norm(dense(mean[layer]) - dense(other[layer])) > 0.1 * np.linalg.norm(product)


def test_it_is_exact_where_all_share_one_of_the_factors(make_lora, dense_sum):  # I12
    loras = [make_lora(0), make_lora(1)]
    loras[1] = {layer: Factor(factor.B, loras[0][layer].A) for layer, factor in loras[1].items()}
    for layer, product in dense_sum(loras, [0.3, 0.7]).items():
        np.testing.assert_allclose(dense(zero_padding(loras, [3, 7]).lora[layer]), product, atol=1e-14)


def test_hetlora_weighs_by_the_norm_of_the_product():
    small = {"q": Factor(np.array([[1.0], [0.0]]), np.array([[1.0, 0.0]]))}
    large = {"q": Factor(np.array([[6.0], [0.0]]), np.array([[0.0, 0.5]]))}
    found = hetlora([small, large], [50, 1])
    assert found.weights == (0.25, 0.75)
    np.testing.assert_array_equal(found.lora["q"].B, [[4.75], [0.0]])


def test_untrained_clients_count_alike():
    zero = {"q": Factor(np.zeros((2, 1)), np.array([[1.0, 3.0]]))}
    assert hetlora([zero, zero], [1, 5]).weights == (0.5, 0.5)
