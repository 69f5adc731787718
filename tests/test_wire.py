from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st
from loras import lora

from fedsd import records
from fedsd.lowrank import Factor
from fedsd.wire import (
    Order,
    Profile,
    Update,
    lora_record,
    order_message,
    parse_lora,
    parse_order,
    parse_profile,
    parse_update,
    profile_query,
    profile_reply,
    update_reply,
)


@pytest.fixture(autouse=True)
def _identity() -> None:
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1


def order() -> Order:
    return Order(2, 4, 1, 77, lora())


def update() -> Update:
    z = np.array([0.6, 0.8], dtype=np.float32)
    return Update("c1", lora(), z, 12, 2, "abc", 1.5, 0.5, 3.0, 4.0)


def train_reply() -> Message:
    return update_reply(update(), order_message(order(), 9))


def assert_same(left, right) -> None:
    assert list(left) == sorted(right)
    for layer in right:
        np.testing.assert_array_equal(left[layer].B, right[layer].B)
        np.testing.assert_array_equal(left[layer].A, right[layer].A)
        assert left[layer].B.dtype == np.float32


def test_an_order_arrives_as_it_was_sent():
    message = order_message(order(), 9, config=ConfigRecord({"lr": 0.1, "rank": 99}))
    assert message.metadata.dst_node_id == 9
    assert message.metadata.message_type == "train"
    arrived = parse_order(message)
    assert replace(arrived, lora={}) == replace(order(), lora={})  # our rank, not the 99 of the config
    assert_same(arrived.lora, order().lora)
    assert message.content["config"]["lr"] == 0.1
    assert parse_order(order_message(replace(order(), encoding="int8"), 9)).encoding == "int8"


def test_an_empty_adapter_may_be_sent_to_a_node():
    assert parse_order(order_message(Order(1, 4, -1, 3, {}), 9)).lora == {}


def test_an_update_arrives_as_it_was_sent_with_the_bytes_of_its_arrays():
    reply = train_reply()
    arrived = parse_update(reply)
    assert (arrived.client, arrived.n, arrived.rank, arrived.base_sha) == ("c1", 12, 2, "abc")
    assert (arrived.loss_first, arrived.loss_last, arrived.seconds, arrived.images_per_second) == (1.5, 0.5, 3.0, 4.0)
    np.testing.assert_array_equal(arrived.z, update().z)
    assert_same(arrived.lora, update().lora)
    assert arrived.bytes == sum(len(array.data) for array in reply.content["lora"].values()) + 128 + 8


def test_a_profile_arrives_as_it_was_sent():
    query = profile_query(9)
    assert query.metadata.message_type == "query.profile"
    arrived = parse_profile(profile_reply(Profile("c1", update().z, 12, 8, "abc", "soda"), query))
    assert (arrived.client, arrived.n, arrived.rank, arrived.base_sha) == ("c1", 12, 8, "abc")
    assert arrived.method == "soda" and parse_update(train_reply()).method == "lora"
    np.testing.assert_array_equal(arrived.z, update().z)


def test_half_precision_halves_the_bytes_and_comes_back_as_float32():
    sent, halved = lora_record(lora()), lora_record(lora(), "float16")
    payload = [sum(len(array.data) - 128 for array in record.values()) for record in (sent, halved)]
    assert payload[1] * 2 == payload[0]
    for layer, factor in parse_lora(halved).items():
        assert factor.B.dtype == np.float32
        np.testing.assert_array_equal(factor.B, lora()[layer].B.astype(np.float16).astype(np.float32))


def test_float64_is_sent_as_float32():
    wide = {layer: Factor(f.B.astype(np.float64), f.A.astype(np.float64)) for layer, f in lora().items()}
    assert_same(parse_lora(lora_record(wide)), lora())


def test_column_order_is_read_as_it_was_written():
    record = lora_record(lora())
    record["unet.mid.to_q.A"] = Array(np.asfortranarray(lora()["unet.mid.to_q"].A))
    assert b"'fortran_order': True" in record["unet.mid.to_q.A"].data
    assert_same(parse_lora(record), lora())


def header(shape: str, descr: str = "<f4", order: str = "False") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def raw(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array("float32", (2, 3), stype, data)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            raw(header("(1000000, 1000000)")),
            r"claims shape \(1000000, 1000000\) of float32, 4000000000000 bytes, but carries 0",
        ),
        (raw(header("(2, 3)") + b"\0" * 23), r"24 bytes, but carries 23"),
        (raw(header("(2, 3)") + b"\0" * 25), r"24 bytes, but carries 25"),
        (raw(header("(6,)") + b"\0" * 24), "must have 2 axes"),
        (raw(header("(2, 3)", "<f8") + b"\0" * 48), "it must be a float32 or float16 array of 1 to 4 axes"),
        (raw(header("(2, 3)", "|O") + b"\0" * 24), "float32 or float16"),
        (raw(header("(1, 2, 3)") + b"\0" * 24), "must have 2 axes"),
        (raw(header("(1, 1, 1, 2, 3)") + b"\0" * 24), "float32 or float16"),
        (raw(header("(-2, 3)") + b"\0" * 24), "float32 or float16"),
        (raw(header("(2, 3)", order="__import__('os')") + b"\0" * 24), "float32 or float16"),
        (raw(b"\x93NUMPY\x03\x00" + b"\0" * 200), r"is not an array in npy format, version 1\.0"),
        (raw(b""), "is not an array in npy format"),
        (raw(b"\x93NUMPY\x01\x00\xff\xff{"), "has header"),
        (raw(header("(2, 3)") + b"\0" * 24, "pickle"), "is not an array in npy format"),
        (Array(np.zeros((2, 3))), "<f8.*float32 or float16"),
    ],
)
def test_an_array_is_measured_before_it_is_read(array, message):
    record = lora_record(lora())
    record["unet.mid.to_q.A"] = array
    with pytest.raises(ValueError, match=message):
        parse_lora(record)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.binary(max_size=60))
def test_no_bytes_at_all_do_more_than_raise_value_error(head, tail):
    record = ArrayRecord({"q.A": raw(b"\x93NUMPY\x01\x00" + head + tail), "q.B": raw(head)})
    with pytest.raises(ValueError, match=r"q\.[AB]"):
        parse_lora(record)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("unet.mid.to_q.C", r"lora key 'unet\.mid\.to_q\.C' is not <layer>\.A or <layer>\.B"),
        ("A", "is not <layer>"),
        ("../../etc/passwd.A", "is not <layer>"),
        ("unet.mid.to_v.A", "lora layer unet.mid.to_v has A but not its other half"),
    ],
)
def test_keys_name_a_layer_and_a_half(key, message):
    record = lora_record(lora())
    record[key] = Array(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match=message):
        parse_lora(record)


def test_halves_must_fit_together():
    record = lora_record(lora())
    record["unet.mid.to_q.A"] = Array(np.ones((3, 3), np.float32))
    with pytest.raises(ValueError, match=r"lora layer unet\.mid\.to_q: B \(5, 2\) and A \(3, 3\) do not share a rank"):
        parse_lora(record)
    record["unet.mid.to_q.A"] = Array(np.ones((0, 3), np.float32))
    with pytest.raises(ValueError, match=r"lora layer unet\.mid\.to_q"):
        parse_lora(record)


def change(record: str, key: str, value):
    def apply(content: RecordDict) -> None:
        content[record][key] = value

    return apply


def replace_record(record: str, value):
    def apply(content: RecordDict) -> None:
        content[record] = value

    return apply


def remove(record: str, key: str | None = None):
    def apply(content: RecordDict) -> None:
        if key is None:
            del content[record]
        else:
            del content[record][key]

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("lora"), "the message lacks lora"),
        (remove("style"), "the message lacks style"),
        (replace_record("captions", ConfigRecord({"text": "a red house"})), "the message has unknown captions"),
        (replace_record("metrics", ConfigRecord()), "record metrics is ConfigRecord instead of MetricRecord"),
        (replace_record("lora", MetricRecord()), "record lora is MetricRecord instead of ArrayRecord"),
        (remove("metrics", "loss-last"), "metrics lacks loss-last"),
        (change("metrics", "accuracy", 1.0), "metrics has unknown accuracy"),
        (change("metrics", "num-examples", 3.5), r"num-examples must be an integer, got '3\.5'"),
        (change("metrics", "num-examples", [3]), "num-examples must be an integer"),
        (change("metrics", "seconds", [1.0]), "seconds must be a number"),
        (change("metrics", "rank", 0), "rank must be 1 to 4096, got 0"),
        (remove("about", "base-sha"), "about lacks base-sha"),
        (change("about", "client-id", "../c1"), r"client-id '\.\./c1' must be 1 to 64 letters"),
        (change("about", "client-id", 7), "client-id '7' must be"),
        (change("about", "method", "sopa"), "method of c1 must be one of lora, spire, soda, zo-token; got 'sopa'"),
        (change("about", "method", 3), "method of c1 must be one of .*; got '3'"),
        (change("about", "client-id", "c" * 65), "client-id .* must be 1 to 64 letters"),
        (change("about", "base-sha", "no hash"), "base-sha 'no hash' of c1 is not a hash"),
        (change("style", "z", Array(np.ones((2, 2), np.float32))), "z claims shape"),
        (change("style", "captions", Array(np.ones(2, np.float32))), "style has unknown captions"),
        (change("style", "z", Array(np.ones(0, np.float32))), "the size of z must be 1 to 65536, got 0"),
    ],
)
def test_a_malformed_reply_is_named(spoil, message):
    reply = train_reply()
    spoil(reply.content)
    with pytest.raises(ValueError, match=message):
        parse_update(reply)


