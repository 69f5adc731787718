"""Feature energy of adapters, layer by layer (Fig. 2 of arXiv 2508.04745): Σ σ² of ΔW = B A.

σ are the singular values of the update itself, found from the small core; the base's weights play no part.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedsd import lowrank
from fedsd.lowrank import LoRA

UNET, TEXT_ENCODER = "U-Net", "text encoder"

# where a module path tells its place, and how far along the network that place is
_PLACES = (
    (UNET, re.compile(r"(?:^|\.)down_blocks\.(\d+)(?:\.|$)"), "down {}", 0),
    (UNET, re.compile(r"(?:^|\.)mid_block(?:\.|$)"), "mid", 1),
    (UNET, re.compile(r"(?:^|\.)up_blocks\.(\d+)(?:\.|$)"), "up {}", 2),
    (TEXT_ENCODER, re.compile(r"(?:^|\.)layers\.(\d+)(?:\.|$)"), "layer {}", 0),
)


@dataclass(frozen=True, order=True)
class Place:
    """Where a layer sits: its component, then its order along that component, and the name to print."""

    component: str
    order: tuple[int, int]
    name: str


def place_of(layer: str) -> Place:
    """Return the place of a layer, e.g. `unet.up_blocks.1.attentions.0…to_q` -> U-Net, "up 1".

    A layer whose path tells no depth comes last in its component, under "other".
    """
    component = TEXT_ENCODER if layer.startswith("text_encoder") else UNET
    for owner, pattern, name, stage in _PLACES:
        if owner == component and (found := pattern.search(layer)):
            number = int(found[1]) if pattern.groups else 0
            return Place(component, (stage, number), name.format(number))
    return Place(component, (3, 0), "other")


def layer_energy(lora: LoRA) -> dict[str, float]:
    """Return Σ σ² = ‖ΔW‖_F² of each layer, in order of depth."""
    return {layer: lowrank.energy(lora[layer]) for layer in sorted(lora, key=lambda name: (place_of(name), name))}


def depth_energy(lora: LoRA) -> dict[Place, float]:
    """Return Σ σ² summed over the layers of each place, in order of depth."""
    total: dict[Place, float] = {}
    for layer, value in layer_energy(lora).items():
        total[place_of(layer)] = total.get(place_of(layer), 0.0) + value
    return total


def kept(lora: LoRA, originals: Mapping[str, LoRA]) -> float:
    """Return the energy of a combined adapter over the mean energy of those it was made of, in [0, 1] for a mean.

    1: nothing cancelled. Raises ValueError when there is nothing to compare with.
    """
    whole = sum(sum(layer_energy(original).values()) for original in originals.values())
    if not whole > 0:
        raise ValueError(f"{len(originals)} adapters hold no energy together; train them before comparing")
    return sum(layer_energy(lora).values()) * len(originals) / whole
