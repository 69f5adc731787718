import time

import httpx
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import ClientAppException
from local_grid import LocalGrid, context

from fedsd.strategies import exchange as exchange_module
from fedsd.strategies.exchange import Answer, answer, exchange

app = ClientApp()


@app.query()
def echo(message: Message, node) -> Message:
    return Message(RecordDict(), reply_to=message)


def make_grid(nodes: int = 3, **options) -> LocalGrid:
    return LocalGrid(app, {node: context(node) for node in range(nodes)}, **options)


def questions(nodes: int = 3):
    return (Message(RecordDict(), node, "query") for node in range(nodes))


def ask(grid: LocalGrid, timeout: float = 1.0) -> dict[int, Answer]:
    return {found.node_id: found for found in exchange(grid, questions(), timeout, 0.001)}


def test_every_message_gets_one_answer():
    answers = ask(make_grid())
    assert sorted(answers) == [0, 1, 2]
    assert all(found.reply.has_content() and not found.problem for found in answers.values())


def test_answers_come_in_the_order_of_arrival():
    grid = make_grid(latest_first=True)
    assert [found.node_id for found in exchange(grid, questions(), 1.0, 0.001)] == [2, 1, 0]


def test_a_node_that_is_gone_is_named_although_the_server_answers_for_it():
    grid = make_grid()
    grid.unplug(1)
    answers = ask(grid)
    assert answers[1] == Answer(1, None, "the node is not available (Flower error 5)")
    assert answers[0].reply is not None


def test_a_silent_node_is_named_after_the_timeout():
    grid = make_grid()
    grid.silent.add(2)
    began = time.monotonic()
    answers = ask(grid, timeout=0.05)
    assert 0.04 < time.monotonic() - began < 2
    assert answers[2] == Answer(2, None, "no reply within 0.05 s")


@pytest.mark.parametrize("refusal", [[], [None]])
def test_a_message_that_the_grid_refuses_is_a_problem_of_its_node(refusal):
    class Refusing(LocalGrid):
        def push_messages(self, messages):
            (message,) = messages
            return refusal if message.metadata.dst_node_id == 1 else super().push_messages([message])

    grid = Refusing(app, {node: context(node) for node in range(3)})
    assert ask(grid)[1].problem == "its message could not be sent; the node may be gone"


def test_a_reply_that_flower_cannot_decode_is_a_problem_of_its_node():
    class Torn(LocalGrid):
        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            if replies and replies[0].metadata.src_node_id == 0:
                raise ValueError("Unexpected set of `children`")
            return replies

    answers = ask(Torn(app, {node: context(node) for node in range(3)}))
    assert answers[0] == Answer(0, None, "its reply could not be read: Unexpected set of `children`")
    assert answers[1].reply is not None


@pytest.mark.parametrize("call", ["push_messages", "pull_messages"])
def test_a_call_that_a_busy_superlink_fails_is_tried_again(call, monkeypatch):
    monkeypatch.setattr(exchange_module, "WAITS", (0.0, 0.0))
    failures = iter([True, True])

    class Busy(LocalGrid):
        def _fail(self, name):
            if name == call and next(failures, False):
                raise httpx.ReadError("database is locked")

        def push_messages(self, messages):
            self._fail("push_messages")
            return super().push_messages(messages)

        def pull_messages(self, message_ids):
            self._fail("pull_messages")
            return super().pull_messages(message_ids)

    answers = ask(Busy(app, {node: context(node) for node in range(3)}))
    assert all(found.reply is not None for found in answers.values())


def test_a_superlink_that_keeps_failing_is_a_problem_of_that_reply(monkeypatch):
    monkeypatch.setattr(exchange_module, "WAITS", (0.0,))

    class Down(LocalGrid):
        def pull_messages(self, message_ids):
            raise httpx.ConnectError("connection refused")

    answers = ask(Down(app, {node: context(node) for node in range(3)}))
    assert {found.problem for found in answers.values()} == {"its reply could not be read: connection refused"}


def test_messages_are_built_one_at_a_time():
    built = []
    grid = make_grid()

    def counted():
        for message in questions():
            assert len(grid.asked) == len(built)
            built.append(message)
            yield message

    assert len(list(exchange(grid, counted(), 1.0, 0.001))) == 3


def test_a_long_traceback_becomes_its_last_line():
    make_grid()
    question = Message(RecordDict(), 4, "query")
    reply = Message(Error(2, "Traceback\n  File ...\nValueError: rank 0 \n"), reply_to=question)
    assert answer(reply, 4) == Answer(4, None, "ValueError: rank 0 (Flower error 2)")
    assert answer(Message(Error(0), reply_to=question), 4).problem == "no reason given (Flower error 0)"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ClientAppException("a/b.png: truncated: copy it again"), "a/b.png: truncated: copy it again"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (MemoryError("first\nlast"), "last"),
    ],
)
def test_an_exception_is_reported_without_flowers_wrapping(error, words):
    """The reason as flwr 1.41 writes it, of its simulation (ClientAppException) and of its SuperNode."""
    make_grid()
    question = Message(RecordDict(), 4, "query")
    names = [str(type(error))]
    if isinstance(error, ClientAppException):
        names.append("<class 'ray.exceptions.RayTaskError(ClientAppException)'>")  # Ray raises a class of its own
    for name in names:
        reason = f"{name}:<'{error}'>"
        assert answer(Message(Error(2, reason), reply_to=question), 4).problem == f"{words} (Flower error 2)"
