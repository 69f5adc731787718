"""Two federated rounds on the real Flower engine through `fedsd run`, and the four ways in which a run can end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from fedsd.cli import main
from fedsd.privacy.key import FILE, read_key, turn
from fedsd.store import RunFolder
from fedsd.strategies.recorded import received_updates

RANKS = {"c0": 2, "c1": 3, "c2": 4, "c3": 8}


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, what it printed, and its run folder."""

    code: int
    out: str
    err: str
    folder: Path

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]


Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The private folders of all nodes of this file: pictures are drawn and encoded once."""
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture
def fedsd_run(tmp_path: Path, nodes: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call `fedsd run` on the smoke preset with four clients of unequal rank."""

    def call(*arguments: str) -> Ended:
        folder = tmp_path / "run"
        ranks = ",".join(map(str, RANKS.values()))
        monkeypatch.setattr(sys, "argv", [
            "fedsd", "run", "--preset", "smoke", "--clients", "4", "--folder", str(folder), "--no-report",
            "-s", f"lora.ranks={ranks}", "-s", f"node.private-dir={nodes}", *arguments,
        ])  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main.run()
        return Ended(int(ended.value.code or 0), *capfd.readouterr(), folder)

    return call


def test_two_rounds_with_four_clients_of_unequal_rank(fedsd_run: Run) -> None:
    ended = fedsd_run()
    assert ended.code == 0, ended.out + ended.err
    assert {e["client"]: e["rank"] for e in ended.events("client.profile")} == RANKS
    assert sorted((e["round"], e["client"]) for e in ended.events("client.done")) == [
        (r, c) for r in (1, 2) for c in RANKS
    ]
    assert not ended.events("client.failed")
    assert ended.events("run.done")[0]["rounds"] == 2
    folder = RunFolder.open(ended.folder)
    assert folder.rounds() == [1, 2]
    state, loras = folder.load_round(2)
    # each style is a cluster, and its adapter has the lower middle rank of its members
    assert {tuple(c["members"]): c["rank"] for c in state["clusters"].values()} == {("c0", "c1"): 2, ("c2", "c3"): 4}
    for client, rank in RANKS.items():
        assert {factor.rank for factor in loras[f"clients/{client}"].values()} == {rank}
    assert all(
        np.isfinite(factor.B).all() and np.isfinite(factor.A).all()
        for lora in loras.values()
        for factor in lora.values()
    )
    assert (ended.folder / "loras" / "mix" / "pytorch_lora_weights.safetensors").is_file()
    assert "r2/2  clusters 2 {c0,c1} {c2,c3}" in ended.out
    assert "done  2 rounds" in ended.out


@pytest.mark.slow
def test_the_key_hides_z_from_the_server_and_changes_no_cluster_also_after_a_resume(
    fedsd_run: Run, nodes: Path, tmp_path: Path
) -> None:
    """One round and a resumed second with the key, and the same without: two real runs on the engine."""
    found = {}
    for how in ("turn", "none"):
        options = ("-s", "train.steps=1", "-s", f"style.key={how}", "-s", "run.record=true")
        assert fedsd_run(*options, "-s", "run.rounds=1").code == 0
        ended = fedsd_run(*options, "--resume")
        assert ended.code == 0, ended.out + ended.err
        received = received_updates(ended.folder)
        assert {number: sorted(each) for number, each in received.items()} == {1: sorted(RANKS), 2: sorted(RANKS)}
        state, _ = RunFolder.open(ended.folder).load_round(2)
        found[how] = state
        for client, update in received[2].items():
            np.testing.assert_array_equal(update.z, np.float32(state["clients"][client]["z"]))
            np.testing.assert_array_equal(update.z, received[1][client].z)
        key = read_key(nodes / FILE)
        for file in ended.folder.rglob("*"):
            if file.is_file():
                assert key not in file.read_bytes() and key.hex().encode() not in file.read_bytes()
        ended.folder.rename(tmp_path / how)
    keyed, plain = (found[how]["clusters"] for how in ("turn", "none"))
    assert {k: one["members"] for k, one in keyed.items()} == {k: one["members"] for k, one in plain.items()}
    assert [one["beta"] for one in keyed.values()] == pytest.approx([one["beta"] for one in plain.values()], abs=1e-4)
    z, turned = (np.float32([found[how]["clients"][client]["z"] for client in RANKS]) for how in ("none", "turn"))
    np.testing.assert_allclose(turned, turn(z, read_key(nodes / FILE)), atol=1e-6)
    assert np.abs(turned - z).max() > 0.05


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="with one core there is one worker, and no client is left")
def test_a_client_unplugged_mid_round_is_named_and_the_run_goes_on(fedsd_run: Run, tmp_path: Path) -> None:
    killed: list[int] = []
    watcher = threading.Thread(
        target=_kill_a_training_worker, args=(tmp_path / "run" / "events.jsonl", killed), daemon=True
    )
    watcher.start()
    ended = fedsd_run("-s", "train.steps=40", "-s", "run.rounds=1", "--max-failures", "0")
    watcher.join(5)
    assert len(killed) == 1
    failed = ended.events("client.failed")
    assert failed and {e["client"] for e in failed} < set(RANKS)
    assert "died" in failed[0]["reason"].lower()
    lost = {e["client"] for e in failed}
    assert {e["client"] for e in ended.events("client.done")} == set(RANKS) - lost
    assert ended.events("run.done")[0]["rounds"] == 1
    state, _ = RunFolder.open(ended.folder).load_round(1)
    assert set(state["clients"]) == set(RANKS) - lost
    assert f"{failed[0]['client']:<4} FAILED" in ended.out
    assert ended.code == 3  # done, with more failures than --max-failures allows


