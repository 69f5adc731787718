"""Stable Diffusion 1.5 with random weights: its sizes and speed without its pictures, for timings on a GPU."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from fedsd.base.tokenizer import WORDS, build_tokenizer

UNET_PARAMETERS = 859_520_964
WIDTH, TOKENS = 768, 77


def unet() -> UNet2DConditionModel:
    """The U-Net of SD 1.5."""
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=WIDTH, attention_head_dim=8)


def autoencoder() -> AutoencoderKL:
    """The autoencoder of SD 1.5."""
    return AutoencoderKL(
        sample_size=512, block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def text_encoder() -> CLIPTextModel:
    """The text encoder of SD 1.5 (CLIP ViT-L/14's)."""
    config = CLIPTextConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=TOKENS, projection_dim=WIDTH,
    )  # fmt: skip
    return CLIPTextModel(config)


def save(folder: Path) -> Path:
    """Write the model as a diffusers folder unless it is there; 4.3 GB. SystemExit when the U-Net is not SD 1.5's."""
    if (folder / "model_index.json").exists():
        return folder
    torch.manual_seed(0)
    model = unet()
    count = sum(parameter.numel() for parameter in model.parameters())
    if count != UNET_PARAMETERS:
        raise SystemExit(f"the U-Net has {count} parameters, not the {UNET_PARAMETERS} of SD 1.5")
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=text_encoder(), tokenizer=build_tokenizer(TOKENS), unet=model,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder
