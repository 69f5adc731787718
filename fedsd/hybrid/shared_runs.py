"""Each run is made once, however many ask for it, and its result is kept as long as there is room."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fedsd.hybrid.engine import Made


class SharedRuns:
    """Kept x_mid by key, least recently used out first, and the runs under way; max_bytes: of all kept latents."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._kept: OrderedDict[str, Made] = OrderedDict()
        self._running: dict[str, asyncio.Task[Made]] = {}

    async def get(self, key: str, run: Callable[[], Coroutine[Any, Any, Made]]) -> tuple[Made, str]:
        """Return what `run` makes for `key`, and "hit", "joined" or "miss".

        Whoever waits may give up without ending the run for others. A run that fails, fails for all who wait for it,
        and is not kept.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key], "hit"
        how = "joined" if key in self._running else "miss"
        if how == "miss":
            task = asyncio.create_task(run())
            self._running[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        return await _unless_given_up(self._running[key]), how

    def _finished(self, key: str, task: asyncio.Task[Made]) -> None:
        del self._running[key]
        if task.cancelled() or task.exception() is not None:
            return
        self._kept[key] = task.result()
        self.bytes += task.result().latents.nbytes
        while self.bytes > self.max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= oldest.latents.nbytes


async def _unless_given_up(task: asyncio.Task[Made]) -> Made:
    waiting: Awaitable[Made] = asyncio.shield(task)
    return await waiting
