"""The same application on Ray Serve: exact, batched, shared, bounded. Ray takes half a minute to start."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from ies import CREDENTIAL, Process, save_round, serve_process, until, write_run
from models import random_lora, tiny_base
from test_handoff import uncut

from fedsd.base import adapters, denoise
from fedsd.hybrid.client import Drawing, Drawn, Remote, Unserved, ask, draw
from fedsd.store import RunFolder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> RunFolder:
    return write_run(tmp_path_factory.mktemp("run") / "run", str(base_folder))


@pytest.fixture(scope="module")
def process(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("ray")
    (folder / "credentials").write_text(CREDENTIAL)
    options = ("--engine", "ray", "--credentials", str(folder / "credentials"), "--queue", "4", "--max-steps", "990")
    with serve_process(run, folder / "log", *options) as serving:
        until(lambda: httpx.get(f"{serving.url}/readyz").status_code == 200, 300)
        yield serving
        serving.popen.terminate()
        assert serving.popen.wait(60) == 0 and "SIGTERM received" not in serving.output.read_text()


def drawing(seed: int, steps: int = 20, server_steps: int = 4) -> Drawing:
    split = denoise.Split(steps, server_steps, 3.0)
    return Drawing("a dog by my lake", "a dog", seed, split, encoding="float32")


def metrics(process: Process) -> str:
    return httpx.get(f"{process.url}/metrics", headers={"Authorization": f"Bearer {CREDENTIAL}"}).text


def test_handoff_is_exact(process: Process) -> None:
    base = tiny_base()
    with adapters.adapted(base, random_lora(base, 2)):
        drawn = draw(base, drawing(7), Remote(process.url, CREDENTIAL))
    assert drawn.told is not None, drawn.why
    assert torch.equal(drawn.latents, uncut(base, "ddim", 4))


def test_jobs_are_batched_and_the_same_ones_shared(process: Process) -> None:
    base, remote = tiny_base(), Remote(process.url, CREDENTIAL)
    alone = ask(base, drawing(100, 20, 10), remote)
    with ThreadPoolExecutor(12) as devices:
        answers = list(devices.map(lambda i: ask(base, drawing(101 + i % 6, 20, 10), remote), range(12)))
    assert max(answer.told.batch for answer in answers) > 1
    assert sum(answer.told.cache == "miss" for answer in answers) == 6
    again = ask(base, drawing(100, 20, 10), remote)
    assert again.told.cache == "hit" and (again.x_mid == alone.x_mid).all()


def test_overload_is_answered_and_every_picture_drawn(process: Process) -> None:
    base = tiny_base()

    def device(seed: int) -> Drawn | str:
        try:
            ask(base, drawing(1000 + seed, 300, 200), Remote(process.url, CREDENTIAL, timeout=60))
        except Unserved as unserved:
            return str(unserved)
        return "served"

    with ThreadPoolExecutor(30) as devices:
        found = list(devices.map(device, range(30)))
    assert "served" in found
    assert all(one == "served" or "is busy (503)" in str(one) for one in found)
    assert any("is busy (503)" in str(one) for one in found)


def test_without_a_credential_nothing_is_said(process: Process) -> None:
    assert httpx.post(f"{process.url}/v1/early", content=b"{}").status_code == 401
    headers = {"Authorization": f"Bearer {CREDENTIAL}"}
    assert httpx.post(f"{process.url}/v1/early", content=bytes(10 * 2**20), headers=headers).status_code == 413
    assert httpx.post(f"{process.url}/v1/early", content=b"{}", headers=headers).status_code == 422


def test_a_new_round_is_taken_up(process: Process, run: RunFolder) -> None:
    save_round(run, 2)
    until(lambda: httpx.get(f"{process.url}/readyz").json().get("server_round") == 2)
    answer = ask(tiny_base(), drawing(7), Remote(process.url, CREDENTIAL))
    assert answer.told.server_round == 2 and "fedsd_ies_adapter_round 2.0" in metrics(process)
