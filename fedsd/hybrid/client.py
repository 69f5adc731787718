"""The device's half: ask the IES for x_mid, finish the picture here, or draw all of it here when the server cannot.

What may leave is checked here, whoever calls: p_gen and the negative prompt, without any registered private word. The
server is not trusted either: its answer must be of the base and the cut that were asked for, finite, and in time.
"""

import json
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import httpx
import numpy as np
import torch

from fedsd.base import adapters, denoise
from fedsd.base.load import Base
from fedsd.base.schedulers import scheduler_named, scheduler_sha
from fedsd.hybrid.protocol import EARLY, TENSORS, Ask, Told, pack, unpack_x_mid
from fedsd.lowrank import Array
from fedsd.privacy.words import held_in

LONGEST_ANSWER = 64 * 2**20  # bytes
DEVICE_ERRORS = (400, 401, 403, 404, 409, 413, 422)  # asking again would not help: the device must mend something


class Unserved(Exception):  # noqa: N818  the device goes on without
    """The server is down, slow, busy or answers nonsense; the text says which."""


@dataclass(frozen=True)
class Remote:
    """An Inference Edge Server. credential: empty for none; ca: certificate to trust; timeout: seconds for one answer.

    words: what must never be sent.
    """

    url: str
    credential: str = field(default="", repr=False)
    ca: Path | None = None
    timeout: float = 30.0
    words: Sequence[str] = field(default=(), repr=False)


@dataclass(frozen=True)
class Drawing:
    """What a device wants to see. prompt: p, which stays here; generic: p_gen, which the server may see.

    mix_loras: scale of the neutral adapter on the server. lora_sha: of the neutral adapter to insist on. embeddings:
    send the base's own text states of p_gen instead of its text.
    """

    prompt: str
    generic: str
    seed: int
    split: denoise.Split
    scheduler: str = "ddim"
    negative: str = ""
    size: int | None = None
    mix_loras: float = 1.0
    encoding: str = "float16"
    lora_sha: str | None = None
    embeddings: bool = False


@dataclass(frozen=True, eq=False)
class Drawn:
    """x_final (1, 4, h, w) and how it came about. told: the server's account, None when all was drawn here because of
    `why`; sent, received: bytes; waited, computed: seconds for the server and for this device.
    """

    latents: torch.Tensor
    told: Told | None
    why: str = ""
    sent: int = 0
    received: int = 0
    waited: float = 0.0
    computed: float = 0.0


def draw(
    base: Base, drawing: Drawing, remote: Remote | None, *, on_step: denoise.OnStep | None = None,
    on_server: Callable[["Answer | Unserved"], None] | None = None,
) -> Drawn:  # fmt: skip
    """Draw with whatever adapter the base carries; without `remote`, or when it cannot serve, all steps are made here.

    on_step: told each of the device's own steps. on_server: told what came of asking the server, once. Raises
    ValueError for what the user has to mend: a private word in what would be sent, a credential, base, sampler or
    adapter that the server does not accept.
    """
    scheduler = scheduler_named(base, drawing.scheduler)
    answer, why, begun = None, "no server was asked", time.monotonic()
    if remote is not None and drawing.split.server_steps > 0:
        try:
            answer = ask(base, drawing, remote)
            came: Answer | Unserved = answer
        except Unserved as unserved:
            came, why = unserved, str(unserved)
        if on_server is not None:
            on_server(came)
    waited, begun = time.monotonic() - begun, time.monotonic()
    split = drawing.split
    with torch.no_grad():
        batch = denoise.encode_batch(base, [drawing.prompt], [drawing.seed], drawing.negative)
        if answer is not None:
            x_mid = torch.from_numpy(answer.x_mid)
        else:
            x_mid = denoise.early(base, batch, split, scheduler=scheduler, size=drawing.size, on_step=on_step)
        latents = denoise.late(base, x_mid, batch, split, scheduler=scheduler, on_step=on_step)
    computed = time.monotonic() - begun
    if answer is None:
        return Drawn(latents, None, why, waited=waited, computed=computed)
    return Drawn(latents, answer.told, "", answer.sent, answer.received, waited, computed)


@dataclass(frozen=True, eq=False)
class Answer:
    """x_mid (1, 4, h, w) float32, what the server says of it, and the bytes of both bodies."""

    x_mid: Array
    told: Told
    sent: int
    received: int


def ask(base: Base, drawing: Drawing, remote: Remote) -> Answer:
    """Return the server's x_mid; Unserved when it cannot, ValueError when the device has to mend something."""
    check_words(drawing, remote.words)
    wanted = compose(base, drawing)
    content, kind = request(base, drawing)
    raw = _post(remote, content, kind)
    side = wanted.size // denoise.pixels_per_latent(base)
    try:
        x_mid, told = unpack_x_mid(raw, (1, int(base.unet.config.in_channels), side, side))
    except ValueError as error:
        raise Unserved(f"its answer cannot be used: {error}") from None
    for what, got, asked in (
        ("base", told.base_sha, wanted.base_sha),
        ("scheduler config", told.scheduler_sha, wanted.scheduler_sha),
        ("neutral adapter", told.lora_sha, wanted.lora_sha or told.lora_sha),
        ("cut", (told.server_steps, told.steps), (wanted.server_steps, wanted.steps)),
    ):
        if got != asked:
            raise Unserved(f"its answer is of another {what} than was asked for")
    return Answer(x_mid, told, len(content), len(raw))


