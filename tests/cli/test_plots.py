import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsd.cli.history import read_history
from fedsd.cli.plots import draw_plots, plot_clusters, plot_loss, plot_ranks_beta, plot_traffic
from fedsd.store import RunFolder

NAMES = ["energy", "clusters", "ranks_beta", "loss", "traffic"]


def table(file: Path) -> list[dict[str, str]]:
    with file.with_suffix(".csv").open(newline="") as readable:
        return list(csv.DictReader(readable))


def title(file: Path) -> str:
    with Image.open(file) as picture:
        return str(picture.info["Title"])


def entry(members: list[str], beta: float) -> dict[str, object]:
    return {"members": members, "n": 9, "rank": 4, "beta": beta, "d": 0.5, "tau": 2.0}


def state() -> dict[str, object]:
    """Three clients on the axes of a plane; c2 alone."""
    z = {"c0": [1.0, 0.0], "c1": [1.0, 0.0], "c2": [0.0, 1.0]}
    return {
        "clusters": {"0": entry(["c0", "c1"], 0.75), "3": entry(["c2"], 0.25)},
        "clients": {name: {"cluster": 0, "rank": 4, "n": 9, "z": value} for name, value in z.items()},
        "silhouette": 0.5,
    }


def test_every_plot_of_a_run_is_a_picture_with_a_table(finished: RunFolder, tmp_path: Path) -> None:
    folder = RunFolder(Path(shutil.copytree(finished.path, tmp_path / "run")))
    files = draw_plots(folder)
    assert [file.stem for file in files] == NAMES
    for file in files:
        with Image.open(file) as picture:
            assert np.asarray(picture.convert("RGB")).std() > 5
        assert table(file)


def test_a_run_that_has_only_begun_has_no_plot_yet(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    assert draw_plots(folder) == []


def test_clusters_say_how_alike_their_clients_are(tmp_path: Path) -> None:
    file = plot_clusters(tmp_path, state())
    assert title(file) == "2 style clusters: cosine 1.00 within, 0.00 between; silhouette 0.50"
    rows = table(file)
    assert [(row["client"], row["cluster"]) for row in rows] == [("c0", "0"), ("c1", "0"), ("c2", "3")]
    assert [[float(row[f"cosine {name}"]) for name in ("c0", "c1", "c2")] for row in rows] == [
        [1, 1, 0], [1, 1, 0], [0, 0, 1],
    ]  # fmt: skip
    # all of the variance is along one line: the two equal clients a third of the way from the mean
    points = np.array([[float(row["pc1"]), float(row["pc2"])] for row in rows])
    np.testing.assert_allclose(np.abs(points[:, 0]), np.sqrt(2) * np.array([1, 1, 2]) / 3, atol=1e-12)
    np.testing.assert_allclose(points[:, 1], 0, atol=1e-12)
    assert points[0, 0] * points[2, 0] < 0


def test_one_client_is_one_cluster(tmp_path: Path) -> None:
    alone = state() | {"clusters": {"0": entry(["c0"], 1.0)}, "silhouette": None}
    assert title(plot_clusters(tmp_path, alone)) == "1 style cluster"
    assert title(plot_ranks_beta(tmp_path, alone)) == "One cluster: the mix is the adapter of cluster 0"


def test_ranks_and_weights(tmp_path: Path) -> None:
    file = plot_ranks_beta(tmp_path, state())
    assert title(file) == "Cluster 0 weighs most in the mix, β = 0.75"
    assert table(file)[2] == {
        "client": "c2", "cluster": "3", "rank": "4", "median_rank": "4", "beta": "0.25", "d": "0.5", "tau": "2.0",
    }  # fmt: skip


def test_loss_and_traffic_of_a_run(finished: RunFolder, tmp_path: Path) -> None:
    history = read_history(finished.events())
    loss, traffic = plot_loss(tmp_path, history), plot_traffic(tmp_path, history)
    first = np.mean([0.3 + 0.01 * i for i in range(5)])
    last = np.mean([0.7 * (0.15 + 0.01 * i) for i in range(6)])
    assert title(loss) == f"The mean training loss falls from {first:.3f} to {last:.3f}"
    assert len(table(loss)) == len(table(traffic)) == 11
    assert table(loss)[-1]["client"] == "c5" and table(loss)[-1]["round"] == "2"
    sent = sum(int(row["bytes"]) for row in table(traffic))
    assert sent == history.uploaded and title(traffic) == f"6 clients uploaded {sent / 1e6:.3g} MB in 2 rounds"


def test_many_clients_are_drawn_as_their_mean(finished: RunFolder, tmp_path: Path) -> None:
    history = read_history(finished.events())
    for index in range(20):
        history.trained[1, f"d{index}"] = {**history.trained[1, "c0"], "loss_last": 0.5 + index}
    assert len(table(plot_loss(tmp_path, history))) == 31
    dropped = [row for row in table(plot_traffic(tmp_path, history)) if row["cluster"] == ""]
    assert [row["client"] for row in dropped] == [f"d{index}" for index in range(20)]


def test_rising_loss_is_not_called_falling(finished: RunFolder, tmp_path: Path) -> None:
    history = read_history(finished.events())
    for event in history.trained.values():
        event["loss_last"] = 2.0  # type: ignore[index]
    assert title(plot_loss(tmp_path, history)) == "The mean training loss goes from 0.320 to 2.000"


@pytest.mark.parametrize("count", [1, 40, 45])
def test_any_number_of_clients_can_be_drawn(count: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    names = [f"c{i}" for i in range(count)]
    clients = {name: {"cluster": 0, "rank": 4, "n": 9, "z": draw.normal(size=8).tolist()} for name in names}
    clusters = {str(i): entry(names[i::10], 0.1) for i in range(min(10, count))}
    many = {"clients": clients, "clusters": clusters, "silhouette": None}
    assert len(table(plot_clusters(tmp_path, many))) == len(table(plot_ranks_beta(tmp_path, many))) == count
