"""Adapters and clients to aggregate."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from fedsd.lowrank import Factor
from fedsd.wire import Update

SHAPES = {"unet.attn.to_q": (12, 7), "unet.attn.to_k": (9, 9), "text_encoder.q_proj": (5, 14)}
MakeLora = Callable[..., dict[str, Factor]]
MakeUpdate = Callable[..., Update]
DenseSum = Callable[..., dict[str, np.ndarray]]


@pytest.fixture
def make_lora() -> MakeLora:
    """A random adapter; two rectangular layers and a square one that is not symmetric."""

    def make(seed: int, rank: int = 3, *, dtype: type = np.float64) -> dict[str, Factor]:
        rng = np.random.default_rng(seed)
        return {
            layer: Factor(
                rng.standard_normal((d_out, rank)).astype(dtype), rng.standard_normal((rank, d_in)).astype(dtype)
            )
            for layer, (d_out, d_in) in SHAPES.items()
        }

    return make


@pytest.fixture
def make_update(make_lora: MakeLora) -> MakeUpdate:
    """An update of a client whose style is an axis of the embedding space, a little noise added."""

    def make(client: str, style: int = 0, *, seed: int = 0, rank: int = 3, n: int = 50, **changes: object) -> Update:
        noise = np.random.default_rng([seed, style]).standard_normal(8) * 0.02
        z = np.eye(8)[style] + noise
        fields: dict = {
            "lora": make_lora(seed, rank, dtype=np.float32),
            "z": (z / np.linalg.norm(z)).astype(np.float32),
            "base_sha": "abc123",
            "loss_first": 1.0,
            "loss_last": 0.5,
            "seconds": 2.0,
            "images_per_second": 10.0,
        }
        return Update(client=client, n=n, rank=rank, **(fields | changes))

    return make


@pytest.fixture
def dense_sum() -> DenseSum:
    """Σ_k w_k B_k A_k of each layer as a dense float64 matrix: the oracle."""

    def total(loras: Sequence[dict[str, Factor]], weights: Sequence[float]) -> dict[str, np.ndarray]:
        return {
            layer: sum(
                w * lora[layer].B.astype(np.float64) @ lora[layer].A.astype(np.float64)
                for w, lora in zip(weights, loras, strict=True)
            )
            for layer in loras[0]
        }

    return total
