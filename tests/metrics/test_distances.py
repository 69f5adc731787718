import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from fedsd.base.load import Clip
from fedsd.metrics.distances import Distance, fid, kid
from fedsd.metrics.features import extract, load_extractor

AS_IS = nn.Identity()


def features(n: int, dim: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, (n, dim)))


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n = len(x)
    off_diagonal = ~np.eye(n, dtype=bool)
    same = kernel(x, x)[off_diagonal].sum() + kernel(y, y)[off_diagonal].sum()
    return float(same / (n * (n - 1)) - 2 * kernel(x, y).mean())


def test_kid_of_all_pictures_is_the_unbiased_mmd() -> None:
    x, y = features(12, 3, 0), features(12, 3, 1, shift=0.5)
    got = kid(x, y, AS_IS, subset_size=12, subsets=3)
    assert got.mean == pytest.approx(mmd(x.numpy(), y.numpy()), rel=1e-12)
    assert got.std == pytest.approx(0, abs=1e-12)
    assert (got.n_real, got.n_fake, got.dim) == (12, 12, 3)


def test_kid_by_hand() -> None:
    x, y = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [0.0]])
    # off the diagonal both kernels are 1, (1 + 1 + 1 + 1) / 2 = 2; across: 27, 1, 1, 1, so 2 - 2 * 30 / 4 = -13
    assert kid(x, y, AS_IS, subset_size=2, subsets=1).mean == pytest.approx(-13)


def test_kid_is_seeded_and_leaves_the_global_generator_alone() -> None:
    x, y = features(30, 4, 0), features(25, 4, 1)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = kid(x, y, AS_IS, subset_size=10, subsets=5, seed=3)
    fid(x, y, AS_IS)
    assert torch.equal(torch.get_rng_state(), state)
    assert kid(x, y, AS_IS, subset_size=10, subsets=5, seed=3) == first
    assert kid(x, y, AS_IS, subset_size=10, subsets=5, seed=4) != first
    assert first.std and first.std > 0


def test_fid_against_scipy() -> None:
    x, y = features(40, 5, 0), features(60, 5, 1, shift=0.3)
    a, b = x.numpy(), y.numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    gap = ((a.mean(0) - b.mean(0)) ** 2).sum()
    wanted = gap + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    got = fid(x, y, AS_IS)
    assert got.mean == pytest.approx(wanted, rel=1e-9)
    assert got == Distance(got.mean, None, 40, 60, 5)


def test_a_shift_alone_is_its_square_and_the_same_pictures_are_at_zero() -> None:
    x = features(50, 4, 0)
    assert fid(x, x + 2, AS_IS).mean == pytest.approx(16, rel=1e-9)
    assert fid(x, x, AS_IS).mean == pytest.approx(0, abs=1e-7)


def test_pictures_and_their_features_give_the_same(clip: Clip) -> None:
    draw = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=draw)
    fake = torch.randint(0, 128, (8, 3, 32, 32), dtype=torch.uint8, generator=draw)
    extractor = load_extractor("embedded", clip)
    x, y = extract(extractor, real), extract(extractor, fake)
    assert kid(real, fake, extractor, subset_size=6, subsets=4) == kid(x, y, AS_IS, subset_size=6, subsets=4)
    assert fid(real, fake, extractor) == fid(x, y, AS_IS)
    assert kid(real, fake, extractor, subset_size=6).dim == 24


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 100 pictures on each side, got 300 real and 99 generated; generate"):
        kid(features(300, 2, 0), features(99, 2, 1), AS_IS)
    with pytest.raises(ValueError, match="FID needs at least 2 pictures on each side, got 1 real and 5 generated"):
        fid(features(1, 2, 0), features(5, 2, 1), AS_IS)
    with pytest.raises(ValueError, match="subset_size >= 2 and subsets >= 1, got 1 and 0"):
        kid(features(3, 2, 0), features(3, 2, 1), AS_IS, subset_size=1, subsets=0)
