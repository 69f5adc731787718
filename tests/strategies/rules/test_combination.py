import numpy as np
import pytest

from fedsd.lowrank import Factor
from fedsd.strategies.rules.combination import check_shared, mean, present, shares


def test_shares_are_the_clients_parts_of_all_weight():
    assert shares([1, 3]) == [0.25, 0.75]
    assert shares([10, 30]) == shares([1, 3])  # I19
    assert sum(shares([3, 7, 11])) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("weights", [[], [0, 0], [-1, 3], [float("nan"), 1]])
def test_weights_must_make_shares(weights):
    with pytest.raises(ValueError, match=r"weights must be >= 0, finite and not all 0"):
        shares(weights)


def test_clients_of_weight_zero_are_left_out():
    a, b, c = ({"q": Factor(np.eye(2) * k, np.eye(2))} for k in (1.0, 2.0, 3.0))
    assert present([a, b, c], [1, 0, 3]) == ([a, c], [0.25, 0.75])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_mean_keeps_the_dtype_and_its_inputs(dtype):
    arrays = [np.full((2, 3), value, dtype) for value in (1, 2, 4)]
    total = mean(arrays, np.array([0.5, 0.25, 0.25]))
    np.testing.assert_array_equal(total, np.full((2, 3), 2, dtype))
    assert total.dtype == dtype
    assert [array[0, 0] for array in arrays] == [1, 2, 4]


def test_clients_that_should_share_a_factor_and_do_not_are_named():
    first, second = {"q": Factor(np.eye(2), np.eye(2))}, {"q": Factor(np.eye(2), 2 * np.eye(2))}
    check_shared([first, second], "B", "RoLoRA")
    with pytest.raises(ValueError, match=r"FFA-LoRA needs the same A on all clients, and client 1 differs .* layer q"):
        check_shared([first, second], "A", "FFA-LoRA")
