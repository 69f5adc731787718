"""Trimmed mean, multi-Krum and norm clipping on clients whose product is one number, and on random ones."""

import numpy as np
import pytest

from fedsd.lowrank import Factor, dense, lora_norm
from fedsd.strategies.rules.geometric_median import gram
from fedsd.strategies.rules.multi_krum import krum_scores, multi_krum
from fedsd.strategies.rules.norm_clipping import lower_median, norm_clipping
from fedsd.strategies.rules.trimmed_mean import trimmed_mean


def on_a_line(*positions: float) -> list[dict[str, Factor]]:
    return [{"q": Factor(np.array([[position], [0.0]]), np.array([[1.0, 0.0]]))} for position in positions]


def place(found) -> float:
    return float(dense(found.lora["q"])[0, 0])


def test_the_trimmed_mean_leaves_out_what_is_farthest_from_the_median():
    found = trimmed_mean(on_a_line(1, 2, 3, 4, 100), [1] * 5, trim=0.2)
    assert found.weights == pytest.approx((0.25, 0.25, 0.25, 0.25, 0))
    assert place(found) == pytest.approx(2.5)


def test_a_client_on_the_boundary_counts_in_part():
    found = trimmed_mean(on_a_line(1, 2, 3, 4, 100), [1] * 5, trim=0.3)
    # 100 goes whole, and half of one of those 2 away from the median at 3
    assert sorted(found.weights) == pytest.approx([0, 0.5 / 3.5, 1 / 3.5, 1 / 3.5, 1 / 3.5])


def test_nothing_trimmed_is_the_mean():
    assert place(trimmed_mean(on_a_line(1, 2, 6), [1, 1, 2], trim=0)) == pytest.approx(3.75)


def test_krum_scores_are_summed_squares_of_the_nearest():
    scores = krum_scores(gram(on_a_line(0, 1, 3, 10, 100)), 1)  # K - f - 2 = 2 nearest
    np.testing.assert_allclose(scores, [1 + 9, 1 + 4, 4 + 9, 49 + 81, 90**2 + 97**2])


def test_multi_krum_is_the_mean_of_the_chosen_by_their_weights():
    found = multi_krum(on_a_line(0, 1, 3, 10, 100), [1, 1, 2, 2, 50], byzantine=0.2)
    assert found.weights == pytest.approx((1 / 6, 1 / 6, 1 / 3, 1 / 3, 0))
    assert place(found) == pytest.approx((0 + 1 + 6 + 20) / 6)


def test_norm_clipping_shortens_the_long_ones_to_the_median_norm():
    found = norm_clipping(on_a_line(1, -2, 100), [1, 1, 1])
    assert place(found) == pytest.approx((1 - 2 + 2) / 3)
    assert place(norm_clipping(on_a_line(1, -2, 100), [1, 1, 1], bound=0.5)) == pytest.approx((0.5 - 0.5 + 0.5) / 3)


def test_the_clip_is_on_the_product_and_not_on_the_factors(make_lora):
    lora = make_lora(0)
    hidden = {layer: Factor(factor.B * 1e4, factor.A / 1e4) for layer, factor in lora.items()}
    clipped = norm_clipping([hidden], [1], bound=2.0).lora
    assert lora_norm(clipped) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("values", "weights", "middle"), [([3, 1, 2], [1, 1, 1], 2), ([1, 2], [1, 1], 1), ([1, 2, 9], [1, 1, 3], 9)]
)
def test_the_lower_median_is_by_weight(values, weights, middle):
    assert lower_median(values, weights) == middle


def test_two_hostile_clients_in_ten_hardly_move_the_robust_rules(make_lora, dense_sum):
    common = make_lora(99)
    honest = [
        {layer: Factor(f.B + 0.1 * make_lora(seed)[layer].B, f.A) for layer, f in common.items()} for seed in range(8)
    ]
    hostile = [{layer: Factor(-10 * f.B, f.A) for layer, f in lora.items()} for lora in honest[:2]]
    clean = dense_sum(honest, [1 / 8] * 8)

    def off(loras, rule) -> float:
        found = rule(loras, [1] * len(loras)).lora
        return max(np.linalg.norm(dense(found[layer]) - clean[layer]) / np.linalg.norm(clean[layer]) for layer in clean)

    assert off(honest + hostile, trimmed_mean) < 0.1
    assert off(honest + hostile, multi_krum) < 0.1
    assert off(honest + hostile, norm_clipping) < 0.6


@pytest.mark.parametrize("share", [-0.1, 0.5, float("nan")])
def test_a_majority_cannot_be_trimmed(make_lora, share):
    with pytest.raises(ValueError, match=r"trim must be in \[0, 0.5\)"):
        trimmed_mean([make_lora(0)], [1], trim=share)
    with pytest.raises(ValueError, match=r"byzantine must be in \[0, 0.5\)"):
        multi_krum([make_lora(0)], [1], byzantine=share)


def test_the_bound_must_be_positive(make_lora):
    with pytest.raises(ValueError, match=r"bound must be > 0, got 0"):
        norm_clipping([make_lora(0)], [1], bound=0)
    with pytest.raises(ValueError, match="the median of no values is undefined"):
        lower_median([], [])
