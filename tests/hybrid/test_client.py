"""The device against servers that fail, lie or stall, on real sockets."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from ies import CREDENTIAL, Served, serving, write_run
from models import random_lora

from fedsd.base import adapters, denoise
from fedsd.base.load import Base
from fedsd.base.schedulers import scheduler_named, scheduler_sha
from fedsd.hybrid.admission import Limits
from fedsd.hybrid.client import Drawing, Drawn, Remote, Unserved, ask, draw
from fedsd.hybrid.protocol import Told, pack

SPLIT = denoise.Split(10, 3, 2.0)
DRAWING = Drawing("my dog", "a dog", 7, SPLIT)


def told(base: Base, **changes: object) -> Told:
    sampler = scheduler_sha(scheduler_named(base, "ddim"))
    wanted = {
        "base_sha": base.sha, "scheduler_sha": sampler, "lora_sha": "0" * 64, "server_round": 1, "steps": 10,
        "server_steps": 3, "cache": "miss", "batch": 1, "ms_queue": 0.0, "ms_compute": 1.0,
    }  # fmt: skip
    return Told.model_validate(wanted | changes)


def http(status: int, body: bytes, headers: str = "", length: int | None = None) -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body) if length is None else length}\r\n{headers}\r\n"
    return head.encode() + body


@contextmanager
def answering(*parts: bytes, pause: float = 0.0, linger: float = 0.0) -> Iterator[str]:
    """A server that reads one request and sends these bytes, waiting between parts, and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            _read_request(connection)
            for part in parts:
                connection.sendall(part)
                over.wait(pause)
            over.wait(linger)

    thread = threading.Thread(target=lambda: _ignoring(serve), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    over.set()
    listener.close()
    thread.join(5)


def _read_request(connection: socket.socket) -> None:
    """Read one request to its end: closing with bytes unread would reset the connection, a different failure."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(2**16)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: *(\d+)", head)[1])  # type: ignore[index]
    while len(body) < length:
        body += connection.recv(2**16)


def _ignoring(work: Callable[[], None]) -> None:
    with suppress(OSError):
        work()


def whole(base: Base) -> torch.Tensor:
    """All steps on the device."""
    with torch.no_grad():
        batch = denoise.encode_batch(base, ["my dog"], [7])
        x = denoise.initial_latents(base, [7])
        return denoise.denoise(base, x, batch.text, batch.empty, steps=10, guidance=2.0, seeds=[7])


def drawn_here(base: Base, url: str, timeout: float = 5.0) -> Drawn:
    """Draw with a server that fails; the picture must be the device's own."""
    drawn = draw(base, DRAWING, Remote(url, CREDENTIAL, timeout=timeout))
    assert drawn.told is None and torch.equal(drawn.latents, whole(base))
    return drawn


def test_a_server_that_is_down_is_done_without(base: Base) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "is down or broke off (ConnectError)" in drawn_here(base, f"http://127.0.0.1:{port}").why


def test_a_server_that_says_nothing_is_done_without(base: Base) -> None:
    with answering(linger=30) as url:
        begun = time.monotonic()
        drawn = drawn_here(base, url, timeout=0.5)
    assert "took more than 0.5 seconds" in drawn.why and time.monotonic() - begun < 5


def test_a_server_that_drips_is_done_without(base: Base) -> None:
    """Each part comes soon, all of it never: the limit is on the whole answer."""
    with answering(http(200, b"", length=10**6), *[b"x"] * 100, pause=0.1) as url:
        begun = time.monotonic()
        drawn = drawn_here(base, url, timeout=0.6)
    assert "took more than 0.6 seconds" in drawn.why and time.monotonic() - begun < 5


def test_a_server_that_hangs_up_is_done_without(base: Base) -> None:
    body = pack({"x_mid": np.zeros((1, 4, 8, 8))}, told(base), "float16")
    with answering(http(200, body[:300], length=len(body))) as url:
        assert "broke off (RemoteProtocolError)" in drawn_here(base, url).why


@pytest.mark.parametrize(
    ("tensor", "changes", "said"),
    [
        (np.full((1, 4, 8, 8), np.nan), {}, "x_mid holds numbers that are not finite"),
        (np.zeros((1, 4, 8, 9)), {}, "x_mid must be of shape"),
        (np.zeros((1, 4, 8, 8)), {"base_sha": "1" * 64}, "of another base than was asked for"),
        (np.zeros((1, 4, 8, 8)), {"scheduler_sha": "1" * 64}, "of another scheduler config"),
        (np.zeros((1, 4, 8, 8)), {"server_steps": 4}, "of another cut"),
    ],
)
def test_an_answer_that_cannot_be_used_is_done_without(
    base: Base, tensor: np.ndarray, changes: dict[str, object], said: str
) -> None:
    with answering(http(200, pack({"x_mid": tensor}, told(base, **changes), "float16"))) as url:
        assert said in drawn_here(base, url).why


def test_a_malicious_header_is_done_without(base: Base) -> None:
    with answering(http(200, b"\xff" * 8 + b"{" * 100)) as url:
        assert "the safetensors header must be whole" in drawn_here(base, url).why


def test_a_busy_server_is_done_without_and_says_when(base: Base) -> None:
    with answering(http(503, b'{"error": "9 runs are waiting already"}', "Retry-After: 4\r\n")) as url:
        assert "is busy (503): 9 runs are waiting already; it may be free in 4 s" in drawn_here(base, url).why
    with answering(http(500, b"<html>")) as url:
        assert "failed (500): it gave no reason" in drawn_here(base, url).why


def test_an_adapter_other_than_the_one_insisted_on(base: Base, served: Served) -> None:
    insisting = Drawing("my dog", "a dog", 7, SPLIT, lora_sha="1" * 64)
    with pytest.raises(ValueError, match=r"refuses \(409\).*neutral adapter is 111111111111"):
        draw(base, insisting, Remote(served.url, CREDENTIAL))


def test_what_the_user_has_to_mend_is_an_error(base: Base, served: Served) -> None:
    with pytest.raises(ValueError, match=r"refuses \(401\): no credential"):
        draw(base, DRAWING, Remote(served.url))
    long = Drawing("my dog", "a dog", 7, denoise.Split(500, 3, 2.0))
    with pytest.raises(ValueError, match=r"refuses \(422\): steps is 500"):
        draw(base, long, Remote(served.url, CREDENTIAL))


@pytest.mark.parametrize("drawing", [
    Drawing("x", "a dog in Sketch style", 7, SPLIT), Drawing("x", "a dog", 7, SPLIT, negative="sketch"),
    Drawing("x", "a sketch", 7, SPLIT, embeddings=True),
])  # fmt: skip
def test_a_private_word_is_never_sent(base: Base, drawing: Drawing) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        remote = Remote(f"http://127.0.0.1:{listener.getsockname()[1]}", CREDENTIAL, timeout=1, words=("sketch",))
        for send in (draw, ask):
            with pytest.raises(ValueError, match=r"holds the private word 'sketch'.*\(--generic\)"):
                send(base, drawing, remote)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_the_own_prompt_may_hold_it(base: Base, served: Served) -> None:
    drawn = draw(base, Drawing("a sketch", "a dog", 7, SPLIT), Remote(served.url, CREDENTIAL, words=("sketch",)))
    assert drawn.told is not None and drawn.sent < 700


def test_embeddings_are_not_shaped_by_the_personal_adapter(base: Base) -> None:
    sent: list[bytes] = []
    for seed in (None, 3):
        with adapters.adapted(base, random_lora(base, seed) if seed else {}), serving_bytes(sent) as url:
            draw(base, Drawing("x", "a dog", 7, SPLIT, embeddings=True), Remote(url, timeout=2))
    assert sent[0] == sent[1] and len(sent[0]) > 1000


@contextmanager
def serving_bytes(kept: list[bytes]) -> Iterator[str]:
    """A server that keeps the body of one request and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            head = dict(
                line.decode().rstrip().lower().split(": ") for line in iter(stream.readline, b"\r\n") if b": " in line
            )
            kept.append(stream.read(int(head["content-length"])))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread.join(5)
    listener.close()


def test_a_run_that_is_too_slow_for_the_device(base: Base, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The real server, busy with somebody else's long run."""
    with serving(write_run(tmp_path_factory.mktemp("slow") / "run"), Limits(max_steps=400)) as slow:
        other = Drawing("x", "long", 1, denoise.Split(400, 390, 2.0))
        busy = threading.Thread(target=lambda: draw_quietly(base, other, Remote(slow.url, CREDENTIAL, timeout=1)))
        busy.start()
        time.sleep(0.2)
        assert "took more than 0.3 seconds" in drawn_here(base, slow.url, timeout=0.3).why
        busy.join()


def draw_quietly(base: Base, drawing: Drawing, remote: Remote) -> None:
    with suppress(Unserved):
        ask(base, drawing, remote)
