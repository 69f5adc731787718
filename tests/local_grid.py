"""A Flower grid in one process: real ClientApps, real messages, no Ray and no server.

Every message travels as bytes, through the code that Flower itself uses between server and nodes, and those bytes are
kept. Needs two things inside Flower (checked with 1.41): the identity that a process has in a run, and the inflation of
objects.
"""

from collections.abc import Iterable, Mapping
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SERVER = 1  # Flower's node id of the server: the source of every error about a node that is gone
NODE_UNAVAILABLE = 5
CLIENT_APP_RAISED = 2


class LocalGrid(Grid):
    """Nodes are ids with a Context each; all run `app`.

    latest_first: replies are handed out in the reverse order of sending, one for each look.
    """

    def __init__(self, app: ClientApp, contexts: Mapping[int, Context], *, latest_first: bool = False) -> None:
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = SERVER
        self.app = app
        self.contexts = dict(contexts)
        self.online = set(contexts)
        self.silent: set[int] = set()
        self.asked: list[Message] = []
        self.from_nodes: list[bytes] = []
        self._latest_first = latest_first
        self._replies: dict[str, Message] = {}

    def unplug(self, node_id: int) -> None:
        """Take a node off the network: what it was about to send is lost, and the server says that it is gone."""
        self.online.discard(node_id)

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self.online)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            self.asked.append(message)
            if message.metadata.dst_node_id not in self.silent:
                self._replies[message.metadata.message_id] = self._answer(message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        held = list(self._replies)
        ready = held[-1:] if self._latest_first else held
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in ready]

    def _answer(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        arrived, _ = _through_the_wire(message)
        try:
            reply = self.app(arrived, self.contexts[node_id])
        except Exception as error:
            reply = Message(
                Error(CLIENT_APP_RAISED, f"Traceback\n  ...\n{type(error).__name__}: {error}"), reply_to=message
            )
        if node_id not in self.online:
            reply = Message(Error(NODE_UNAVAILABLE, "the node is not available"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = SERVER
            return reply
        reply, sent = _through_the_wire(reply)
        self.from_nodes.append(sent)
        return reply

    # what a Grid must have besides, and no strategy of ours uses

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        ids = list(self.push_messages(messages))
        return [reply for message_id in ids for reply in self.pull_messages([message_id])]


def context(node_id: int, **node_config: str | int | float | bool) -> Context:
    """The context of a node, with an empty run config."""
    return Context(run_id=SERVER, node_id=node_id, node_config=dict(node_config), state=RecordDict(), run_config={})


def _through_the_wire(message: Message) -> tuple[Message, bytes]:
    contents = {object_id: found.deflate() for object_id, found in get_all_nested_objects(message).items()}
    sent = b"".join(contents.values())
    arrived = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(arrived, Message)
    arrived.metadata.__dict__["_message_id"] = message.metadata.message_id
    return arrived, sent
