"""What a device and the Inference Edge Server (IES) say to each other, and nothing that arrives is trusted.

    POST /v1/early   JSON of an `Ask`, or safetensors with tensors text and empty and the `Ask` in its header
    -> 200           safetensors: x_mid (1, 4, h, w), `Told` in its header
    -> 401 no credential, 409 another base, sampler or adapter, 413 too large, 422 not allowed, 503 busy, 504 too slow:
                     {"error": what, and how to mend it}

A safetensors body is the length of its header (8 bytes), the header in JSON, and the numbers. It is read here instead
of by the library, so that the sizes that a header claims are held against what was expected before anything is made of
it.
"""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import save

from fedsd.lowrank import Array

EARLY = "/v1/early"
TENSORS = "application/safetensors"
MAX_HEADER = 16 * 1024  # bytes
DTYPES: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
LONGEST_PROMPT = 2000  # characters; text encoders read 77 tokens

Sha = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Message(BaseModel):
    # errors go back to whoever asked and may be logged, so they never hold what was sent
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, allow_inf_nan=False)


class Ask(_Message):
    """What a device wants: the latents of `prompt` (p_gen) after `server_steps` of `steps`.

    size: side of the picture in pixels. mix_loras: scale of the neutral adapter (Fig. 5); 0 is the plain base. Shas: of
    the device's base, of its sampler, and of the neutral adapter it insists on, if it does. With embeddings `prompt`
    and `negative` stay empty.
    """

    prompt: str = Field("", max_length=LONGEST_PROMPT)
    negative: str = Field("", max_length=LONGEST_PROMPT)
    seed: int = Field(ge=0, lt=2**63)
    steps: int = Field(ge=1)
    server_steps: int = Field(ge=1)
    guidance: float = Field(ge=1, le=50)
    scheduler: str = Field("ddim", max_length=32)
    size: int = Field(ge=1)
    mix_loras: float = Field(1.0, ge=0, le=2)
    encoding: Literal["float16", "float32"] = "float16"
    base_sha: Sha
    scheduler_sha: Sha
    lora_sha: Sha | None = None


class Told(_Message):
    """What the server says of an x_mid: with what it was made, whether it was at hand, and what it cost.

    cache: "hit" (kept), "joined" (somebody else's run) or "miss". ms_queue, ms_compute: of the run that made it. batch:
    pictures in that run.
    """

    wire: Literal[1] = 1
    base_sha: Sha
    scheduler_sha: Sha
    lora_sha: Sha
    server_round: int = Field(ge=0)
    steps: int
    server_steps: int
    cache: Literal["hit", "joined", "miss"]
    batch: int = Field(ge=1)
    ms_queue: float = Field(ge=0)
    ms_compute: float = Field(ge=0)


M = TypeVar("M", bound=_Message)


def parse_ask(document: bytes | str) -> Ask:
    """Return what a JSON document asks; ValueError names each field that is wrong, but not its value."""
    return _parsed(Ask, document)


def pack(tensors: Mapping[str, Array], about: _Message, encoding: str) -> bytes:
    """Return tensors and a message as safetensors; encoding: "float16" or "float32"."""
    arrays = {name: np.ascontiguousarray(array, np.dtype(encoding)) for name, array in tensors.items()}
    packed: bytes = save(arrays, {"fedsd": about.model_dump_json()})
    return packed


def unpack_ask(body: bytes, shape: tuple[int, ...]) -> tuple[Ask, Array, Array]:
    """Return an ask with its embeddings text and empty, each of `shape` (1, tokens, width), as float32.

    Raises ValueError for anything but that.
    """
    tensors, about = unpack(body, {"text": shape, "empty": shape})
    return _parsed(Ask, about), tensors["text"], tensors["empty"]


def unpack_x_mid(body: bytes, shape: tuple[int, ...]) -> tuple[Array, Told]:
    """Return x_mid of `shape` as float32, and what the server says of it; ValueError for anything else."""
    tensors, about = unpack(body, {"x_mid": shape})
    return tensors["x_mid"], _parsed(Told, about)


def unpack(body: bytes, expected: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Array], str]:
    """Return the tensors of a safetensors body as float32, and the text under "fedsd" in its header.

    Raises ValueError unless it holds exactly the expected tensors, of those shapes, in float16 or float32, finite, one
    after the other and nothing else.
    """
    header, start = _header(body)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("fedsd"), str):
        raise ValueError("the safetensors header holds no message under 'fedsd'")
    if set(header) != set(expected):
        raise ValueError(f"the safetensors body must hold {', '.join(expected)} and nothing else")
    places = {name: _place(name, header[name], shape) for name, shape in expected.items()}
    end = 0
    for begin, stop, _ in sorted(places.values(), key=lambda place: place[0]):
        if begin != end:
            raise ValueError("the tensors of the safetensors body overlap or leave gaps")
        end = stop
    if start + end != len(body):
        raise ValueError(f"the safetensors header claims {end} bytes of numbers, but {len(body) - start} came")
    arrays = {
        name: np.frombuffer(body[start + begin : start + stop], dtype).reshape(expected[name]).astype(np.float32)
        for name, (begin, stop, dtype) in places.items()
    }
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds numbers that are not finite")
    return arrays, metadata["fedsd"]


def _header(body: bytes) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors body and where its numbers start."""
    length = int.from_bytes(body[:8], "little")
    if len(body) < 8 or length > min(MAX_HEADER, len(body) - 8):
        raise ValueError(f"the safetensors header must be whole and of at most {MAX_HEADER} bytes")
    try:
        header = json.loads(body[8 : 8 + length].decode())
    except (ValueError, RecursionError):
        raise ValueError("the safetensors header is no JSON") from None
    if not isinstance(header, dict):
        raise ValueError("the safetensors header is no JSON object")
    return header, 8 + length


def _place(name: str, entry: Any, shape: tuple[int, ...]) -> tuple[int, int, np.dtype[Any]]:
    """Return where a tensor begins and stops, and its type, once its entry says what was expected."""
    entry = entry if isinstance(entry, dict) else {}
    dtype = DTYPES.get(str(entry.get("dtype")))
    if set(entry) != {"dtype", "shape", "data_offsets"} or dtype is None or entry["shape"] != list(shape):
        raise ValueError(f"{name} must be of shape {list(shape)} in F16 or F32")
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        raise ValueError(f"the data_offsets of {name} must be two whole numbers")
    begin, stop = offsets
    if begin < 0 or stop - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"the data_offsets of {name} do not fit its shape")
    return begin, stop, dtype


def _parsed(kind: type[M], document: bytes | str) -> M:
    try:
        return kind.model_validate_json(document)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'body'}: {fault['msg']}" for fault in error.errors()]
        raise ValueError("; ".join(faults)) from None
