"""The 176 layers of Stable Diffusion 1.5 that fedsd adapts, and random adapters of their shapes.

Counted in the U-Net's and text encoder's configs: attention projections q, k, v and out of 16 transformer blocks (each
with self-attention and cross-attention to 768 text features) and of 12 text layers.
"""

import numpy as np

from fedsd.lowrank import Factor, LoRA

UNET = {320: 5, 640: 5, 1280: 6}  # width -> transformer blocks
TEXT, TEXT_LAYERS = 768, 12


def shapes() -> dict[str, tuple[int, int]]:
    """Layer -> (d_out, d_in)."""
    found = {}
    for width, blocks in UNET.items():
        for block in range(blocks):
            for attention, context in (("attn1", width), ("attn2", TEXT)):
                for side, d_in in (("q", width), ("k", context), ("v", context), ("out", width)):
                    found[f"unet.{width}.{block}.{attention}.to_{side}"] = (width, d_in)
    for layer in range(TEXT_LAYERS):
        for side in ("q", "k", "v", "out"):
            found[f"text_encoder.{layer}.{side}_proj"] = (TEXT, TEXT)
    return found


def adapter(rank: int, seed: int) -> LoRA:
    """A float32 adapter of `rank` on every layer, with factors of the size that training gives them."""
    rng = np.random.default_rng(seed)
    return {
        layer: Factor(
            rng.standard_normal((d_out, rank), np.float32) * np.float32(0.02),
            rng.standard_normal((rank, d_in), np.float32) * np.float32(d_in**-0.5),
        )
        for layer, (d_out, d_in) in shapes().items()
    }
