import numpy as np
import pytest

from fedsd.lowrank import Factor, dense
from fedsd.strategies.rules.geometric_median import geometric_median, gram, weiszfeld


def median_weights(loras, weights) -> np.ndarray:
    return weiszfeld(gram(loras), np.array(weights, dtype=float))


def on_a_line(*positions: float) -> list[dict[str, Factor]]:
    return [{"q": Factor(np.array([[position], [0.0]]), np.array([[1.0, 2.0]]))} for position in positions]


def test_of_three_points_on_a_line_it_is_the_middle_one():
    u = median_weights(on_a_line(0.0, 1.0, 10.0), [1, 1, 1])
    np.testing.assert_allclose(u, [0, 1, 0], atol=1e-6)


def test_of_the_corners_of_a_square_it_is_the_centre():
    corners = [
        {"q": Factor(np.array([[x], [y]]), np.array([[1.0]]))}
        for x, y in ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0))
    ]
    np.testing.assert_allclose(dense(geometric_median(corners, [1, 1, 1, 1]).lora["q"]), 0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_the_point_of_least_summed_distance(make_lora, dense_sum, dtype):  # I16
    loras = [make_lora(seed, rank, dtype=dtype) for seed, rank in enumerate((2, 3, 4, 2))]
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    u = median_weights(loras, weights)
    assert u.sum() == pytest.approx(1, abs=1e-12)

    def cost(v: np.ndarray) -> float:
        middle = dense_sum(loras, v)
        return sum(
            w * np.sqrt(sum(np.sum((middle[layer] - dense(lora[layer])) ** 2) for layer in middle))
            for w, lora in zip(weights, loras, strict=True)
        )

    rng = np.random.default_rng(0)
    assert all(cost(u) <= cost(v / v.sum()) + 1e-6 for v in u + rng.uniform(-0.05, 0.05, (40, 4)))
    found = geometric_median(loras, weights.tolist()).lora
    for layer, product in dense_sum(loras, u).items():
        np.testing.assert_allclose(dense(found[layer]), product, rtol=1e-4, atol=1e-5)
        assert found[layer].B.dtype == dtype


def test_an_outlier_a_hundred_times_as_large_has_hardly_any_weight(make_lora):  # I16
    honest = [make_lora(seed) for seed in range(4)]
    outlier = {layer: Factor(100 * factor.B, factor.A) for layer, factor in make_lora(9).items()}
    assert median_weights([*honest, outlier], [1] * 5)[4] < 0.02


def test_another_choice_of_factors_gives_the_same_median(make_lora):  # I7
    loras = [make_lora(seed) for seed in range(3)]
    same = [{layer: Factor(8 * factor.B, factor.A / 8) for layer, factor in lora.items()} for lora in loras]
    np.testing.assert_allclose(median_weights(same, [1, 2, 3]), median_weights(loras, [1, 2, 3]), rtol=1e-9)


def test_clients_that_agree_are_their_own_median(make_lora):
    np.testing.assert_allclose(median_weights([make_lora(0)] * 3, [1, 1, 2]), [0.25, 0.25, 0.5], rtol=1e-6)
    assert median_weights([make_lora(0)], [5]).tolist() == [1.0]


def test_the_gram_matrix_is_that_of_the_dense_products(make_lora):  # I9
    loras = [make_lora(seed, rank, dtype=np.float32) for seed, rank in enumerate((2, 5, 1, 3))]
    flat = [np.concatenate([(f.B.astype(float) @ f.A.astype(float)).ravel() for f in lora.values()]) for lora in loras]
    found = gram(loras)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.array(flat) @ np.array(flat).T, rtol=1e-12, atol=1e-12)
