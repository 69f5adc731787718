import numpy as np
import pytest

from fedsd.lowrank import Factor, dense, lora_norm, pad, stack_loras
from fedsd.strategies.inter import mix, mix_weights, neutral, normalised_trace, style_distance


def test_the_style_distance_is_to_the_centre_of_the_clusters():
    d = style_distance(np.array([[1.0, 0.0], [0.0, 1.0]]))
    # z_g = (1, 1)/√2, and ‖(1, 0) - z_g‖² = 2 - √2
    np.testing.assert_allclose(d, [np.sqrt(2 - np.sqrt(2))] * 2, rtol=1e-12)
    np.testing.assert_array_equal(style_distance(np.array([[0.6, 0.8]])), [0.0])
    np.testing.assert_allclose(style_distance(np.array([[1.0, 0.0], [-1.0, 0.0]])), [1.0, 1.0])


def test_the_normalised_trace_is_the_mean_singular_value_averaged_over_layers():
    lora = {
        "q": Factor(np.diag([3.0, 1.0, 0.0]), np.eye(3)),  # rank 2: (3 + 1) / 2
        "k": Factor(np.array([[5.0], [0.0]]), np.array([[0.0, 2.0]])),  # rank 1: 10
    }
    assert normalised_trace(lora) == pytest.approx((2 + 10) / 2)
    assert normalised_trace({"q": Factor(np.zeros((3, 2)), np.ones((2, 3)))}) == 0.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_padding_does_not_change_the_normalised_trace(make_lora, dtype):  # I18
    lora = make_lora(0, 3, dtype=dtype)
    padded = {layer: pad(factor, 5) for layer, factor in lora.items()}
    assert normalised_trace(padded) == pytest.approx(normalised_trace(lora), rel=1e-5)


def test_the_literal_weights_are_line_16():
    # w = 0.5 / 2 + 0.5 * 1 = 0.75 and 0.5 / 0.5 + 0.5 * 3 = 2.5
    beta = mix_weights(np.array([2.0, 0.5]), np.array([1.0, 3.0]), 0.5, "literal")
    np.testing.assert_allclose(beta, [0.75 / 3.25, 2.5 / 3.25], rtol=1e-12)


def test_the_normalised_weights_do_not_depend_on_the_units():
    d, tau = np.array([2.0, 0.5]), np.array([1.0, 3.0])
    # 1/d = (0.5, 2) over its mean 1.25 is (0.4, 1.6); tau over its mean 2 is (0.5, 1.5)
    np.testing.assert_allclose(mix_weights(d, tau, 0.5), [0.45 / 2, 1.55 / 2], rtol=1e-12)
    np.testing.assert_allclose(mix_weights(1e3 * d, 1e-4 * tau, 0.5), mix_weights(d, tau, 0.5), rtol=1e-12)
    np.testing.assert_allclose(mix_weights(d, tau, 1.0), [0.2, 0.8], rtol=1e-12)
    np.testing.assert_allclose(mix_weights(d, tau, 0.0), [0.25, 0.75], rtol=1e-12)


@pytest.mark.parametrize("formula", ["normalised", "literal"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("d", [[0.0], [0.3], [0.0, 0.4, 0.5], [0.0, 0.0], [0.2, 0.2]])
def test_beta_is_finite_and_sums_to_one(d, alpha, formula):  # I17
    for tau in (np.arange(len(d)) + 1.0, np.zeros(len(d))):
        beta = mix_weights(np.array(d), tau, alpha, formula)
        assert np.isfinite(beta).all()
        assert (beta >= 0).all()
        assert beta.sum() == pytest.approx(1, abs=1e-12)


def test_a_cluster_at_the_centre_does_not_take_all_the_weight():
    beta = mix_weights(np.array([0.0, 0.4, 0.5]), np.ones(3), 1.0)
    assert 0.5 < beta[0] < 0.9
    assert (mix_weights(np.array([0.0, 0.4, 0.5]), np.ones(3), 1.0, "literal")[0]) > 0.99


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_with_one_cluster_mix_and_neutral_are_the_cluster(make_lora, dtype):  # I17
    lora = make_lora(1, 4, dtype=dtype)
    beta = mix_weights(np.array([0.0]), np.array([2.0]), 0.5)
    assert beta.tolist() == [1.0]
    for combined, lost in (mix([lora], beta.tolist(), 64), neutral([lora], 64)):
        for layer, factor in lora.items():
            np.testing.assert_allclose(dense(combined[layer]), dense(factor), rtol=1e-4, atol=1e-5)
        assert lost == 0.0


def test_mix_is_the_weighted_sum_and_keeps_float32(make_lora, dense_sum):
    loras = [make_lora(seed, rank, dtype=np.float32) for seed, rank in enumerate((2, 3, 4))]
    beta = np.array([0.2, 0.3, 0.5])
    combined, _ = mix(loras, beta, 64)
    for layer, product in dense_sum(loras, beta).items():
        np.testing.assert_allclose(dense(combined[layer]), product, rtol=1e-4, atol=1e-5)
        assert combined[layer].A.dtype == np.float32


def test_neutral_is_the_mean_where_the_gradient_vanishes_and_the_bare_stack_is_k_times_it(make_lora, dense_sum):  # I10
    loras = [make_lora(seed, rank) for seed, rank in enumerate((2, 3, 4))]
    lora_neu, lost = neutral(loras, 64)
    for layer, product in dense_sum(loras, [1 / 3] * 3).items():
        np.testing.assert_allclose(dense(lora_neu[layer]), product, atol=1e-13)
        gradient = sum(dense(lora_neu[layer]) - dense(lora[layer]) for lora in loras)
        np.testing.assert_allclose(gradient, 0, atol=1e-12)
    assert lost < 1e-25
    assert lora_norm(stack_loras(loras, [1, 1, 1])) / lora_norm(lora_neu) == pytest.approx(3, rel=1e-12)


def test_the_rank_cap_reports_the_energy_it_costs():
    # the mean of diag(4, 0) and diag(0, 2) is diag(2, 1): a cap of 1 loses 1 of 5
    loras = [
        {"q": Factor(np.array([[4.0], [0.0]]), np.array([[1.0, 0.0]]))},
        {"q": Factor(np.array([[0.0], [2.0]]), np.array([[0.0, 1.0]]))},
    ]
    lora_neu, lost = neutral(loras, 1)
    np.testing.assert_allclose(dense(lora_neu["q"]), np.diag([2.0, 0.0]), atol=1e-15)
    assert lost == pytest.approx(0.2, rel=1e-12)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_is_a_share(alpha):
    with pytest.raises(ValueError, match=r"mix\.alpha must be in \[0, 1\], got"):
        mix_weights(np.ones(2), np.ones(2), alpha)


def test_the_formula_is_a_known_one():
    with pytest.raises(ValueError, match=r"mix\.formula must be normalised or literal; got 'litteral'"):
        mix_weights(np.ones(2), np.ones(2), 0.5, "litteral")
