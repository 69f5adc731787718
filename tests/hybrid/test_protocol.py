import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from fedsd.hybrid.protocol import MAX_HEADER, Ask, Told, pack, parse_ask, unpack, unpack_ask, unpack_x_mid

SHAPE = (1, 4, 8, 8)
X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
SHA = "ab" * 32
ASK = Ask(
    prompt="a dog", seed=7, steps=20, server_steps=6, guidance=3, size=64, base_sha=SHA, scheduler_sha=SHA,
)  # fmt: skip
TOLD = Told(
    base_sha=SHA, scheduler_sha=SHA, lora_sha=SHA, server_round=3, steps=20, server_steps=6, cache="miss", batch=1,
    ms_queue=0.5, ms_compute=12,
)  # fmt: skip


def blob(header: Any, numbers: bytes = X.tobytes()) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def header(**changes: Any) -> dict[str, Any]:
    entry = {"dtype": "F32", "shape": list(SHAPE), "data_offsets": [0, 1024]} | changes
    return {"__metadata__": {"fedsd": TOLD.model_dump_json()}, "x_mid": entry}


@pytest.mark.parametrize(("encoding", "size"), [("float32", 1024), ("float16", 512)])
def test_x_mid_arrives(encoding: str, size: int) -> None:
    body = pack({"x_mid": X}, TOLD, encoding)
    found, told = unpack_x_mid(body, SHAPE)
    assert told == TOLD and found.dtype == np.float32 and found.flags.writeable
    assert (found == X.astype(encoding)).all()
    assert size < len(body) < size + 700
    assert (load(body)["x_mid"] == X.astype(encoding)).all()  # the library reads it too


def test_an_ask_with_embeddings_arrives() -> None:
    text, empty = np.ones((1, 12, 16), np.float32), np.zeros((1, 12, 16), np.float32)
    ask, *found = unpack_ask(pack({"text": text, "empty": empty}, ASK, "float32"), (1, 12, 16))
    assert ask == ASK and (found[0] == text).all() and (found[1] == empty).all()


def test_the_header_written_by_hand_is_right() -> None:
    """So that the cases below are refused for what is wrong with them, and not for the rest."""
    assert (unpack_x_mid(blob(header()), SHAPE)[0] == X).all()


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"", "header must be whole"),
        (b"\x01\x00\x00", "header must be whole"),
        (struct.pack("<Q", 2**63) + b"{}", "header must be whole"),
        (struct.pack("<Q", MAX_HEADER + 1) + b" " * (MAX_HEADER + 2000), f"at most {MAX_HEADER}"),
        (blob(b"[" * 9000), "is no JSON"),
        (blob(b"{'a': 1}"), "is no JSON"),
        (blob(b"\xff\xfe{}"), "is no JSON"),
        (blob([1]), "no JSON object"),
        (blob({"x_mid": header()["x_mid"]}), "no message under 'fedsd'"),
        (blob(header() | {"__metadata__": {"fedsd": 5}}), "no message under 'fedsd'"),
        (blob(header() | {"__metadata__": {"fedsd": "{}"}}), "base_sha: Field required"),
        (blob(header() | {"more": header()["x_mid"]}), "must hold x_mid and nothing else"),
        (blob({"__metadata__": {"fedsd": "{}"}}), "must hold x_mid and nothing else"),
        (blob(header(dtype="F64")), r"shape \[1, 4, 8, 8\] in F16 or F32"),
        (blob(header(dtype=["F32"])), "in F16 or F32"),
        (blob(header(shape=[1, 4, 8, 80])), "must be of shape"),
        (blob(header(shape=[1, 4, 8, 2**62])), "must be of shape"),
        (blob(header(shape="1488")), "must be of shape"),
        (blob(header(extra=1)), "must be of shape"),
        (blob(header() | {"x_mid": 7}), "must be of shape"),
        (blob(header(data_offsets=[0, 2**70])), "do not fit its shape"),
        (blob(header(data_offsets=[-1024, 0])), "do not fit its shape"),
        (blob(header(data_offsets=[0.0, 1024.0])), "two whole numbers"),
        (blob(header(data_offsets=[False, 1024])), "two whole numbers"),
        (blob(header(data_offsets=[8, 1032]), bytes(1032)), "overlap or leave gaps"),
        (blob(header(), bytes(1023)), "claims 1024 bytes of numbers, but 1023 came"),
        (blob(header(), bytes(2000)), "claims 1024 bytes of numbers, but 2000 came"),
        (blob(header(), np.where(X > 1, np.nan, X).tobytes()), "not finite"),
        (blob(header(), np.where(X > 1, np.inf, X).tobytes()), "not finite"),
    ],
)  # fmt: skip
def test_malicious_bodies_are_refused(body: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        unpack_x_mid(body, SHAPE)


def test_tensors_may_not_overlap() -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    body = blob({"__metadata__": {"fedsd": ""}, "a": entry, "b": entry}, bytes(8))
    with pytest.raises(ValueError, match="overlap"):
        unpack(body, {"a": (2,), "b": (2,)})


@given(st.binary(max_size=200))
def test_noise_is_refused_and_nothing_worse(noise: bytes) -> None:
    for body in (noise, struct.pack("<Q", len(noise)) + noise):
        with pytest.raises(ValueError, match="safetensors"):
            unpack_x_mid(body, SHAPE)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "7"}, "seed: Input should be a valid integer"),
        ({"steps": 0}, "steps"),
        ({"steps": 20.5}, "steps"),
        ({"guidance": 0.5}, "guidance"),
        ({"mix_loras": -0.1}, "mix_loras"),
        ({"base_sha": "../../etc"}, "base_sha"),
        ({"encoding": "pickle"}, "encoding"),
        ({"prompt": "a secret word " * 200}, "prompt: String should have at most 2000 characters"),
        ({"more": "a secret word"}, "more: Extra inputs are not permitted"),
    ],
)
def test_wrong_fields_are_named_but_not_repeated(change: dict[str, object], fault: str) -> None:
    document = json.dumps(ASK.model_dump() | change)
    with pytest.raises(ValueError, match=fault) as raised:
        parse_ask(document)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("document", ["", "[]", "null", '{"seed": NaN}', "{" * 5000])
def test_what_is_no_ask_is_refused(document: str) -> None:
    with pytest.raises(ValueError):
        parse_ask(document)
