import numpy as np
import pytest

from fedsd.lowrank import Factor, dense
from fedsd.strategies.peft_parts import fit, mean_whole, put_together, share_cut, take_apart

A, B = "q.lora_A.weight", "q.lora_B.weight"
CONFIG = {"r": 3, "lora_alpha": 6}


def make_state(dtype=np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    state = {
        "z": rng.standard_normal(2),
        B: rng.standard_normal((5, 3)),
        A: rng.standard_normal((3, 4)),
        "a": np.ones(1),
    }
    return {key: array.astype(dtype) for key, array in state.items()}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_put_together_again_is_the_same_in_order_and_type(dtype):
    state = make_state(dtype)
    again = put_together(take_apart(state, CONFIG), CONFIG, state, [1])
    assert list(again) == list(state)
    for key, array in state.items():
        assert again[key].dtype == dtype
        np.testing.assert_array_equal(again[key], array)


def test_at_a_larger_rank_the_product_is_the_same_and_every_direction_can_learn():
    state, larger = make_state(np.float64), CONFIG | {"r": 4}
    again = put_together(take_apart(state, CONFIG), larger, state, [1])
    assert again[B].shape == (5, 4)
    assert again[A][3].any() and not again[B][:, 3].any()
    np.testing.assert_allclose(again[B] @ again[A] * 6 / 4, state[B] @ state[A] * 2)
    np.testing.assert_array_equal(again[A], put_together(take_apart(state, CONFIG), larger, state, [1])[A])


def test_the_best_cut_keeps_the_largest_direction_and_the_cut_by_index_the_first():
    factor = Factor(np.diag([1.0, 3.0]), np.eye(2))
    np.testing.assert_allclose(dense(fit(factor, 1)), np.diag([0.0, 3.0]), atol=1e-12)
    np.testing.assert_array_equal(dense(fit(factor, 1, by_index=True)), np.diag([1.0, 0.0]))
    assert share_cut({"q": factor}, {"q": fit(factor, 1)}) == pytest.approx(0.1)
    assert share_cut({"q": factor}, {"q": fit(factor, 3)}) == 0


def test_whole_arrays_are_averaged_by_weight_in_their_own_type():
    wholes = [{"w": np.float16([1, 2]), "steps": np.array(4)}, {"w": np.float16([2, 4]), "steps": np.array(7)}]
    found = mean_whole(wholes, [10, 30])
    np.testing.assert_array_equal(found["w"], np.float16([1.75, 3.5]))
    assert found["w"].dtype == np.float16
    assert found["steps"] == 6 and found["steps"].dtype == np.array(4).dtype and found["steps"].shape == ()
