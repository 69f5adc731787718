"""SODA, spectral orthogonal decomposition adaptation (Zhang et al. 2024, arXiv 2405.21050; WACV 2025).

    W0 = U diag(S) Vᵀ      W' = U diag(relu(S + δ)) Vᵀ Rᵀ      R = K1 ⊗ K2 ⊗ K3      (form "svd")
    W0 = L Q               W' = (L + diag(δ)) Q Rᵀ                                    (form "lq")

δ (k,) shifts the spectrum, R rotates the inputs. Each K is orthogonal by Cayley's map of a skew matrix,
K = (I + Q)^{-1} (I - Q), whose strictly lower triangle over ½ is what is trained: plain AdamW needs no care to stay on
the group. R is never formed: W is contracted with one K after another. All zeros are W0 exactly. On a convolution the
same R rotates the input channels of every position.

The shifts and triangles of several clients, or of a subject and a style, are added and averaged as they are: the
triangles are coordinates of the tangent space at the identity, so the result is a rotation again.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fedsd.base import adapters
from fedsd.base.load import Base
from fedsd.base.rotation import cayley, factor_sizes, rotated, triangle_of
from fedsd.base.spectral import FORMS, Decomposition, decompositions, fingerprint
from fedsd.base.stiefel_adam import StiefelAdam
from fedsd.base.training import Descent, Fit, Pictures, Shared, descend
from fedsd.base.weights import replaced
from fedsd.lowrank import Array, Factor, energy, truncate
from fedsd.tangent_mean import tangent_sum

OPTIMISERS = ("adamw", "stiefel-adam")
WEIGHT_DECAY = 1e-4  # on the shifts, as in the authors' code
_NOT_CONVOLUTIONS = ("conv_in", "conv_out")  # between latents and features; four channels have little to rotate


@dataclass(frozen=True)
class Settings:
    """shift_lr, turn_lr: rates of spectrum and rotation. form: "svd" or "lq". convolutions: the U-Net's as well.

    optimiser: of the rotation, "adamw" on its triangles or "stiefel-adam" on the matrices K. cache: a folder that keeps
    decompositions, which nodes of one machine may share.
    """

    descent: Descent
    shift_lr: float
    turn_lr: float
    text_encoder: bool
    convolutions: bool = False
    form: str = "svd"
    optimiser: str = "adamw"
    cache: Path | None = None

    def __post_init__(self) -> None:
        """Check the names."""
        if self.form not in FORMS or self.optimiser not in OPTIMISERS:
            raise ValueError(
                f"soda.form must be one of {', '.join(FORMS)} and soda.optimiser one of {', '.join(OPTIMISERS)}; "
                f"got {self.form!r} and {self.optimiser!r}"
            )


def fit(
    base: Base, pictures: Pictures, start: Shared, own: Mapping[str, Array], *, seed: int, settings: Settings
) -> Fit:
    """Train shifts and rotations from `start` (empty: the base itself); nothing is kept on the node.

    Shared are `<layer>.shift` (k,) and `<layer>.turn`, the triangles of K1, K2, K3. The base is as before afterwards.
    Raises ValueError when `start` is not for this base, and when the loss overflows.
    """
    layers = tuple(targets(base, settings.text_encoder, settings.convolutions))
    arrays = start.arrays or fresh(base, layers)
    generator = torch.Generator().manual_seed(seed)
    with trainable(base, arrays, layers, settings) as changes:
        shifts = {"params": [c.shift for c in changes.values()], "lr": settings.shift_lr, "setting": "soda.shift-lr"}
        turns: dict[str, Any] = {"params": [p for c in changes.values() for p in c.turns], "lr": settings.turn_lr}
        turns["setting"] = "soda.turn-lr"
        optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW([shifts], weight_decay=WEIGHT_DECAY)]
        if settings.optimiser == "adamw":
            optimisers[0].add_param_group(turns | {"weight_decay": 0.0})
        else:
            optimisers.append(StiefelAdam([turns]))
        progress = descend(base, pictures, optimisers, settings.descent, generator, text_trained=settings.text_encoder)
        trained = {f"{layer}.{kind}": v for layer, change in changes.items() for kind, v in change.arrays().items()}
    return Fit(Shared(arrays=trained), {}, progress)


def targets(base: Base, text_encoder: bool, convolutions: bool) -> dict[str, nn.Module]:
    """Return the layers that can be adapted: attention projections, and the U-Net's inner convolutions if asked for."""
    found = {layer: _module(base, layer) for layer in adapters.target_shapes(base, text_encoder)}
    if convolutions:
        found |= {
            f"unet.{path}": module
            for path, module in base.unet.named_modules()
            if isinstance(module, nn.Conv2d) and module.groups == 1 and path not in _NOT_CONVOLUTIONS
        }
    return found


