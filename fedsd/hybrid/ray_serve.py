"""The IES on Ray Serve: an ingress with the application, its cache and its queue, and replicas that denoise in batches.

Ray's own ports have no credentials: only the ingress' may be reached by others.
"""

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayTaskError

from fedsd.base import load
from fedsd.hybrid.admission import Limits, Offer
from fedsd.hybrid.engine import Denoiser, Job, Made, kind_of
from fedsd.hybrid.local import Address
from fedsd.hybrid.neutral import Neutral
from fedsd.hybrid.server import build_app, log_to_stderr
from fedsd.hybrid.service import trace_of

NAME = "fedsd-ies"
MAX_BATCH = 8
BATCH_WAIT = 0.02  # seconds that a job waits for others to join its batch
MOST_WAITING = 10_000  # requests at the ingress; the application bounds the runs, and those who share one cost nothing


_batched: Any = serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT)


class Replica:
    """One copy of the base on one device."""

    def __init__(self, base_name: str) -> None:
        self._denoiser = Denoiser(load.load(base_name))

    def offer(self) -> Offer:
        """Say what is computed with."""
        return self._denoiser.offer()

    def check(self, neutral: Neutral) -> None:
        """Raise ValueError unless the adapter fits the base."""
        self._denoiser.check(neutral)

    @_batched
    async def early(self, jobs: list[Job], neutrals: list[Neutral]) -> list[Made | Exception]:
        """Return for each job its x_mid, or why there is none; those of one kind are run together."""
        kinds: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for i, (job, neutral) in enumerate(zip(jobs, neutrals, strict=True)):
            kinds[kind_of(job, neutral)].append(i)
        found: dict[int, Made | Exception] = {}
        for places in kinds.values():
            made = await asyncio.to_thread(self._run, [jobs[i] for i in places], neutrals[places[0]])
            found |= zip(places, made, strict=True)
        return [found[i] for i in range(len(jobs))]

    def _run(self, jobs: Sequence[Job], neutral: Neutral) -> Sequence[Made | Exception]:
        begun = time.monotonic()
        try:
            x_mid = self._denoiser.run(jobs, neutral, begun + max(job.patience for job in jobs))
        except (TimeoutError, FloatingPointError) as error:
            return [error] * len(jobs)
        except Exception as error:  # Ray logs what comes back, and its text may be a prompt
            return [RuntimeError(trace_of(error))] * len(jobs)
        seconds = time.monotonic() - begun
        return [Made(x_mid[i : i + 1], len(jobs), 0.0, seconds) for i in range(len(jobs))]


class RayEngine:
    """Replicas behind a Serve handle."""

    def __init__(self, replicas: int) -> None:
        self.parallel = replicas * MAX_BATCH
        self._sent: tuple[str, Any] = ("", None)  # the neutral adapter in Ray's object store, by its sha

    async def start(self) -> Offer:
        """Say what the replicas compute with, once they do."""
        self._replicas: Any = serve.get_deployment_handle("Denoiser", NAME)
        offer: Offer = await self._replicas.offer.remote()
        return offer

    async def check(self, neutral: Neutral) -> None:
        """Raise ValueError unless the adapter fits the base."""
        await _told(self._replicas.check.remote(self._stored(neutral)))

    async def early(self, job: Job, neutral: Neutral) -> Made:
        """Return x_mid; TimeoutError when the job's patience ends first."""
        asked = time.monotonic()
        made: Made = await _told(self._replicas.early.remote(job, self._stored(neutral)))
        return replace(made, queued=max(0.0, time.monotonic() - asked - made.computed))

    def stop(self) -> None:
        """Nothing: Serve ends its replicas itself."""

    def _stored(self, neutral: Neutral) -> Any:
        """Return a reference to the adapter, which is sent to each machine once and not with every job."""
        if self._sent[0] != neutral.sha:
            self._sent = (neutral.sha, ray.put(neutral))
        return self._sent[1]


async def _told(answer: Any) -> Any:
    try:
        return await answer
    except RayTaskError as error:
        raise error.cause from None


def serve_ray(
    base_name: str, folder: Path, credentials: Sequence[str], limits: Limits, address: Address, replicas: int,
    listening: Callable[[str], None],
) -> None:  # fmt: skip
    """Serve until SIGINT or SIGTERM, on Ray's cluster of RAY_ADDRESS, or else on one of this process's own."""

    def build() -> FastAPI:
        log_to_stderr()
        return build_app(RayEngine(replicas), folder, credentials, limits)

    port = address.port or _free_port(address.host)
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 is for batch jobs; here somebody waits
    ray.init(
        address=os.environ.get("RAY_ADDRESS", "local"), include_dashboard=False, log_to_driver=False,
        logging_level=logging.WARNING,
    )  # fmt: skip
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # after Ray has set its own
        signal.signal(number, lambda *_: over.set())
    try:
        serve.start(http_options=_http(address, port, limits), logging_config={"enable_access_log": False})
        denoisers = _deployed(
            Replica, name="Denoiser", num_replicas=replicas, max_ongoing_requests=2 * MAX_BATCH,
            ray_actor_options=_resources(),
        )  # fmt: skip
        ingress = _deployed(
            serve.ingress(build)(), name="Ingress", max_ongoing_requests=MOST_WAITING, ray_actor_options={"num_cpus": 0}
        )
        serve.run(ingress.bind(denoisers.bind(base_name)), name=NAME, route_prefix="/")
        listening(address.url(port))
        over.wait()
        serve.shutdown()
    finally:
        ray.shutdown()


def _deployed(what: Any, **options: Any) -> Any:
    return serve.deployment(what, logging_config={"enable_access_log": False}, **options)


def _http(address: Address, port: int, limits: Limits) -> dict[str, Any]:
    tls = {"ssl_certfile": str(address.certificate), "ssl_keyfile": str(address.key)} if address.certificate else {}
    return {"host": address.host, "port": port, "request_timeout_s": limits.timeout + 5, **tls}


def _resources() -> dict[str, float]:
    """A GPU for each replica where the machine has one."""
    return {"num_cpus": 1, "num_gpus": 1 if load.default_device().type == "cuda" else 0}


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])
