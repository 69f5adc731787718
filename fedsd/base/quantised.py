"""Weight-only quantisation of Linear and Conv2d, on CPU and GPU: weights of 8 or 4 bits, computation as before.

    W8   W = s q            q in -127 … 127, one scale s for each output channel
    W4   W = l + s q        q in 0 … 15, a scale and an offset for each 32 weights of an output channel

Convolutions hold 69 % of SD 1.5's U-Net, so that quantising linear layers alone would save little. A weight is put
together again when its layer runs, and dropped afterwards: at any time one layer is there in full. Such a layer has no
gradient, neither of its weight nor of its input, since keeping what gradients need would undo what is saved.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsd.base.load import Base
from fedsd.base.tokens import sharing_copy

BITS = (8, 4)
GROUP = 32  # weights that share a scale and an offset in W4: 5 bits a weight in all


class W8(nn.Module):
    """A weight of shape `shape` as int8, with a scale for each output channel."""

    q: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape, rows = weight.shape, weight.detach().float().flatten(1)
        scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("q", (rows / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, dtype: torch.dtype) -> Tensor:
        """Return the weight."""
        return (self.q * self.scale).view(self.shape).to(dtype)


class W4(nn.Module):
    """A weight of shape `shape` as pairs of 4 bits, with a float16 scale and offset for each group of a row."""

    q: Tensor
    scale: Tensor
    low: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape, rows = weight.shape, weight.detach().float().flatten(1)
        groups = F.pad(rows, (0, -rows.shape[1] % GROUP), mode="replicate").view(len(rows), -1, GROUP)
        low, high = groups.aminmax(dim=2, keepdim=True)
        low = low.half().float()
        scale = ((high - low) / 15).clamp(min=1e-7).half().float()  # rounded first, so that q fits what is kept
        q = ((groups - low) / scale).round().clamp(0, 15).to(torch.uint8)
        self.register_buffer("q", q[..., ::2] | q[..., 1::2] << 4)
        self.register_buffer("scale", scale.half())
        self.register_buffer("low", low.half())

    def forward(self, dtype: torch.dtype) -> Tensor:
        """Return the weight."""
        q = torch.stack([self.q & 15, self.q >> 4], -1).flatten(2)
        rows = (q * self.scale.float()).add_(self.low).flatten(1)
        return rows[:, : self.shape[1:].numel()].reshape(self.shape).to(dtype)


class QuantisedLayer(nn.Module):
    """What a Linear or Conv2d computes, with a quantised weight."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, bits: int) -> None:
        super().__init__()
        self.packed = W8(layer.weight) if bits == 8 else W4(layer.weight)
        self.bits, self.bias, self.convolution = bits, layer.bias, dict[str, Any]()
        if isinstance(layer, nn.Conv2d):
            if layer.padding_mode != "zeros":
                raise ValueError(f"a convolution padded by {layer.padding_mode!r} cannot be quantised; set zo.bits = 0")
            self.convolution = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; ValueError when a gradient is asked for."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(no_gradients(self.bits))
        weight = self.packed(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.conv2d(x, weight, bias, **self.convolution) if self.convolution else F.linear(x, weight, bias)


def quantised(base: Base, bits: int) -> Base:
    """Return the base with U-Net and text encoder in W8 or W4; `base` is not touched, and the rest is shared with it.

    Its weights take memory until nothing refers to them: let go of `base` where memory is short.
    Raises ValueError for other numbers of bits, and when the base is quantised already.
    """
    if bits not in BITS:
        raise ValueError(f"zo.bits must be 8 or 4, or 0 for weights as they are; got {bits}")
    check_full_weights(base, "quantised once more")
    unet, text_encoder = sharing_copy(base.unet), sharing_copy(base.text_encoder)
    for module in (unet, text_encoder):
        quantise_layers(module, bits)
    return replace(base, unet=unet, text_encoder=text_encoder)


def quantise_layers(model: nn.Module, bits: int) -> None:
    """Put quantised layers in the place of a model's Linear and Conv2d, one after another."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, QuantisedLayer(layer, bits))


def bits_of(base: Base) -> int:
    """Return 8 or 4 for a quantised base, 0 for any other."""
    layers = (layer for model in (base.unet, base.text_encoder) for layer in model.modules())
    return next((layer.bits for layer in layers if isinstance(layer, QuantisedLayer)), 0)


def check_full_weights(base: Base, what: str) -> None:
    """Raise ValueError when the base is quantised; what: what cannot be done with it then."""
    if bits := bits_of(base):
        raise ValueError(f"a base quantised to {bits} bits cannot be {what}; load it without quantisation")


def no_gradients(bits: int) -> str:
    """Say that a quantised base has no gradients."""
    return (
        f"a base quantised to {bits} bits gives no gradients; train a zeroth-order token on it (method.name = "
        '"zo-token"), or load the base without quantisation'
    )
