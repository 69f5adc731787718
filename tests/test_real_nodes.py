"""The same app on real nodes: a SuperLink with TLS and node keys, and two SuperNodes with pictures of their own."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fedsd.cli.run import free_port
from fedsd.data import drawn
from fedsd.privacy.key import read_key
from fedsd.store import RunFolder

ROOT = Path(__file__).resolve().parents[1]
NODES = {"a": ("sketch", 4), "b": ("pixel", 8)}  # name: style of its pictures, rank
PRIVATE_WORD = "like-my-grandmother"  # what the nodes call their styles, which nobody else may learn
PATIENCE = 900.0  # seconds for the run; it takes about 90 on two idle cores

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("openssl") and shutil.which("ssh-keygen")), reason="openssl or ssh-keygen is not installed"
    ),
]


@dataclass(frozen=True)
class Site:
    """A SuperLink on loopback and what is needed to reach it."""

    home: Path
    port: int
    env: dict[str, str]

    @property
    def certs(self) -> Path:
        return self.home / "certs"

    def flwr(self, *arguments: str) -> dict[str, object]:
        """Run one of Flower's commands in the repository's root; returns its JSON."""
        done = subprocess.run(
            ["flwr", *arguments, "--format", "json"], cwd=ROOT, env=self.env, capture_output=True, text=True
        )
        answer: dict[str, object] = json.loads(done.stdout)
        assert answer.get("success", True), answer
        return answer

    def supernode(self, name: str, node_config: str) -> list[str]:
        """The command that starts a SuperNode."""
        return [
            "flower-supernode", "--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port()),
            "--root-certificates", str(self.certs / "ca.crt"), "--auth-supernode-private-key", str(self.certs / name),
            "--node-config", node_config,
        ]  # fmt: skip

    @contextmanager
    def running(self, name: str, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command within the block, with its log in NAME.log; what it started ends with it."""
        with self.log(name).open("wb") as output:
            process = subprocess.Popen(command, cwd=self.home, env=self.env, stdout=output, stderr=output)
        try:
            yield process
        finally:
            if process.poll() is None:
                tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                process.terminate()
                _, alive = psutil.wait_procs(tree, 20)
                for one in alive:
                    one.kill()
                process.wait()

    def log(self, name: str) -> Path:
        """Where `running` writes what a command says."""
        return self.home / f"{name}.log"


def wait_for(port: int, log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"nothing answers on port {port}:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A SuperLink with TLS that lets in the nodes a and b."""
    home, port = tmp_path_factory.mktemp("site"), free_port()
    subprocess.run([ROOT / "docker" / "certs.sh", home / "certs", *NODES, "stranger"], check=True)
    flower = home / "flower"
    flower.mkdir()
    (flower / "config.toml").write_text(
        f'[superlink]\ndefault = "edge"\n[superlink.edge]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{home / "certs" / "ca.crt"}"\n'
    )
    env = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(flower), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    site = Site(home, port, env)
    command = [
        "flower-superlink", "--enable-supernode-auth", "--host", "127.0.0.1", "--port", str(port),
        "--ssl-ca-certfile", str(site.certs / "ca.crt"), "--ssl-certfile", str(site.certs / "server.pem"),
        "--ssl-keyfile", str(site.certs / "server.key"), "--database", str(home / "state.db"),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    with site.running("superlink", command):
        wait_for(port, site.log("superlink"))
        for name in NODES:
            site.flwr("supernode", "register", str(site.certs / f"{name}.pub"), "edge", "--name", name)
        yield site


def test_a_key_that_is_not_registered_is_refused(site: Site) -> None:
    config = f'name="stranger" data-root="{site.home}" private-dir="{site.home}"'
    with site.running("stranger", site.supernode("stranger", config)) as process:
        assert process.wait(180) != 0
    assert "Failed to activate SuperNode" in site.log("stranger").read_text()


def test_two_rounds_on_two_nodes_with_pictures_of_their_own(site: Site) -> None:
    folder = site.home / "run"
    key = site.certs / "federation.key"
    secret = read_key(key)
    with ExitStack() as nodes:
        for name, (style, rank) in NODES.items():
            pictures, private = site.home / "pictures" / name, site.home / "private" / name
            drawn.write(pictures, [style], 12, seed=0)
            (pictures / style).rename(pictures / PRIVATE_WORD)
            config = f'name="{name}" data-root="{pictures}" private-dir="{private}" rank={rank} key="{key}"'
            nodes.enter_context(site.running(name, site.supernode(name, config)))
        settings = f'run.folder="{folder}" run.rounds=2 run.min-nodes=2 train.steps=2 train.batch-size=4'
        run_id = str(site.flwr("run", ".", "edge", "--run-config", settings)["run-id"])
        assert _status(site, run_id) == "finished:completed", (site.home / "superlink.log").read_text()[-3000:]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [(e["client"], e["rank"], e["n"]) for e in events if e["event"] == "client.profile"] == [
        ("a", 4, 12),
        ("b", 8, 12),
    ]
    done = sorted((e["round"], e["client"], e["rank"]) for e in events if e["event"] == "client.done")
    assert done == [(1, "a", 4), (1, "b", 8), (2, "a", 4), (2, "b", 8)]
    assert [e for e in events if e["event"] == "client.failed"] == []
    state, loras = RunFolder.open(folder).load_round(2)
    assert sorted(state["clients"]) == ["a", "b"]
    assert {factor.rank for factor in loras["clients/a"].values()} == {4}
    assert (folder / "loras" / "neutral" / "pytorch_lora_weights.safetensors").is_file()
    _check_privacy(site, folder, secret)


def _status(site: Site, run_id: str) -> str:
    """Flower's status of a run when it has ended, or after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while True:
        runs = site.flwr("list", "--run-id", run_id, "edge")["runs"]
        assert isinstance(runs, list)
        status = str(runs[0]["status"])
        if status.startswith("finished") or time.monotonic() > deadline:
            return status
        time.sleep(2)


def _check_privacy(site: Site, folder: Path, secret: bytes) -> None:
    """What a node keeps is in its own private folder; no plain style word has reached the server."""
    for name in NODES:
        assert any(path.is_file() for path in (site.home / "private" / name).rglob("*"))
    for path in [*folder.rglob("*"), site.home / "superlink.log", site.home / "state.db"]:
        if path.is_file():
            content = path.read_bytes()
            assert PRIVATE_WORD.encode() not in content, f"{path} holds a style word"
            assert secret.hex().encode() not in content and secret not in content, f"{path} holds the key"
