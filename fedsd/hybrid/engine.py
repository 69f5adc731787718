"""The early steps on one device: asks to x_mid, with the neutral adapter."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch

from fedsd.base import adapters, denoise
from fedsd.base.load import Base
from fedsd.base.schedulers import WITHOUT_MEMORY, most_steps, scheduler_named, scheduler_sha
from fedsd.hybrid.admission import Offer
from fedsd.hybrid.neutral import Neutral
from fedsd.hybrid.protocol import Ask
from fedsd.lowrank import Array

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Job:
    """An ask that was admitted. text, empty: its embeddings (1, tokens, width), None to encode its prompts.

    patience: seconds after which nobody waits any more.
    """

    ask: Ask
    text: Array | None
    empty: Array | None
    patience: float


@dataclass(frozen=True, eq=False)
class Made:
    """x_mid (1, 4, h, w) float32 with its run: pictures in it, seconds waited and computed."""

    latents: Array
    batch: int
    queued: float
    computed: float


class Engine(Protocol):
    """What the server needs of whoever computes; `parallel`: how many runs it works on at once."""

    parallel: int

    async def start(self) -> Offer:
        """Load the base and say what it is."""

    async def check(self, neutral: Neutral) -> None:
        """Raise ValueError unless the adapter fits the base."""

    async def early(self, job: Job, neutral: Neutral) -> Made:
        """Return x_mid; TimeoutError when the job's patience ends first."""

    def stop(self) -> None:
        """Let go of the base."""


class Denoiser:
    """One copy of the base, carrying one neutral adapter at a time; not for several threads."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self._shapes = adapters.target_shapes(base, convolutions=True)
        self._carried, self._sha = ExitStack(), ""
        self._given_up = threading.Event()

    def offer(self) -> Offer:
        """Say what is computed with."""
        base, text = self.base, self.base.text_encoder.config
        samplers = {name: scheduler_named(base, name) for name in WITHOUT_MEMORY}
        shas = {name: scheduler_sha(sampler) for name, sampler in samplers.items()}
        most = {name: most_steps(sampler) for name, sampler in samplers.items()}
        factor = denoise.pixels_per_latent(base)
        return Offer(base.sha, base.size, factor, shas, most, (text.max_position_embeddings, text.hidden_size))

    def check(self, neutral: Neutral) -> None:
        """Raise ValueError unless the adapter fits the base."""
        adapters.check_fits(self._shapes, neutral.lora)

    def carry(self, neutral: Neutral) -> None:
        """Carry this adapter from now on; ValueError, and the one before stays, when it does not fit the base."""
        if neutral.sha != self._sha:
            self.check(neutral)
            self._carried.close()
            self._sha = ""
            self._carried.enter_context(adapters.adapted(self.base, neutral.lora))
            self._sha = neutral.sha

    def run(self, jobs: Sequence[Job], neutral: Neutral, deadline: float) -> Array:
        """Return x_mid (N, 4, h, w) float32 of jobs that differ in prompt and seed alone.

        deadline: of `time.monotonic`, looked at before every step; TimeoutError when it has passed.
        """
        ask = jobs[0].ask
        self._go_on(deadline)
        self.carry(neutral)
        adapters.set_scale(self.base, ask.mix_loras)
        split = denoise.Split(ask.steps, ask.server_steps, ask.guidance)
        with torch.no_grad():
            x_mid = denoise.early(
                self.base, self._batch(jobs), split, scheduler=scheduler_named(self.base, ask.scheduler), size=ask.size,
                on_step=lambda step, x: self._go_on(deadline),
            )  # fmt: skip
        found: Array = x_mid.float().cpu().numpy()
        if not np.isfinite(found).all():
            raise FloatingPointError(f"x_mid is not finite with the neutral adapter of round {neutral.server_round}")
        return found

    def give_up(self) -> None:
        """End a run under way at its next step, from another thread, and refuse all that follow."""
        self._given_up.set()

    def release(self) -> None:
        """Leave the base as it was."""
        self._carried.close()

    def _go_on(self, deadline: float) -> None:
        if self._given_up.is_set() or time.monotonic() > deadline:
            raise TimeoutError("nobody waits for this run any more")

    def _batch(self, jobs: Sequence[Job]) -> denoise.Batch:
        parts = [self._encoded(job) for job in jobs]
        text, empty = (torch.cat(states) for states in zip(*parts, strict=True))
        return denoise.Batch(text, empty, [job.ask.seed for job in jobs])

    def _encoded(self, job: Job) -> tuple[torch.Tensor, torch.Tensor]:
        if job.text is not None and job.empty is not None:
            sent = (torch.from_numpy(job.text), torch.from_numpy(job.empty))
            text, empty = (states.to(self.base.device, self.base.unet.dtype) for states in sent)
            return text, empty
        batch = denoise.encode_batch(self.base, [job.ask.prompt], [job.ask.seed], job.ask.negative)
        return batch.text, batch.empty


def kind_of(job: Job, neutral: Neutral) -> tuple[object, ...]:
    """Return what jobs must have in common to be run together."""
    ask = job.ask
    return ask.steps, ask.server_steps, ask.guidance, ask.scheduler, ask.size, ask.mix_loras, neutral.sha


class LocalEngine:
    """The base in this process, one run at a time in a thread of its own; load: returns the base."""

    parallel = 1

    def __init__(self, load: Callable[[], Base]) -> None:
        self._load = load
        self._denoiser: Denoiser | None = None
        self._thread = ThreadPoolExecutor(1, "denoise")

    async def start(self) -> Offer:
        """Load the base and say what it is."""
        denoiser = self._denoiser = await self._in_thread(lambda: Denoiser(self._load()))
        return denoiser.offer()

    async def check(self, neutral: Neutral) -> None:
        """Raise ValueError unless the adapter fits the base."""
        self._started().check(neutral)

    async def early(self, job: Job, neutral: Neutral) -> Made:
        """Return x_mid; TimeoutError when the job's patience ends first."""
        asked, denoiser = time.monotonic(), self._started()

        def run() -> Made:
            begun = time.monotonic()
            x_mid = denoiser.run([job], neutral, asked + job.patience)
            return Made(x_mid, 1, begun - asked, time.monotonic() - begun)

        return await self._in_thread(run)

    def stop(self) -> None:
        """Let go of the base; the run under way ends at its next step, and others never begin."""
        if self._denoiser is None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            return
        self._denoiser.give_up()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._denoiser.release()

    def _started(self) -> Denoiser:
        if self._denoiser is None:
            raise RuntimeError("the engine was not started")
        return self._denoiser

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
