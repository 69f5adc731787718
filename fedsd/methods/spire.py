"""SPIRE: a shared backbone and a private client embedding (Ozkara, Zhou, Diggavi 2025, arXiv 2506.12303).

    emb = time_embedding(t) + v_i

v_i (width,) is the embedding of client i, width that of the U-Net's time embedding: 1280 on SD 1.5. Adding it is the
same as adding it to the bias of `time_embedding.linear_2`, so v_i fits into a stock LoRA file. In the projected form
v_i = W2 SiLU(W1 e_i): clients share W1 and W2, keep e_i of fewer numbers, and e_i = 0 gives v_i = 0, which is the model
of the population.

Training learns the backbone and v_i together, and leaves v_i out of some samples, so that the backbone stays that of
the population. v_i never leaves its node. With b the bias of that layer, (b + c, v_i - c) is the same model as (b, v_i)
for any c; so b is never trained, and what clients have in common goes to weights that serve v = 0 as well.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsd.base import adapters
from fedsd.base.load import Base
from fedsd.base.training import Descent, Fit, Pictures, Shared, descend
from fedsd.base.weights import replaced, weight
from fedsd.lowrank import Array, Factor
from fedsd.store import export_diffusers

LAYER = "unet.time_embedding.linear_2"
WEIGHT_DECAY = 1e-4  # on what is private
_MAPS = ("embedding.W1", "embedding.W2")


@dataclass(frozen=True)
class Settings:
    """lr, text_lr, embedding_lr: AdamW rates of the backbone, of the text encoder's factors and of the embedding.

    rank, convolutions: of the factors. drop: share of samples without v_i, [0, 1). form: "bias" trains v_i itself,
    "projected" e_i of `size` numbers. backbone: "lora" trains factors, of the text encoder too if `text_encoder`;
    "full" trains all weights of the U-Net.
    """

    descent: Descent
    lr: float
    text_lr: float
    embedding_lr: float
    text_encoder: bool
    rank: int = 4
    drop: float = 0.1
    form: str = "bias"
    size: int = 64
    backbone: str = "lora"
    convolutions: bool = False
    ratio: float = 1.0

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if self.form not in ("bias", "projected") or self.backbone not in ("lora", "full"):
            raise ValueError(
                f'spire.form must be "bias" or "projected" and spire.backbone "lora" or "full"; got {self.form!r} and '
                f"{self.backbone!r}"
            )
        if not 0 <= self.drop < 1:
            raise ValueError(f"spire.drop must be at least 0 and below 1, got {self.drop}")
        if self.size < 1:
            raise ValueError(f"spire.size must be at least 1, got {self.size}")


class Embedding(nn.Module):
    """v_i as a function of what is trained: itself, or e_i and the shared maps W1 and W2."""

    def __init__(self, private: Tensor, maps: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.private = nn.Parameter(private)
        self.maps = nn.ParameterList(maps or ())

    def forward(self) -> Tensor:
        """Return v_i (width,)."""
        if not len(self.maps):
            return self.private
        W1, W2 = self.maps
        return F.linear(F.silu(F.linear(self.private, W1)), W2)

    def own(self) -> dict[str, Array]:
        """What stays on the node."""
        return {"e" if len(self.maps) else "v": _numpy(self.private)}

    def arrays(self) -> dict[str, Array]:
        """What is shared."""
        return {name: _numpy(value) for name, value in zip(_MAPS, self.maps, strict=False)}


def fit(
    base: Base, pictures: Pictures, start: Shared, own: Mapping[str, Array], *, seed: int, settings: Settings
) -> Fit:
    """Train backbone and embedding together, from `start` and `own` (empty: a fresh adapter, v_i = 0).

    Shared are the factors, or the changes of the U-Net's weights, and the maps; own is v_i or e_i. The base is as
    before afterwards. Raises ValueError when `start` or `own` are not for this base, and when the loss overflows.
    """
    generator = torch.Generator().manual_seed(seed)
    embedding = _embedding(base, start, own, settings)
    private = {"params": [embedding.private], "lr": settings.embedding_lr, "weight_decay": WEIGHT_DECAY}
    with (
        _trainable(base, start, seed, settings) as (groups, backbone),
        _injected(base, embedding, settings.drop, generator),
    ):
        groups.append(private | {"setting": "spire.embedding-lr"})
        if len(embedding.maps):
            groups.append({"params": list(embedding.maps), "lr": settings.lr, "setting": "train.lr"})
        optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        text_trained = settings.backbone == "lora" and settings.text_encoder
        progress = descend(base, pictures, [optimiser], settings.descent, generator, text_trained=text_trained)
        trained = backbone()
    return Fit(replace(trained, arrays={**trained.arrays, **embedding.arrays()}), embedding.own(), progress)


def adapt(
    base: Base, pictures: Pictures, start: Shared, own: Mapping[str, Array], *, seed: int, settings: Settings
) -> Fit:
    """Fit the embedding alone to an unseen client's pictures; base and backbone stay as they are, bit for bit."""
    generator = torch.Generator().manual_seed(seed)
    embedding = _embedding(base, start, own, settings)
    embedding.maps.requires_grad_(False)
    private = {"params": [embedding.private], "lr": settings.embedding_lr, "setting": "spire.embedding-lr"}
    optimiser = torch.optim.AdamW([private], weight_decay=WEIGHT_DECAY)
    with carried(base, start), _injected(base, embedding):
        progress = descend(base, pictures, [optimiser], settings.descent, generator, text_trained=False)
    return Fit(start, embedding.own(), progress)


