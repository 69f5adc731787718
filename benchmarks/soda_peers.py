"""SODA and the adapters that it is measured against, each trained by one loop: see soda.py."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from diffusers import UNet2DConditionModel
from peft import BOFTConfig, HRAConfig, OFTConfig, inject_adapter_in_model

from fedsd.base import adapters
from fedsd.base.load import Base, load
from fedsd.base.training import Descent, Fit, Pictures, Shared, descend
from fedsd.methods import lora, soda

# a factor of three apart, around the lowest loss after 40 steps in one style
RATES = {
    "soda": (3e-3, 1e-2), "lora": (5e-3, 1.5e-2), "oft": (3e-3, 1e-2), "boft": (3e-3, 1e-2), "hra": (1e-2, 3e-2),
    "svdiff": (1e-2, 3e-2),
}  # fmt: skip
PEERS = tuple(RATES)[1:]
TEXT_RATE = 0.3  # of LoRA's rate in the text encoder over that in the U-Net, as in fedsd's defaults
INJECTED = {
    # PEFT's default, a series in place of the inverse, leaves the orthogonal group at rates such as these
    "oft": lambda layers: OFTConfig(r=0, oft_block_size=4, use_cayley_neumann=False, target_modules=layers),
    "boft": lambda layers: BOFTConfig(boft_block_size=4, target_modules=layers),
    "hra": lambda layers: HRAConfig(r=2, target_modules=layers),  # it starts from the identity at even ranks only
}
NOTHING = (float("nan"), float("nan"))


@dataclass(frozen=True)
class Training:
    """What all methods have in common."""

    descent: Descent
    seed: int
    text_encoder: bool


@dataclass(frozen=True, eq=False)
class Trained:
    """What a method made of the base: the model to draw with, how many numbers it trained, and the losses."""

    model: AbstractContextManager[Base]
    parameters: int
    losses: tuple[float, float]


def train(base: Base, of: Pictures, method: str, rate: float, how: Training) -> Trained:
    """Train a method's adapter from the base itself; ValueError when one of PEFT's has fewer parameters than SODA."""
    if method == "base":
        return Trained(nullcontext(base), 0, NOTHING)
    if method not in RATES:
        raise ValueError(f"unknown method {method!r}; choose from {', '.join(RATES)}")
    if method in INJECTED:
        return train_injected(base, of, method, rate, how)
    if method == "lora":
        rank = -(-soda_size(base, how.text_encoder) // lora_size(base, how.text_encoder, 1))
        ranked = lora.Settings(how.descent, rate, TEXT_RATE * rate, how.text_encoder, rank)
        fit = lora.fit(base, of, Shared(), {}, seed=how.seed, settings=ranked)
        size, carried = lora_size(base, how.text_encoder, rank), adapters.adapted(base, fit.shared.lora)
    else:
        settings, whole = soda.Settings(how.descent, rate, rate, how.text_encoder), method == "soda"
        fitted = soda.fit if whole else fit_spectrum
        fit = fitted(base, of, Shared(), {}, seed=how.seed, settings=settings)
        size = sum(v.size for name, v in fit.shared.arrays.items() if whole or name.endswith(".shift"))
        carried = soda.adapted(base, fit.shared, settings.form)
    return Trained(within(base, carried), size, (fit.progress.loss_first, fit.progress.loss_last))


@contextmanager
def within(base: Base, carried: AbstractContextManager[None]) -> Iterator[Base]:
    """Within the block, the base as it computes with what it carries."""
    with carried:
        yield base


def fit_spectrum(
    base: Base, of: Pictures, start: Shared, own: dict[str, object], *, seed: int, settings: soda.Settings
) -> Fit:
    """Train the shifts of the spectrum alone, the rotation held at the identity: SVDiff (arXiv 2303.11305)."""
    layers = tuple(soda.targets(base, settings.text_encoder, settings.convolutions))
    with soda.trainable(base, start.arrays or soda.fresh(base, layers), layers, settings) as changes:
        for change in changes.values():
            change.turns.requires_grad_(False)
        shifts = {"params": [c.shift for c in changes.values()], "lr": settings.shift_lr, "setting": "--rate svdiff"}
        optimiser = torch.optim.AdamW([shifts], weight_decay=soda.WEIGHT_DECAY)
        generator = torch.Generator().manual_seed(seed)
        progress = descend(base, of, [optimiser], settings.descent, generator, text_trained=settings.text_encoder)
        found = {f"{layer}.{kind}": v for layer, change in changes.items() for kind, v in change.arrays().items()}
    return Fit(Shared(arrays=found), own, progress)


def train_injected(base: Base, of: Pictures, method: str, rate: float, how: Training) -> Trained:
    """Train one of PEFT's adapters in a copy of the base, so that nothing has to be removed from the base."""
    model = replace(base, unet=copy.deepcopy(base.unet), text_encoder=copy.deepcopy(base.text_encoder))
    parts = adapters.components(model, how.text_encoder)
    layers = [layer.partition(".") for layer in adapters.target_shapes(base, how.text_encoder)]
    torch.manual_seed(how.seed)  # PEFT draws where an adapter starts
    for name, part in parts.items():
        config = INJECTED[method]([path for component, _, path in layers if component == name])
        inject_adapter_in_model(config, part, adapter_name=method)
    parameters = [p for part in parts.values() for p in part.parameters() if p.requires_grad]
    size, before = sum(p.numel() for p in parameters), [p.detach().clone() for p in parameters]
    if size < soda_size(base, how.text_encoder):
        raise ValueError(f"{method} has {size} parameters, fewer than SODA; give it a larger size in {__file__}")
    optimiser = torch.optim.AdamW([{"params": parameters, "lr": rate, "setting": f"--rate {method}"}], weight_decay=0.0)
    generator = torch.Generator().manual_seed(how.seed)
    progress = descend(model, of, [optimiser], how.descent, generator, text_trained=how.text_encoder)
    if any(torch.equal(was, now) for was, now in zip(before, parameters, strict=True)):
        raise RuntimeError(f"a part of {method}'s adapter was not trained")
    return Trained(nullcontext(model), size, (progress.loss_first, progress.loss_last))


def soda_size(base: Base, text_encoder: bool) -> int:
    """Return how many numbers SODA trains."""
    return sum(v.size for v in soda.fresh(base, tuple(soda.targets(base, text_encoder, False))).values())


def lora_size(base: Base, text_encoder: bool, rank: int) -> int:
    """Return how many numbers LoRA trains."""
    return rank * sum(sum(shape) for shape in adapters.target_shapes(base, text_encoder).values())


def sd15_sizes() -> tuple[int, int]:
    """Return SODA's parameters and those of LoRA at rank 16 on the attention of SD 1.5's U-Net, from its shapes."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    base = replace(load("tiny"), unet=unet)
    return soda_size(base, False), lora_size(base, False, 16)
