import threading
import time
from collections.abc import Callable

import pytest

from fedsd.cli.ui.watched import watched


def test_the_last_that_is_told_is_never_lost() -> None:
    def work(tell: Callable[[int], None]) -> None:
        for number in range(1, 1001):
            tell(number)

    seen = list(watched(work))
    assert seen[-1] == 1000 and seen == sorted(seen)


def test_what_stands_is_told_again_while_nothing_new_comes() -> None:
    go_on = threading.Event()

    def work(tell: Callable[[str], None]) -> None:
        tell("asking")
        go_on.wait(20)

    watching = watched(work)
    assert [next(watching), next(watching)] == ["asking", "asking"]
    go_on.set()
    assert set(watching) <= {"asking"}


def test_an_error_of_the_work_is_raised_to_whoever_watches() -> None:
    def work(tell: Callable[[str], None]) -> None:
        tell("begun")
        raise ValueError("no such adapter")

    with pytest.raises(ValueError, match="no such adapter"):
        list(watched(work))


def test_work_that_nobody_watches_ends_at_its_next_word() -> None:
    ended = threading.Event()

    def work(tell: Callable[[int], None]) -> None:
        try:
            for number in range(10_000):
                tell(number + 1)
                time.sleep(0.01)
        finally:
            ended.set()

    watching = watched(work)
    next(watching)
    watching.close()
    assert ended.wait(5)
