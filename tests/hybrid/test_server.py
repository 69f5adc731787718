"""The server on a real socket: who is admitted, what is shared, which adapter is used, and every fault."""

import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from ies import CREDENTIAL, Served, save_round, serving, until, write_run
from models import random_lora, tiny_base
from safetensors.numpy import save

from fedsd.base import adapters, denoise
from fedsd.base.schedulers import scheduler_named, scheduler_sha
from fedsd.hybrid.admission import Limits
from fedsd.hybrid.neutral import lora_sha, save_neutralised
from fedsd.hybrid.protocol import TENSORS, Ask, Told, pack, unpack_x_mid

SHAPE = (1, 4, 8, 8)
LONG = 990  # steps that take many seconds


def ask(**changes: Any) -> Ask:
    base = tiny_base()
    wanted = {
        "prompt": "a dog", "seed": 7, "steps": 20, "server_steps": 4, "guidance": 3.0, "size": 16,
        "base_sha": base.sha, "scheduler_sha": scheduler_sha(scheduler_named(base, "ddim")),
    }  # fmt: skip
    return Ask.model_validate(wanted | changes)


def content(**changes: Any) -> bytes:
    return ask(**changes).model_dump_json().encode()


def raw(**changes: Any) -> bytes:
    """As a hand-written client would send it, whatever the values."""
    return json.dumps(ask().model_dump() | changes).encode()


def told(response: httpx.Response) -> Told:
    assert response.status_code == 200, response.text
    return unpack_x_mid(response.content, SHAPE)[1]


def x_mid(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return unpack_x_mid(response.content, SHAPE)[0]


def metric(served: Served, name: str) -> float:
    lines = served.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def error(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    return str(response.json()["error"])


def test_health_readiness_and_what_it_offers(served: Served) -> None:
    assert served.get("/healthz", "").json() == {"status": "ok"}
    assert served.get("/readyz", "").json() == {"status": "ready", "server_round": 1}
    info = served.get("/v1/info").json()
    assert info["base_sha"] == tiny_base().sha and info["lora_sha"] == lora_sha(random_lora(tiny_base(), 101))
    assert list(info["schedulers"]) == ["ddim", "ddpm", "euler", "lcm"] and info["limits"]["max_steps"] == 100


@pytest.mark.skipif(sys.platform != "linux", reason="the figures of a process are read from /proc")
def test_what_the_whole_process_spends_is_told(served: Served) -> None:
    before = metric(served, "process_cpu_seconds_total")
    assert served.post(content(seed=4711)).status_code == 200
    assert 0 < before <= metric(served, "process_cpu_seconds_total")


@pytest.mark.parametrize("credential", ["", "wrong-horse-battery-staple"])
def test_without_a_credential_nothing_is_said(served: Served, credential: str) -> None:
    response = served.post(content(), credential=credential)
    assert "no credential" in error(response, 401) and response.headers["WWW-Authenticate"] == "Bearer"
    assert served.get("/metrics", credential).status_code == served.get("/v1/info", credential).status_code == 401


def test_a_body_of_10_mb_is_refused(served: Served) -> None:
    assert "larger than 1048576 bytes" in error(served.post(bytes(10 * 2**20)), 413)
    endless = httpx.post(  # no length is said beforehand
        f"{served.url}/v1/early", content=iter([bytes(2**19)] * 20), headers={"Authorization": f"Bearer {CREDENTIAL}"},
    )  # fmt: skip
    assert "larger than 1048576 bytes" in error(endless, 413)


def test_what_is_not_allowed_is_refused_with_the_reason(served: Served) -> None:
    assert "steps is 10000; this server takes at most 100 with ddim" in error(served.post(content(steps=10_000)), 422)
    assert "memory of earlier steps" in error(served.post(content(scheduler="pndm")), 422)
    assert "guidance" in error(served.post(raw(guidance=0)), 422)
    assert "JSON" in error(served.post(b"a dog"), 422)
    assert "at most 50 with lcm" in error(served.post(content(steps=60, scheduler="lcm")), 422)
    assert served.get("/v1/early").status_code == 405


@pytest.mark.parametrize("field", ["base_sha", "scheduler_sha", "lora_sha"])
def test_another_base_sampler_or_adapter_is_a_conflict(served: Served, field: str) -> None:
    assert "both must use the same" in error(served.post(content(**{field: "0" * 64})), 409)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\xff" * 8 + b"{}", "header must be whole"),
        (save({"text": np.full((1, 12, 16), np.nan, np.float32)}), "no message under 'fedsd'"),
        (pack({"text": np.zeros((1, 12, 16)), "empty": np.zeros((1, 12, 17))}, ask(prompt=""), "float32"),
         r"empty must be of shape"),
        (pack({"text": np.full((1, 12, 16), np.nan), "empty": np.zeros((1, 12, 16))}, ask(prompt=""), "float32"),
         "text holds numbers that are not finite"),
        (pack({"text": np.zeros((1, 12, 16)), "empty": np.zeros((1, 12, 16))}, ask(), "float32"), "leave prompt"),
    ],
)  # fmt: skip
def test_malicious_tensors_are_refused(served: Served, body: bytes, said: str) -> None:
    assert said in error(served.post(body, TENSORS), 422)


