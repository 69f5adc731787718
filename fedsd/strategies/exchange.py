"""Messages to nodes and their answers, one at a time, so that a round never holds more than one reply undecoded.

Built on the grid's push_messages and pull_messages alone: send_and_receive returns all replies together, and nothing
for a node that stays silent.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from fedsd.wire import Update, parse_update

LOG = logging.getLogger("flwr.fedsd")
RAISED = re.compile(r"<class '(?:\w+\.)*([^']+)'>:<'(.*)'>", re.DOTALL)  # how Flower reports an exception of the app
SIMULATED = "Exception ClientAppException occurred. Message: "  # what its simulation puts before the exception's words
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between the tries of a call that the SuperLink itself fails

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What became of the message to one node: a reply that carries content, or the problem in words.

    delay: seconds from the reply's making, by the node's clock, to its arrival, by this one's.
    """

    node_id: int
    reply: Message | None
    problem: str = ""
    delay: float = 0.0


def exchange(grid: Grid, messages: Iterable[Message], timeout: float, poll: float) -> Iterator[Answer]:
    """One answer for each message, as they arrive; after `timeout` seconds the silent nodes' are problems.

    messages: built one by one, as they are sent; poll: seconds between two looks at the grid when nothing is new.
    """
    waiting: dict[str, int] = {}
    for message in messages:
        # some grids return fewer ids than messages, others None in place of one: alone, each is certain
        ids = list(patiently(partial(grid.push_messages, [message])))
        if ids and ids[0]:
            waiting[ids[0]] = message.metadata.dst_node_id
        else:
            yield Answer(message.metadata.dst_node_id, None, "its message could not be sent; the node may be gone")
    deadline = time.monotonic() + timeout
    while waiting:
        late = time.monotonic() >= deadline
        arrived = 0
        for message_id, node_id in list(waiting.items()):
            if (found := _pull(grid, message_id, node_id)) is not None:
                del waiting[message_id]
                arrived += 1
                yield found
        if late:
            break
        if waiting and not arrived:
            time.sleep(poll)
    for node_id in waiting.values():
        yield Answer(node_id, None, f"no reply within {timeout:g} s")


def answer(reply: Message, node_id: int) -> Answer:
    """A reply as an answer; an error that it carries becomes the problem."""
    if not reply.has_error():
        return Answer(node_id, reply, delay=time.time() - reply.metadata.created_at)
    return Answer(node_id, None, f"{_in_words(reply.error.reason or '')[:300]} (Flower error {reply.error.code})")


def _in_words(reason: str) -> str:
    """The last line of an error's reason, without what Flower wraps around the exception's own words."""
    if raised := RAISED.fullmatch(reason.strip()):
        name, words = raised.groups()
        _, simulated, own = words.rpartition(SIMULATED)  # after Ray's traceback
        reason = own if simulated else f"{name}: {words}"
    return (reason.strip() or "no reason given").splitlines()[-1].strip()


def patiently(call: Callable[[], T]) -> T:
    """What `call` returns, tried again while the SuperLink fails: a busy one answers 500, "database is locked"."""
    for wait in WAITS:
        try:
            return call()
        except httpx.HTTPError as error:
            LOG.warning("the SuperLink fails, next try in %g s: %s", wait, str(error).partition("\n")[0])
            time.sleep(wait)
    return call()


def _pull(grid: Grid, message_id: str, node_id: int) -> Answer | None:
    try:
        replies = list(patiently(partial(grid.pull_messages, [message_id])))
    # a reply that Flower itself cannot decode raises here; it must cost that node its turn, not everybody the run
    except Exception as error:
        return Answer(node_id, None, f"its reply could not be read: {error}")
    return answer(replies[0], node_id) if replies else None


def update_of(found: Answer, client: str, method: str) -> Update:
    """The update in an answer; ValueError with the problem, or when the node answers as another client than it is, or
    with another method than it trains.
    """
    if found.reply is None:
        raise ValueError(found.problem)
    update = parse_update(found.reply)
    if update.client != client:
        raise ValueError(f"it answers as {update.client}; a node must keep its client id for the whole run")
    if update.method != method:
        raise ValueError(f"it trained {update.method!r} and said {method!r}; restart it, and it says what it trains")
    return update
