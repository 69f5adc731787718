"""Small, untrained models of the real classes, and adapters for them; each is built once in a test run."""

from functools import lru_cache

import numpy as np
import open_clip
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from fedsd.base import adapters
from fedsd.base.load import Base, Clip, weights_sha
from fedsd.base.tokenizer import WORDS, build_tokenizer
from fedsd.lowrank import Factor

WIDTH, TOKENS, SIDE = 16, 12, 8  # of the text encoder, of a prompt, of the latents
VISION = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": WORDS, "width": 16, "heads": 2, "layers": 1}


@lru_cache
def tiny_base(vae: str = "kl", prediction: str = "epsilon", seed: int = 0) -> Base:
    """Stable Diffusion with 0.2 M parameters besides CLIP's vocabulary, for 16x16 pictures; vae: "kl" or "tiny"."""
    torch.manual_seed(seed)
    unet, text_encoder, autoencoder = tiny_unet(), _text_encoder(), _kl() if vae == "kl" else _autoencoder_tiny()
    for module in (unet, text_encoder, autoencoder):
        module.requires_grad_(False).eval()
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction,
    )  # fmt: skip
    sha = weights_sha(unet, text_encoder, autoencoder)
    tokenizer = build_tokenizer(TOKENS)
    return Base(unet, text_encoder, autoencoder, tokenizer, scheduler, 2 * SIDE, sha, torch.device("cpu"))


@lru_cache
def tiny_clip() -> Clip:
    """An open_clip model with embeddings of 24 numbers, for 32x32 pictures."""
    torch.manual_seed(0)
    model = open_clip.model.CLIP(embed_dim=24, vision_cfg=VISION, text_cfg=TEXT).eval().requires_grad_(False)
    tokenizer = open_clip.SimpleTokenizer(context_length=TEXT["context_length"])
    return Clip(model, tokenizer, 32, 24, (0.4, 0.5, 0.6), (0.2, 0.25, 0.5))


def random_lora(
    base: Base, seed: int, ranks: tuple[int, ...] = (4,), text_encoder: bool = True, convolutions: bool = False
) -> dict[str, Factor]:
    """An adapter whose layers have the ranks in turn, strong enough to be seen in the output."""
    rng = np.random.default_rng(seed)
    shapes = adapters.target_shapes(base, text_encoder, convolutions)
    return {
        layer: Factor(
            rng.standard_normal((d_out, ranks[i % len(ranks)])).astype(np.float32) * 0.2,
            rng.standard_normal((ranks[i % len(ranks)], d_in)).astype(np.float32) * 0.2,
        )
        for i, (layer, (d_out, d_in)) in enumerate(shapes.items())
    }


def unet_input(n: int = 2, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents (n, 4, 8, 8), timesteps (n,) and text states (n, 12, 16)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, SIDE, SIDE, generator=generator)
    t = torch.randint(0, 1000, (n,), generator=generator)
    return x, t, torch.randn(n, TOKENS, WIDTH, generator=generator)


def unet_output(base: Base) -> torch.Tensor:
    """What the U-Net makes of `unet_input`, with whatever adapter it carries."""
    with torch.no_grad():
        output: torch.Tensor = base.unet(*unet_input()).sample
    return output


def tiny_unet(**changes: int | str) -> nn.Module:
    """Two levels of 16 and 32 channels, attention at the upper one and in the middle."""
    sizes = {"sample_size": SIDE, "cross_attention_dim": WIDTH} | changes
    return UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, attention_head_dim=4, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **sizes,
    )  # fmt: skip


def _text_encoder() -> nn.Module:
    config = CLIPTextConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=TOKENS, bos_token_id=WORDS - 2, eos_token_id=WORDS - 1, pad_token_id=WORDS - 1,
    )  # fmt: skip
    model = CLIPTextModel(config)
    model.get_input_embeddings().weight.data.mul_(25)  # captions that differ must look different
    return model


def _kl() -> nn.Module:
    return AutoencoderKL(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def _autoencoder_tiny() -> nn.Module:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    )  # fmt: skip
