"""What travels between the server and the nodes, and the only place that knows the record keys.

    train message    {"lora": see `records.lora_record`, may be empty; "config": server-round, last-round, rank,
                      cluster, seed, encoding}, and perhaps "arrays"
    train reply      {"lora", "style": z, "metrics": num-examples, rank, loss-first, loss-last, seconds,
                      images-per-second, "about": client-id, base-sha, method}, and perhaps "arrays", and in "about"
                      directions and begun
    profile reply    {"style": z, "metrics": num-examples, rank, "about": client-id, base-sha, method}

"arrays" holds what is averaged number by number (`methods`), float32, each under its name; "directions" is the hash of
the decomposition that they refer to, "begun" the zeroth-order steps taken before this round. None is there where there
is nothing to say.

Nothing else leaves a node: no image, caption, style word or private embedding. What arrives is never trusted: sizes and
types are read from the headers before anything is decoded, and every refusal is a ValueError that names what is wrong.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from fedsd.codec import ENCODINGS, FLOATS, decode, encode
from fedsd.lowrank import Array, LoRA
from fedsd.records import arrays_record, lora_record, parse_arrays, parse_lora, payload
from fedsd.values import METHODS

PROFILE_QUERY = f"{MessageType.QUERY}.profile"
MAX_RANK = 4096
MAX_STYLE_SIZE = 65536

_CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SHA = re.compile(r"[A-Za-z0-9]{1,128}")
_TRAIN_METRICS = ("num-examples", "rank", "loss-first", "loss-last", "seconds", "images-per-second")
_PROFILE_METRICS = ("num-examples", "rank")
_PAYLOAD = ("lora", "arrays", "style")


@dataclass(frozen=True)
class Order:
    """What a node is asked to train: `lora` and `arrays` to start from (empty: fresh ones from `seed`) at `rank`.

    cluster: id of the style cluster whose adapter this is, -1 for none; encoding: in which the update is asked for;
    last_round: the last round in which the node's reply was used, 0 for never.
    """

    server_round: int
    rank: int
    cluster: int
    seed: int
    lora: LoRA
    encoding: str = "float32"
    arrays: Mapping[str, Array] = field(default_factory=dict)
    last_round: int = 0


@dataclass(frozen=True)
class Update:
    """What a node sends back. z: (D,) float32; n: images trained on; loss: mean at the start and at the end.

    bytes: payload of the reply's arrays; 0 before it has travelled; directions: hash of the decomposition that `arrays`
    refer to, "" for none; begun: zeroth-order steps that the node's optimiser had seen before; method: what it trains.
    """

    client: str
    lora: LoRA
    z: Array
    n: int
    rank: int
    base_sha: str
    loss_first: float
    loss_last: float
    seconds: float
    images_per_second: float
    bytes: int = 0
    arrays: Mapping[str, Array] = field(default_factory=dict)
    directions: str = ""
    begun: int = 0
    method: str = "lora"


@dataclass(frozen=True)
class Profile:
    """What a node says of itself before training. z: (D,) float32; n: images it has; method: what it trains."""

    client: str
    z: Array
    n: int
    rank: int
    base_sha: str
    method: str = "lora"


def order_message(
    order: Order, node_id: int, *, encoding: str = "float32", config: ConfigRecord | None = None
) -> Message:
    """The train message of one node; `config` holds further entries of the strategy's train_config."""
    entries = dict(config or {}) | {
        "server-round": order.server_round,
        "last-round": order.last_round,
        "rank": order.rank,
        "cluster": order.cluster,
        "seed": order.seed,
        "encoding": order.encoding,
    }
    content = RecordDict({"lora": lora_record(order.lora, encoding), "config": ConfigRecord(entries)})
    if order.arrays:
        content["arrays"] = arrays_record(order.arrays)
    return Message(content, node_id, MessageType.TRAIN, group_id=str(order.server_round))


def parse_order(message: Message) -> Order:
    """The order in a train message; ValueError when it is malformed."""
    records = _records(message, ("lora", "config"), ("arrays",))
    config = _of_type(records, "config", ConfigRecord)
    server_round, rank, cluster, seed = (_integer(config, key) for key in ("server-round", "rank", "cluster", "seed"))
    _in_range("rank", rank, MAX_RANK)
    if (encoding := config.get("encoding")) not in ENCODINGS:
        raise ValueError(f"encoding must be one of {', '.join(ENCODINGS)}; got {str(encoding)[:80]!r}")
    lora = parse_lora(_of_type(records, "lora", ArrayRecord))
    last_round = _integer(config, "last-round")
    return Order(server_round, rank, cluster, seed, lora, str(encoding), _arrays(records), last_round)


def update_reply(update: Update, reply_to: Message, *, encoding: str = "float32") -> Message:
    """The train reply of one node."""
    metrics = {
        "num-examples": update.n,
        "rank": update.rank,
        "loss-first": update.loss_first,
        "loss-last": update.loss_last,
        "seconds": update.seconds,
        "images-per-second": update.images_per_second,
    }
    content = RecordDict({"lora": lora_record(update.lora, encoding), **_identity(update, metrics)})
    if update.arrays:
        content["arrays"] = arrays_record(update.arrays)
    if update.directions:
        content.config_records["about"]["directions"] = update.directions
    if update.begun:
        content.config_records["about"]["begun"] = update.begun
    return Message(content, reply_to=reply_to)


