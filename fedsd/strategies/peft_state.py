"""PEFT's LoRA state as numpy arrays, and the products that it stands for.

    <module>.lora_A.weight (rank, d_in, *kernel)     <module>.lora_B.weight (d_out, rank, 1, …)

PEFT adds s B A with s = lora_alpha / rank, or lora_alpha / √rank under rsLoRA (Kalajdzievski 2023, arXiv 2312.03732),
by layer where rank_pattern or alpha_pattern say so. Convolutions become matrices: A (rank, d_in · kernel). What is no
product of two factors (DoRA, biases) is refused.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedsd.lowrank import Array, Factor, LoRA

_KEY = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")
_REFUSED = {
    "lora_magnitude_vector": "DoRA, whose magnitudes are no product of factors; train with use_dora=False",
    "lora_embedding_": "LoRA on an embedding; leave it out of target_modules",
    ".bias": "a bias; train with bias='none' and lora_bias=False",
}


def is_lora(key: str) -> bool:
    """Whether a key of a PEFT state belongs to an adapter, and not to a module that is trained as a whole."""
    return ".lora_" in key


def fold(B: Array, A: Array, lora_alpha: float, rank: int, rslora: bool = False) -> Factor:
    """Return s B A as a factor of scale 1.

    B: (d_out, rank) or (d_out, rank, 1, …); A: (rank, d_in) or (rank, d_in, *kernel).
    """
    if rank < 1 or B.shape[1] != rank or A.shape[0] != rank:
        raise ValueError(
            f"B {B.shape} and A {A.shape} are not of rank {rank}; grouped convolutions are not supported, and "
            "rank_pattern must be that of the client"
        )
    if np.prod(B.shape[2:], initial=1) != 1:
        raise ValueError(f"B has shape {B.shape}; its kernel must be 1, as PEFT makes it")
    return Factor(B.reshape(len(B), rank) * B.dtype.type(scale(lora_alpha, rank, rslora)), A.reshape(rank, -1))


def scale(lora_alpha: float, rank: int, rslora: bool = False) -> float:
    """lora_alpha / rank, or lora_alpha / √rank under rsLoRA; ValueError unless both are positive."""
    if not lora_alpha > 0 or rank < 1:
        raise ValueError(f"lora_alpha and rank must be positive, got {lora_alpha} and {rank}")
    return lora_alpha / (rank**0.5 if rslora else rank)


def layer_scale(layer: str, rank: int, config: Mapping[str, Any]) -> float:
    """The scale of a layer under PEFT's config, a dict as in adapter_config.json; the first pattern that fits holds."""
    return scale(_pattern(config, "alpha_pattern", layer, "lora_alpha"), rank, bool(config.get("use_rslora")))


def layer_rank(layer: str, config: Mapping[str, Any]) -> int:
    """The rank of a layer under PEFT's config; the first pattern that fits holds."""
    return int(_pattern(config, "rank_pattern", layer, "r"))


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ValueError unless adapters of PEFT's config, a dict, are products of two factors."""
    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"peft_type is {config['peft_type']}; only LORA adapters are products of two factors")
    if config.get("use_dora"):
        raise ValueError(f"use_dora is set: {_REFUSED['lora_magnitude_vector']}")
    if config.get("lora_bias") or config.get("bias", "none") != "none":
        raise ValueError(f"the config trains {_REFUSED['.bias']}")


def from_peft(state: Mapping[str, Array], config: Mapping[str, Any]) -> dict[str, Factor]:
    """Layer -> product of scale 1; ValueError naming the key that cannot be combined as a product."""
    check_config(config)
    sides: dict[str, dict[str, Array]] = {}
    for key, array in state.items():
        found = _KEY.fullmatch(key)
        if found is None or "lora_embedding_" in key:
            why = next((reason for part, reason in _REFUSED.items() if part in key), "no LoRA factor; combine it apart")
            raise ValueError(f"{key} is {why}")
        sides.setdefault(found["layer"], {})[found["side"]] = array
    lora = {}
    for layer in sorted(sides):
        if len(sides[layer]) != 2:
            raise ValueError(f"layer {layer} has lora_{next(iter(sides[layer]))} but not its other half")
        B, A = sides[layer]["B"], sides[layer]["A"]
        rank = layer_rank(layer, config)
        alpha = float(_pattern(config, "alpha_pattern", layer, "lora_alpha"))
        lora[layer] = fold(B, A, alpha, rank, bool(config.get("use_rslora")))
    return lora


def to_peft(lora: LoRA, config: Mapping[str, Any], like: Mapping[str, Array]) -> dict[str, Array]:
    """The state that makes a model with `config` compute `lora`; `like`: any state of its shapes but for the rank."""
    state = {}
    for key, array in like.items():
        found = _KEY.fullmatch(key)
        if found is None:
            raise ValueError(f"{key} is no LoRA factor; combine it apart")
        factor = lora[found["layer"]]
        if found["side"] == "A":
            state[key] = factor.A.reshape(factor.rank, *array.shape[1:])
        else:
            unscaled = factor.B / factor.B.dtype.type(layer_scale(found["layer"], factor.rank, config))
            state[key] = unscaled.reshape(*unscaled.shape, *array.shape[2:])
    return state


def _pattern(config: Mapping[str, Any], patterns: str, layer: str, default: str) -> Any:
    """A layer's value, chosen as PEFT's get_pattern_key does."""
    for pattern, value in (config.get(patterns) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return config[default]
