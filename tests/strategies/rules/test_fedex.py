import numpy as np

from fedsd.lowrank import dense
from fedsd.strategies.rules.fedex import fedex


def test_the_residual_is_what_the_factor_mean_misses(make_lora, dense_sum):  # I13
    loras = [make_lora(seed, 3) for seed in range(3)]
    found = fedex(loras, [1, 2, 5])
    for layer, product in dense_sum(loras, [1 / 8, 2 / 8, 5 / 8]).items():
        missed = product - dense(found.lora[layer])
        np.testing.assert_allclose(dense(found.residual[layer]), missed, atol=1e-13)
        assert found.residual[layer].rank == 3 * 3 + 3


def test_a_cut_residual_is_the_best_of_its_rank(make_lora, dense_sum):
    loras = [make_lora(seed, 2) for seed in range(3)]
    found = fedex(loras, [1, 1, 2], residual_rank=2)
    for layer, product in dense_sum(loras, [0.25, 0.25, 0.5]).items():
        S = np.linalg.svd(product - dense(found.lora[layer]), compute_uv=False)
        left = product - dense(found.lora[layer]) - dense(found.residual[layer])
        np.testing.assert_allclose(np.linalg.norm(left), np.sqrt(np.sum(S[2:] ** 2)), rtol=1e-10)