def parse_update(message: Message) -> Update:
    """The update in a train reply; ValueError naming the record, key, type or size that is wrong."""
    records = _records(message, ("lora", "style", "metrics", "about"), ("arrays",))
    lora, travelled = _of_type(records, "lora", ArrayRecord), [name for name in _PAYLOAD if name in records]
    metrics = _metrics(records, _TRAIN_METRICS)
    z, client, base_sha, method = _parse_identity(records, ("directions", "begun"))
    about = records["about"]
    return Update(
        client,
        parse_lora(lora),
        z,
        _integer(metrics, "num-examples"),
        _in_range("rank", _integer(metrics, "rank"), MAX_RANK),
        base_sha,
        _number(metrics, "loss-first"),
        _number(metrics, "loss-last"),
        _number(metrics, "seconds"),
        _number(metrics, "images-per-second"),
        bytes=sum(payload(_of_type(records, name, ArrayRecord)) for name in travelled),
        arrays=_arrays(records),
        directions=_hash(about["directions"], "directions", client) if "directions" in about else "",
        begun=_in_range("begun", _integer(about, "begun"), 2**31) if "begun" in about else 0,
        method=method,
    )


def profile_query(node_id: int) -> Message:
    """The question that a node answers with its profile."""
    return Message(RecordDict(), node_id, PROFILE_QUERY, group_id="profile")


def profile_reply(profile: Profile, reply_to: Message) -> Message:
    """The answer to a profile query."""
    return Message(RecordDict(_identity(profile, {"num-examples": profile.n, "rank": profile.rank})), reply_to=reply_to)


def parse_profile(message: Message) -> Profile:
    """The profile in a reply; ValueError naming what is wrong."""
    records = _records(message, ("style", "metrics", "about"))
    metrics = _metrics(records, _PROFILE_METRICS)
    z, client, base_sha, method = _parse_identity(records)
    n = _in_range("num-examples", _integer(metrics, "num-examples"), 2**53)
    return Profile(client, z, n, _in_range("rank", _integer(metrics, "rank"), MAX_RANK), base_sha, method)


def _identity(sender: Update | Profile, metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "style": ArrayRecord({"z": encode(sender.z, "float32")}),
        "metrics": MetricRecord(metrics),
        "about": ConfigRecord({"client-id": sender.client, "base-sha": sender.base_sha, "method": sender.method}),
    }


def _arrays(records: RecordDict) -> dict[str, Array]:
    return parse_arrays(_of_type(records, "arrays", ArrayRecord)) if "arrays" in records else {}


def _parse_identity(records: RecordDict, optional: tuple[str, ...] = ()) -> tuple[Array, str, str, str]:
    style, about = _of_type(records, "style", ArrayRecord), _of_type(records, "about", ConfigRecord)
    _keys("style", style, ("z",))
    _keys("about", about, ("client-id", "base-sha", "method"), optional)
    client, base_sha = about["client-id"], about["base-sha"]
    if not isinstance(client, str) or not _CLIENT.fullmatch(client):
        raise ValueError(f"client-id {str(client)[:80]!r} must be 1 to 64 letters, digits, '_', '-' or '.'")
    base_sha = _hash(base_sha, "base-sha", client)
    if (method := about["method"]) not in METHODS:
        raise ValueError(f"method of {client} must be one of {', '.join(METHODS)}; got {str(method)[:80]!r}")
    z = decode("z", style["z"], 1, FLOATS)
    _in_range("the size of z", z.size, MAX_STYLE_SIZE)
    return z, client, base_sha, str(method)


def _hash(value: Any, name: str, client: str) -> str:
    if not isinstance(value, str) or not _SHA.fullmatch(value):
        raise ValueError(f"{name} {str(value)[:80]!r} of {client} is not a hash")
    return value


def _records(message: Message, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> RecordDict:
    if not message.has_content():
        raise ValueError("the message carries an error and no content")
    _keys("the message", message.content, names, optional)
    return message.content


def _keys(where: str, found: Mapping[str, Any], wanted: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - {*wanted, *optional})
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    if unknown:
        raise ValueError(f"{where} has unknown {', '.join(name[:80] for name in unknown[:5])}")


def _of_type(records: RecordDict, name: str, kind: type) -> Any:
    if not isinstance(records[name], kind):
        raise ValueError(f"record {name} is {type(records[name]).__name__} instead of {kind.__name__}")
    return records[name]


def _metrics(records: RecordDict, names: tuple[str, ...]) -> MetricRecord:
    metrics: MetricRecord = _of_type(records, "metrics", MetricRecord)
    _keys("metrics", metrics, names)
    return metrics


def _integer(record: Mapping[str, Any], key: str) -> int:
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{key} must be an integer, got {str(value)[:80]!r}")
    return value


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{key} must be a number, got {str(value)[:80]!r}")
    return float(value)


def _in_range(name: str, value: int, largest: int) -> int:
    if not 1 <= value <= largest:
        raise ValueError(f"{name} must be 1 to {largest}, got {value}")
    return value