def vector(shared: Shared, own: Mapping[str, Array]) -> Array:
    """v_i (width,) float32 of what a node keeps; `shared` is needed for the projected form alone."""
    if "v" in own:
        return own["v"]
    maps = _maps(shared)
    if "e" not in own or maps is None:
        raise ValueError("the node keeps no client embedding for this adapter; train or adapt one first")
    with torch.no_grad():
        return _numpy(Embedding(torch.from_numpy(own["e"]), maps)())


@contextmanager
def adapted(base: Base, shared: Shared, v: Array) -> Iterator[None]:
    """Within the block the base is client i's model: the shared backbone with v_i (width,); v_i = 0 is everybody's."""
    with carried(base, shared), _injected(base, Embedding(_checked(base, "v", v, width(base)), None)):
        yield


@contextmanager
def carried(base: Base, shared: Shared) -> Iterator[None]:
    """Within the block the base is the shared backbone, the model of the population."""
    moved = {name: weight(base, name).data + _change(base, shared, name) for name in set(shared.arrays) - set(_MAPS)}
    with replaced(base, moved), adapters.adapted(base, shared.lora):
        yield


def export(base: Base, shared: Shared, v: Array, folder: Path) -> Path:
    """Write a client's model for stock diffusers' `load_lora_weights(folder)`, v_i as a bias; returns the file.

    Raises ValueError for a backbone whose weights were trained whole: a LoRA file cannot hold it.
    """
    if set(shared.arrays) - set(_MAPS):
        raise ValueError('a backbone trained with spire.backbone = "full" does not fit a LoRA file; save the U-Net')
    d = width(base)
    _checked(base, "v", v, d)
    nothing = Factor(np.zeros((d, 1), np.float32), np.zeros((1, d), np.float32))
    return export_diffusers({**shared.lora, LAYER: nothing}, folder, {LAYER: v})


def width(base: Base) -> int:
    """Length of v_i; ValueError when adding it to the time embedding would not be a change of a bias."""
    linear = base.unet.time_embedding.linear_2
    if linear.bias is None or getattr(base.unet.time_embedding, "post_act", None) is not None:
        raise ValueError("this base's time embedding does not end in a layer with a bias, so it takes no embedding")
    return int(linear.out_features)


