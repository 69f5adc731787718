"""Arrays as they travel, in numpy's npy format, and adapters in int8 with error feedback.

An array that arrives is never trusted: its header is matched against the few forms that numpy writes for plain numbers,
so that it can neither run code nor ask for memory.

int8: every column of B and row of A is divided by 1/127 of its largest entry and rounded, so that no entry is off by
more than half a step. What rounding took away is kept by the client and added to its next update (Seide et al. 2014;
error feedback, Karimireddy et al. 2019, arXiv 1901.09847), as a product: factors of two rounds cannot be added.
"""

import math
import re
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array as FlowerArray

from fedsd.lowrank import Array, Factor, LoRA, stack, stack_loras, truncate

ENCODINGS = {"float32": "<f4", "float16": "<f2", "int8": "|i1"}
FLOATS = ("float32", "float16")
STEPS = 127  # of int8 on either side of zero
_NAMES = {descr.encode(): name for name, descr in ENCODINGS.items()}

# numpy writes exactly this for such numbers in up to four axes; anything else in a header is refused unread
_NPY_HEADER = re.compile(
    rb"\{'descr': '(<f4|<f2|\|i1)', 'fortran_order': (True|False), "
    rb"'shape': \((\d{1,10}(?:, \d{1,10}){0,3}),?\), \} *\n"
)


def encode(array: np.ndarray[Any, Any], encoding: str) -> FlowerArray:
    """The array in npy format; encoding: a key of ENCODINGS, to whose type it is cast."""
    return FlowerArray(np.ascontiguousarray(array, dtype=ENCODINGS[encoding]))


def decode(key: str, array: FlowerArray, ndim: int | None, allowed: tuple[str, ...]) -> Array:
    """The array as float32, read-only where it came so; ValueError naming `key` unless its encoding is allowed.

    ndim: its axes; None for 1 to 4.
    """
    data, start = array.data, 10
    if array.stype != "numpy.ndarray" or data[:8] != b"\x93NUMPY\x01\x00" or len(data) < start:
        raise ValueError(f"{key} is not an array in npy format, version 1.0")
    stop = start + int.from_bytes(data[8:10], "little")
    header = _NPY_HEADER.fullmatch(data[start:stop])
    if header is None or _NAMES[header[1]] not in allowed:
        raise ValueError(
            f"{key} has header {data[start:stop][:80]!r}; it must be a {' or '.join(allowed)} array of 1 to 4 axes"
        )
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(size) for size in header[3].split(b", "))
    expected = math.prod(shape) * dtype.itemsize
    if (ndim is not None and len(shape) != ndim) or expected != len(data) - stop:
        raise ValueError(
            f"{key} claims shape {shape} of {dtype}, {expected} bytes, but carries {len(data) - stop}; "
            f"it must have {ndim or '1 to 4'} axes"
        )
    values = np.frombuffer(data, dtype, offset=stop).reshape(shape, order="F" if header[2] == b"True" else "C")
    return values.astype(np.float32, order="C", copy=False)


def decode_plain(key: str, array: FlowerArray) -> np.ndarray[Any, Any]:
    """An array of any shape, read-only; ValueError naming `key` unless it holds floats or whole numbers up to 64 bits.

    The header is matched against the bytes that follow it before any memory is asked for.
    """
    stream = BytesIO(array.data)
    try:
        if array.stype != "numpy.ndarray" or np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("it is not in npy format, version 1.0")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, RecursionError, MemoryError) as error:  # the last two by a header that nests too deep
        raise ValueError(f"{key} cannot be read: {error}") from error
    left = len(array.data) - stream.tell()
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise ValueError(f"{key} is of type {dtype}; it must be of floats or whole numbers up to 64 bits")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != left:
        raise ValueError(f"{key} claims shape {shape} of {dtype} but carries {left} bytes")
    values = np.frombuffer(array.data, dtype, offset=stream.tell())
    return values.reshape(shape, order="F" if fortran_order else "C")


def quantise(matrix: Array, axis: int) -> tuple[np.ndarray[Any, np.dtype[np.int8]], Array]:
    """Whole numbers in [-127, 127] and the scale of each slice across `axis`; zero slices have scale 0."""
    scale = np.abs(matrix).max(axis=axis, keepdims=True) / STEPS
    rounded = np.rint(matrix / np.where(scale > 0, scale, 1)).astype(np.int8)
    return rounded, scale.ravel().astype(np.float32)


def rounded(lora: LoRA) -> dict[str, Factor]:
    """The adapter as the receiver of its int8 form will have it."""
    found = {}
    for layer, factor in lora.items():
        (B, scale_B), (A, scale_A) = quantise(factor.B, axis=0), quantise(factor.A, axis=1)
        found[layer] = Factor(B * scale_B, A * scale_A[:, None])
    return found


def with_feedback(lora: LoRA, owed: LoRA) -> tuple[dict[str, Factor], dict[str, Factor]]:
    """What to send in int8 instead of ΔΘ when `owed` is what earlier rounds took away, and what is owed after it.

    Both keep the ranks of `lora`: ΔΘ + owed is cut to what fits, balanced as √Σ, and the cut is owed as well. owed:
    empty in the first round; forgotten when its layers are others.
    """
    if owed.keys() != lora.keys() or any(owed[layer].shape != lora[layer].shape for layer in lora):
        owed = {}
    wanted = stack_loras([lora, owed], [1, 1]) if owed else dict(lora)
    sent = {layer: truncate(factor, lora[layer].rank)[0] for layer, factor in wanted.items()}
    left = {layer: stack([wanted[layer], factor], [1.0, -1.0]) for layer, factor in rounded(sent).items()}
    return sent, {layer: truncate(factor, lora[layer].rank)[0] for layer, factor in left.items()}