def test_many_users_of_one_prompt_and_seed_cost_one_run(served: Served) -> None:
    steps = metric(served, "fedsd_ies_steps_total")
    body = content(seed=64, server_steps=10)
    with ThreadPoolExecutor(16) as users:
        answers = list(users.map(lambda _: served.post(body), range(64)))
    assert metric(served, "fedsd_ies_steps_total") == steps + 10
    assert len({x_mid(answer).tobytes() for answer in answers}) == 1
    assert [told(answer).cache for answer in answers].count("miss") == 1


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"prompt": "a cat"},
        {"negative": "ugly"},
        {"server_steps": 5},
        {"steps": 21},
        {"guidance": 2},
        {"mix_loras": 0.9},
    ],
)
def test_what_differs_is_not_shared(served: Served, change: dict[str, Any]) -> None:
    first = served.post(content())
    other = served.post(content(**change))
    assert told(other).cache == "miss" and (x_mid(first) != x_mid(other)).any()
    assert told(served.post(content(**change))).cache == "hit"


def test_overload_is_told_when_to_come_back(tmp_path: Path) -> None:
    with serving(write_run(tmp_path / "run"), Limits(queue=2, max_steps=LONG, timeout=20)) as served:
        slow = content(steps=200, server_steps=60)
        with ThreadPoolExecutor(12) as users:
            answers = list(
                users.map(lambda i: served.post(slow.replace(b'"seed":7', f'"seed":{i}'.encode())), range(12))
            )
        codes = [answer.status_code for answer in answers]
        assert sorted(set(codes)) == [200, 503] and codes.count(200) >= 3
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert int(refused.headers["Retry-After"]) >= 1 and "runs are waiting already" in refused.json()["error"]
        assert metric(served, 'fedsd_ies_runs_total{outcome="busy"}') == codes.count(503)
        until(lambda: metric(served, "fedsd_ies_under_way") == 0)


def test_a_run_that_takes_too_long_ends_and_frees_the_device(tmp_path: Path) -> None:
    with serving(write_run(tmp_path / "run"), Limits(max_steps=LONG, timeout=0.5)) as served:
        begun = time.monotonic()
        response = served.post(content(steps=LONG, server_steps=LONG))
        assert time.monotonic() - begun < 3
        told_why = error(response, 504)  # by the run, or on a busy machine by what waits for it a second longer
        assert "more than 0.5 seconds" in told_why or "took too long" in told_why
        until(lambda: metric(served, "fedsd_ies_under_way") == 0, 2)
        assert told(served.post(content(server_steps=1))).cache == "miss"


def test_a_body_that_drips_is_cut_off(tmp_path: Path) -> None:
    def drip() -> Any:
        for _ in range(25):
            time.sleep(0.1)
            yield b" "

    with serving(write_run(tmp_path / "run"), Limits(timeout=0.5)) as served:
        begun = time.monotonic()
        headers = {"Authorization": f"Bearer {CREDENTIAL}"}
        with suppress(httpx.TransportError):  # it may hang up while we are sending
            assert httpx.post(f"{served.url}/v1/early", content=drip(), headers=headers).status_code == 504
        assert served.get("/metrics").text.count('requests_total{status="504"} 1.0') == 1
        assert time.monotonic() - begun < 6


