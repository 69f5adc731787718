"""Adapters and named arrays as Flower's records. What arrives is never trusted, as in `codec`."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord

from fedsd.codec import ENCODINGS, FLOATS, decode, encode, quantise
from fedsd.lowrank import Array, Factor, LoRA

SCALES = "scales"
MAX_ARRAYS, MAX_NUMBERS = 8192, 2**30  # of one message: somewhat more than SD 1.5's whole U-Net

_LAYER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")


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


def arrays_record(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Named arrays of 1 to 4 axes, in sorted order, as float32."""
    return ArrayRecord({name: encode(arrays[name], "float32") for name in sorted(arrays)})


def parse_arrays(record: ArrayRecord) -> dict[str, Array]:
    """Name -> float32 array, read-only; ValueError when there are too many, or one is misnamed or of another dtype."""
    numbers = payload(record) // 4
    if len(record) > MAX_ARRAYS or numbers > MAX_NUMBERS:
        raise ValueError(f"{len(record)} arrays of {numbers} numbers; at most {MAX_ARRAYS} of {MAX_NUMBERS} are read")
    if odd := [key for key in record if not _LAYER.fullmatch(key)]:
        raise ValueError(f"arrays key {odd[0][:80]!r} is no name; use letters, digits, '_', '-' and '.'")
    return {key: decode(key, array, None, ("float32",)) for key, array in sorted(record.items())}


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


def payload(record: ArrayRecord) -> int:
    """Bytes of a record's arrays."""
    return sum(len(array.data) for array in record.values())
