from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsd.base import spectral
from fedsd.base.spectral import Decomposition, decompose, decomposed, fingerprint

SHAPES = [(12, 7), (7, 12), (6, 6), (5, 4, 3, 3), (20, 2, 3, 3)]


def a_weight(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["svd", "lq"])
def test_directions_are_orthonormal_and_give_the_weight_back(shape: tuple[int, ...], form: str) -> None:
    W = a_weight(shape).flatten(1)
    parts = decompose(a_weight(shape), form)
    assert parts.rank == min(W.shape)
    torch.testing.assert_close(parts.Vt @ parts.Vt.T, torch.eye(parts.rank), rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.U.T @ parts.U, torch.eye(parts.rank), rtol=0, atol=1e-5)
    if form == "svd":
        torch.testing.assert_close((parts.U * parts.S) @ parts.Vt, W, rtol=0, atol=1e-5)
    else:
        L = W @ parts.Vt.T
        torch.testing.assert_close(L @ parts.Vt, W, rtol=0, atol=1e-5)
        torch.testing.assert_close(L.triu(1), torch.zeros_like(L), rtol=0, atol=1e-5)
        torch.testing.assert_close(L.diagonal(), parts.S, rtol=0, atol=1e-5)
        assert (parts.S > 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_move_by_the_shift_only(shape: tuple[int, ...]) -> None:
    W = a_weight(shape).flatten(1)
    parts = decompose(a_weight(shape), "svd")
    shift = 0.3 * torch.randn(parts.rank, generator=torch.Generator().manual_seed(1))
    moved = torch.linalg.svdvals(W + parts.change(shift))
    wanted = (parts.S + shift).clamp(min=0).sort(descending=True).values
    torch.testing.assert_close(moved, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_lq_shift_moves_the_diagonal_of_l_only(shape: tuple[int, ...]) -> None:
    W = a_weight(shape).flatten(1)
    parts = decompose(a_weight(shape), "lq")
    shift = torch.arange(1.0, parts.rank + 1)
    wanted = torch.zeros(len(W), parts.rank)
    wanted.diagonal().copy_(shift)
    torch.testing.assert_close(parts.change(shift) @ parts.Vt.T, wanted, rtol=0, atol=1e-5)


def test_no_shift_changes_nothing_and_no_singular_value_gets_negative() -> None:
    W = a_weight((8, 6))
    for form in spectral.FORMS:
        assert not decompose(W, form).change(torch.zeros(6)).any()
    torch.testing.assert_close(decompose(W, "svd").change(torch.full((6,), -100.0)), -W, rtol=0, atol=1e-5)


def test_a_singular_value_of_zero_can_grow() -> None:
    parts = decompose(torch.diag(torch.tensor([2.0, 0.0])), "svd")
    shift = torch.zeros(2, requires_grad=True)
    parts.change(shift).diagonal().sum().backward()
    assert shift.grad is not None and shift.grad.abs().min() == 1


def test_decomposition_is_kept_under_the_weights_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = a_weight((6, 4)), a_weight((6, 4), 1)
    parts = decomposed(first, "svd", tmp_path)
    for weight, form in ((other, "svd"), (first, "lq"), (first.reshape(4, 6), "svd")):
        decomposed(weight, form, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr(spectral, "decompose", lambda *_: pytest.fail("it was computed again"))
    again = decomposed(first.clone(), "svd", tmp_path)
    for side in ("U", "S", "Vt"):
        assert torch.equal(getattr(again, side), getattr(parts, side))


def test_damaged_cache_is_named(tmp_path: Path) -> None:
    decomposed(a_weight((6, 4)), "svd", tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"svd\.safetensors cannot be read .* remove it"):
        decomposed(a_weight((6, 4)), "svd", tmp_path)


def turned(parts: Decomposition, angle: float) -> Decomposition:
    """The same weight, had its first two singular values been equal: their directions turned together."""
    R = torch.eye(parts.rank)
    c, s = np.cos(angle), np.sin(angle)
    R[:2, :2] = torch.tensor([[c, -s], [s, c]])
    return Decomposition(parts.form, parts.U @ R, parts.S, R.T @ parts.Vt)


def test_hash_is_of_the_directions_up_to_sign_and_rounding() -> None:
    parts = decompose(a_weight((12, 7)), "svd")
    same = fingerprint({"a": parts})
    signs = torch.tensor([1, -1, 1, -1, -1, 1, 1.0])
    assert fingerprint({"a": Decomposition("svd", parts.U * signs, parts.S, signs[:, None] * parts.Vt)}) == same
    noise = 1e-7 * torch.randn(parts.U.shape, generator=torch.Generator().manual_seed(2))
    assert fingerprint({"a": Decomposition("svd", parts.U + noise, parts.S, parts.Vt)}) == same
    others = {
        fingerprint(named)
        for named in (
            {"b": parts}, {"a": turned(parts, 0.1)}, {"a": Decomposition("svd", parts.U, parts.S + 0.1, parts.Vt)},
            {"a": decompose(a_weight((12, 7)), "lq")}, {"a": parts, "b": parts},
        )
    }  # fmt: skip
    assert len(others) == 5 and same not in others


def test_weights_that_cannot_be_decomposed_are_refused() -> None:
    with pytest.raises(ValueError, match=r"soda\.form must be one of svd, lq; got 'qr'"):
        decompose(a_weight((2, 2)), "qr")
    with pytest.raises(ValueError, match="holds NaN or Inf"):
        decompose(torch.full((2, 2), float("nan")), "svd")