def test_an_adapter_that_makes_no_sense_is_passed_over(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with serving(folder) as served:
        broken = random_lora(tiny_base(), 5)
        next(iter(broken.values())).B[0, 0] = np.nan
        folder.save_round({"round": 2}, {"neutral": broken})
        until(lambda: metric(served, 'fedsd_ies_adapter_swaps_total{outcome="refused"}') == 1)
        foreign = random_lora(tiny_base(), 5)
        foreign["unet.nowhere.to_q"] = next(iter(foreign.values()))
        folder.save_round({"round": 3}, {"neutral": foreign})
        until(lambda: metric(served, 'fedsd_ies_adapter_swaps_total{outcome="refused"}') == 2)
        assert told(served.post(content())).server_round == 1
        save_round(folder, 4)
        until(lambda: metric(served, "fedsd_ies_adapter_round") == 4)
        assert told(served.post(content())).lora_sha == lora_sha(random_lora(tiny_base(), 104))


def test_a_neutralised_adapter_is_taken_up_until_the_next_round(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with serving(folder) as served:
        for seed in (7, 8):  # neutralising again replaces it
            better = random_lora(tiny_base(), seed)
            save_neutralised(folder.path, 1, better, {})
            until(lambda: served.get("/v1/info").json()["lora_sha"] == lora_sha(better))  # noqa: B023
            answer = told(served.post(content()))
            assert (answer.server_round, answer.lora_sha) == (1, lora_sha(better))
        save_round(folder, 2)
        until(lambda: metric(served, "fedsd_ies_adapter_round") == 2)
        assert told(served.post(content())).lora_sha == lora_sha(random_lora(tiny_base(), 102))


def test_an_overflow_is_said_and_not_kept(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=())
    huge = {
        layer: type(f)(f.B * np.float32(1e30), f.A * np.float32(1e30))
        for layer, f in random_lora(tiny_base(), 5).items()
    }
    folder.save_round({"round": 1}, {"neutral": huge})
    with serving(folder) as served:
        for _ in range(2):
            assert "x_mid is not finite with the neutral adapter of round 1" in error(served.post(content()), 500)
        assert metric(served, 'fedsd_ies_runs_total{outcome="failed"}') == 2


def test_the_adapter_is_swapped_between_runs_and_never_within(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with serving(folder, Limits(max_steps=LONG)) as served:
        alone = x_mid(served.post(content(steps=400, server_steps=300, encoding="float32")))
    with serving(folder, Limits(max_steps=LONG)) as served, ThreadPoolExecutor(1) as user:
        asked = user.submit(served.post, content(steps=400, server_steps=300, encoding="float32"))
        until(lambda: metric(served, "fedsd_ies_under_way") == 1)
        save_round(folder, 2)
        until(lambda: metric(served, "fedsd_ies_adapter_round") == 2)
        assert not asked.done(), "the run was too short to be caught by the swap; make it longer"
        after = served.post(content(encoding="float32"))
        first = asked.result()
    assert told(first).server_round == 1 and told(first).lora_sha == lora_sha(random_lora(tiny_base(), 101))
    assert (x_mid(first) == alone).all()
    assert told(after).server_round == 2 and told(after).lora_sha == lora_sha(random_lora(tiny_base(), 102))
    base = tiny_base()
    with torch.no_grad(), adapters.adapted(base, random_lora(base, 102)):
        x = denoise.early(base, denoise.encode_batch(base, ["a dog"], [7]), denoise.Split(20, 4, 3.0))
    assert (x_mid(after) == x.numpy()).all()


def test_before_the_first_round_it_lives_but_is_not_ready(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=())
    with serving(folder) as served:
        assert served.get("/healthz", "").status_code == 200
        assert "has no complete round yet" in error(served.get("/readyz", ""), 503)
        response = served.post(content())
        assert "not ready" in error(response, 503) and int(response.headers["Retry-After"]) == 1
        save_round(folder, 1)
        until(lambda: served.get("/readyz", "").status_code == 200)
        assert told(served.post(content())).server_round == 1


def test_a_base_that_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    import uvicorn

    from fedsd.hybrid.engine import LocalEngine
    from fedsd.hybrid.server import build_app

    def fail() -> Any:
        raise OSError("no such base: a secret path")

    app = build_app(LocalEngine(fail), write_run(tmp_path / "run").path, (), Limits())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    said: Callable[[], str] = lambda: httpx.get(f"{url}/readyz").json()["error"]  # noqa: E731
    until(lambda: "could not be loaded (OSError)" in said())
    assert "secret" not in said()
    server.should_exit = True
    thread.join(20)
