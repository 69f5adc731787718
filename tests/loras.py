"""A small adapter for tests that need any."""

import numpy as np

from fedsd.lowrank import Factor


def lora(rank: int = 2) -> dict[str, Factor]:
    """Return two layers of 5x3 with factors that are the same at every call."""
    rng = np.random.default_rng(0)
    return {
        f"unet.{name}": Factor(
            rng.standard_normal((5, rank)).astype(np.float32), rng.standard_normal((rank, 3)).astype(np.float32)
        )
        for name in ("mid.to_q", "mid.to_k")
    }
