import numpy as np
import pytest

from fedsd.lowrank import Factor, dense
from fedsd.strategies.rules.florist import florist


def of_spectrum(*values: float) -> dict[str, Factor]:
    Q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((9, len(values))))
    P, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((7, len(values))))
    return {"q": Factor(Q * np.array(values), P.T)}


@pytest.mark.parametrize(("share", "rank"), [(0.5, 1), (0.63, 1), (0.65, 2), (0.9, 2), (0.98, 3), (1.0, 4)])
def test_the_rank_is_the_smallest_that_reaches_the_share_of_energy(share, rank):
    # energies 64, 32, 3, 1 of 100
    lora = of_spectrum(8, 32**0.5, 3**0.5, 1)
    assert florist([lora], [1], share=share).report["q"].rank == rank


def test_a_larger_share_never_takes_a_smaller_rank_and_keeps_what_it_says(make_lora, dense_sum):  # I25
    loras = [make_lora(seed, rank) for seed, rank in enumerate((2, 1, 3))]
    exact = dense_sum(loras, [0.2, 0.3, 0.5])
    before = dict.fromkeys(exact, 0)
    for share in (0.1, 0.5, 0.9, 0.99, 1.0):
        found = florist(loras, [2, 3, 5], share=share)
        for layer, product in exact.items():
            entry = found.report[layer]
            kept = np.sum(dense(found.lora[layer]) ** 2) / np.sum(product**2)
            assert kept >= share - 1e-12
            assert entry.discarded == pytest.approx(1 - kept, abs=1e-12)
            assert entry.rank >= before[layer]
            before[layer] = entry.rank
    assert before == {layer: np.linalg.matrix_rank(product) for layer, product in exact.items()}


def test_a_share_of_one_drops_only_what_is_numerically_zero(make_lora):  # I25
    lora = make_lora(0, 3)
    found = florist([lora, lora], [1, 1], share=1.0)
    assert {entry.rank for entry in found.report.values()} == {3}
    for layer, factor in lora.items():
        np.testing.assert_allclose(dense(found.lora[layer]), dense(factor), atol=1e-13)


def test_an_untrained_layer_has_rank_one_and_loses_nothing():
    found = florist([{"q": Factor(np.zeros((4, 2)), np.ones((2, 3)))}], [1])
    assert (found.report["q"].rank, found.report["q"].discarded) == (1, 0.0)


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_the_share_must_be_one(make_lora, share):
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\]"):
        florist([make_lora(0)], [1], share=share)
