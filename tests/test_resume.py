"""Every method in rounds of the server's own strategy and the real ClientApp, in one process: a run resumes exactly."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord
from local_grid import LocalGrid, context
from models import tiny_base
from PIL import Image

from fedsd import client_app, config, server_app
from fedsd.base import load
from fedsd.store import RunFolder
from fedsd.strategies.round import from_state

METHODS = {
    "lora": {},
    "spire": {"spire.form": "projected", "spire.size": 8},
    "soda": {"lora.text-encoder": False},
    "zo-token": {"zo.estimator": "rge", "zo.directions": 1, "token.template": "{token} {caption}"},
    "mixed": {"lora.text-encoder": False, "method.of-clients": "c1=soda,c2=zo-token", "method.name": "spire"},
}


@pytest.fixture
def flat(tmp_path: Path) -> Iterator[dict]:
    """The run config of three clients with pictures of one colour each."""
    tiny_base().pipeline().save_pretrained(tmp_path / "base")
    for style, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200)), ("green", (40, 200, 40))):
        (tmp_path / "pictures" / style).mkdir(parents=True)
        for i in range(2):
            shade = tuple(c + 10 * i for c in colour)
            Image.new("RGB", (16, 16), shade).save(tmp_path / "pictures" / style / f"{i}.png")
    load.load.cache_clear()
    yield config.defaults() | {
        "base.name": str(tmp_path / "base"), "data.root": str(tmp_path / "pictures"), "run.min-nodes": 3,
        "train.steps": 2, "train.batch-size": 2, "lora.ranks": "2",
        "style.key": "none",  # each folder would draw its own, and turning z rounds it
    }  # fmt: skip
    load.load.cache_clear()


def go(flat: dict, path: Path, rounds: int) -> RunFolder:
    """Run up to this round, from the last complete one, with a strategy that knows nothing but the folder."""
    flat = flat | {"node.private-dir": str(path / "nodes"), "run.folder": str(path / "run")}
    flat["run.resume"] = (path / "run").exists()
    typed = config.from_run_config(flat)
    folder = server_app.open_folder(typed, flat)
    strategy = server_app.strategy_of(typed, folder)
    if (last := folder.latest_round()) is not None:
        strategy.resume(from_state(*folder.load_round(last), folder.load_arrays(last)))
    contexts = {number + 1: context(number + 1, **{"partition-id": number, "num-partitions": 3}) for number in range(3)}
    for one in contexts.values():
        one.run_config = flat
    strategy.start(LocalGrid(client_app.app, contexts), ArrayRecord(), num_rounds=rounds)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_gives_the_same_bytes(method: str, flat: dict, tmp_path: Path) -> None:
    flat = flat | {"method.name": method} | METHODS[method]
    straight = go(flat, tmp_path / "straight", 2)
    go(flat, tmp_path / "resumed", 1)
    resumed = go(flat, tmp_path / "resumed", 2)
    assert not [event for event in straight.events() if event["event"] in ("client.failed", "run.failed")]
    both = [{f.relative_to(r.path): f.read_bytes() for f in r.path.glob("ckpt/r02/**/*.safetensors")}
            for r in (straight, resumed)]  # fmt: skip
    assert both[0].keys() == both[1].keys() and len(both[0]) > 3
    assert both[0] == both[1]
    first, second = straight.load_arrays(1).get("mix", {}), straight.load_arrays(2).get("mix", {})
    assert bool(first) == (method != "lora") and first.keys() == second.keys()
    assert not first or any(not np.array_equal(first[name], second[name]) for name in first)
