"""The Inference Edge Server as a process of its own, as `fedsd serve` starts it, and what it says of itself."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from fedsd.base.adapters import target_shapes
from fedsd.base.load import Base
from fedsd.config import defaults
from fedsd.hybrid.protocol import EARLY
from fedsd.lowrank import Factor, LoRA
from fedsd.store import RunFolder

PATIENCE = 600.0  # seconds to load a base; SD 1.5 is hashed as well


def random_adapter(base: Base, rank: int, seed: int) -> LoRA:
    """Return an adapter of `rank` on every layer, strong enough to change the picture."""
    rng = np.random.default_rng(seed)
    return {
        layer: Factor(
            rng.standard_normal((d_out, min(rank, d_out, d_in)), np.float32) * np.float32(0.05),
            rng.standard_normal((min(rank, d_out, d_in), d_in), np.float32) * np.float32(d_in**-0.5),
        )
        for layer, (d_out, d_in) in target_shapes(base).items()
    }


def run_folder(path: Path, base_name: str, neutral: LoRA) -> Path:
    """Write a run folder with one round, as far as the server reads it."""
    folder = RunFolder.create(path)
    flat = defaults() | {"base.name": base_name}
    folder.write("run.toml", "".join(f'"{key}" = {json.dumps(value)}\n' for key, value in flat.items()))
    folder.save_round({"round": 1}, {"neutral": neutral})
    return path


@dataclass(frozen=True)
class Answer:
    """One answer to a burst: seconds from the start of the burst's own request, and bytes of both bodies."""

    status: int
    seconds: float
    sent: int
    received: int


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    url: str

    def metrics(self) -> dict[str, float]:
        """Return its counters by name, summed over labels."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics", timeout=60).text):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    def burst(self, bodies: Sequence[bytes]) -> tuple[list[Answer], float]:
        """Send all asks at once; return their answers, and the seconds until the last of them."""
        return asyncio.run(_burst(self.url + EARLY, bodies))


async def _burst(url: str, bodies: Sequence[bytes]) -> tuple[list[Answer], float]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=300, trust_env=False) as http:

        async def ask(body: bytes) -> Answer:
            begun = time.monotonic()
            response = await http.post(url, content=body, headers={"Content-Type": "application/json"})
            return Answer(response.status_code, time.monotonic() - begun, len(body), len(response.content))

        begun = time.monotonic()
        answers = await asyncio.gather(*map(ask, bodies))
        return list(answers), time.monotonic() - begun


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    """Run `fedsd serve` on a free port until the block ends; SystemExit with its log when it does not get ready."""
    command = [sys.executable, "-m", "fedsd.cli.main", "serve", str(folder), "--port", "0", "--json", *options]
    log = folder.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "NO_COLOR": "1"})
    try:
        yield Server(_ready(process, log))
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    end, url = time.monotonic() + PATIENCE, ""
    while process.poll() is None and time.monotonic() < end:
        said = [line for line in log.read_text().splitlines() if line.startswith('{"url"')]
        url = json.loads(said[0])["url"] if said else ""
        if url and _status(f"{url}/readyz") == 200:
            return url
        time.sleep(0.2)
    raise SystemExit(f"the server did not get ready:\n{log.read_text()[-4000:]}")


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=10).status_code
    except httpx.HTTPError:
        return 0
