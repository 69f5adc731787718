"""Fig. 2 of the paper, from a round of a run: how much of the clients' feature energy each way of combining keeps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fedsd.cli.figure import ALONE, INK, canvas, colours, headline, legend, markers, plain, save
from fedsd.lowrank import LoRA
from fedsd.metrics.energy import TEXT_ENCODER, UNET, depth_energy, kept, layer_energy, place_of

LoRAs = Mapping[str, LoRA]


def plot_energy(folder: Path, state: Mapping[str, Any], adapters: LoRAs) -> Path:
    """Draw Σ σ² of ΔW by depth, for each client, FedAvg and the cluster adapters; state, adapters: of one round."""
    clients = {name.removeprefix("clients/"): lora for name, lora in adapters.items() if name.startswith("clients/")}
    clusters = {key: lora for key in state["clusters"] if (lora := adapters[f"cluster-{key}"])}
    members = {
        key: {name: lora for name, lora in clients.items() if str(state["clients"][name]["cluster"]) == key}
        for key in clusters
    }
    places = sorted({place_of(layer) for layer in adapters["mix"]})
    depths = {part: sum(place.component == part for place in places) for part in (UNET, TEXT_ENCODER)}
    shown = [part for part, count in depths.items() if count]
    figure = canvas(10.5, 4.8)
    panels = figure.subplots(1, len(shown), squeeze=False, width_ratios=[depths[part] + 2 for part in shown])[0]
    for part, axes in zip(shown, panels, strict=True):
        _panel(axes, part, members, clusters, adapters["fedavg"])
    panels[0].set_ylabel("feature energy Σσ²", fontsize=11)
    panels[-1].plot([], [], color=ALONE, linewidth=1, label="its clients (thin)")
    legend(panels[-1])
    headline(
        figure,
        _title(members, clusters, adapters["fedavg"]),
        "Sum over the layers at each depth, from input to output; log scale. Low: the styles cancelled each other.",
    )
    named = {f"client {name}": lora for name, lora in clients.items()} | {"FedAvg": adapters["fedavg"]}
    named |= {f"cluster {key}": lora for key, lora in clusters.items()}
    header = ("adapter", "component", "depth", "layer", "energy")
    return save(figure, folder / "energy.png", header, [row for name in named for row in _rows(name, named[name])])


def _panel(axes: Axes, part: str, members: Mapping[str, LoRAs], clusters: LoRAs, fedavg: LoRA) -> None:
    shade, shape = colours(clusters), markers(clusters)
    for key, loras in members.items():
        for lora in loras.values():
            _line(axes, part, lora, color=shade[key], linewidth=1, alpha=0.45)
    for key in sorted(clusters, key=int):
        _line(axes, part, clusters[key], color=shade[key], linewidth=2.4, marker=shape[key], label=f"cluster {key}")
    _line(axes, part, fedavg, color=INK, linewidth=2.4, linestyle="--", marker="x", label="FedAvg")
    plain(axes, title=part)
    if max(np.max(line.get_ydata()) for line in axes.lines) > 0:
        axes.set_yscale("log", nonpositive="mask")


def _line(axes: Axes, part: str, lora: LoRA, **style: Any) -> None:
    energy = {place.name: value for place, value in depth_energy(lora).items() if place.component == part}
    axes.plot(list(energy), list(energy.values()), **style)


def _title(members: Mapping[str, LoRAs], clusters: LoRAs, fedavg: LoRA) -> str:
    """What each way of combining keeps of its clients' energy; a cluster weighs as its members' energy does."""
    weight = {key: sum(_energy(lora) for lora in loras.values()) for key, loras in members.items()}
    whole = sum(weight.values())
    if not whole > 0:
        return "No adapter has learned anything yet"
    ours = sum(weight[key] * kept(clusters[key], members[key]) for key in members if weight[key] > 0) / whole
    theirs = kept(fedavg, {name: lora for loras in members.values() for name, lora in loras.items()})
    return f"FedAvg keeps {theirs:.0%} of the clients' feature energy, the cluster adapters keep {ours:.0%}"


def _energy(lora: LoRA) -> float:
    return sum(layer_energy(lora).values())


def _rows(name: str, lora: LoRA) -> list[tuple[str, str, str, str, float]]:
    found = layer_energy(lora)
    return [(name, place_of(layer).component, place_of(layer).name, layer, value) for layer, value in found.items()]
