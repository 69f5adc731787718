"""Distances between real and generated pictures: KID and FID, by torchmetrics, with any extractor."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from fedsd.metrics.features import extract


@dataclass(frozen=True)
class Distance:
    """A distance and what it was measured on.

    mean: >= 0 for FID; unbiased for KID, so it can fall a little below 0. std: over subsets; None where there are none.
    dim: number of features. An FID of fewer than dim + 1 pictures compares covariances that are not of full rank.
    """

    mean: float
    std: float | None
    n_real: int
    n_fake: int
    dim: int


def kid(
    real: Tensor, fake: Tensor, extractor: nn.Module, subset_size: int = 100, subsets: int = 50, seed: int = 0
) -> Distance:
    """Kernel distance of Bińkowski et al. (2018, arXiv 1801.01401, section 4): unbiased MMD², kernel (x·y / D + 1)³.

    real, fake: uint8 (N, 3, H, W); or features (N, D) with `torch.nn.Identity()` as extractor, to extract them once for
    many comparisons. The same seed draws the same subsets. Raises ValueError when a side has fewer than `subset_size`.
    """
    if subset_size < 2 or subsets < 1:
        raise ValueError(f"KID needs subset_size >= 2 and subsets >= 1, got {subset_size} and {subsets}")
    _enough("KID", subset_size, real, fake)
    x, y = extract(extractor, real), extract(extractor, fake)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*memory footprint.*")
        metric = KernelInceptionDistance(feature=nn.Identity(), subsets=subsets, subset_size=subset_size)
    metric.update(x, real=True)
    metric.update(y, real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws from the global generator
        torch.manual_seed(seed)
        mean, std = metric.compute()
    return Distance(float(mean), float(std), len(x), len(y), x.shape[1])


def fid(real: Tensor, fake: Tensor, extractor: nn.Module) -> Distance:
    """Fréchet distance of Heusel et al. (2017, arXiv 1706.08500, eq. 6); no randomness, so no seed and no spread.

    real, fake: as for `kid`. Raises ValueError when a side has fewer than 2 pictures.
    """
    _enough("FID", 2, real, fake)
    x, y = extract(extractor, real), extract(extractor, fake)
    with torch.random.fork_rng(devices=[]):  # the metric draws a dummy input to learn D
        metric = FrechetInceptionDistance(feature=nn.Identity(), input_img_size=(x.shape[1],))  # type: ignore[arg-type]
    metric.update(x, real=True)
    metric.update(y, real=False)
    return Distance(max(float(metric.compute()), 0.0), None, len(x), len(y), x.shape[1])


def _enough(name: str, least: int, real: Tensor, fake: Tensor) -> None:
    if min(len(real), len(fake)) < least:
        raise ValueError(
            f"{name} needs at least {least} pictures on each side, got {len(real)} real and {len(fake)} generated; "
            + ("generate more, or lower subset_size" if name == "KID" else "generate more")
        )
