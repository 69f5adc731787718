"""The algebra against dense float64 matrices, on rectangular and on square layers, in both precisions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsd.lowrank import (
    Factor,
    check_layers,
    dense,
    energy,
    inner,
    lora_norm,
    norm,
    nuclear_norm,
    pad,
    reseed,
    resize,
    resize_lora,
    singular_values,
    stack,
    stack_loras,
    svd,
    truncate,
    truncate_lora,
)

SHAPES = [(40, 24), (24, 40), (32, 32)]
RANKS = (4, 4, 8, 8, 16, 16, 5, 3)
TOLERANCE = {np.float32: {"rtol": 1e-5, "atol": 1e-5}, np.float64: {"rtol": 1e-12, "atol": 1e-12}}
both = pytest.mark.parametrize("dtype", [np.float32, np.float64])
every_shape = pytest.mark.parametrize("shape", SHAPES)


def make(shape: tuple[int, int], rank: int, seed: int, dtype: type = np.float64) -> Factor:
    rng = np.random.default_rng(seed)
    scale = (shape[0] * rank) ** -0.5
    return Factor(
        (rng.standard_normal((shape[0], rank)) * scale).astype(dtype),
        rng.standard_normal((rank, shape[1])).astype(dtype),
    )


def clients(shape: tuple[int, int], dtype: type = np.float64) -> tuple[list[Factor], list[float]]:
    n = np.arange(1, len(RANKS) + 1)
    return [make(shape, rank, seed, dtype) for seed, rank in enumerate(RANKS)], (n / n.sum()).tolist()


def oracle(factors: list[Factor], weights: list[float]) -> np.ndarray:
    pairs = zip(weights, factors, strict=True)
    return sum(w * factor.B.astype(np.float64) @ factor.A.astype(np.float64) for w, factor in pairs)


def regauged(factor: Factor, seed: int = 9) -> Factor:
    """The same product from other factors: (B G, G⁻¹ A)."""
    G = np.random.default_rng(seed).standard_normal((factor.rank, factor.rank)) + 3 * np.eye(factor.rank)
    return Factor((factor.B @ G).astype(factor.B.dtype), np.linalg.solve(G, factor.A).astype(factor.A.dtype))


@both
@every_shape
def test_a_stack_is_the_weighted_sum_of_the_products(shape, dtype):  # I1, I20
    factors, weights = clients(shape, dtype)
    stacked = stack(factors, weights)
    assert stacked.rank == sum(RANKS)
    assert stacked.B.dtype == stacked.A.dtype == dtype
    np.testing.assert_allclose(dense(stacked), oracle(factors, weights), **TOLERANCE[dtype])


@both
@every_shape
def test_the_order_of_the_clients_does_not_change_the_product(shape, dtype):  # I2
    factors, weights = clients(shape, dtype)
    swapped = stack(factors[::-1], weights[::-1])
    np.testing.assert_allclose(dense(swapped), dense(stack(factors, weights)), **TOLERANCE[dtype])


@both
@every_shape
@pytest.mark.parametrize("count", [2, 8])  # 2 clients: the small core; 8: the dense path
def test_the_svd_is_that_of_the_dense_matrix(shape, dtype, count):  # I3
    factors, weights = clients(shape, dtype)
    stacked = stack(factors[:count], weights[:count])
    k = min(stacked.rank, *shape)
    U, S, Vt = svd(stacked)
    assert (U.shape, S.shape, Vt.shape) == ((shape[0], k), (k,), (k, shape[1]))
    assert U.dtype == S.dtype == Vt.dtype == dtype
    expected = np.linalg.svd(oracle(factors[:count], weights[:count]), compute_uv=False)[:k]
    np.testing.assert_allclose(S, expected, **TOLERANCE[dtype])
    np.testing.assert_allclose(singular_values(stacked), expected, **TOLERANCE[dtype])
    np.testing.assert_allclose((U * S) @ Vt, oracle(factors[:count], weights[:count]), **TOLERANCE[dtype])
    np.testing.assert_allclose(U.T @ U, np.eye(k), **TOLERANCE[dtype])
    np.testing.assert_allclose(Vt @ Vt.T, np.eye(k), **TOLERANCE[dtype])
    assert (U[np.argmax(np.abs(U), axis=0), np.arange(k)] > 0).all()


@both
@every_shape
@pytest.mark.parametrize("count", [2, 8])
def test_fewer_singular_vectors_are_the_first_of_all(shape, dtype, count):
    factors, weights = clients(shape, dtype)
    stacked = stack(factors[:count], weights[:count])
    U, S, Vt = svd(stacked)
    U_p, S_p, Vt_p = svd(stacked, 3)
    assert (U_p.shape, Vt_p.shape) == ((shape[0], 3), (3, shape[1]))
    np.testing.assert_array_equal(S_p, S)
    np.testing.assert_allclose(U_p, U[:, :3], **TOLERANCE[dtype])
    np.testing.assert_allclose(Vt_p, Vt[:3], **TOLERANCE[dtype])
    assert svd(stacked, 1000)[0].shape == U.shape


@pytest.mark.parametrize("shape", [(90, 70), (70, 90), (80, 80)])
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_a_low_cut_of_a_float32_stack_is_as_good_as_the_dense_one(shape, rank):
    factors = [make(shape, 8, seed, np.float32) for seed in range(4)]
    exact = oracle(factors, [0.1, 0.2, 0.3, 0.4])
    U, S, Vt = np.linalg.svd(exact)
    cut, lost = truncate(stack(factors, [0.1, 0.2, 0.3, 0.4]), rank)
    np.testing.assert_allclose(dense(cut), (U[:, :rank] * S[:rank]) @ Vt[:rank], atol=1e-5 * S[0])
    np.testing.assert_allclose(lost, np.sum(S[rank:] ** 2), rtol=1e-5)
    np.testing.assert_allclose(cut.B.T @ cut.B, np.diag(S[:rank]), atol=1e-5 * S[0])
    np.testing.assert_allclose(cut.A @ cut.A.T, np.diag(S[:rank]), atol=1e-5 * S[0])
    assert (cut.B[np.argmax(np.abs(cut.B), axis=0), np.arange(rank)] > 0).all()


def test_a_low_cut_of_clients_that_agree_is_exact_and_of_zeros_is_zero():
    factor = make((90, 70), 2, 0, np.float32)
    cut, lost = truncate(stack([factor] * 8, [0.125] * 8), 4)
    np.testing.assert_allclose(dense(cut), oracle([factor], [1.0]), atol=1e-6)
    assert lost < 1e-9
    zero, lost = truncate(Factor(np.zeros((90, 16), np.float32), np.zeros((16, 70), np.float32)), 2)
    assert (np.abs(dense(zero)).max(), lost) == (0, 0)


def test_the_singular_values_of_graded_factors_keep_their_digits_in_float32():
    exact = make((64, 48), 6, 0)
    graded = Factor(
        (exact.B * 10.0 ** -np.arange(6)).astype(np.float32), (exact.A * 10.0 ** -np.arange(6)[:, None]).astype("f4")
    )
    expected = np.linalg.svd(graded.B.astype(np.float64) @ graded.A.astype(np.float64), compute_uv=False)[:6]
    np.testing.assert_allclose(singular_values(graded)[:3], expected[:3], rtol=1e-4)


@both
@every_shape
def test_no_cut_of_a_rank_is_better_than_truncate(shape, dtype):  # I4
    factors, weights = clients(shape, dtype)
    stacked, exact = stack(factors, weights), oracle(factors, weights)
    S = np.linalg.svd(exact, compute_uv=False)
    for rank in (1, 4, 16):
        cut, lost = truncate(stacked, rank)
        assert (cut.rank, cut.B.dtype) == (rank, dtype)
        error = np.linalg.norm(exact - dense(cut))
        np.testing.assert_allclose(error, np.sqrt(np.sum(S[rank:] ** 2)), rtol=1e-4)
        np.testing.assert_allclose(lost, np.sum(S[rank:] ** 2), rtol=1e-4)


@both
def test_a_cut_is_balanced(dtype):
    cut, _ = truncate(make((40, 24), 6, 1, dtype), 4)
    np.testing.assert_allclose(cut.B.T @ cut.B, cut.A @ cut.A.T, **TOLERANCE[dtype])
    np.testing.assert_allclose(np.diag(cut.B.T @ cut.B), singular_values(cut), **TOLERANCE[dtype])


@both
@every_shape
def test_one_client_at_its_own_rank_gets_its_update_back(shape, dtype):  # I5
    factor = make(shape, 6, 3, dtype)
    cut, lost = truncate(stack([factor], [1.0]), 6)
    np.testing.assert_allclose(dense(cut), oracle([factor], [1.0]), **TOLERANCE[dtype])
    assert (cut.rank, lost) == (6, 0.0)


@both
@every_shape
def test_every_function_sees_the_product_and_not_its_factors(shape, dtype):  # I7
    factor, same = make(shape, 6, 4, dtype), regauged(make(shape, 6, 4, dtype))
    loose = {"rtol": 1e-4, "atol": 1e-4} if dtype is np.float32 else {"rtol": 1e-10, "atol": 1e-10}
    np.testing.assert_allclose(dense(truncate(factor, 3)[0]), dense(truncate(same, 3)[0]), **loose)
    for quantity in (norm, energy, nuclear_norm, lambda one: inner(one, make(shape, 2, 8, dtype))):
        np.testing.assert_allclose(quantity(factor), quantity(same), **loose)


def test_cutting_by_index_depends_on_the_factors_and_loses_more():  # I8
    factor = make((32, 32), 8, 5)
    same = regauged(factor)
    exact = dense(factor)
    by_index = [np.linalg.norm(exact - one.B[:, :4] @ one.A[:4]) for one in (factor, same)]
    best = [np.linalg.norm(exact - dense(truncate(one, 4)[0])) for one in (factor, same)]
    assert abs(by_index[0] - by_index[1]) > 0.1
    np.testing.assert_allclose(best[0], best[1], rtol=1e-10)
    assert best[0] < min(by_index)


@both
@every_shape
def test_inner_products_and_norms_are_the_dense_ones(shape, dtype):  # I9, I11
    left, right = make(shape, 6, 6, dtype), make(shape, 3, 7, dtype)
    dense_left, dense_right = oracle([left], [1]), oracle([right], [1])
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype is np.float32 else {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(inner(left, right), np.sum(dense_left * dense_right), **close)
    np.testing.assert_allclose(norm(left), np.linalg.norm(dense_left), **close)
    np.testing.assert_allclose(energy(left), np.sum(dense_left**2), **close)
    np.testing.assert_allclose(nuclear_norm(left), np.linalg.svd(dense_left, compute_uv=False).sum(), **close)
    assert isinstance(norm(left), float)


def test_the_norm_of_a_small_difference_keeps_its_digits_in_float32():
    factor = make((40, 24), 4, 8, np.float32)
    moved = Factor(factor.B * np.float32(1 + 2**-12), factor.A)
    expected = np.linalg.norm(oracle([moved, factor], [1, -1]))
    np.testing.assert_allclose(norm(stack([moved, factor], [1, -1])), expected, rtol=1e-2)


@both
def test_padding_changes_no_bit_of_the_product(dtype):  # I18
    factor = make((40, 24), 4, 9, dtype)
    padded = pad(factor, 7)
    assert padded.rank == 7
    assert not padded.B[:, 4:].any() and not padded.A[4:].any()
    np.testing.assert_array_equal(padded.B[:, :4], factor.B)
    np.testing.assert_allclose(dense(truncate(padded, 4)[0]), dense(factor), **TOLERANCE[dtype])


@both
def test_resize_gives_exactly_the_rank_asked_for(dtype):
    factor = make((40, 24), 6, 10, dtype)
    np.testing.assert_allclose(dense(resize(factor, 2)), dense(truncate(factor, 2)[0]), **TOLERANCE[dtype])
    np.testing.assert_array_equal(dense(resize(factor, 9)), dense(pad(factor, 9)))
    assert [resize(factor, rank).rank for rank in (1, 6, 9, 30)] == [1, 6, 9, 30]
    np.testing.assert_array_equal(resize(factor, 6).B, factor.B)


@both
def test_reseeding_wakes_dead_directions_and_changes_no_bit_of_the_product(dtype):
    factor = pad(make((40, 25), 4, 11, dtype), 7)
    woken = reseed(factor, 3)
    np.testing.assert_array_equal(dense(woken), dense(factor))
    np.testing.assert_array_equal(woken.A[:4], factor.A[:4])
    assert woken.A.dtype == dtype
    assert np.abs(woken.A[4:]).max() <= 0.2  # 1/√25
    assert np.abs(woken.A[4:]).max(axis=1).min() > 0.1
    np.testing.assert_array_equal(reseed(factor, 3).A, woken.A)
    fresh = Factor(np.zeros((4, 2)), np.ones((2, 4)))  # an untrained LoRA: B = 0 only
    assert reseed(fresh, 1) is fresh
    reverse = Factor(np.ones((4, 2)), np.zeros((2, 4)))  # a random row of A would change B A
    assert reseed(reverse, 1) is reverse


def test_a_weight_of_zero_is_absence_and_a_scale_may_be_a_weight():  # I14, I19
    factors, weights = clients((24, 40))
    absent = dense(stack([*factors, make((24, 40), 5, 99)], [*weights, 0.0]))
    np.testing.assert_allclose(absent, oracle(factors, weights), rtol=0, atol=1e-15)
    scaled = [Factor(2.5 * factors[0].B, factors[0].A), *factors[1:]]
    folded = dense(stack(scaled, weights))
    np.testing.assert_allclose(folded, dense(stack(factors, [2.5 * weights[0], *weights[1:]])), atol=1e-15)


def test_equal_input_gives_equal_bytes():
    factors, weights = clients((40, 24), np.float32)
    first, second = (truncate(stack(factors, weights), 5)[0] for _ in range(2))
    assert first.B.tobytes() == second.B.tobytes()
    assert first.A.tobytes() == second.A.tobytes()


def test_an_update_of_zero_is_cut_to_zero():
    cut, lost = truncate(Factor(np.zeros((5, 3)), np.ones((3, 4))), 2)
    np.testing.assert_array_equal(dense(cut), np.zeros((5, 4)))
    assert lost == 0.0
    assert truncate_lora({"layer": cut}, 1)[1] == 0.0


def test_whole_adapters_are_handled_layer_by_layer():
    loras = [{"q": make((6, 4), 2, s), "k": make((5, 5), 3, s + 50)} for s in range(2)]
    stacked = stack_loras(loras, [0.25, 0.75])
    for layer in ("q", "k"):
        expected = oracle([lora[layer] for lora in loras], [0.25, 0.75])
        np.testing.assert_allclose(dense(stacked[layer]), expected, atol=1e-14)
    total = sum(np.sum(oracle([lora], [1.0]) ** 2) for lora in loras[0].values())
    np.testing.assert_allclose(lora_norm(loras[0]), np.sqrt(total), rtol=1e-12)
    cut, share = truncate_lora(stacked, 1)
    lost = sum(np.sum(singular_values(factor)[1:] ** 2) for factor in stacked.values())
    np.testing.assert_allclose(share, lost / sum(energy(factor) for factor in stacked.values()), rtol=1e-12)
    assert {factor.rank for factor in cut.values()} == {1}
    assert {factor.rank for factor in resize_lora(stacked, 8).values()} == {8}


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    ranks=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_any_sum_of_any_ranks_has_the_dense_spectrum_and_the_best_cut(shape, ranks, seed, dtype):
    rng = np.random.default_rng(seed)
    factors = [make(shape, rank, seed + i, dtype) for i, rank in enumerate(ranks)]
    weights = rng.uniform(-1, 1, len(ranks)).tolist()
    stacked, exact = stack(factors, weights), oracle(factors, weights)
    S = np.linalg.svd(exact, compute_uv=False)
    atol = 1e-5 if dtype is np.float32 else 1e-12
    np.testing.assert_allclose(singular_values(stacked), S[: min(stacked.rank, *shape)], atol=atol)
    rank = int(rng.integers(1, stacked.rank + 1))
    cut, _ = truncate(stacked, rank)
    assert np.linalg.norm(exact - dense(cut)) <= np.sqrt(np.sum(S[rank:] ** 2)) + 10 * atol
    np.testing.assert_allclose(dense(resize(stacked, stacked.rank + 3)), exact, atol=atol)


def factor_of(*shapes: tuple[int, ...], dtype: tuple[type, type] = (np.float64, np.float64)) -> Factor:
    return Factor(np.ones(shapes[0], dtype[0]), np.ones(shapes[1], dtype[1]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: factor_of((4,), (1, 3)), r"B and A must be matrices, got shapes \(4,\) and \(1, 3\)"),
        (lambda: factor_of((4, 2), (3, 5)), r"B \(4, 2\) and A \(3, 5\) do not share a rank"),
        (lambda: factor_of((4, 0), (0, 5)), r"must not be empty; the rank must be >= 1"),
        (lambda: factor_of((4, 2), (2, 5), dtype=(np.float32, np.float64)), "got float32 and float64; cast them first"),
        (lambda: factor_of((4, 2), (2, 5), dtype=(np.int64, np.int64)), "both be float32 or both float64, got int64"),
        (lambda: stack([], []), "got 0 factors and 0 weights"),
        (lambda: stack([factor_of((4, 2), (2, 5))], [1, 2]), "got 1 factors and 2 weights"),
        (lambda: stack([factor_of((4, 2), (2, 5))], [np.nan]), "weights must be finite"),
        (
            lambda: stack([factor_of((4, 2), (2, 5)), factor_of((5, 2), (2, 4))], [1, 1]),
            r"cannot stack layers \(4, 5\) float64 and \(5, 4\) float64",
        ),
        (lambda: truncate(factor_of((4, 2), (2, 5)), 0), r"rank must be >= 1, got 0 \(check lora\.ranks\)"),
        (lambda: pad(factor_of((4, 2), (2, 5)), 1), "cannot pad rank 2 down to 1; use truncate"),
        (lambda: inner(factor_of((4, 2), (2, 5)), factor_of((5, 2), (2, 4))), "cannot compare layers of shapes"),
        (lambda: svd(Factor(np.full((9, 2), np.nan), np.ones((2, 9)))), "a LoRA factor holds NaN or Inf"),
        (lambda: norm(Factor(np.full((2, 2), np.inf), np.ones((2, 2)))), "a LoRA factor holds NaN or Inf"),
        (lambda: check_layers([]), "no LoRA to combine"),
        (lambda: check_layers([{"q": None}, {"k": None}]), r"adapt different layers \(2, such as k\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
