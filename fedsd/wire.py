"""What travels between the server and the nodes, and the only place that knows the record keys.

    train message    {"lora": <layer>.B, <layer>.A (may be empty), "config": server-round, rank, cluster, seed,
                      encoding}
    train reply      {"lora", "style": z, "metrics": num-examples, rank, loss-first, loss-last, seconds,
                      images-per-second, "about": client-id, base-sha}
    profile reply    {"style": z, "metrics": num-examples, rank, "about": client-id, base-sha}

Nothing else leaves a node: no image, caption, style word or private embedding. What arrives is never trusted: sizes and
types are read from the headers before anything is decoded, and every refusal is a ValueError that names what is wrong.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from fedsd.codec import ENCODINGS, FLOATS, decode, encode, quantise
from fedsd.lowrank import Array, Factor, LoRA

PROFILE_QUERY = f"{MessageType.QUERY}.profile"
SCALES = "scales"
MAX_RANK = 4096
MAX_STYLE_SIZE = 65536

_CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LAYER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_SHA = re.compile(r"[A-Za-z0-9]{1,128}")
_TRAIN_METRICS = ("num-examples", "rank", "loss-first", "loss-last", "seconds", "images-per-second")
_PROFILE_METRICS = ("num-examples", "rank")


@dataclass(frozen=True)
class Order:
    """What a node is asked to train: `lora` to start from (empty: a fresh one from `seed`) at `rank`.

    cluster: id of the style cluster whose adapter this is, -1 for none; encoding: in which the update is asked for.
    """

    server_round: int
    rank: int
    cluster: int
    seed: int
    lora: LoRA
    encoding: str = "float32"


@dataclass(frozen=True)
class Update:
    """What a node sends back. z: (D,) float32; n: images trained on; loss: mean at the start and at the end.

    bytes: payload of the reply's arrays; 0 before it has travelled.
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


@dataclass(frozen=True)
class Profile:
    """What a node says of itself before training. z: (D,) float32; n: images it has."""

    client: str
    z: Array
    n: int
    rank: int
    base_sha: str


def order_message(
    order: Order, node_id: int, *, encoding: str = "float32", config: ConfigRecord | None = None
) -> Message:
    """The train message of one node; `config` holds further entries of the strategy's train_config."""
    entries = dict(config or {}) | {
        "server-round": order.server_round,
        "rank": order.rank,
        "cluster": order.cluster,
        "seed": order.seed,
        "encoding": order.encoding,
    }
    content = RecordDict({"lora": lora_record(order.lora, encoding), "config": ConfigRecord(entries)})
    return Message(content, node_id, MessageType.TRAIN, group_id=str(order.server_round))


def parse_order(message: Message) -> Order:
    """The order in a train message; ValueError when it is malformed."""
    records = _records(message, ("lora", "config"))
    config = _of_type(records, "config", ConfigRecord)
    server_round, rank, cluster, seed = (_integer(config, key) for key in ("server-round", "rank", "cluster", "seed"))
    _in_range("rank", rank, MAX_RANK)
    if (encoding := config.get("encoding")) not in ENCODINGS:
        raise ValueError(f"encoding must be one of {', '.join(ENCODINGS)}; got {str(encoding)[:80]!r}")
    lora = parse_lora(_of_type(records, "lora", ArrayRecord))
    return Order(server_round, rank, cluster, seed, lora, str(encoding))


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
    return Message(content, reply_to=reply_to)


def parse_update(message: Message) -> Update:
    """The update in a train reply; ValueError naming the record, key, type or size that is wrong."""
    records = _records(message, ("lora", "style", "metrics", "about"))
    lora = _of_type(records, "lora", ArrayRecord)
    metrics = _metrics(records, _TRAIN_METRICS)
    z, client, base_sha = _parse_identity(records)
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
        bytes=_payload(lora) + _payload(_of_type(records, "style", ArrayRecord)),
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
    z, client, base_sha = _parse_identity(records)
    n = _in_range("num-examples", _integer(metrics, "num-examples"), 2**53)
    return Profile(client, z, n, _in_range("rank", _integer(metrics, "rank"), MAX_RANK), base_sha)


