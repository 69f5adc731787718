import pytest
import torch

from fedsd.base.rotation import cayley, factor_sizes, rotated, triangle_of


def random_factors(sizes: tuple[int, ...], scale: float = 1.0, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [cayley(scale * torch.randn(a * (a - 1) // 2, generator=generator), a) for a in sizes]


@pytest.mark.parametrize(
    ("d", "sizes"),
    [
        (320, (5, 8, 8)), (640, (8, 8, 10)), (768, (8, 8, 12)), (1280, (8, 10, 16)),
        (1, (1, 1, 1)), (4, (1, 2, 2)), (7, (1, 1, 7)), (27, (3, 3, 3)),
    ],
)  # fmt: skip
def test_factor_sizes_are_balanced(d: int, sizes: tuple[int, int, int]) -> None:
    assert factor_sizes(d) == sizes


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_cayley_is_orthogonal_and_has_an_inverse(scale: float) -> None:
    for size in (1, 2, 5, 16):
        triangle = scale * torch.randn(size * (size - 1) // 2, generator=torch.Generator().manual_seed(size))
        K = cayley(triangle, size)
        torch.testing.assert_close(K @ K.T, torch.eye(size), rtol=0, atol=1e-5)
        assert torch.linalg.det(K) == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(cayley(triangle_of(K), size), K, rtol=0, atol=1e-5)
    assert torch.equal(cayley(torch.zeros(10), 5), torch.eye(5))


def test_cayley_of_two_dimensions_is_a_turn_by_a_known_angle() -> None:
    """Q = [[0, -a/2], [a/2, 0]] turns by -2 arctan(a / 2)."""
    K = cayley(torch.tensor([2.0]), 2)
    torch.testing.assert_close(K, torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", [(), (3, 3)])
def test_kronecker_rotation_is_that_of_the_dense_matrix(window: tuple[int, ...]) -> None:
    K1, K2, K3 = factors = random_factors((2, 3, 5))
    R = torch.kron(K1, torch.kron(K2, K3))
    W = torch.randn(7, 30, *window, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rotated(W, factors), torch.einsum("oj...,ij->oi...", W, R), rtol=0, atol=1e-5)
    torch.testing.assert_close(R @ R.T, torch.eye(30), rtol=0, atol=1e-5)
    assert torch.equal(rotated(W, [torch.eye(a) for a in (2, 3, 5)]), W)
