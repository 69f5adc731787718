"""LoRA adapters in and out of a base, by PEFT.

Target modules are the attention projections of arXiv 2508.04745's counts: at rank 16 on SD 1.5 they hold 3,188,736
(U-Net) and 1,179,648 (text encoder) parameters. Where asked for, the U-Net's residual and resampling blocks are adapted
too (the layers of LoCon, Yeh et al. 2023, arXiv 2309.14859): convolutions, whose A is the matrix (rank, d_in kernel²),
and projections of the time embedding, which shift whole channels. A layer's name is its component and module path, for
example `unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`. PEFT's scale lora_alpha / rank is kept at 1,
so a `Factor` (B, A) is exactly what the layer adds: ΔW = B A.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from fedsd.base.load import Base
from fedsd.base.quantised import check_full_weights
from fedsd.lowrank import Factor, LoRA

TARGETS = {
    "unet": ("to_q", "to_k", "to_v", "to_out.0"),
    "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
}
CONVOLUTIONS = (".conv1", ".conv2", ".conv_shortcut", ".conv")  # of residual, down- and upsampling blocks
TIME_PROJECTION = ".time_emb_proj"  # of residual blocks
ADAPTER = "fedsd"


def components(base: Base, text_encoder: bool) -> dict[str, nn.Module]:
    """Return the modules that carry adapters."""
    return {"unet": base.unet} | ({"text_encoder": base.text_encoder} if text_encoder else {})


def target_shapes(base: Base, text_encoder: bool = True, convolutions: bool = False) -> dict[str, tuple[int, int]]:
    """Return (d_out, d_in) of every layer that an adapter changes; of a convolution d_in is inputs x kernel area.

    convolutions: whether the U-Net's residual and resampling blocks are among them.
    Raises ValueError when the base is quantised.
    """
    check_full_weights(base, "adapted layer by layer")
    shapes = {
        f"{name}.{path}": (module.out_features, module.in_features)
        for name, model in components(base, text_encoder).items()
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.endswith(TARGETS[name])
    }
    if convolutions:
        shapes |= {
            f"unet.{path}": (len(module.weight), module.weight[0].numel())
            for path, module in base.unet.named_modules()
            if (isinstance(module, nn.Conv2d) and path.endswith(CONVOLUTIONS))
            or (isinstance(module, nn.Linear) and path.endswith(TIME_PROJECTION))
        }
    return shapes


def check_rank(base: Base, rank: int, text_encoder: bool = True, convolutions: bool = False) -> None:
    """Raise ValueError unless 1 <= rank <= min(d_out, d_in) of every target layer."""
    shapes = target_shapes(base, text_encoder, convolutions)
    layer, shape = min(shapes.items(), key=lambda item: min(item[1]))
    if not 1 <= rank <= min(shape):
        raise ValueError(
            f"LoRA rank {rank} does not fit {layer}, which is {shape[0]}x{shape[1]}; "
            f"choose a rank from 1 to {min(shape)} (lora.ranks, or rank in the node config)"
        )


def _attach(base: Base, ranks: dict[str, int]) -> None:
    for name in TARGETS:
        wanted = {layer.removeprefix(f"{name}."): r for layer, r in ranks.items() if layer.startswith(f"{name}.")}
        if wanted:
            config = LoraConfig(
                r=1, lora_alpha=1, target_modules=list(wanted), rank_pattern=wanted, alpha_pattern=wanted
            )
            inject_adapter_in_model(config, getattr(base, name), adapter_name=ADAPTER)


def _layers(base: Base) -> Iterator[tuple[str, LoraLayer]]:
    for name in TARGETS:
        for path, module in getattr(base, name).named_modules():
            if isinstance(module, LoraLayer):
                yield f"{name}.{path}", module


@contextmanager
def adapted(base: Base, lora: LoRA) -> Iterator[None]:
    """Within the block the base computes with `lora` added; afterwards it is as before, bit for bit.

    An empty adapter leaves the base as it is. Raises ValueError when a layer of `lora` is not one of the base's
    attention projections, convolutions or projections of time, or has another shape.
    """
    check_fits(target_shapes(base, convolutions=True), lora)
    try:
        if lora:
            _attach(base, {layer: factor.rank for layer, factor in lora.items()})
            _write(base, lora)
        yield
    finally:
        for name in TARGETS:
            model = getattr(base, name)
            recurse_remove_peft_layers(model)
            if hasattr(model, "peft_config"):
                del model.peft_config  # PEFT leaves it, and would take the next adapter for a second one


@contextmanager
def trainable(
    base: Base, lora: LoRA, rank: int, seed: int, text_encoder: bool, convolutions: bool = False
) -> Iterator[dict[str, list[nn.Parameter]]]:
    """Within the block the base carries an adapter of `rank` to be trained; yields its parameters per component.

    The adapter starts from `lora`, whose ranks must equal `rank`, or, where `lora` is empty, from B = 0 and A drawn
    from `seed` with the variance 1 / (3 d_in) of LoRA's own initialisation (Hu et al. 2022).
    """
    check_rank(base, rank, text_encoder, convolutions)
    shapes = target_shapes(base, text_encoder, convolutions)
    start = dict(lora) if lora else _seeded(shapes, rank, seed)
    _check_start(start, shapes, rank)
    with adapted(base, start):
        yield unfrozen(base, text_encoder)


def unfrozen(base: Base, text_encoder: bool = True) -> dict[str, list[nn.Parameter]]:
    """Let the adapter that the base carries be trained, whatever its ranks; returns its parameters per component."""
    for model in components(base, text_encoder).values():
        for key, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in key)
    return {
        name: [p for p in model.parameters() if p.requires_grad]
        for name, model in components(base, text_encoder).items()
    }


def rates(base: Base, lr: float, text_lr: float, ratio: float) -> list[dict[str, Any]]:
    """Return optimiser groups of the adapter that the base carries unfrozen, each naming the setting of its rate.

    B learns `ratio` times as fast as A (LoRA+, Hayou, Ghosh, Yu 2024, arXiv 2402.12354); 1 is plain LoRA.
    """
    groups: list[dict[str, Any]] = []
    for name, rate, setting in (("unet", lr, "train.lr"), ("text_encoder", text_lr, "train.text-lr")):
        named = [(key, p) for key, p in getattr(base, name).named_parameters() if p.requires_grad]
        for side, times in (("lora_A", 1.0), ("lora_B", ratio)):
            if parameters := [p for key, p in named if side in key]:
                groups.append({"params": parameters, "lr": times * rate, "setting": setting})
    return groups


@contextmanager
def bare(base: Base) -> Iterator[None]:
    """Within the block the base computes without whatever adapters it carries, of any name."""
    layers = [m for name in TARGETS for m in getattr(base, name).modules() if isinstance(m, LoraLayer)]
    for module in layers:
        module.enable_adapters(False)
    try:
        yield
    finally:
        for module in layers:
            module.enable_adapters(True)


def set_scale(base: Base, scale: float) -> None:
    """Weigh the adapter that the base carries: it computes with scale * ΔW (mixLoras and local scale of Fig. 5)."""
    for _, module in _layers(base):
        module.set_scale(ADAPTER, scale)


def current(base: Base) -> dict[str, Factor]:
    """Return the adapter that the base carries now, as float32 copies."""
    return {
        layer: Factor(_matrix(module.lora_B[ADAPTER].weight), _matrix(module.lora_A[ADAPTER].weight))
        for layer, module in _layers(base)
    }


def _matrix(weight: Any) -> np.ndarray:
    return weight.detach().float().cpu().flatten(1).numpy().copy()


def _seeded(shapes: dict[str, tuple[int, int]], rank: int, seed: int) -> dict[str, Factor]:
    rng = np.random.default_rng(seed)
    return {
        layer: Factor(
            np.zeros((d_out, rank), np.float32),
            (rng.standard_normal((rank, d_in)) / np.sqrt(3 * d_in)).astype(np.float32),
        )
        for layer, (d_out, d_in) in sorted(shapes.items())
    }


def _check_start(start: LoRA, shapes: dict[str, tuple[int, int]], rank: int) -> None:
    missing, extra = sorted(set(shapes) - set(start)), sorted(set(start) - set(shapes))
    if missing or extra:
        raise ValueError(
            f"the adapter to start from lacks {missing[:3]} and has unknown {extra[:3]}; is it for this base?"
        )
    unequal = [f"{layer} has rank {factor.rank}" for layer, factor in start.items() if factor.rank != rank]
    if unequal:
        raise ValueError(f"the adapter to start from must have rank {rank} but {unequal[0]}; resize it first")


def check_fits(shapes: Mapping[str, tuple[int, int]], lora: LoRA) -> None:
    """Raise ValueError unless every layer of `lora` is one of `shapes`, as of `target_shapes`, and has its shape."""
    for layer, factor in lora.items():
        if layer not in shapes:
            raise ValueError(f"the adapter changes {layer}, which this base does not have; it belongs to another base")
        if factor.shape != shapes[layer]:
            raise ValueError(
                f"the adapter's {layer} is {factor.shape[0]}x{factor.shape[1]} but the base's is "
                f"{shapes[layer][0]}x{shapes[layer][1]}; it belongs to another base"
            )


def _write(base: Base, lora: LoRA) -> None:
    """Copy every factor into its PEFT layer, and fail unless all of them arrived."""
    accepted = set()
    for layer, module in _layers(base):
        factor = lora[layer]
        for side, values in (("lora_B", factor.B), ("lora_A", factor.A)):
            weight = getattr(module, side)[ADAPTER].weight
            # factors stay float32 whatever the base's precision, as mixed-precision training needs
            weight.data = torch.from_numpy(np.array(values, np.float32)).view(weight.shape).to(weight.device)
        if module.scaling[ADAPTER] != 1:
            raise RuntimeError(f"PEFT scales {layer} by {module.scaling[ADAPTER]}, not 1")
        accepted.add(layer)
    if accepted != set(lora):
        raise RuntimeError(
            f"the base accepted {len(accepted)} of {len(lora)} adapter layers; lost {sorted(set(lora) - accepted)[:3]}"
        )