def check_words(drawing: Drawing, words: Sequence[str]) -> None:
    """Raise ValueError when what the server would see holds a registered private word."""
    for what, text in (("generic prompt", drawing.generic), ("negative prompt", drawing.negative)):
        word = held_in(text, words)
        if word is not None:
            raise ValueError(
                f"the {what} holds the private word {word!r}, which must not leave this device; give the server a "
                "prompt without it (--generic), or draw without a server"
            )


def compose(base: Base, drawing: Drawing) -> Ask:
    """Return exactly what the server will read."""
    split = drawing.split
    return Ask.model_validate({
        "prompt": "" if drawing.embeddings else drawing.generic,
        "negative": "" if drawing.embeddings else drawing.negative, "seed": drawing.seed, "steps": split.steps,
        "server_steps": split.server_steps, "guidance": split.guidance, "scheduler": drawing.scheduler,
        "size": drawing.size or base.size, "mix_loras": drawing.mix_loras, "encoding": drawing.encoding,
        "base_sha": base.sha, "scheduler_sha": scheduler_sha(scheduler_named(base, drawing.scheduler)),
        "lora_sha": drawing.lora_sha,
    })  # fmt: skip


def request(base: Base, drawing: Drawing) -> tuple[bytes, str]:
    """Return the bytes that are posted to the server, and their content type."""
    wanted = compose(base, drawing)
    if not drawing.embeddings:
        return wanted.model_dump_json().encode(), "application/json"
    with torch.no_grad(), adapters.bare(base):  # states that the personal adapter shaped would tell of it
        batch = denoise.encode_batch(base, [drawing.generic], [drawing.seed], drawing.negative)
    states = {name: _numpy(states) for name, states in (("text", batch.text), ("empty", batch.empty))}
    return pack(states, wanted, "float32"), TENSORS


def _numpy(states: torch.Tensor) -> Array:
    array: Array = np.ascontiguousarray(states.float().cpu().numpy())
    return array


def _post(remote: Remote, content: bytes, kind: str) -> bytes:
    """Return the body of a 200; Unserved when the whole answer is not there in time."""
    headers = {"Content-Type": kind}
    if remote.credential:
        headers["Authorization"] = f"Bearer {remote.credential}"
    trust = _trust(remote.ca, remote.ca.stat().st_mtime_ns if remote.ca else 0)
    end = time.monotonic() + remote.timeout
    try:
        with (
            httpx.Client(verify=trust, timeout=remote.timeout, trust_env=False) as http,
            http.stream("POST", remote.url.rstrip("/") + EARLY, content=content, headers=headers) as response,
        ):
            body = _read(response, end)
            if response.status_code == 200:
                return body
            raise _refusal(response, body, remote.url)
    except httpx.TimeoutException:
        raise Unserved(_slow(remote)) from None
    except (httpx.TransportError, OSError) as error:
        raise Unserved(f"{remote.url} is down or broke off ({type(error).__name__})") from None


@lru_cache(maxsize=8)
def _trust(ca: Path | None, changed: int) -> ssl.SSLContext:
    """Return which certificates to believe; kept, for reading them costs a device as much as a denoising step.

    changed: when `ca` was written, so that a renewed one is read again.
    """
    return httpx.create_ssl_context(trust_env=False) if ca is None else ssl.create_default_context(cafile=str(ca))


def _read(response: httpx.Response, end: float) -> bytes:
    """Return the body, unless it drips or does not end: httpx limits the wait for each part alone."""
    body = bytearray()
    for part in response.iter_bytes():
        body += part
        if time.monotonic() > end:
            raise httpx.ReadTimeout("the whole answer took too long")
        if len(body) > LONGEST_ANSWER:
            raise Unserved(f"its answer is larger than {LONGEST_ANSWER} bytes")
    return bytes(body)


def _slow(remote: Remote) -> str:
    return f"{remote.url} took more than {remote.timeout:g} seconds"


def _refusal(response: httpx.Response, body: bytes, url: str) -> Exception:
    try:
        said = str(json.loads(body)["error"])[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = "it gave no reason"
    if response.status_code in DEVICE_ERRORS:
        return ValueError(f"{url} refuses ({response.status_code}): {said}")
    if response.status_code == 503:
        again = response.headers.get("retry-after", "?")
        return Unserved(f"{url} is busy (503): {said}; it may be free in {again} s")
    return Unserved(f"{url} failed ({response.status_code}): {said}")
