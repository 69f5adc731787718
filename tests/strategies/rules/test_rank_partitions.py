"""RBLA and raFLoRA: what a client of low rank cannot hold does not dilute what others have there."""

import numpy as np
import pytest

from fedsd.lowrank import Factor, dense
from fedsd.strategies.rules.raflora import raflora
from fedsd.strategies.rules.rbla import rbla


def test_rbla_averages_a_column_over_those_who_have_it():
    low = {"q": Factor(np.array([[4.0], [0.0]]), np.array([[8.0, 0.0]]))}
    high = {"q": Factor(np.array([[0.0, 5.0], [2.0, 7.0]]), np.array([[0.0, 4.0], [1.0, 3.0]]))}
    found = rbla([low, high], [1, 3]).lora["q"]
    np.testing.assert_array_equal(found.B, [[1.0, 5.0], [1.5, 7.0]])
    np.testing.assert_array_equal(found.A, [[2.0, 3.0], [1.0, 3.0]])


def test_raflora_averages_a_singular_direction_over_those_who_can_hold_it():
    low = {"q": Factor(np.array([[8.0], [0.0]]), np.array([[1.0, 0.0]]))}
    high = {"q": Factor(np.diag([4.0, 2.0]), np.eye(2))}
    # the first direction: (8 + 3 · 4) / 4; the second belongs to one client alone and keeps its size
    found = raflora([low, high], [1, 3]).lora["q"]
    np.testing.assert_allclose(dense(found), np.diag([5.0, 2.0]), atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_at_one_rank_raflora_is_the_exact_mean(make_lora, dense_sum, dtype):
    loras = [make_lora(seed, 3, dtype=dtype) for seed in range(3)]
    found = raflora(loras, [1, 1, 2]).lora
    for layer, product in dense_sum(loras, [0.25, 0.25, 0.5]).items():
        np.testing.assert_allclose(dense(found[layer]), product, atol=1e-12 if dtype is np.float64 else 1e-5)
