"""A run folder with a small base of its own and adapters that fit it, clustered and mixed by the code that runs use."""

import json
from pathlib import Path

import numpy as np
from models import random_lora, tiny_base

from fedsd.config import defaults
from fedsd.store import RunFolder
from fedsd.strategies.aggregate import Settings, aggregate_round
from fedsd.strategies.events import client_done, round_clusters
from fedsd.strategies.round import to_state
from fedsd.wire import Update

STYLES = "sketch,pixel"


def drawable_run(path: Path) -> RunFolder:
    """Two styles of two clients each, after one round."""
    tiny_base().pipeline().save_pretrained(path / "base")
    folder = RunFolder.create(path / "otter")
    flat = defaults() | {"base.name": str(path / "base"), "data.styles": STYLES, "run.min-nodes": 4, "run.rounds": 1}
    folder.write("run.toml", "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in flat.items()))
    sent = [_update(number) for number in range(4)]
    after = aggregate_round(sent, None, Settings(), 1)
    about = {"rounds": 1, "strategy": "style-clustered", "method": "lora"}
    folder.append_event({"event": "run.start", "run": "otter", **about})
    folder.append_event({"event": "round.start", "round": 1, "clients": [one.client for one in sent]})
    for one in sent:
        folder.append_event(client_done(1, one))
    folder.append_event(round_clusters(after))
    folder.save_round(*to_state(after))
    done = {"seconds": 3.0, "loss": after.loss, "change": after.change}
    folder.append_event({"event": "round.done", "round": 1, **done})
    folder.append_event({"event": "run.done", "rounds": 1, "converged": False})
    return folder


def _update(number: int) -> Update:
    z = np.eye(8, dtype=np.float32)[number // 2] + 0.05 * np.eye(8, dtype=np.float32)[4 + number]
    unit = (z / np.linalg.norm(z)).astype(np.float32)
    lora = random_lora(tiny_base(), number // 2)
    return Update(f"c{number}", lora, unit, 20, 4, "ab12", 0.4, 0.3, 2.0, 30.0, 1000)
