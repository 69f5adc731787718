"""A Flower grid that keeps what nodes send, byte for byte, so that it can be audited what the server was told."""

from collections.abc import Iterable
from pathlib import Path

from flwr.app import Message, MessageType, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as Packed
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from google.protobuf.message import DecodeError

from fedsd.store import RunFolder
from fedsd.wire import Update, parse_update

FOLDER = "received"


class Recorded(Grid):
    """`grid`, which writes every reply that has content to received/ in the run folder before anybody reads it."""

    def __init__(self, grid: Grid, folder: RunFolder) -> None:
        self._grid, self._folder = grid, folder
        self._count = len(list((folder.path / FOLDER).glob("*.bin")))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand on the replies, each kept as <number>-<group>-<type>.bin; a round's number is its group."""
        for message in self._grid.pull_messages(message_ids):
            if message.has_content():
                kind = message.metadata.message_type.replace(".", "_")
                group = message.metadata.group_id or "0"
                packed = message_to_proto(message).SerializeToString(deterministic=True)
                self._folder.write(f"{FOLDER}/{self._count:06d}-{group}-{kind}.bin", packed)
                self._count += 1
            yield message

    def set_run(self, run: Run) -> None:
        """As the grid does."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """As the grid says."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the grid does."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """As the grid says."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the grid does."""
        return self._grid.push_messages(messages)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As the grid does; not used by this server, and not kept."""
        return self._grid.send_and_receive(messages, timeout=timeout)


def received_updates(folder: Path) -> dict[int, dict[str, Update]]:
    """Return {round: {client: its update}}, read from the bytes that the server received.

    Raises ValueError when the run kept none, or when a file is damaged.
    """
    found: dict[int, dict[str, Update]] = {}
    for file in sorted((folder / FOLDER).glob(f"*-{MessageType.TRAIN}.bin")):
        packed = Packed()
        try:
            packed.ParseFromString(file.read_bytes())
            update = parse_update(message_from_proto(packed))
        except (DecodeError, ValueError) as error:
            raise ValueError(f"{file} is not what a client sent: {error}; run again") from error
        found.setdefault(int(file.name.split("-")[1]), {})[update.client] = update
    if not found:
        raise ValueError(f"{folder} kept none of the bytes that its server received; run again with -s run.record=true")
    return found
