"""Work in a thread, watched from a generator."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")
BEAT = 0.25  # seconds


class Stopped(Exception):  # noqa: N818  nobody watches any more
    """Ends work that nobody watches."""


def watched(work: Callable[[Callable[[T], None]], None]) -> Iterator[T]:
    """Run `work(tell)` in a thread; yield the latest that it told, the same again every BEAT seconds, and the last.

    What it raises is raised here. When the generator is closed, the next `tell` raises Stopped and so ends the work.
    """
    told: SimpleQueue[T | None] = SimpleQueue()
    gone = threading.Event()

    def tell(item: T) -> None:
        if gone.is_set():
            raise Stopped
        told.put(item)

    pool = ThreadPoolExecutor(1)
    running = pool.submit(work, tell)
    running.add_done_callback(lambda _: told.put(None))  # wakes whoever waits
    item: T | None = None
    try:
        while not (running.done() and told.empty()):
            item = _latest(told, item)
            if item is not None:
                yield item
        running.result()
    finally:
        gone.set()
        pool.shutdown(wait=False)


def _latest(told: "SimpleQueue[T | None]", item: T | None) -> T | None:
    """Return the last of what was told since, or `item` when nothing was for a while."""
    try:
        item = told.get(timeout=BEAT) or item
        while True:
            item = told.get_nowait() or item
    except Empty:
        return item
