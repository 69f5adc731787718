"""Which replies of a round of Flower's own FedAvg protocol may be used, and for every other one the reason."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import ArrayRecord, Message, RecordDict

from fedsd.codec import decode_plain
from fedsd.strategies.exchange import answer
from fedsd.strategies.peft_parts import Parts, State, check_alike, check_ranks, take_apart


@dataclass(frozen=True)
class Trained:
    """A usable train reply. weight: of the node, > 0; content: all that it sent."""

    node_id: int
    parts: Parts
    weight: float
    content: RecordDict


class Read(Protocol):
    """What makes a value of a reply's content; ValueError when the reply is of no use."""

    def __call__(self, node_id: int, content: RecordDict, /) -> Any:
        """Read the content of one node's reply."""


def sort_out(asked: Sequence[Message], replies: Iterable[Message], read: Read) -> tuple[list[Any], dict[int, str]]:
    """What `read` makes of the good replies, by node id, and why each other node that was asked is left out."""
    # errors about a node that is gone come from the server, so a reply is known by the message that it answers
    node_of = {message.metadata.message_id: message.metadata.dst_node_id for message in asked}
    found: dict[int, Any] = {}
    reasons = {message.metadata.dst_node_id: "no reply within the timeout" for message in asked}
    for reply in replies:
        node_id = node_of.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
        reasons.pop(node_id, None)
        problem = answer(reply, node_id).problem
        try:
            if problem:
                raise ValueError(problem)
            found[node_id] = read(node_id, reply.content)
        except ValueError as error:
            reasons[node_id] = str(error)
    return [found[node_id] for node_id in sorted(found)], reasons


def read_trained(node_id: int, content: RecordDict, weight_key: str, like: State, config: Mapping[str, Any]) -> Trained:
    """A train reply as FedAvg's clients send it; ValueError naming what is wrong with it."""
    records = list(content.array_records.values())
    if len(records) != 1:
        raise ValueError(f"its reply holds {len(records)} ArrayRecords; it must hold one")
    weight = read_weight(content, weight_key)
    state = read_state(records[0])
    check_alike(state, like)
    check_ranks(state, config)
    return Trained(node_id, take_apart(state, config), weight, content)


def read_weight(content: RecordDict, weight_key: str) -> float:
    """The weight in the only MetricRecord of a reply; ValueError unless it is there, finite and > 0."""
    records = list(content.metric_records.values())
    if len(records) != 1:
        raise ValueError(f"its reply holds {len(records)} MetricRecords; it must hold one")
    weight = records[0].get(weight_key)
    if not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise ValueError(f"{weight_key} is {weight}; it must be a number above 0")
    return float(weight)


def read_state(record: ArrayRecord) -> dict[str, Any]:
    """The arrays of a record; ValueError naming the one that cannot be read."""
    return {key: decode_plain(key, array) for key, array in record.items()}


def of_one_form(contents: Sequence[RecordDict]) -> list[RecordDict]:
    """Those replies whose metrics have the keys, and lists of the lengths, that most have: others have no mean."""
    forms = [_form(content) for content in contents]
    usual = Counter(forms).most_common(1)[0][0] if forms else ()
    return [content for content, form in zip(contents, forms, strict=True) if form == usual]


def _form(content: RecordDict) -> tuple[tuple[str, int], ...]:
    (record,) = content.metric_records.values()
    return tuple(sorted((key, len(value) if isinstance(value, list) else -1) for key, value in record.items()))
