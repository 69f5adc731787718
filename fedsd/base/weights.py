"""Whole weights in and out of a base. A name is component + module path + parameter: `unet.conv_in.weight`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from fedsd.base.load import Base


def weight(base: Base, name: str) -> nn.Parameter:
    """Return a parameter of the base; ValueError when it has none of that name."""
    component, _, path = name.partition(".")
    try:
        parameter: nn.Parameter = getattr(base, component).get_parameter(path)
    except AttributeError:
        raise ValueError(f"the base has no weight {name}; it belongs to another base") from None
    return parameter


@contextmanager
def replaced(base: Base, weights: Mapping[str, Tensor]) -> Iterator[dict[str, nn.Parameter]]:
    """Within the block the base computes with these weights; afterwards with its own, bit for bit.

    Yields the parameters that hold them. The given tensors are used as they are: training would change them.
    Raises ValueError when the base has no such weight, or one of another shape.
    """
    parameters = {name: weight(base, name) for name in weights}
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(weights[name].shape)} but the base's has {tuple(parameter.shape)}; "
                "it belongs to another base"
            )
    kept = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name].to(parameter.device, parameter.dtype)
        yield parameters
    finally:
        for name, parameter in parameters.items():
            parameter.data = kept[name]
            parameter.grad = None
            parameter.requires_grad_(False)
