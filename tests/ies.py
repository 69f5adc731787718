"""Real servers on real sockets: one in a thread of the test, with a small base of its own, and one as a process."""

import copy
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from models import random_lora, tiny_base

from fedsd.config import defaults
from fedsd.hybrid import service
from fedsd.hybrid.admission import Limits
from fedsd.hybrid.engine import LocalEngine
from fedsd.hybrid.server import build_app
from fedsd.hybrid.service import Service
from fedsd.store import RunFolder

service.LOOK_EVERY = 0.1  # seconds; tests do not wait long for a new round

CREDENTIAL = "correct-horse-battery-staple"


def write_run(path: Path, base_name: str = "tiny", rounds: tuple[int, ...] = (1,)) -> RunFolder:
    """A run folder with a neutral adapter for the small base in each round."""
    folder = RunFolder.create(path)
    flat = defaults() | {"base.name": base_name}
    folder.write("run.toml", "".join(f"{key} = {json.dumps(value)}\n" for key, value in flat.items()))
    for server_round in rounds:
        save_round(folder, server_round)
    return folder


def save_round(folder: RunFolder, server_round: int) -> None:
    folder.save_round({"round": server_round}, {"neutral": random_lora(tiny_base(), 100 + server_round)})


@dataclass(frozen=True)
class Served:
    """A server in this process: its URL, what it does, and the run folder it reads."""

    url: str
    service: Service
    folder: RunFolder

    def post(self, content: bytes, kind: str = "application/json", credential: str = CREDENTIAL) -> httpx.Response:
        headers = {"Content-Type": kind} | ({"Authorization": f"Bearer {credential}"} if credential else {})
        return httpx.post(f"{self.url}/v1/early", content=content, headers=headers, timeout=60)

    def get(self, path: str, credential: str = CREDENTIAL) -> httpx.Response:
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {credential}"} if credential else {})


@contextmanager
def serving(folder: RunFolder, limits: Limits | None = None) -> Iterator[Served]:
    """Serve a run folder with a copy of the small base, once it is ready (or has no round)."""
    base = copy.deepcopy(tiny_base())
    app = build_app(LocalEngine(lambda: base), folder.path, (CREDENTIAL,), limits or Limits())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        running: Service = app.state.service
        until(lambda: running.neutral is not None or (running.offer is not None and not folder.rounds()))
        yield Served(f"http://127.0.0.1:{port}", running, folder)
    finally:
        server.should_exit = True
        thread.join(120)  # a run that has begun is finished first
        assert not thread.is_alive()


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)


@dataclass(frozen=True)
class Process:
    """A verb that serves, as a process: its URL, the process, and the file with all that it printed."""

    url: str
    popen: subprocess.Popen[bytes]
    output: Path


def serve_process(folder: RunFolder, output: Path, *options: str) -> AbstractContextManager[Process]:
    """Run `fedsd serve` until it listens; it may not be ready yet."""
    return process("serve", folder, output, *options)


@contextmanager
def process(verb: str, folder: RunFolder, output: Path, *options: str, **env: str) -> Iterator[Process]:
    """Run a verb that serves a run folder until it says its URL; env: variables beside this process's."""
    command = [sys.executable, "-m", "fedsd.cli.main", verb, str(folder.path), "--port", "0", "--json", *options]
    with output.open("wb") as file:
        popen = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "NO_COLOR": "1", **env}
        )
    try:
        until(lambda: b'"url"' in output.read_bytes() or popen.poll() is not None, 300)
        line = next(line for line in output.read_text().splitlines() if '"url"' in line)
        yield Process(json.loads(line)["url"], popen, output)
    finally:
        popen.kill()
        popen.wait(20)
