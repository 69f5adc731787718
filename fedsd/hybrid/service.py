"""What the IES does with an ask: admission, one run for all who ask the same, and which adapter it is made with."""

import asyncio
import hashlib
import logging
import math
import traceback
from pathlib import Path

from fedsd.hybrid.admission import Limits, Offer, Refused, check
from fedsd.hybrid.engine import Engine, Job, Made
from fedsd.hybrid.meters import Meters
from fedsd.hybrid.neutral import Neutral, Source, latest_source, load_neutral
from fedsd.hybrid.protocol import TENSORS, Ask, Told, pack, parse_ask, unpack_ask
from fedsd.hybrid.shared_runs import SharedRuns
from fedsd.lowrank import Array

LOG = logging.getLogger("fedsd.ies")
LOOK_EVERY = 2.0  # seconds between looks for a new round


class Service:
    """One Inference Edge Server: an engine, the run folder whose neutral adapter it carries, and its limits."""

    def __init__(self, engine: Engine, folder: Path, limits: Limits) -> None:
        self.engine, self.folder, self.limits = engine, folder, limits
        self.meters = Meters()
        self.offer: Offer | None = None
        self.neutral: Neutral | None = None
        self.trouble = "the base is being loaded"
        self._seen: Source | None = None  # the last adapter looked at
        self._shared = SharedRuns(limits.cache)
        self._under_way, self._seconds = 0, 1.0  # of a run, a running mean

    async def keep_ready(self) -> None:
        """Load the base, then take up each new neutral adapter, until cancelled."""
        self.offer = await self.engine.start()
        self.trouble = f"{self.folder} has no complete round yet"
        while True:
            await self.look_for_adapter()
            await asyncio.sleep(LOOK_EVERY)

    async def look_for_adapter(self) -> None:
        """Carry the neutral adapter of a new round, or one newly neutralised, from now on; runs under way finish with
        theirs.

        An adapter that cannot be used is passed over: the one before stays.
        """
        source = await asyncio.to_thread(latest_source, self.folder)
        if source is None or source == self._seen:
            return
        self._seen, latest = source, source.server_round
        try:
            found = await asyncio.to_thread(load_neutral, self.folder, latest)
            await self.engine.check(found)
        except ValueError as error:
            self.trouble = f"the neutral adapter of round {latest} cannot be used: {error}"
            self.meters.swaps.labels("refused").inc()
            LOG.warning(self.trouble)
            return
        self.neutral = found
        self.meters.swaps.labels("taken").inc()
        self.meters.adapter_round.set(latest)
        LOG.info("neutral adapter of round %d, sha %s", latest, found.sha[:12])

    def ready(self) -> tuple[Offer, Neutral]:
        """Return what is computed with; Refused (503) before there is both a base and an adapter."""
        if self.offer is None or self.neutral is None:
            raise Refused(503, f"not ready: {self.trouble}", retry_after=math.ceil(LOOK_EVERY))
        return self.offer, self.neutral

    async def answer(self, body: bytes, content_type: str) -> bytes:
        """Return the answer to a request's body; raises Refused."""
        offer, neutral = self.ready()
        text: Array | None = None
        empty: Array | None = None
        try:
            if content_type == TENSORS:
                ask, text, empty = unpack_ask(body, (1, *offer.text_shape))
            else:
                ask = parse_ask(body)
        except ValueError as error:
            raise Refused(422, str(error)) from None
        if text is not None and (ask.prompt or ask.negative):
            raise Refused(422, "a request with embeddings must leave prompt and negative empty")
        check(ask, offer, self.limits, neutral.sha)
        job = Job(ask, text, empty, self.limits.timeout)
        made, cache = await self._made(_key(job, neutral), job, neutral)
        self.meters.asks.labels(cache).inc()
        return self._packed(ask, made, neutral, cache)

    async def _made(self, key: str, job: Job, neutral: Neutral) -> tuple[Made, str]:
        try:
            return await self._shared.get(key, lambda: self._run(job, neutral))
        except TimeoutError:
            raise Refused(504, f"the run took more than {self.limits.timeout:g} seconds; ask for fewer steps") from None
        except FloatingPointError as error:
            raise Refused(500, str(error)) from None
        finally:
            self.meters.cached.set(self._shared.bytes)

    async def _run(self, job: Job, neutral: Neutral) -> Made:
        """Make x_mid, unless as many runs wait as may."""
        parallel = self.engine.parallel
        if self._under_way >= self.limits.queue + parallel:
            self.meters.runs.labels("busy").inc()
            wait = math.ceil(self._under_way / parallel * self._seconds)
            raise Refused(503, f"{self._under_way} runs are waiting already", retry_after=max(1, wait))
        self._under_way += 1
        self.meters.under_way.set(self._under_way)
        outcome = "failed"
        try:
            made = await self.engine.early(job, neutral)
            outcome = "done"
        except TimeoutError:
            outcome = "too slow"
            raise
        finally:
            self._under_way -= 1
            self.meters.under_way.set(self._under_way)
            self.meters.runs.labels(outcome).inc()
        self._count(job.ask, made)
        return made

    def _count(self, ask: Ask, made: Made) -> None:
        self._seconds += 0.2 * (made.computed - self._seconds)
        self.meters.steps.inc(ask.server_steps)
        self.meters.queue.observe(made.queued)
        self.meters.compute.observe(made.computed)
        self.meters.batch.observe(made.batch)

    def _packed(self, ask: Ask, made: Made, neutral: Neutral, cache: str) -> bytes:
        told = Told.model_validate({
            "base_sha": ask.base_sha, "scheduler_sha": ask.scheduler_sha, "lora_sha": neutral.sha,
            "server_round": neutral.server_round, "steps": ask.steps, "server_steps": ask.server_steps, "cache": cache,
            "batch": made.batch, "ms_queue": 1000 * made.queued, "ms_compute": 1000 * made.computed,
        })  # fmt: skip
        return pack({"x_mid": made.latents}, told, ask.encoding)


def _key(job: Job, neutral: Neutral) -> str:
    """Return the SHA-256 of all that x_mid depends on."""
    plain = job.ask.model_copy(update={"encoding": "float32", "lora_sha": neutral.sha})
    digest = hashlib.sha256(plain.model_dump_json().encode())
    for states in (job.text, job.empty):
        digest.update(b"" if states is None else states.tobytes())
    return digest.hexdigest()


def trace_of(error: BaseException) -> str:
    """Return the type of an error and the lines it came through, without its text, which may hold a prompt."""
    return "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__
