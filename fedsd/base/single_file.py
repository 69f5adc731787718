"""Stable Diffusion 1.x from one checkpoint file, without a network.

The sizes are read from the tensors (channels, layers, cross-attention width), so smaller models of the same structure
load as well. What tensors do not tell is written here, as the authors of SD 1.x set it (Rombach et al. 2022,
arXiv 2112.10752, and the v1-inference.yaml that came with the weights): 8 heads, groups of 32 channels, latents times
0.18215, beta from 0.00085 to 0.012, prediction of eps; heads of 64 channels in CLIP's text transformer.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError, safe_open

from fedsd.base.tokenizer import WORDS, build_tokenizer

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
HEADS, GROUP, TEXT_HEAD = 8, 32, 64
Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

_REMEDY = "base.name takes a Stable Diffusion 1.x checkpoint that holds U-Net, autoencoder and text encoder"
_OTHERS = {  # part of a key -> whose it is; the first that fits is named
    "conditioner.embedders.": "Stable Diffusion XL",
    "cond_stage_model.model.": "Stable Diffusion 2.x",
    ".joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "FLUX",
    "lora": "a LoRA adapter, not a base",
    "down_blocks.": "one component in diffusers' format; name the pipeline's folder instead",
}
_SCHEDULER = {
    "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
    "prediction_type": "epsilon",
}  # fmt: skip
_INDEX = {
    "_class_name": "StableDiffusionPipeline", "requires_safety_checker": False,
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
}  # fmt: skip


def load_single_file(path: Path, dtype: torch.dtype) -> Any:
    """Return the StableDiffusionPipeline in a .safetensors file, or in a .ckpt file that holds nothing but tensors.

    Raises ValueError naming the file and what was found when it is a pickle that could run code, is damaged, is not
    SD 1.x (SDXL, SD 2, inpainting, an adapter), or lacks tensors.
    """
    try:
        shapes = _read_shapes(path)
        configs = infer_configs(shapes)
        with tempfile.TemporaryDirectory() as folder:
            for name, config in (configs | {"scheduler/scheduler_config": _SCHEDULER, "model_index": _INDEX}).items():
                file = Path(folder, f"{name}.json")
                file.parent.mkdir(exist_ok=True)
                file.write_text(json.dumps(config), encoding="utf-8")
            tokenizer = build_tokenizer(configs["text_encoder/config"]["max_position_embeddings"])
            pipe = StableDiffusionPipeline.from_single_file(
                str(path), config=folder, local_files_only=True, dtype=dtype, tokenizer=tokenizer,
                safety_checker=None, feature_extractor=None,
            )  # fmt: skip
        _check_complete(pipe, shapes)
    except (ValueError, OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint {path} {error}") from error
    return pipe


def infer_configs(shapes: Shapes) -> dict[str, Config]:
    """Return the configs of unet, vae and text_encoder, by file name, from the shapes of a checkpoint's tensors.

    Raises ValueError saying which other model the shapes belong to, or which structure is not that of SD 1.x.
    """
    other = next((name for part, name in _OTHERS.items() if any(part in key for key in shapes)), "")
    lacking = [prefix for prefix in (UNET, VAE, TEXT) if not any(key.startswith(prefix) for key in shapes)]
    if other or lacking:
        found = f"is {other}" if other else f"has no tensors named {', '.join(f'{p}*' for p in lacking)}"
        raise ValueError(f"{found}; {_REMEDY}")
    return {
        "unet/config": _unet(_below(shapes, UNET)),
        "vae/config": _vae(_below(shapes, VAE)),
        "text_encoder/config": _text_encoder(_below(shapes, TEXT)),
    }


def _unet(shapes: Shapes) -> Config:
    levels: list[list[int]] = [[]]  # output channels of the residual blocks of each resolution
    attention: list[list[int]] = [[]]  # 1 for each of them that attention follows
    for i in range(1, _count(shapes, "input_blocks.")):
        if f"input_blocks.{i}.0.op.weight" in shapes:
            levels, attention = [*levels, []], [*attention, []]
        else:
            levels[-1].append(_shape(shapes, f"input_blocks.{i}.0.in_layers.2.weight")[0])
            attention[-1].append(int(f"input_blocks.{i}.1.proj_in.weight" in shapes))
    middle = "middle_block.1.transformer_blocks."
    projection, keys = _shape(shapes, "middle_block.1.proj_in.weight"), _shape(shapes, f"{middle}0.attn2.to_k.weight")
    regular = len({len(level) for level in levels}) == 1 and all(len(set(row)) == 1 for row in levels + attention)
    if not regular or len(projection) != 4 or _count(shapes, middle) != 1 or "label_emb.0.0.weight" in shapes:
        raise ValueError(f"has a U-Net of another structure (channels {levels}, attention {attention}); {_REMEDY}")
    channels = [_grouped("U-Net", level[0]) for level in levels]
    down = ["CrossAttnDownBlock2D" if row[0] else "DownBlock2D" for row in attention]
    return {
        "_class_name": "UNet2DConditionModel", "sample_size": 64,
        "in_channels": _shape(shapes, "input_blocks.0.0.weight")[1], "out_channels": _shape(shapes, "out.2.weight")[0],
        "block_out_channels": channels, "layers_per_block": len(levels[0]), "cross_attention_dim": keys[1],
        "attention_head_dim": HEADS, "norm_num_groups": GROUP, "down_block_types": down,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)],
    }  # fmt: skip


def _vae(shapes: Shapes) -> Config:
    count = _count(shapes, "encoder.down.")
    channels = [_shape(shapes, f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(count)]
    return {
        "_class_name": "AutoencoderKL", "sample_size": 512, "scaling_factor": 0.18215,
        "block_out_channels": [_grouped("autoencoder", channel) for channel in channels],
        "latent_channels": _shape(shapes, "decoder.conv_in.weight")[1], "norm_num_groups": GROUP,
        "layers_per_block": _count(shapes, "encoder.down.0.block."),
        "down_block_types": ["DownEncoderBlock2D"] * count, "up_block_types": ["UpDecoderBlock2D"] * count,
    }  # fmt: skip


def _text_encoder(shapes: Shapes) -> Config:
    words, width = _shape(shapes, "embeddings.token_embedding.weight")
    if words != WORDS or width % TEXT_HEAD:
        raise ValueError(
            f"has a text encoder of {words} words and width {width}; CLIP's has {WORDS} words and heads of "
            f"{TEXT_HEAD} channels; {_REMEDY}"
        )
    return {
        "model_type": "clip_text_model", "vocab_size": words, "hidden_size": width, "projection_dim": width,
        "intermediate_size": _shape(shapes, "encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _count(shapes, "encoder.layers."), "num_attention_heads": width // TEXT_HEAD,
        "max_position_embeddings": _shape(shapes, "embeddings.position_embedding.weight")[0],
        "hidden_act": "quick_gelu", "bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1,
    }  # fmt: skip


def _read_shapes(path: Path) -> Shapes:
    """Return the shape of every tensor, reading no more than the header of a safetensors file.

    The content decides what a file is, not its name: a pickle that is named .safetensors is refused unread.
    """
    with path.open("rb") as file:
        start = file.read(9)
    zipped, suffix = start.startswith(b"PK\x03\x04"), path.suffix.lower()
    if start[8:] == b"{" and suffix == ".safetensors":  # eight bytes of the header's length, then JSON
        with safe_open(path, framework="pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118  not a dict
    if start.startswith(b"\x80") or (zipped and suffix != ".ckpt"):
        raise ValueError("is a pickle, which can run code when it is opened; save it as .safetensors")
    if not zipped:
        raise ValueError(f"is no .safetensors or .ckpt file: it begins with {start!r}; download it again")
    return _read_ckpt(path)


def _read_ckpt(path: Path) -> Shapes:
    try:
        state = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # whatever the pickle asks for, it is refused
        what = "holds more than tensors, or is damaged; what it asks for could run code, so save it as .safetensors"
        raise ValueError(what) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return {key: tuple(value.shape) for key, value in state.items() if isinstance(value, torch.Tensor)}


def _check_complete(pipe: Any, shapes: Shapes) -> None:
    """Raise ValueError unless the file had every weight of the model, and the model every U-Net tensor of the file."""
    parts = {"unet": pipe.unet, "vae": pipe.vae, "text_encoder": pipe.text_encoder}
    missing = [f"{name}.{key}" for name, model in parts.items() for key, p in model.named_parameters() if p.is_meta]
    if missing:
        raise ValueError(f"lacks {len(missing)} tensors, such as {missing[0]}; download it again")
    unused = sum(key.startswith(UNET) for key in shapes) - len(list(pipe.unet.parameters()))
    if unused:
        raise ValueError(f"has {unused} U-Net tensors that SD 1.x does not have; {_REMEDY}")


def _below(shapes: Shapes, prefix: str) -> Shapes:
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}


def _count(shapes: Shapes, prefix: str) -> int:
    """Return how many numbers follow `prefix`, as in "encoder.layers.0" to "encoder.layers.11"."""
    return len({key.removeprefix(prefix).partition(".")[0] for key in shapes if key.startswith(prefix)})


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise ValueError(f"lacks the tensor {key}; {_REMEDY}")
    return shapes[key]


def _grouped(part: str, channels: int) -> int:
    if channels % GROUP:
        raise ValueError(f"has {channels} channels in its {part}; SD 1.x has multiples of {GROUP}; {_REMEDY}")
    return channels
