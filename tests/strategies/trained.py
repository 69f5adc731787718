"""Adapters as training leaves them, and as attackers send them."""

import numpy as np

from fedsd.lowrank import Factor, lora_norm, truncate

SHAPES = {"q": (60, 40), "k": (48, 48), "ff": (30, 70)}


def honest(seed: int, rank: int = 4, style: int = 0, size: float = 1.0) -> dict[str, Factor]:
    """What training gives: the style's few directions, fading quickly, and a client's own beside them."""
    lora = {}
    for layer, (d_out, d_in) in SHAPES.items():
        B, A = _directions([900, style], d_out, d_in, 3)
        own_B, own_A = _directions([seed], d_out, d_in, rank)
        fading = 0.6 * 0.4 ** np.arange(rank)
        whole = Factor(np.hstack([B * [1.0, 0.3, 0.1], own_B * fading]), np.vstack([A, own_A]))
        cut, _ = truncate(whole, rank)
        # a higher rank moves more directions, and so makes a larger update
        lora[layer] = Factor((size * rank**0.3 * cut.B).astype(np.float32), cut.A.astype(np.float32))
    return lora


def _directions(seed: list[int], d_out: int, d_in: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        np.linalg.qr(rng.standard_normal((d_out, rank)))[0],
        np.linalg.qr(rng.standard_normal((d_in, rank)))[0].T,
    )


def scaled(lora: dict[str, Factor], by: float) -> dict[str, Factor]:
    return {layer: Factor((factor.B * by).astype(np.float32), factor.A) for layer, factor in lora.items()}


def noise(like: dict[str, Factor], seed: int) -> dict[str, Factor]:
    """Gaussian factors of the shapes and the norm of `like`."""
    rng = np.random.default_rng(seed)
    drawn = {
        layer: Factor(
            rng.standard_normal(factor.B.shape).astype(np.float32),
            rng.standard_normal(factor.A.shape).astype(np.float32),
        )
        for layer, factor in like.items()
    }
    return scaled(drawn, lora_norm(like) / lora_norm(drawn))