def lora_record(lora: LoRA, encoding: str = "float32") -> ArrayRecord:
    """`<layer>.B` and `<layer>.A` of every layer, in sorted order; encoding: float32, float16 or int8.

    int8 adds `scales`, (Σ 2 rank,) float32: what one step is worth in each column of B, then in each row of A.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding must be one of {', '.join(ENCODINGS)}; got {encoding!r}")
    arrays, scales = {}, []
    for layer in sorted(lora):
        for side, matrix, axis in (("B", lora[layer].B, 0), ("A", lora[layer].A, 1)):
            values: np.ndarray[Any, Any] = matrix
            if encoding == "int8":
                values, scale = quantise(matrix, axis)
                scales.append(scale)
            arrays[f"{layer}.{side}"] = encode(values, encoding)
    if scales:
        arrays[SCALES] = encode(np.concatenate(scales), "float32")
    return ArrayRecord(arrays)


def parse_lora(record: ArrayRecord) -> dict[str, Factor]:
    """Layer -> Factor, float32; ValueError when a half is missing, misnamed, misshapen or of another dtype."""
    halves: dict[str, dict[str, Array]] = {}
    small = SCALES in record
    for key, array in record.items():
        layer, _, side = key.rpartition(".")
        if key == SCALES:
            continue
        if side not in ("A", "B") or not _LAYER.fullmatch(layer):
            raise ValueError(f"lora key {key[:80]!r} is not <layer>.A or <layer>.B")
        halves.setdefault(layer, {})[side] = decode(key, array, 2, ("int8",) if small else FLOATS)
    for layer, sides in halves.items():
        if len(sides) != 2:
            raise ValueError(f"lora layer {layer} has {next(iter(sides))} but not its other half")
    if small:
        _scale(halves, decode(SCALES, record[SCALES], 1, ("float32",)))
    return {layer: _factor(layer, halves[layer]) for layer in sorted(halves)}


def _scale(halves: Mapping[str, dict[str, Array]], scales: Array) -> None:
    """Multiply int8 halves by their scales, in place."""
    ranks = {layer: (halves[layer]["B"].shape[1], len(halves[layer]["A"])) for layer in sorted(halves)}
    if scales.size != sum(sum(pair) for pair in ranks.values()):
        raise ValueError(f"{SCALES} holds {scales.size} numbers, not one for each column of B and each row of A")
    if not np.isfinite(scales).all() or (scales < 0).any():
        raise ValueError(f"{SCALES} holds NaN, Inf or a negative number; lower train.lr on that node")
    start = 0
    for layer, (columns, rows) in ranks.items():
        halves[layer]["B"] = halves[layer]["B"] * scales[start : start + columns]
        halves[layer]["A"] = halves[layer]["A"] * scales[start + columns : start + columns + rows, None]
        start += columns + rows


def _factor(layer: str, sides: Mapping[str, Array]) -> Factor:
    try:
        return Factor(sides["B"], sides["A"])
    except ValueError as error:
        raise ValueError(f"lora layer {layer}: {error}") from error


def _payload(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())


def _identity(sender: Update | Profile, metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "style": ArrayRecord({"z": encode(sender.z, "float32")}),
        "metrics": MetricRecord(metrics),
        "about": ConfigRecord({"client-id": sender.client, "base-sha": sender.base_sha}),
    }


def _parse_identity(records: RecordDict) -> tuple[Array, str, str]:
    style, about = _of_type(records, "style", ArrayRecord), _of_type(records, "about", ConfigRecord)
    _keys("style", style, ("z",))
    _keys("about", about, ("client-id", "base-sha"))
    client, base_sha = about["client-id"], about["base-sha"]
    if not isinstance(client, str) or not _CLIENT.fullmatch(client):
        raise ValueError(f"client-id {str(client)[:80]!r} must be 1 to 64 letters, digits, '_', '-' or '.'")
    if not isinstance(base_sha, str) or not _SHA.fullmatch(base_sha):
        raise ValueError(f"base-sha {str(base_sha)[:80]!r} of {client} is not a hash")
    z = decode("z", style["z"], 1, FLOATS)
    _in_range("the size of z", z.size, MAX_STYLE_SIZE)
    return z, client, base_sha


def _records(message: Message, names: tuple[str, ...]) -> RecordDict:
    if not message.has_content():
        raise ValueError("the message carries an error and no content")
    _keys("the message", message.content, names)
    return message.content


def _keys(where: str, found: Mapping[str, Any], wanted: tuple[str, ...]) -> None:
    missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
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