def fresh(base: Base, layers: Sequence[str]) -> dict[str, Array]:
    """Return the adapter that changes nothing: zeros of every layer's sizes."""
    arrays = {}
    for layer in layers:
        weight = _module(base, layer).weight
        turn = sum(a * (a - 1) // 2 for a in factor_sizes(weight.shape[1]))
        arrays[f"{layer}.shift"] = np.zeros(min(weight.flatten(1).shape), np.float32)
        arrays[f"{layer}.turn"] = np.zeros(turn, np.float32)
    return arrays


class Change(nn.Module):
    """W0 -> W' of one layer, as a parametrisation of its weight. turns: the triangles of K1, K2, K3, or these."""

    def __init__(self, parts: Decomposition, shift: Tensor, turn: Tensor, d: int, on_group: bool = False) -> None:
        super().__init__()
        self.parts, self.sizes, self.on_group = parts, factor_sizes(d), on_group
        self.shift = nn.Parameter(shift)
        triangles = turn.split([a * (a - 1) // 2 for a in self.sizes])
        turns = [cayley(t, a) for t, a in zip(triangles, self.sizes, strict=True)] if on_group else triangles
        self.turns = nn.ParameterList([t.clone() for t in turns])

    def factors(self) -> list[Tensor]:
        """K1, K2, K3."""
        if self.on_group:
            return list(self.turns)
        return [cayley(triangle, size) for triangle, size in zip(self.turns, self.sizes, strict=True)]

    def forward(self, weight: Tensor) -> Tensor:
        """Return W', of the shape and type of W0; computed in float32 whatever the precision around it."""
        with torch.autocast(weight.device.type, enabled=False):
            W = weight.float() + self.parts.change(self.shift).view(weight.shape)
            return rotated(W, self.factors()).to(weight.dtype)

    def arrays(self) -> dict[str, Array]:
        """Both as float32 copies, turn as triangles."""
        with torch.no_grad():
            triangles = [triangle_of(K) for K in self.turns] if self.on_group else list(self.turns)
            return {"shift": self.shift.cpu().numpy().copy(), "turn": torch.cat(triangles).cpu().numpy().copy()}


@contextmanager
def trainable(
    base: Base, arrays: Mapping[str, Array], layers: tuple[str, ...], settings: Settings
) -> Iterator[dict[str, Change]]:
    """Within the block the layers' weights are W' and their changes can be trained; afterwards W0, bit for bit."""
    changes = _changes(base, arrays, layers, settings.form, settings.cache, settings.optimiser != "adamw")
    attached: list[nn.Module] = []
    try:
        for layer, change in changes.items():
            module = _module(base, layer)
            parametrize.register_parametrization(module, "weight", change)
            attached.append(module)
        yield changes
    finally:
        for module in attached:
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


@contextmanager
def adapted(base: Base, shared: Shared, form: str, cache: Path | None = None) -> Iterator[None]:
    """Within the block the base computes with the merged weights; afterwards with its own, bit for bit."""
    with replaced(base, {f"{layer}.weight": W for layer, W in merged(base, shared, form, cache).items()}):
        yield


def merged(base: Base, shared: Shared, form: str, cache: Path | None = None) -> dict[str, Tensor]:
    """Return W' of every adapted layer."""
    changes = _changes(base, shared.arrays, layers_of(shared), form, cache)
    with torch.no_grad():
        return {layer: change(_module(base, layer).weight) for layer, change in changes.items()}


def directions(base: Base, settings: Settings) -> str:
    """Return the hash of the decomposition that this node's shifts refer to; nodes that differ cannot be averaged."""
    layers = tuple(targets(base, settings.text_encoder, settings.convolutions))
    return fingerprint(decompositions(base, layers, settings.form, settings.cache))


def compose(adapters_: Sequence[Shared], weights: Sequence[float]) -> Shared:
    """Join adapters of one base, such as a subject's and a style's, in the tangent space: Σ λ δ and Σ λ A.

    Raises ValueError when they adapt different layers.
    """
    return Shared(arrays=tangent_sum([adapter.arrays for adapter in adapters_], weights))


def export_weights(base: Base, shared: Shared, form: str, folder: Path, cache: Path | None = None) -> Path:
    """Write the adapted U-Net, and text encoder where it is adapted, whole, for diffusers' `from_pretrained`.

    Exact. Returns the folder, with `unet` and perhaps `text_encoder` in it.
    """
    with adapted(base, shared, form, cache):
        for name in sorted({layer.partition(".")[0] for layer in layers_of(shared)}):
            getattr(base, name).save_pretrained(folder / name)
    return folder


def low_rank(
    base: Base, shared: Shared, form: str, rank: int, cache: Path | None = None
) -> tuple[dict[str, Factor], float]:
    """Return the nearest LoRA of at most `rank`, and its error ||ΔW - B A||_F / ||ΔW||_F over all layers, in [0, 1].

    A rotation changes a weight in all directions, so that the error is large at small ranks. Raises ValueError for
    convolutions, which LoRA files of attention layers cannot hold.
    """
    lora, lost, whole = dict[str, Factor](), 0.0, 0.0
    for layer, W in merged(base, shared, form, cache).items():
        if W.ndim != 2:
            raise ValueError(f"{layer} is a convolution; export whole weights, or train without soda.convolutions")
        change = (W - _module(base, layer).weight).float().cpu().numpy()
        exact = Factor(change, np.eye(change.shape[1], dtype=np.float32))
        lora[layer], gone = truncate(exact, rank)
        lost, whole = lost + gone, whole + energy(exact)
    return lora, (lost / whole) ** 0.5 if whole > 0 else 0.0


def layers_of(shared: Shared) -> tuple[str, ...]:
    """Return the layers that an adapter changes; ValueError when a name is neither a shift nor a turn."""
    names = [name.rpartition(".") for name in shared.arrays]
    if odd := [name for name in names if name[2] not in ("shift", "turn")]:
        raise ValueError(f"{''.join(odd[0])} is neither a <layer>.shift nor a <layer>.turn; this is no SODA adapter")
    return tuple(dict.fromkeys(layer for layer, _, _ in names))


def _changes(
    base: Base, arrays: Mapping[str, Array], layers: tuple[str, ...], form: str, cache: Path | None,
    on_group: bool = False,
) -> dict[str, Change]:  # fmt: skip
    _check(base, arrays, layers)
    parts, changes = decompositions(base, layers, form, cache), {}
    for layer in layers:
        shift, turn = (torch.from_numpy(arrays[f"{layer}.{kind}"].copy()) for kind in ("shift", "turn"))
        changes[layer] = Change(parts[layer], shift, turn, _module(base, layer).weight.shape[1], on_group)
        changes[layer].to(base.device)
    return changes


def _check(base: Base, arrays: Mapping[str, Array], layers: tuple[str, ...]) -> None:
    wanted = fresh(base, layers)
    missing, extra = sorted(set(wanted) - set(arrays)), sorted(set(arrays) - set(wanted))
    if missing or extra:
        raise ValueError(f"the SODA adapter lacks {missing[:3]} and has unknown {extra[:3]}; is it for this base?")
    for name, values in wanted.items():
        if arrays[name].shape != values.shape:
            raise ValueError(
                f"the SODA adapter's {name} has shape {arrays[name].shape} but this base needs {values.shape}; "
                "it belongs to another base"
            )


def _module(base: Base, layer: str) -> Any:
    component, _, path = layer.partition(".")
    try:
        return getattr(base, component).get_submodule(path)
    except AttributeError:
        raise ValueError(
            f"the adapter changes {layer}, which this base does not have; it is for another base"
        ) from None
