"""What cutting a picture's run in two costs and saves: the hand-off's error, and the device's time against FLOPs."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
from serving import Server
from torch.utils.flop_counter import FlopCounterMode

from fedsd.base import adapters, denoise
from fedsd.base.load import Base
from fedsd.base.schedulers import WITHOUT_MEMORY, scheduler_named
from fedsd.hybrid.client import Drawing, Drawn, Remote, draw
from fedsd.lowrank import LoRA

GENERIC, OWN, GUIDANCE = "a dog", "a dog by my lake", 3.0


@dataclass(frozen=True, eq=False)
class Pair:
    """A device's base, the adapter of each half, and the server that has the neutral one."""

    base: Base
    neutral: LoRA
    personal: LoRA
    server: Server

    @property
    def remote(self) -> Remote:
        """The server as a device sees it."""
        return Remote(self.server.url, timeout=300)

    def carried(self) -> AbstractContextManager[None]:
        """The device with its personal adapter."""
        return adapters.adapted(self.base, self.personal)


def drawing(seed: int, steps: int, server_steps: int) -> Drawing:
    """Return what the devices of this benchmark want to see."""
    return Drawing(OWN, GENERIC, seed, denoise.Split(steps, server_steps, GUIDANCE))


def handoff_errors(pair: Pair, steps: int, cuts: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Return the largest ||x - x_uncut|| / ||x_uncut|| over the cuts, by sampler and encoding of x_mid."""
    errors: dict[str, dict[str, float]] = {}
    for name in WITHOUT_MEMORY:
        errors[name] = {"float32": 0.0, "float16": 0.0}
        for cut in cuts:
            wanted = replace(drawing(7, steps, cut), scheduler=name)
            reference = _uncut(pair, wanted)
            for encoding in errors[name]:
                with pair.carried():
                    drawn = _served(draw(pair.base, replace(wanted, encoding=encoding), pair.remote))
                error = float((drawn.latents - reference).norm() / reference.norm())
                errors[name][encoding] = max(errors[name][encoding], error)
    return errors


def _uncut(pair: Pair, wanted: Drawing) -> torch.Tensor:
    """Both halves in this process, nothing sent."""
    base, split, seeds = pair.base, wanted.split, [wanted.seed]
    scheduler = scheduler_named(base, wanted.scheduler)
    with torch.no_grad():
        with adapters.adapted(base, pair.neutral):
            batch = denoise.encode_batch(base, [wanted.generic], seeds)
            x_mid = denoise.early(base, batch, split, scheduler=scheduler)
        with pair.carried():
            batch = denoise.encode_batch(base, [wanted.prompt], seeds)
            return denoise.late(base, x_mid, batch, split, scheduler=scheduler)


def _served(drawn: Drawn) -> Drawn:
    if drawn.told is None:
        raise SystemExit(f"the server did not answer: {drawn.why}")
    return drawn


@dataclass(frozen=True)
class Saving:
    """At one split, of all that the device computes for a picture: share of FLOPs and of its time that is saved.

    low, high: quartiles of `time` over pairs of pictures drawn one after the other.
    """

    flops: float
    time: float
    low: float
    high: float


def savings(pair: Pair, steps: int, splits: tuple[float, ...], repeats: int) -> dict[float, Saving]:
    """Draw with and without the server in turns, each picture with a seed of its own, and compare.

    The time is that of the device's process, with its text encoder, autoencoder and the asking, at its least over the
    repeats: whatever else runs on the machine only ever adds to it.
    """
    cuts = {0.0: 0} | {split: round(split * steps) for split in splits}
    with pair.carried():
        flops = {split: _flops(lambda cut=cut: _picture(pair, steps, cut, 0)) for split, cut in cuts.items()}
        seconds: dict[float, list[float]] = {split: [] for split in cuts}
        for repeat in range(repeats):
            for split, cut in cuts.items():
                seconds[split].append(_picture(pair, steps, cut, 1 + repeat))
    whole = np.array(seconds[0.0])
    found = {}
    for split in splits:
        low, high = np.quantile(1 - np.array(seconds[split]) / whole, (0.25, 0.75))
        time_saved = 1 - min(seconds[split]) / min(whole)
        found[split] = Saving(1 - flops[split] / flops[0.0], time_saved, float(low), float(high))
    return found


def _picture(pair: Pair, steps: int, server_steps: int, seed: int) -> float:
    """Draw and decode one picture; return the device's own seconds: of CPU, or without the wait where it has a GPU."""
    clock: Callable[[], float] = time.process_time if pair.base.device.type == "cpu" else time.monotonic
    begun = clock()
    drawn = draw(pair.base, drawing(seed, steps, server_steps), pair.remote if server_steps else None)
    denoise.decode_latents(pair.base, drawn.latents)
    seconds = clock() - begun
    if server_steps:
        _served(drawn)
    return seconds if pair.base.device.type == "cpu" else seconds - drawn.waited


def _flops(work: Callable[[], object]) -> float:
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return float(counter.get_total_flops())