def _kill_a_training_worker(events: Path, killed: list[int]) -> None:
    """Kill one of this process's simulation workers while it trains in round 1."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if events.exists() and '"round.start"' in events.read_text():
            for process in psutil.Process().children(recursive=True):
                try:
                    busy = "ClientAppActor.run" in " ".join(process.cmdline())
                except psutil.NoSuchProcess:
                    continue
                if busy:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
        time.sleep(0.05)


def test_a_run_without_a_usable_reply_ends_with_code_1(fedsd_run: Run) -> None:
    ended = fedsd_run("-s", "train.steps=100000", "-s", "run.timeout=1", "-s", "run.rounds=1")
    assert ended.code == 1
    assert {e["client"] for e in ended.events("client.failed")} == set(RANKS)
    assert "c0   FAILED  no reply within 1 s" in ended.out
    assert "round 1 brought no usable reply" in ended.events("run.failed")[0]["reason"]
    assert "FAILED  round 1 brought no usable reply" in ended.out
    assert (ended.folder / "logs" / "run.log").stat().st_size > 0


def test_a_port_in_use_ends_with_code_2_before_anything_runs(fedsd_run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = fedsd_run("--port", str(port))
    assert ended.code == 2
    assert ended.err.strip().splitlines()[-1].startswith(f"error: port {port} is in use (")
    assert "choose another with --port, or leave it out" in ended.err
    assert not (ended.folder / "events.jsonl").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.round=3", "unknown setting 'run.round'; did you mean 'run.rounds'?"),
        ("lora.ranks=0", "lora.ranks must be whole numbers of at least 1, separated by commas; got '0'"),
        ("train.steps=many", "train.steps must be of type int; got 'many' (str)"),
        ("data.styles=sketch,watercolour", "watercolour"),
        ("data.root=/nowhere/at/all", "there is no such folder of pictures"),
    ],
)
def test_bad_input_ends_with_code_2_and_says_what_is_wrong(fedsd_run: Run, setting: str, message: str) -> None:
    ended = fedsd_run("-s", setting)
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert not ended.folder.exists()


def test_a_folder_that_holds_a_run_is_not_written_over(fedsd_run: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.jsonl").write_text("")
    ended = fedsd_run()
    assert ended.code == 2
    assert "already holds a run; resume it, or name another folder (run.folder)" in ended.err


def test_only_a_run_can_be_resumed(fedsd_run: Run) -> None:
    ended = fedsd_run("--resume")
    assert ended.code == 2
    assert "holds no run; check run.folder" in ended.err


def test_a_dry_run_says_what_would_run_and_runs_nothing(fedsd_run: Run) -> None:
    ended = fedsd_run("--dry-run")
    assert ended.code == 0
    assert "plan   2 rounds x 2 steps of 4  style-clustered  lora ranks 2,3,4,8" in ended.out
    assert not ended.folder.exists()


def test_an_interrupted_run_leaves_no_process_behind(tmp_path: Path, nodes: Path) -> None:
    events = tmp_path / "run" / "events.jsonl"
    command = [
        sys.executable, "-m", "fedsd.cli.main", "run", "--preset", "smoke", "--clients", "4", "--no-report",
        "--folder", str(events.parent), "-s", f"node.private-dir={nodes}", "-s", "train.steps=100000",
    ]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # whoever started the tests in the background has SIGINT ignored, which every child would inherit
    run = subprocess.Popen(command, **quiet, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 300
    while not (events.exists() and '"round.start"' in events.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    started = psutil.Process(run.pid).children(recursive=True)
    assert any("ClientAppActor" in " ".join(process.cmdline()) for process in started)
    run.send_signal(signal.SIGINT)
    assert run.wait(60) != 0
    _, alive = psutil.wait_procs(started, 20)
    assert [process.name() for process in alive] == []