def arrays() -> dict[str, np.ndarray]:
    shapes = {"unet.q.shift": (5,), "unet.conv.weight": (2, 3, 1, 4)}
    return {name: np.random.default_rng(1).standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_named_arrays_arrive_as_they_were_sent_both_ways():
    sent = replace(order(), arrays=arrays())
    message = order_message(sent, 9, encoding="float16")  # the encoding is that of factors
    reply = update_reply(replace(update(), lora={}, arrays=arrays(), directions="ab12"), message, encoding="int8")
    arrived, answered = parse_order(message), parse_update(reply)
    assert answered.directions == "ab12" and answered.lora == {}
    assert answered.bytes > 4 * (5 + 24)
    for found in (arrived.arrays, answered.arrays):
        assert list(found) == sorted(arrays())
        for name, values in arrays().items():
            np.testing.assert_array_equal(found[name], values)
            assert found[name].dtype == np.float32 and found[name].shape == values.shape
    assert parse_order(order_message(order(), 9)).arrays == {}
    assert parse_update(train_reply()).directions == ""


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (replace_record("arrays", MetricRecord()), "record arrays is MetricRecord instead of ArrayRecord"),
        (change("arrays", "../x", Array(np.ones(2, np.float32))), r"arrays key '\.\./x' is no name"),
        (
            change("arrays", "x", Array(np.ones(2, np.float16))),
            "x has header .* must be a float32 array of 1 to 4 axes",
        ),
        (change("arrays", "x", Array(np.ones(2, np.int64))), "x has header"),
        (change("arrays", "x", Array(np.ones((1,) * 5, np.float32))), "x has header"),
        (change("about", "directions", "no hash"), "directions 'no hash' of c1 is not a hash"),
        (change("about", "directions", 7), "directions '7' of c1 is not a hash"),
    ],
)
def test_malformed_arrays_are_named(spoil, message):
    reply = update_reply(replace(update(), arrays=arrays(), directions="ab12"), order_message(order(), 9))
    spoil(reply.content)
    with pytest.raises(ValueError, match=message):
        parse_update(reply)


def test_too_many_arrays_are_refused_unread(monkeypatch):
    reply = update_reply(replace(update(), arrays=arrays()), order_message(order(), 9))
    for limit, value in (("MAX_ARRAYS", 1), ("MAX_NUMBERS", 28)):
        with monkeypatch.context() as patched:
            patched.setattr(records, limit, value)
            with pytest.raises(ValueError, match=r"2 arrays of .* numbers; at most"):
                parse_update(reply)


def test_a_reply_without_content_and_a_malformed_order_are_named():
    failed = Message(Error(2, "boom"), reply_to=order_message(order(), 9))
    with pytest.raises(ValueError, match="the message carries an error and no content"):
        parse_update(failed)
    message = order_message(order(), 9)
    message.content["config"]["encoding"] = "float8"
    with pytest.raises(ValueError, match="encoding must be one of float32, float16, int8; got 'float8'"):
        parse_order(message)
    message.content["config"]["seed"] = "x"
    with pytest.raises(ValueError, match="seed must be an integer, got 'x'"):
        parse_order(message)
    with pytest.raises(ValueError, match="num-examples must be 1 to"):
        parse_profile(profile_reply(Profile("c1", update().z, 0, 8, "abc"), profile_query(9)))


def test_the_encoding_is_a_known_one():
    with pytest.raises(ValueError, match="encoding must be one of float32, float16, int8; got 'int4'"):
        lora_record(lora(), "int4")


def test_nothing_but_what_is_listed_leaves_a_node():
    content = train_reply().content
    assert {name: sorted(record) for name, record in content.items()} == {
        "lora": ["unet.mid.to_k.A", "unet.mid.to_k.B", "unet.mid.to_q.A", "unet.mid.to_q.B"],
        "style": ["z"],
        "metrics": ["images-per-second", "loss-first", "loss-last", "num-examples", "rank", "seconds"],
        "about": ["base-sha", "client-id", "method"],
    }
