import numpy as np
import pytest

from fedsd.lowrank import dense
from fedsd.strategies.rules.flora import flora


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-13)])
def test_the_stack_is_the_exact_sum_at_the_sum_of_the_ranks(make_lora, dense_sum, dtype, tolerance):  # I1
    loras = [make_lora(seed, rank, dtype=dtype) for seed, rank in enumerate((2, 3, 4))]
    found = flora(loras, [2, 3, 5], 1)
    for layer, product in dense_sum(loras, [0.2, 0.3, 0.5]).items():
        assert found.lora[layer].rank == 9
        np.testing.assert_allclose(dense(found.lora[layer]), product, rtol=tolerance, atol=tolerance)
        np.testing.assert_array_equal(found.lora[layer].B[:, :2], loras[0][layer].B)


def test_a_single_client_keeps_its_bits(make_lora):
    lora = make_lora(0, dtype=np.float32)
    for layer, factor in flora([lora], [7]).lora.items():
        np.testing.assert_array_equal(factor.B, lora[layer].B)
        np.testing.assert_array_equal(factor.A, lora[layer].A)
