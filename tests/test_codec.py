import numpy as np
import pytest
from flwr.app import Array as FlowerArray

from fedsd.codec import decode, decode_plain, encode, quantise, rounded, with_feedback
from fedsd.lowrank import Factor, dense, lora_norm, stack_loras


def adapter(seed: int, rank: int = 3) -> dict[str, Factor]:
    rng = np.random.default_rng(seed)
    return {
        layer: Factor(
            rng.standard_normal((m, rank)).astype(np.float32), rng.standard_normal((rank, n)).astype(np.float32)
        )
        for layer, (m, n) in {"q": (20, 30), "v": (25, 25)}.items()
    }


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
def test_an_array_comes_back_as_float32(encoding):
    values = np.array([[1, -2, 3], [4, 5, -127]])
    found = decode("x", encode(values, encoding), 2, (encoding,))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(decode("x", encode(np.asfortranarray(values), encoding), 2, (encoding,)), values)


def test_an_encoding_that_is_not_allowed_is_refused():
    with pytest.raises(ValueError, match=r"x has header .*; it must be a float32 or float16 array of 1 to 4 axes"):
        decode("x", encode(np.ones((2, 2)), "int8"), 2, ("float32", "float16"))
    with pytest.raises(ValueError, match="it must be a int8 array"):
        decode("x", encode(np.ones((2, 2)), "float32"), 2, ("int8",))


def test_int8_keeps_the_largest_entry_and_is_off_by_half_a_step_at_most():
    matrix = np.array([[1.27, 100.0], [-0.5, 0.0], [0.004, -254.0]], np.float32)
    whole, scale = quantise(matrix, axis=0)
    assert whole.dtype == np.int8
    np.testing.assert_allclose(scale, [0.01, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(whole, [[127, 50], [-50, 0], [0, -127]])
    rows, scale = quantise(np.array([[0.0, 0.0], [3.0, -127.0]], np.float32), axis=1)
    np.testing.assert_array_equal(rows, [[0, 0], [3, -127]])
    np.testing.assert_array_equal(scale, [0, 1])


def test_what_is_owed_is_what_rounding_took_away():
    lora = adapter(0)
    sent, owed = with_feedback(lora, {})
    for layer, factor in lora.items():
        np.testing.assert_allclose(dense(sent[layer]), dense(factor), atol=1e-4)
        missing = dense(factor) - dense(rounded(sent)[layer])
        U, S, Vt = np.linalg.svd(missing)
        np.testing.assert_allclose(dense(owed[layer]), (U[:, :3] * S[:3]) @ Vt[:3], atol=1e-5)


def test_with_feedback_the_mean_over_rounds_loses_less_than_without():
    rounds = [adapter(0) for _ in range(30)]  # a client whose update does not change
    owed: dict[str, Factor] = {}
    received = []
    for lora in rounds:
        sent, owed = with_feedback(lora, owed)
        received.append(rounded(sent))

    def off(loras) -> float:
        mean = stack_loras(loras, [1 / len(loras)] * len(loras))
        return lora_norm(stack_loras([mean, rounds[0]], [1, -1])) / lora_norm(rounds[0])

    assert off(received) < 0.5 * off([rounded(lora) for lora in rounds])


def test_what_is_owed_for_other_layers_is_forgotten():
    lora = adapter(0)
    sent, owed = with_feedback(lora, {"other": Factor(np.ones((2, 1)), np.ones((1, 2)))})
    fresh, left = with_feedback(lora, {})
    for layer in lora:
        np.testing.assert_array_equal(sent[layer].B, fresh[layer].B)
        np.testing.assert_array_equal(owed[layer].A, left[layer].A)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.uint8])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 1, 4)])
def test_plain_arrays_of_any_shape_come_back(dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    for order in "CF":
        found = decode_plain("x", FlowerArray(np.asarray(array, order=order)))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, array)


def altered(data: bytes, **changes) -> FlowerArray:
    return FlowerArray(**({"dtype": "float32", "shape": (2, 3), "stype": "numpy.ndarray", "data": data} | changes))


def npy(array) -> bytes:
    return FlowerArray(array).data


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (altered(npy(np.ones((2, 3)))[:-8]), r"x claims shape \(2, 3\) of float64 but carries 40 bytes"),
        (altered(npy(np.ones((2, 3))).replace(b"(2, 3)", b"(9,9999)")), "x c"),
        (altered(npy(np.ones(3)).replace(b"(3,)", b"(-3,)")), "x c"),
        (altered(npy(np.ones(3, bool))), "x is of type bool; it must be of floats or whole numbers"),
        (altered(npy(np.ones(3)).replace(b"<f8", b"|O8")), "x "),
        (altered(npy(np.ones(3, np.longdouble))), "x is of type float128"),
        (altered(b""), "x cannot be read"),
        (altered(b"\x93NUMPY\x01\x00\x88\x13" + b"-" * 5000), "x cannot be read"),
        (altered(npy(np.ones(3)), stype="torch"), "x cannot be read: it is not in npy format, version 1.0"),
    ],
)
def test_a_plain_array_that_lies_is_refused_unread(array, message):
    with pytest.raises(ValueError, match=message):
        decode_plain("x", array)
