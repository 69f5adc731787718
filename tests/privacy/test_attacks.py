"""Each attack is right where the answer can be read off what it is given, and blind where that has been taken out."""

import numpy as np
import pytest

from fedsd.lowrank import Factor
from fedsd.privacy import attacks, key

RNG = np.random.default_rng(3)
BANK = RNG.standard_normal((5, 32))
BANK /= np.linalg.norm(BANK, axis=1, keepdims=True)


def near(bank: np.ndarray, noise: float = 0.05) -> np.ndarray:
    return bank + noise * np.random.default_rng(8).standard_normal(bank.shape)


def keys(count: int) -> list[bytes]:
    return [bytes(np.random.default_rng(i).bytes(32)) for i in range(count)]


def test_a1_finds_the_nearest_word_by_either_measure() -> None:
    words = np.array([[1.0, 0.0], [0.0, 1.0], [10.0, 10.0]])
    assert attacks.nearest_vocabulary(np.array([[0.9, 0.1]]), words) == 0
    # one vector of several is enough
    assert attacks.nearest_vocabulary(np.array([[-1.0, -1.0], [0.1, 5.0]]), words) == 1
    # the direction of the third word, the place of none but the first
    vector = np.array([[0.6, 0.5]])
    assert attacks.nearest_vocabulary(vector, words) == 2
    assert attacks.nearest_vocabulary(vector, words, metric="l2") == 0
    with pytest.raises(ValueError, match="metric must be cosine or l2, got 'dot'"):
        attacks.nearest_vocabulary(vector, words, metric="dot")


def test_a2_compares_what_is_not_common_to_all_candidates() -> None:
    common = 50 * RNG.standard_normal((4, 8))
    own = RNG.standard_normal((3, 4, 8))
    for style in range(3):
        assert attacks.encoder_match(common + 0.7 * own[style], common + own) == style


def test_a3_and_a4_find_the_style_of_pictures() -> None:
    for style, z in enumerate(near(BANK)):
        assert attacks.zero_shot(z, BANK) == attacks.nearest_style(z, BANK) == style
        assert attacks.drawn_style(np.stack([z, z + 0.01]), BANK) == style


def test_a4_is_blind_to_a_turned_z() -> None:
    Z = near(BANK)
    for attack in (attacks.zero_shot, attacks.nearest_style):
        right = [attack(z, BANK) == style for k in keys(200) for style, z in enumerate(key.turn(Z, k))]
        assert np.mean(right) == pytest.approx(1 / 5, abs=0.05)


def test_a4_by_mutual_cosines_sees_through_a_turn_and_not_through_a_blur() -> None:
    Z, groups = near(np.repeat(BANK, 2, axis=0), 0.02), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    truth = np.repeat(np.arange(5), 2)
    np.testing.assert_array_equal(attacks.geometry(key.turn(Z, keys(1)[0]), groups, BANK), truth)
    right = [attacks.geometry(key.blur(Z, k), groups, BANK) == truth for k in keys(200)]
    assert np.mean(right) == pytest.approx(1 / 5, abs=0.06)


def test_a4_by_mutual_cosines_guesses_the_largest_groups() -> None:
    Z = np.concatenate([BANK[[0, 0]], BANK[[1, 1]], BANK[[2, 2]], BANK[[3, 3]], BANK[[4, 4]], -BANK[:1]])
    found = attacks.geometry(Z, [5, 5, 1, 1, 2, 2, 3, 3, 4, 4, 0], BANK)
    np.testing.assert_array_equal(found, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, -1])


def test_a4_by_mutual_cosines_searches_where_there_are_too_many_assignments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "TRIED_ALL", 1)
    found = attacks.geometry(key.turn(BANK, keys(1)[0]), range(5), BANK)
    assert sorted(found) == [0, 1, 2, 3, 4] and (found == np.arange(5)).mean() >= 0.6


def test_a5_links_each_upload_to_another_device() -> None:
    order = [3, 0, 4]
    np.testing.assert_array_equal(attacks.linkage(near(BANK)[order] @ BANK.T), order)
    # more uploads than devices: one has none
    assert sorted(attacks.linkage(np.array([[1.0], [2.0]]))) == [-1, 0]


def lora(direction: int, seed: int, rank: int = 3) -> dict[str, Factor]:
    """An adapter of two layers whose product has a part of its own and one in the direction of its style."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(100 + direction)
    found = {}
    for layer in ("a", "b"):
        B, A = shared.standard_normal((12, 1)), shared.standard_normal((1, 10))
        found[layer] = Factor(
            np.concatenate([B, 0.3 * rng.standard_normal((12, rank - 1))], axis=1),
            np.concatenate([A, rng.standard_normal((rank - 1, 10))]),
        )
    return found


def test_a6_finds_the_direction_of_an_adapter_whatever_its_rank_and_factors() -> None:
    styles = [0, 0, 1, 1, 2, 2]
    shadows = [lora(style, seed) for seed, style in enumerate(styles)]
    for style in range(3):
        observed = lora(style, 50 + style, rank=5)
        mixed = {
            layer: Factor(factor.B @ np.diag([2.0] * 5), np.diag([0.5] * 5) @ factor.A)
            for layer, factor in observed.items()
        }
        assert attacks.shadow_adapter(observed, shadows, styles) == style
        assert attacks.shadow_adapter(mixed, shadows, styles) == style
    turned = [
        attacks.shadow_adapter(key.turn_adapter(lora(style, 70 + style), k), shadows, styles) == style
        for k in keys(60)
        for style in range(3)
    ]
    assert np.mean(turned) == pytest.approx(1 / 3, abs=0.1)


def test_a6_weighs_features_by_how_much_they_vary() -> None:
    shadows = np.array([[0.0, 1000.0], [1.0, 1400.0], [0.1, 1300.0], [1.1, 1100.0]])
    assert attacks.shadow(np.array([0.05, 1390.0]), shadows, [0, 1, 0, 1]) == 0


def test_a_spectrum_is_the_same_under_a_key_and_tells_sizes_apart() -> None:
    small = lora(0, 1)
    np.testing.assert_allclose(
        attacks.spectrum(key.turn_adapter(small, keys(1)[0])), attacks.spectrum(small), atol=1e-9
    )
    large = {layer: Factor(3 * factor.B, factor.A) for layer, factor in small.items()}
    assert attacks.spectrum(small).shape == (2 * 5,)
    difference = attacks.spectrum(large) - attacks.spectrum(small)
    np.testing.assert_allclose(difference[[0, 1, 2, 3, 5, 6, 7, 8]], np.log(3), atol=1e-6)  # a fourth value is none
