import csv
from pathlib import Path

import numpy as np
from PIL import Image

from fedsd.cli.energy_plot import plot_energy
from fedsd.lowrank import Factor
from fedsd.store import RunFolder

UNET, TEXT = "unet.mid_block.attentions.0.to_q", "text_encoder.encoder.layers.0.self_attn.q_proj"


def lora(unet: list[float], text: list[float]) -> dict[str, Factor]:
    layers = {UNET: unet, TEXT: text}
    return {name: Factor(np.diag(np.array(values, float)), np.eye(len(values))) for name, values in layers.items()}


def table(file: Path) -> list[dict[str, str]]:
    with file.with_suffix(".csv").open(newline="") as readable:
        return list(csv.DictReader(readable))


def state() -> dict[str, object]:
    clients = {"c0": {"cluster": 0}, "c1": {"cluster": 1}}
    return {"clusters": {"0": {"members": ["c0"]}, "1": {"members": ["c1"]}}, "clients": clients}


def test_it_says_what_fedavg_keeps_and_what_the_clusters_keep(tmp_path: Path) -> None:
    one, other = lora([2, 0], [1, 0]), lora([0, 2], [0, 1])
    mean = lora([1, 1], [0.5, 0.5])
    adapters = {
        "clients/c0": one,
        "clients/c1": other,
        "cluster-0": one,
        "cluster-1": other,
        "fedavg": mean,
        "mix": mean,
    }
    file = plot_energy(tmp_path, state(), adapters)
    with Image.open(file) as picture:
        # (4 + 1) on both sides; the mean keeps 1 + 1 + .25 + .25
        assert picture.info["Title"] == (
            "FedAvg keeps 50% of the clients' feature energy, the cluster adapters keep 100%"
        )
    energy = {(row["adapter"], row["depth"]): float(row["energy"]) for row in table(file)}
    assert energy == {
        ("client c0", "mid"): 4, ("client c0", "layer 0"): 1, ("client c1", "mid"): 4, ("client c1", "layer 0"): 1,
        ("FedAvg", "mid"): 2, ("FedAvg", "layer 0"): 0.5,
        ("cluster 0", "mid"): 4, ("cluster 0", "layer 0"): 1, ("cluster 1", "mid"): 4, ("cluster 1", "layer 0"): 1,
    }  # fmt: skip


def test_adapters_that_are_all_zero_and_no_text_encoder_can_be_drawn(tmp_path: Path) -> None:
    zero = {UNET: Factor(np.zeros((2, 1)), np.ones((1, 2)))}
    names = ("clients/c0", "clients/c1", "cluster-0", "cluster-1", "fedavg", "mix")
    with Image.open(plot_energy(tmp_path, state(), dict.fromkeys(names, zero))) as picture:
        assert picture.info["Title"] == "No adapter has learned anything yet"


def test_a_member_that_sent_nothing_this_round_is_left_out(finished: RunFolder, tmp_path: Path) -> None:
    file = plot_energy(tmp_path, *finished.load_round(1))
    adapters = {row["adapter"] for row in table(file)}
    assert "client c5" not in adapters and {"client c4", "FedAvg", "cluster 0"} <= adapters
    assert {row["component"] for row in table(file)} == {"U-Net", "text encoder"}
