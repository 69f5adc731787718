"""A run folder as a run leaves it: six clients in three styles, real adapters, one failure."""

import json
from pathlib import Path

import numpy as np
import pytest
from models import random_lora, tiny_base
from PIL import Image

from fedsd.cli.grids import grid, save_grid, timeline
from fedsd.config import defaults
from fedsd.data import drawn
from fedsd.lowrank import Factor, stack_loras
from fedsd.store import RunFolder
from fedsd.strategies.aggregate import Settings, aggregate_round
from fedsd.strategies.events import client_done, round_clusters
from fedsd.strategies.round import Round, to_state
from fedsd.wire import Update

BLOCKS = ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")
LAYERS = [f"unet.{block}.attentions.0.transformer_blocks.0.attn{i}.{side}"
          for block in BLOCKS for i in (1, 2) for side in ("to_q", "to_v")]  # fmt: skip
LAYERS += [f"text_encoder.text_model.encoder.layers.{i}.self_attn.q_proj" for i in range(3)]
STYLES = ("sketch", "cartoon", "pixel")
RANKS = (4, 8, 16)
OBJECTS = ("house", "tree", "cat", "car")


def update(index: int, server_round: int) -> Update:
    """What client `index` sends: an update along its style's direction and a little of its own."""
    style, own = np.random.default_rng(index % 3), np.random.default_rng(100 * server_round + index)
    rank, lora = RANKS[index % 3], {}
    for layer in LAYERS:
        B, A = style.normal(size=(24, 4)), style.normal(size=(4, 24))
        noise = own.normal(size=(24, rank)), own.normal(size=(rank, 24))
        pad = ((0, 0), (0, rank - 4))
        lora[layer] = Factor(np.pad(B, pad) + 0.3 * noise[0], np.pad(A, pad[::-1]) + 0.3 * noise[1])
    z = np.random.default_rng(index % 3).normal(size=16) + 0.25 * np.random.default_rng(index).normal(size=16)
    first = 0.3 / server_round + 0.01 * index
    z32 = (z / np.linalg.norm(z)).astype(np.float32)
    size = sum(4 * (f.A.size + f.B.size) for f in lora.values())
    return Update(f"c{index}", lora, z32, 60 + 5 * index, rank, "ab12", first, 0.7 * first, 9.5 + index, 31.0, size)


def write_run(path: Path, rounds: int = 2, finish: bool = True) -> RunFolder:
    """Make the folder of a run by the code that runs use; c5 fails in the first round."""
    folder = RunFolder.create(path)
    folder.write("run.toml", '[run]\nrounds = 2\nseed = 0\n[base]\nname = "tiny"\n[lora]\nranks = "4,8,16"\n')
    folder.write("env.json", '{"fedsd": "0.1.0", "python": "3.11.2", "torch": "2.15.0", "device": "cpu (2)"}')
    about = {"rounds": rounds, "strategy": "style-clustered", "method": "lora"}
    folder.append_event({"event": "run.start", "run": path.name, **about})
    for index in range(6):
        sent = update(index, 1)
        folder.append_event({"event": "client.profile", "client": sent.client, "rank": sent.rank, "n": sent.n})
    previous = None
    for server_round in range(1, rounds + 1):
        previous = write_round(folder, server_round, previous)
    if finish:
        folder.append_event({"event": "run.done", "rounds": rounds, "converged": False})
    return folder


def write_round(folder: RunFolder, server_round: int, previous: Round | None) -> Round:
    folder.append_event({"event": "round.start", "round": server_round, "clients": [f"c{i}" for i in range(6)]})
    sent = [update(i, server_round) for i in range(6) if (i, server_round) != (5, 1)]
    for one in sent:
        folder.append_event(client_done(server_round, one))
    if len(sent) < 6:
        reason = "loss is NaN at step 3; lower train.lr <script>alert(1)</script>"
        folder.append_event({"event": "client.failed", "round": server_round, "client": "c5", "reason": reason})
    after = aggregate_round(sent, previous, Settings(), server_round)
    folder.append_event(round_clusters(after))
    folder.save_round(*to_state(after))
    done = {"seconds": 31.5 + server_round, "loss": after.loss, "change": after.change}
    folder.append_event({"event": "round.done", "round": server_round, **done})
    folder.append_metrics({"round": server_round, "loss": after.loss, "clusters": len(after.clusters)})
    return after


def write_pictures(folder: RunFolder, rounds: int = 2) -> None:
    """Grids of pictures that the project draws."""
    for server_round in range(1, rounds + 1):
        rows = [(style, [drawn.draw(name, style, server_round) for name in OBJECTS]) for style in ("flat", *STYLES)]
        picture = grid(rows, [f"a picture of a {name}" for name in OBJECTS])
        save_grid(picture, folder.path / "grids" / f"r{server_round:02d}.png", "a picture of a house\nSeed: 0")
    timeline(folder.path / "grids")


def write_scores(folder: RunFolder) -> None:
    """Adapters as they are exported, and scores of which those of the cluster adapters are the best but for CLIP."""
    _, adapters = folder.load_round(2)
    for name in ("cluster-0", "cluster-1", "cluster-2", "mix", "neutral"):
        folder.export(name, adapters[name])
    methods = ("base", "fedavg", "fedgeomed", "flora", "cluster", "mix", "neutral")
    scores = {
        method: {
            style: {"kid": (20 - 3 * (method == "cluster") * (j + 1) + i) / 1000, "kid_std": 0.002, "fid": 90.0 - i,
                    "clip_score": 25.0 + i, "n": 100, "n_real": 120}
            for j, style in enumerate(STYLES)
        }
        for i, method in enumerate(methods)
    }  # fmt: skip
    found = {"n": 100, "extractor": "embedded", "round": 2, "where": "", "scores": scores}
    folder.write("evaluation.json", json.dumps(found))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two rounds with grids; do not write to it."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "otter")
    write_pictures(folder)
    write_scores(folder)
    return folder


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    """The folder of a base of random weights."""
    tiny_base().pipeline().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def picture(value: int, side: int = 64) -> Image.Image:
    return Image.new("RGB", (side, side), (value, value, value))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A round of two clusters for a small Stable Diffusion that lies in a folder; do not write to it."""
    base, path = tiny_base(), tmp_path_factory.mktemp("runs") / "otter"
    base.pipeline().save_pretrained(path.with_name("base"))
    folder = RunFolder.create(path)
    flat = defaults() | {"base.name": str(path.with_name("base"))}
    folder.write("run.toml", "".join(f'"{key}" = {json.dumps(value)}\n' for key, value in flat.items()))
    clusters = {f"cluster-{i}": random_lora(base, 60 + i, (1, 4, 2, 7), convolutions=True) for i in range(2)}
    entry = {"members": ["c0", "c1"], "n": 40, "rank": 4, "d": 0.5, "tau": 1.0}
    state = {"round": 1, "clusters": {"0": {**entry, "beta": 0.25}, "1": {**entry, "beta": 0.75}}, "clients": {}}
    loras = {**clusters, "neutral": stack_loras(list(clusters.values()), [0.5, 0.5]), "mix": clusters["cluster-1"]}
    folder.save_round(state, {**loras, "fedavg": clusters["cluster-0"], "clients/c0": clusters["cluster-0"]})
    return folder