@contextmanager
def _injected(
    base: Base, embedding: Embedding, drop: float = 0.0, generator: torch.Generator | None = None
) -> Iterator[None]:
    embedding.to(base.device)

    def add(_module: nn.Module, _inputs: Any, emb: Tensor) -> Tensor:
        v = embedding().to(emb.dtype)
        if drop == 0:
            return emb + v
        kept = torch.rand(len(emb), 1, generator=generator) >= drop
        return emb + kept.to(emb) * v

    handle = base.unet.time_embedding.linear_2.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _embedding(base: Base, start: Shared, own: Mapping[str, Array], settings: Settings) -> Embedding:
    d, projected = width(base), settings.form == "projected"
    maps = (_maps(start) or _first_maps(base, settings.size)) if projected else None
    name, size = ("e", settings.size) if projected else ("v", d)
    if maps is not None and (maps[0].shape[1], maps[1].shape[0]) != (settings.size, d):
        raise ValueError(
            f"the shared maps take {maps[0].shape[1]} numbers to {maps[1].shape[0]}, not {settings.size} to {d}; "
            "set spire.size as the other nodes do"
        )
    return Embedding(_checked(base, name, own.get(name, np.zeros(size, np.float32)), size), maps)


def _checked(base: Base, name: str, value: Array, size: int) -> Tensor:
    if value.shape != (size,) or not np.isfinite(value).all():
        raise ValueError(
            f"the client embedding {name} must be {size} finite numbers, got shape {value.shape}; it belongs to "
            f"another base than {base.sha[:12]}, so remove it from the node's private folder"
        )
    return torch.from_numpy(value.astype(np.float32))


def _maps(shared: Shared) -> tuple[Tensor, Tensor] | None:
    if not set(_MAPS) <= set(shared.arrays):
        return None
    return torch.from_numpy(shared.arrays[_MAPS[0]].copy()), torch.from_numpy(shared.arrays[_MAPS[1]].copy())


def _first_maps(base: Base, size: int) -> tuple[Tensor, Tensor]:
    """W1 and W2 drawn from the base's hash: all clients must begin with the same, or their mean is noise."""
    generator, d = torch.Generator().manual_seed(int(base.sha[:15], 16)), width(base)
    return torch.randn(d, size, generator=generator) / size**0.5, torch.randn(d, d, generator=generator) / d**0.5


@contextmanager
def _trainable(
    base: Base, start: Shared, seed: int, settings: Settings
) -> Iterator[tuple[list[dict[str, Any]], Callable[[], Shared]]]:
    """Within the block the backbone can be trained; yields its parameter groups, and what it has become."""
    if settings.backbone == "full":
        with _whole(base, start) as (parameters, changes):
            yield [{"params": parameters, "lr": settings.lr, "setting": "train.lr"}], lambda: Shared(arrays=changes())
        return
    text_encoder = settings.text_encoder
    training = adapters.trainable(base, start.lora, settings.rank, seed, text_encoder, settings.convolutions)
    with training:
        groups = adapters.rates(base, settings.lr, settings.text_lr, settings.ratio)
        yield groups, lambda: Shared(adapters.current(base))


@contextmanager
def _whole(base: Base, start: Shared) -> Iterator[tuple[list[nn.Parameter], Callable[[], dict[str, Array]]]]:
    """All weights of the U-Net but the bias that v_i stands for, and by how much they have moved, which is shared."""
    if base.unet.dtype != torch.float32:
        raise ValueError('spire.backbone = "full" trains float32 weights; load the base in float32, or train "lora"')
    names = [f"unet.{name}" for name, _ in base.unet.named_parameters() if f"unet.{name}" != f"{LAYER}.bias"]
    before = {name: weight(base, name).data for name in names}
    changed = {name: values + _change(base, start, name) for name, values in before.items()}
    with replaced(base, changed) as parameters:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        yield list(parameters.values()), lambda: {name: _numpy(p - before[name]) for name, p in parameters.items()}


def _change(base: Base, start: Shared, name: str) -> Tensor:
    """By how much a weight of the backbone differs from the base's."""
    change = start.arrays.get(name)
    if change is None:
        return torch.zeros(1, device=base.device)
    if change.shape != weight(base, name).shape:
        raise ValueError(
            f"the backbone's {name} has shape {change.shape} but the base's has {tuple(weight(base, name).shape)}; "
            "it belongs to another base"
        )
    return torch.from_numpy(change).to(base.device)


def _numpy(values: Tensor) -> Array:
    copied: Array = values.detach().float().cpu().numpy().copy()
    return copied
