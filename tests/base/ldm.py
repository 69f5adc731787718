"""A diffusers pipeline as one file in the format of the first Stable Diffusion (CompVis latent-diffusion).

Written from the module names of that code base: the inverse of what a loader does.
"""

import re

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
ENDS = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def state_dict(pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    """All tensors under their names in a single file."""
    unet = {f"model.diffusion_model.{_unet_key(k, pipe.unet)}": v for k, v in pipe.unet.state_dict().items()}
    vae = {f"first_stage_model.{_vae_key(k, pipe.vae)}": _as_conv(k, v) for k, v in pipe.vae.state_dict().items()}
    prefix = "cond_stage_model.transformer.text_model."
    text = {prefix + k.removeprefix("text_model."): v for k, v in pipe.text_encoder.state_dict().items()}
    positions = {f"{prefix}embeddings.position_ids": torch.arange(77)[None]}  # older files carry this buffer
    return unet | vae | text | positions


def _unet_key(key: str, unet: UNet2DConditionModel) -> str:
    per_level = unet.config.layers_per_block + 1
    for old, new in ENDS.items():
        if key.startswith(f"{old}."):
            key = new + key.removeprefix(old)
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.", key):
        way, level, kind, layer = found[1], int(found[2]), found[3], int(found[4])
        block = level * per_level + layer + (way == "down")
        place = f"{'input' if way == 'down' else 'output'}_blocks.{block}.{int(kind == 'attentions')}."
        key = place + key.removeprefix(found[0])
    elif found := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.", key):
        key = f"input_blocks.{(int(found[1]) + 1) * per_level}.0.op." + key.removeprefix(found[0])
    elif found := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.", key):
        level = int(found[1])
        after_attention = "CrossAttn" in unet.config.up_block_types[level]
        place = f"output_blocks.{level * per_level + per_level - 1}.{1 + after_attention}.conv."
        key = place + key.removeprefix(found[0])
    if "transformer_blocks" not in key:
        for old, new in RESNET.items():
            key = key.replace(f".{old}.", f".{new}.")
    return key


def _vae_key(key: str, vae: AutoencoderKL) -> str:
    key = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block.", key)
    key = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample", key)
    last = len(vae.config.block_out_channels) - 1
    key = re.sub(r"decoder\.up_blocks\.(\d+)\.resnets\.", lambda m: f"decoder.up.{last - int(m[1])}.block.", key)
    key = re.sub(r"decoder\.up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"decoder.up.{last - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if "mid_block.attentions.0" in key:
        for old, new in VAE_ATTENTION.items():
            key = key.replace(f"attentions.0.{old}.", f"attentions.0.{new}.")
        key = key.replace("mid_block.attentions.0", "mid.attn_1")
    return key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def _as_conv(key: str, value: Tensor) -> Tensor:
    """The autoencoder's attention was written with 1x1 convolutions."""
    return value[:, :, None, None] if re.search(r"attentions\.0\.to_.*weight", key) else value
