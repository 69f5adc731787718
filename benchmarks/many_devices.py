"""One server and many devices: what a shared latent costs, how much it bears, what becomes of those it refuses."""

import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from serving import Server
from split_cost import OWN, Pair, drawing

from fedsd.base import denoise
from fedsd.base.load import Base
from fedsd.hybrid.client import Drawn, compose, draw

BUSY = re.compile(r"is busy \(503\): .*; it may be free in \d+ s$")


def ask_of(base: Base, seed: int, steps: int, server_steps: int) -> bytes:
    """Return the body of a request."""
    return compose(base, drawing(seed, steps, server_steps)).model_dump_json().encode()


@dataclass(frozen=True)
class Cost:
    """Of N users of one shared latent: seconds of denoising, and CPU seconds of all the server does, per user."""

    denoising: float
    cpu: float


def cost_per_user(
    base: Base, server: Server, steps: int, server_steps: int, users: Sequence[int], repeats: int
) -> dict[int, Cost]:
    """Return what the server's /metrics say of N users who ask for one x_mid at once, by N; the median of repeats."""
    found: dict[int, list[Cost]] = {n: [] for n in users}
    server.burst([ask_of(base, 10**6, steps, server_steps)])  # warm
    for repeat in range(repeats):
        for n in users:
            before = server.metrics()
            body = ask_of(base, 10**6 + 1000 * (1 + repeat) + n, steps, server_steps)
            answers, _ = server.burst([body] * n)
            spent = {name: value - before.get(name, 0.0) for name, value in server.metrics().items()}
            if any(answer.status != 200 for answer in answers) or spent["fedsd_ies_runs_total"] != 1:
                raise SystemExit(f"{n} users of one latent cost {spent['fedsd_ies_runs_total']:g} runs instead of one")
            cpu = spent.get("process_cpu_seconds_total", float("nan"))
            found[n].append(Cost(spent["fedsd_ies_compute_seconds_sum"] / n, cpu / n))
    return {
        n: Cost(float(np.median([c.denoising for c in costs])), float(np.median([c.cpu for c in costs])))
        for n, costs in found.items()
    }


@dataclass(frozen=True)
class Load:
    """Answers of 200 a second, the 95th percentile of their seconds, how many were others, and bytes of a request."""

    rate: float
    p95: float
    refused: int
    sent: float
    received: float


def load(base: Base, server: Server, requests: int, steps: int, server_steps: int, repeats: int) -> Load:
    """Send `requests` asks at once, none like another, and take the median of the repeats."""
    rounds = []
    for repeat in range(repeats):
        first = 2 * 10**6 + repeat * requests
        bodies = [ask_of(base, first + i, steps, server_steps) for i in range(requests)]
        answers, seconds = server.burst(bodies)
        good = [answer for answer in answers if answer.status == 200]
        p95 = float(np.quantile([answer.seconds for answer in good], 0.95))
        sizes = [np.mean([getattr(answer, side) for answer in good]) for side in ("sent", "received")]
        rounds.append((len(good) / seconds, p95, len(answers) - len(good), *sizes))
    rate, p95, _, sent, received = np.median(np.array(rounds), axis=0)
    return Load(float(rate), float(p95), sum(one[2] for one in rounds), float(sent), float(received))


def overload(pair: Pair, requests: int, steps: int, server_steps: int) -> Counter[str]:
    """Let `requests` devices draw at once, and count how they got their picture: "served", "alone" or "lost".

    alone: told 503 with a time to come back, and drawn on the device. lost: anything else, or no finite picture.
    """
    denoise.tokenize(pair.base, [OWN])  # takes its settings at its first use, which is not for several threads
    start = threading.Barrier(requests)

    def device(i: int) -> str:
        start.wait()
        try:
            return _outcome(draw(pair.base, drawing(3 * 10**6 + i, steps, server_steps), pair.remote))
        except Exception as error:
            print(f"device {i}: {error!r}", flush=True)
            return "lost"

    with pair.carried(), ThreadPoolExecutor(requests) as devices:
        return Counter(devices.map(device, range(requests)))


def _outcome(drawn: Drawn) -> str:
    if not torch.isfinite(drawn.latents).all() or not (drawn.told or BUSY.search(drawn.why)):
        print(f"lost: {drawn.why}", flush=True)
        return "lost"
    return "served" if drawn.told else "alone"


def images_per_second(pair: Pair, devices: int, steps: int, server_steps: int) -> float:
    """Return how many pictures a second N devices finish from one shared x_mid, one server and N threads here.

    server_steps 0: without the server. The devices share this process and its one GPU or core.
    """

    def device(i: int) -> None:
        wanted = drawing(4 * 10**6 + devices * 100 + server_steps, steps, server_steps)
        own = replace(wanted, prompt=f"{OWN}, number {i}")
        drawn = draw(pair.base, own, pair.remote if server_steps else None)
        denoise.decode_latents(pair.base, drawn.latents)

    denoise.tokenize(pair.base, [OWN])
    with pair.carried(), ThreadPoolExecutor(devices) as threads:
        begun = time.monotonic()
        list(threads.map(device, range(devices)))
        return devices / (time.monotonic() - begun)
