import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from fedsd.hybrid.engine import Made
from fedsd.hybrid.shared_runs import SharedRuns

SIZE = 4 * 8 * 8 * 4  # bytes of one x_mid


class Runs:
    """Runs that wait until they are let go, and are counted."""

    def __init__(self) -> None:
        self.begun, self.go, self.error = 0, asyncio.Event(), False

    def of(self, value: float) -> Callable[[], Coroutine[Any, Any, Made]]:
        async def run() -> Made:
            self.begun += 1
            await self.go.wait()
            if self.error:
                raise FloatingPointError("not finite")
            return Made(np.full((1, 4, 8, 8), value, np.float32), 1, 0.0, 0.1)

        return run


def test_many_who_ask_the_same_at_once_cost_one_run() -> None:
    async def scene() -> None:
        shared, runs = SharedRuns(10 * SIZE), Runs()
        asking = [asyncio.create_task(shared.get("a", runs.of(1))) for _ in range(64)]
        await asyncio.sleep(0)
        runs.go.set()
        answers = await asyncio.gather(*asking)
        assert runs.begun == 1 and [how for _, how in answers] == ["miss"] + ["joined"] * 63
        assert all(made is answers[0][0] for made, _ in answers)
        again, how = await shared.get("a", runs.of(2))
        assert how == "hit" and again is answers[0][0] and runs.begun == 1

    asyncio.run(scene())


def test_the_least_recently_used_goes_first() -> None:
    async def scene() -> list[str]:
        shared, runs = SharedRuns(2 * SIZE), Runs()
        runs.go.set()
        for key in ("a", "b", "a", "c"):
            await shared.get(key, runs.of(1))
        assert shared.bytes == 2 * SIZE
        return [(await shared.get(key, runs.of(1)))[1] for key in ("a", "c", "b")]

    assert asyncio.run(scene()) == ["hit", "hit", "miss"]


def test_a_failed_run_fails_for_all_who_wait_and_is_not_kept() -> None:
    async def scene() -> None:
        shared, runs = SharedRuns(10 * SIZE), Runs()
        runs.error = True
        asking = [asyncio.create_task(shared.get("a", runs.of(1))) for _ in range(3)]
        await asyncio.sleep(0)
        runs.go.set()
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(answer) for answer in answers] == [FloatingPointError] * 3
        runs.error = False
        assert (await shared.get("a", runs.of(1)))[1] == "miss"

    asyncio.run(scene())


def test_who_gives_up_does_not_end_the_run_for_others() -> None:
    async def scene() -> None:
        shared, runs = SharedRuns(10 * SIZE), Runs()
        first = asyncio.create_task(shared.get("a", runs.of(1)))
        await asyncio.sleep(0)
        second = asyncio.create_task(shared.get("a", runs.of(1)))
        await asyncio.sleep(0)
        first.cancel()
        runs.go.set()
        assert (await second)[1] == "joined" and runs.begun == 1
        with pytest.raises(asyncio.CancelledError):
            await first

    asyncio.run(scene())
