"""Adapters, tokens and latents in the file formats of other programs, as bytes; `store` writes them."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from fedsd.lowrank import Array, LoRA, pad

KOHYA_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}


def for_diffusers(lora: LoRA, biases: Mapping[str, Array], about: Mapping[str, str] | None = None) -> bytes:
    """An adapter as stock diffusers' `load_lora_weights` reads it; layer = component + module path.

    lora_alpha equals the rank of each layer, so that its scale is 1, as in B A; the header says so, because loaders
    that guess it from the first layer get unequal ranks wrong. biases: (d_out,) added to layers of `lora`; where one
    layer of a component has one, loaders expect it of all, so the others get zeros. about: more for the header.
    """
    biased = {layer.partition(".")[0] for layer in biases}
    tensors: dict[str, Array] = {}
    ranks: dict[str, dict[str, int]] = {}
    for layer in sorted(lora):
        for side, matrix in (("A", lora[layer].A), ("B", lora[layer].B)):
            tensors[f"{_clip_prefixed(layer)}.lora_{side}.weight"] = _weight(layer, side, matrix)
        component, _, module = layer.partition(".")
        if component in biased:
            bias = biases.get(layer, np.zeros(lora[layer].shape[0]))
            tensors[f"{_clip_prefixed(layer)}.lora_B.bias"] = bias.astype(np.float32)
        ranks.setdefault(component, {})[module.removeprefix("text_model.")] = lora[layer].rank
    configs = {f"{component}.{key}": value for component, found in ranks.items() for key, value in _peft(found).items()}
    configs |= {f"{component}.lora_bias": True for component in biased}
    return _packed(tensors, {"lora_adapter_metadata": json.dumps(configs, sort_keys=True), **(about or {})})


def for_kohya(lora: LoRA, about: Mapping[str, str] | None = None) -> bytes:
    """An adapter under the names of kohya's sd-scripts, which ComfyUI and A1111 read, and diffusers too.

    Readers scale each layer by its alpha over its rank, and by 1 or worse where it has no alpha, so alpha is the rank,
    which gives the 1 of B A. diffusers takes one alpha for all attention layers of a U-Net, so all layers get the
    largest rank, by zeros that leave B A as it is. about: more for the header.
    """
    tensors: dict[str, Array] = {}
    rank = max(factor.rank for factor in lora.values())
    for layer in sorted(lora):
        name, factor = kohya_name(layer), pad(lora[layer], rank)
        tensors[f"{name}.lora_down.weight"] = _weight(layer, "A", factor.A)
        tensors[f"{name}.lora_up.weight"] = _weight(layer, "B", factor.B)
        tensors[f"{name}.alpha"] = np.array(rank, np.float32)
    network = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    return _packed(tensors, {**network, **(about or {})})


def kohya_name(layer: str) -> str:
    """unet.mid_block.attentions.0.….to_out.0 -> lora_unet_mid_block_attentions_0_…_to_out_0; ValueError for others.

    A text encoder's layers keep the "text_model" that transformers 5 dropped from its paths.
    """
    component, _, module = _clip_prefixed(layer).partition(".")
    if component not in KOHYA_PREFIXES:
        raise ValueError(f"{layer} is of no component that kohya's names know: {', '.join(KOHYA_PREFIXES)}")
    return f"{KOHYA_PREFIXES[component]}_{module.replace('.', '_')}"


def embedding(token: str, vectors: Array) -> bytes:
    """One textual-inversion token, (dim,) or (n, dim).

    diffusers takes the key for its name; ComfyUI and A1111 take the file's name and the only tensor.
    """
    rows = np.atleast_2d(vectors)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"the token {token!r} has shape {vectors.shape}, or is not finite; it must be (n, dim)")
    return _packed({token: rows.astype(np.float32)}, {})


def comfy_latent(x: Array, abar: float, scaling_factor: float, about: Mapping[str, str]) -> bytes:
    """x_t (1, 4, h, w) with signal share ᾱ_t `abar` as a .latent file, which ComfyUI's LoadLatent reads.

    ComfyUI computes with x_0 + σ ε, σ² = (1 - ᾱ) / ᾱ, which is x_t / √ᾱ, and keeps latents as they were before the
    VAE's scaling. The empty tensor says that the numbers are meant as they are.
    """
    unscaled = (x.astype(np.float64) / np.sqrt(abar) / scaling_factor).astype(np.float32)
    return _packed({"latent_tensor": unscaled, "latent_format_version_0": np.zeros(0, np.float32)}, about)


def _packed(tensors: Mapping[str, Array], about: Mapping[str, str]) -> bytes:
    """As safetensors; the header's texts are sorted, for the library leaves their order open, and equal content must be
    equal bytes.
    """
    content = save({key: np.require(value, requirements="C") for key, value in tensors.items()}, {"format": "pt"})
    start = 8 + int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(content[start:]).hexdigest()
    texts = {"format": "pt", "modelspec.hash_sha256": f"0x{digest}", **about}
    header = {"__metadata__": dict(sorted(texts.items())), **_without_texts(json.loads(content[8:start]))}
    packed = json.dumps(header, separators=(",", ":")).encode()
    packed += b" " * (-len(packed) % 8)
    return len(packed).to_bytes(8, "little") + packed + content[start:]


def _without_texts(header: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in header.items() if key != "__metadata__"}


def _weight(layer: str, side: str, matrix: Array) -> Array:
    return matrix.astype(np.float32).reshape(len(matrix), -1, *kernel(layer, side))


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
