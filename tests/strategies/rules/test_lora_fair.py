import numpy as np
import pytest

from fedsd.lowrank import Factor, dense
from fedsd.strategies.rules.hetlora import zero_padding
from fedsd.strategies.rules.lora_fair import lora_fair


def objective(X: np.ndarray, A: np.ndarray, B_bar: np.ndarray, exact: np.ndarray, penalty: float) -> float:
    """Equation 8 with dense matrices."""
    cosine = np.sum(exact * (X @ A)) / (np.linalg.norm(exact) * np.linalg.norm(X @ A))
    return 1 - cosine + penalty * np.sum((X - B_bar) ** 2)


@pytest.mark.parametrize("penalty", [0.01, 0.1, 1.0])
def test_no_neighbour_has_a_lower_objective_and_only_b_moves(make_lora, dense_sum, penalty):
    loras = [make_lora(seed, rank) for seed, rank in enumerate((3, 2, 4))]
    start, found = zero_padding(loras, [1, 1, 2]).lora, lora_fair(loras, [1, 1, 2], penalty=penalty).lora
    rng = np.random.default_rng(0)
    for layer, exact in dense_sum(loras, [0.25, 0.25, 0.5]).items():
        np.testing.assert_array_equal(found[layer].A, start[layer].A)

        def value(X, layer=layer, exact=exact):
            return objective(X, start[layer].A, start[layer].B, exact, penalty)

        best = value(found[layer].B)
        assert best < value(start[layer].B)
        for _ in range(50):
            step = rng.standard_normal(found[layer].B.shape) * 10.0 ** rng.uniform(-4, -1)
            assert value(found[layer].B + step) >= best - 1e-12


def test_it_points_closer_to_the_exact_mean_than_the_factor_mean(make_lora, dense_sum):
    loras = [make_lora(seed) for seed in range(3)]

    def cosine(lora, layer, exact):
        return np.sum(exact * dense(lora[layer])) / np.linalg.norm(exact) / np.linalg.norm(dense(lora[layer]))

    for layer, exact in dense_sum(loras, [1 / 3] * 3).items():
        fair, mean = lora_fair(loras, [1, 1, 1]).lora, zero_padding(loras, [1, 1, 1]).lora
        assert cosine(fair, layer, exact) > cosine(mean, layer, exact)


def test_untrained_clients_stay_untrained():
    zero = {"q": Factor(np.zeros((3, 1)), np.ones((1, 2)))}
    np.testing.assert_array_equal(lora_fair([zero, zero], [1, 1]).lora["q"].B, 0)


def test_the_penalty_must_be_positive(make_lora):
    with pytest.raises(ValueError, match=r"penalty must be > 0, got 0; the paper takes 0\.01"):
        lora_fair([make_lora(0)], [1], penalty=0)
