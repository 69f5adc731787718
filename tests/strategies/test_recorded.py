"""What the server keeps of replies is what came, and reads back as what it was told."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from local_grid import LocalGrid, context

from fedsd import wire
from fedsd.lowrank import Factor
from fedsd.store import RunFolder
from fedsd.strategies import Settings, StyleClusteredLoRA
from fedsd.strategies.recorded import Recorded, received_updates
from fedsd.strategies.schedule import Schedule

app = ClientApp()


def z_of(index: int) -> np.ndarray:
    z = np.random.default_rng(index).standard_normal(6).astype(np.float32)
    return z / np.linalg.norm(z)


@app.query("profile")
def profile(message: Message, node: Context) -> Message:
    index = int(node.node_config["partition-id"])
    return wire.profile_reply(wire.Profile(f"c{index}", z_of(index), 5, 2, "abc"), message)


@app.train()
def train(message: Message, node: Context) -> Message:
    index, order = int(node.node_config["partition-id"]), wire.parse_order(message)
    rng = np.random.default_rng([index, order.server_round])
    lora = {"unet.q": Factor(*(rng.standard_normal(s).astype(np.float32) for s in ((4, 2), (2, 3))))}
    return wire.update_reply(wire.Update(f"c{index}", lora, z_of(index), 5, 2, "abc", 1.0, 0.5, 1.0, 5.0), message)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run")


def run(folder: RunFolder, rounds: int) -> LocalGrid:
    grid = LocalGrid(app, {i + 2: context(i + 2, **{"partition-id": i}) for i in range(3)})
    strategy = StyleClusteredLoRA(Settings(), schedule=Schedule(min_nodes=3, poll=0.01))
    strategy._run(Recorded(grid, folder), wire.lora_record({}), rounds, 10.0, None, None)
    return grid


def test_every_reply_is_kept_and_reads_as_what_was_sent(folder: RunFolder) -> None:
    grid = run(folder, 2)
    kept = sorted((folder.path / "received").iterdir())
    assert len(kept) == len(grid.from_nodes) == 3 + 2 * 3
    updates = received_updates(folder.path)
    assert {number: sorted(each) for number, each in updates.items()} == {1: ["c0", "c1", "c2"], 2: ["c0", "c1", "c2"]}
    for number, each in updates.items():
        for index, update in enumerate(each[c] for c in sorted(each)):
            np.testing.assert_array_equal(update.z, z_of(index))
            rng = np.random.default_rng([index, number])
            np.testing.assert_array_equal(update.lora["unet.q"].B, rng.standard_normal((4, 2)).astype(np.float32))
            assert any(update.z.tobytes() in file.read_bytes() for file in kept)


def test_a_resumed_run_adds_to_what_was_kept(folder: RunFolder) -> None:
    run(folder, 1)
    before = {file.name: file.read_bytes() for file in (folder.path / "received").iterdir()}
    run(folder, 1)
    after = {file.name: file.read_bytes() for file in (folder.path / "received").iterdir()}
    assert len(after) == 2 * len(before) and before.items() <= after.items()


def test_a_run_without_records_says_how_to_get_them(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match=r"kept none of the bytes .* run again with -s run.record=true"):
        received_updates(folder.path)


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\xfd", b"cut"])
def test_a_damaged_record_is_named(folder: RunFolder, damage: bytes) -> None:
    run(folder, 1)
    file = max((folder.path / "received").glob("*-train.bin"))
    file.write_bytes(file.read_bytes()[:40] if damage == b"cut" else damage)
    with pytest.raises(ValueError, match=f"{file.name} is not what a client sent"):
        received_updates(folder.path)
