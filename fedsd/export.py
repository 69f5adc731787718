"""Adapters in the file formats of other programs, as bytes; `store` writes them."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from fedsd.lowrank import Array, LoRA


def for_diffusers(lora: LoRA, biases: Mapping[str, Array]) -> bytes:
    """An adapter as stock diffusers' `load_lora_weights` reads it; layer = component + module path.

    lora_alpha equals the rank of each layer, so that its scale is 1, as in B A; the header says so, because loaders
    that guess it from the first layer get unequal ranks wrong. biases: (d_out,) added to layers of `lora`; where one
    layer of a component has one, loaders expect it of all, so the others get zeros.
    """
    biased = {layer.partition(".")[0] for layer in biases}
    tensors: dict[str, Array] = {}
    ranks: dict[str, dict[str, int]] = {}
    for layer in sorted(lora):
        for side, matrix in (("A", lora[layer].A), ("B", lora[layer].B)):
            tensors[f"{_clip_prefixed(layer)}.lora_{side}.weight"] = matrix.astype(np.float32).reshape(
                len(matrix), -1, *kernel(layer, side)
            )
        component, _, module = layer.partition(".")
        if component in biased:
            bias = biases.get(layer, np.zeros(lora[layer].shape[0]))
            tensors[f"{_clip_prefixed(layer)}.lora_B.bias"] = bias.astype(np.float32)
        ranks.setdefault(component, {})[module.removeprefix("text_model.")] = lora[layer].rank
    configs = {f"{component}.{key}": value for component, found in ranks.items() for key, value in _peft(found).items()}
    configs |= {f"{component}.lora_bias": True for component in biased}
    header = {"format": "pt", "lora_adapter_metadata": json.dumps(configs, sort_keys=True)}
    content: bytes = save({key: np.ascontiguousarray(value) for key, value in tensors.items()}, header)
    return content


def kernel(layer: str, side: str) -> tuple[int, ...]:
    """The kernel of a layer's lora_A or lora_B in diffusers' U-Nets, told by its name; () for a linear layer."""
    name = layer.rpartition(".")[2]
    if name not in ("conv1", "conv2", "conv", "conv_shortcut"):
        return ()
    return (1, 1) if side == "B" or name == "conv_shortcut" else (3, 3)


def _peft(ranks: Mapping[str, int]) -> dict[str, Any]:
    """The fields of PEFT's LoraConfig for one component: module path -> rank."""
    usual = Counter(ranks.values()).most_common(1)[0][0]
    unusual = {module: rank for module, rank in ranks.items() if rank != usual}
    return {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": unusual,
        "alpha_pattern": unusual,
        "target_modules": list(ranks),
    }


def _clip_prefixed(layer: str) -> str:
    """A text encoder's layer as diffusers writes it; since transformers 5 "text_model" is no longer in the path."""
    return re.sub(r"^(text_encoder(?:_\d)?)\.encoder\.", r"\1.text_model.encoder.", layer)
