import numpy as np
import pytest

from fedsd.tangent_mean import arrays_norm, other_directions, tangent_mean, tangent_sum


def update(shift: list[float], turn: list[float]) -> dict[str, np.ndarray]:
    return {"a.shift": np.array(shift, np.float32), "a.turn": np.array(turn, np.float32)}


def test_mean_is_weighted_by_images() -> None:
    mean = tangent_mean([update([4, 0], [8]), update([0, 8], [-8])], [30, 10])
    np.testing.assert_array_equal(mean["a.shift"], np.array([3, 2], np.float32))
    np.testing.assert_array_equal(mean["a.turn"], np.array([4], np.float32))
    assert list(mean) == ["a.shift", "a.turn"] and mean["a.turn"].dtype == np.float32


def test_sum_takes_weights_as_they_are() -> None:
    total = tangent_sum([update([1, 2], [3]), update([10, 20], [30])], [1, -0.5])
    np.testing.assert_array_equal(total["a.shift"], np.array([-4, -8], np.float32))
    np.testing.assert_array_equal(total["a.turn"], np.array([-12], np.float32))


def test_sum_is_taken_in_float64() -> None:
    tiny = [{"a.shift": np.array([1e8], np.float32)}] + [{"a.shift": np.array([1], np.float32)}] * 100
    tiny.append({"a.shift": np.array([-1e8], np.float32)})
    assert tangent_sum(tiny, [1] * len(tiny))["a.shift"] == 100


def test_mean_of_rotations_by_their_generators_is_a_rotation() -> None:
    def cayley(A: np.ndarray) -> np.ndarray:
        Q, identity = (A - A.T) / 2, np.eye(len(A))
        return np.linalg.solve(identity + Q, identity - Q)

    A, B = (np.tril(np.random.default_rng(seed).standard_normal((6, 6)), -1).astype(np.float32) for seed in (0, 1))
    K = cayley(tangent_mean([{"x": A}, {"x": B}], [1, 1])["x"])
    np.testing.assert_allclose(K @ K.T, np.eye(6), rtol=0, atol=1e-6)
    literal = (cayley(A) + cayley(B)) / 2
    assert np.abs(literal @ literal.T - np.eye(6)).max() > 0.1


@pytest.mark.parametrize(
    ("updates", "n", "said"),
    [
        ([], [], r"got 0 updates and weights \[\]"),
        ([update([1], [1])], [0], r"image counts must sum to more than 0, got \[0\]"),
        ([update([1], [1])], [1, 2], "give one finite weight for each"),
        ([update([1], [1]), update([1, 2], [1])], [1, 1], r"differ in a\.shift, \(2,\) against \(1,\); all clients"),
        ([update([1], [1]), {"b": np.zeros(1)}], [1, 1], r"differ in a\.shift, None against \(1,\)"),
        ([update([1], [1]), update([1], [float("nan")])], [1, 1], r"a\.turn of update 1 holds NaN or Inf"),
    ],
)
def test_what_cannot_be_averaged_is_refused(updates: list, n: list, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        if updates or n:
            tangent_mean(updates, n)
        else:
            tangent_sum(updates, n)


def test_other_directions_are_named() -> None:
    assert "(bbbb, not aaaa)" in other_directions("bbbb", "aaaa")
    assert "(none, not aaaa)" in other_directions("", "aaaa")
    assert other_directions("a", "a") == other_directions("", "") == ""


def test_the_norm_is_that_of_all_numbers_together() -> None:
    assert arrays_norm({"a": np.array([[3.0, 0.0]]), "b": np.array([4.0])}) == 5
    assert arrays_norm({}) == 0
