import numpy as np
import pytest

from fedsd.lowrank import Array
from fedsd.methods.mixture import bias, mixing_weight, sample

W, TIMES = 0.8, (0.1, 0.3, 0.5)


def mu(d: int) -> Array:
    """Of length 1.5 whatever d is."""
    return np.full(d, 1.5 / d**0.5)


def error(n: int, d: int, seed: int) -> float:
    x0 = sample(n, mu(d), W, np.random.default_rng([seed, d]))
    return mixing_weight(x0, mu(d), TIMES, seed=seed) - W


def test_samples_are_of_two_gaussians() -> None:
    x0 = sample(40_000, np.array([3.0, 0.0]), W, np.random.default_rng(0))
    assert (x0[:, 0] > 0).mean() == pytest.approx(W, abs=0.01)
    assert x0[:, 1].std() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("w", [0.1, 0.5, 0.8])
def test_the_score_is_that_of_the_mixture(w: float) -> None:
    """The score of the density, d/dx log p, differs from tanh(mu x + b) mu - x in nothing."""
    x, m, h = np.linspace(-3, 3, 61), 1.5, 1e-5

    def log_p(at: Array) -> Array:
        return np.log(w * np.exp(-((at - m) ** 2) / 2) + (1 - w) * np.exp(-((at + m) ** 2) / 2))

    np.testing.assert_allclose(
        (log_p(x + h) - log_p(x - h)) / (2 * h), np.tanh(m * x + bias(w)) * m - x, rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("d", [2, 1024])
def test_descent_finds_the_weight_in_any_dimension(d: int) -> None:
    assert abs(error(4000, d, seed=0)) < 0.03


def test_every_start_ends_at_the_same_weight() -> None:
    x0 = sample(4000, mu(32), W, np.random.default_rng(1))
    found = [mixing_weight(x0, mu(32), TIMES, start=start) for start in (0.05, 0.3, 0.5, 0.95)]
    assert max(found) - min(found) < 1e-4
    assert abs(found[0] - W) < 0.03


def test_error_falls_with_the_root_of_the_samples() -> None:
    few, many = (np.sqrt(np.mean([error(n, 8, seed) ** 2 for seed in range(16)])) for n in (1000, 16_000))
    assert many < 0.5 * few
