"""Adapters and named arrays as Flower's records. What arrives is never trusted, as in `codec`."""

import re
import zlib
from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord

from fedsd.codec import ENCODINGS, FLOATS, decode, encode, quantise
from fedsd.lowrank import Array, Factor, LoRA

MANIFEST, NUMBERS, SCALES = PACKED = "manifest", "numbers", "scales"  # of an adapter in int8
MAX_MANIFEST = 2**20  # bytes, unpacked
MAX_ARRAYS, MAX_NUMBERS = 8192, 2**30  # of one message: somewhat more than SD 1.5's whole U-Net

_LAYER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
_LINE = re.compile(rf"({_LAYER.pattern}) ([1-9]\d{{0,8}}) ([1-9]\d{{0,8}}) ([1-9]\d{{0,8}})")


def lora_record(lora: LoRA, encoding: str = "float32") -> ArrayRecord:
    """`<layer>.B` and `<layer>.A` of every layer, in sorted order; encoding: float32, float16 or int8.

    int8 puts all layers into three arrays, since an array's own header is as long as a rank of a small layer:

        manifest    a line "layer d_out rank d_in" for each layer, in sorted order, deflated
        numbers     (Σ (d_out + d_in) rank,) of each layer B, then A, row by row
        scales      (Σ 2 rank,) float32: what one step is worth in each column of B, then in each row of A
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding must be one of {', '.join(ENCODINGS)}; got {encoding!r}")
    if encoding == "int8" and lora:
        return _packed(lora)
    halves = {f"{layer}.{side}": getattr(lora[layer], side) for layer in sorted(lora) for side in "BA"}
    return ArrayRecord({key: encode(half, encoding) for key, half in halves.items()})


def parse_lora(record: ArrayRecord) -> dict[str, Factor]:
    """Layer -> Factor, float32; ValueError when a half is missing, misnamed, misshapen or of another dtype."""
    if MANIFEST in record:
        return _unpacked(record)
    halves: dict[str, dict[str, Array]] = {}
    for key, array in record.items():
        layer, _, side = key.rpartition(".")
        if side not in ("A", "B") or not _LAYER.fullmatch(layer):
            raise ValueError(f"lora key {key[:80]!r} is not <layer>.A or <layer>.B")
        halves.setdefault(layer, {})[side] = decode(key, array, 2, FLOATS)
    for layer, sides in halves.items():
        if len(sides) != 2:
            raise ValueError(f"lora layer {layer} has {next(iter(sides))} but not its other half")
    return {layer: _factor(layer, **halves[layer]) for layer in sorted(halves)}


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


def _packed(lora: LoRA) -> ArrayRecord:
    lines, numbers, scales = [], [], []
    for layer in sorted(lora):
        (m, n), rank = lora[layer].shape, lora[layer].rank
        lines.append(f"{layer} {m} {rank} {n}")
        for whole, scale in (quantise(lora[layer].B, axis=0), quantise(lora[layer].A, axis=1)):
            numbers.append(whole.ravel())
            scales.append(scale)
    manifest = np.frombuffer(zlib.compress("\n".join(lines).encode()), np.int8)
    return ArrayRecord({
        MANIFEST: encode(manifest, "int8"), NUMBERS: encode(np.concatenate(numbers), "int8"),
        SCALES: encode(np.concatenate(scales), "float32"),
    })  # fmt: skip


def _unpacked(record: ArrayRecord) -> dict[str, Factor]:
    if set(record) != set(PACKED):
        raise ValueError(f"an adapter in int8 has {', '.join(PACKED)}; got {', '.join(key[:80] for key in record)}")
    layers = _manifest(decode(MANIFEST, record[MANIFEST], 1, ("int8",)).astype(np.int8).tobytes())
    numbers, scales = decode(NUMBERS, record[NUMBERS], 1, ("int8",)), decode(SCALES, record[SCALES], 1, ("float32",))
    wanted = sum((m + n) * rank for m, rank, n in layers.values()), sum(2 * rank for _, rank, _ in layers.values())
    if wanted != (numbers.size, scales.size):
        raise ValueError(
            f"{NUMBERS} and {SCALES} hold {numbers.size} and {scales.size} numbers, but {MANIFEST} speaks of "
            f"{wanted[0]} and {wanted[1]}"
        )
    if not np.isfinite(scales).all() or (scales < 0).any():
        raise ValueError(f"{SCALES} holds NaN, Inf or a negative number; lower train.lr on that node")
    lora, at, scale = {}, 0, 0
    for layer, (m, rank, n) in layers.items():
        B = numbers[at : at + m * rank].reshape(m, rank) * scales[scale : scale + rank]
        at, scale = at + m * rank, scale + rank
        A = numbers[at : at + rank * n].reshape(rank, n) * scales[scale : scale + rank, None]
        at, scale = at + rank * n, scale + rank
        lora[layer] = _factor(layer, B, A)
    return lora


def _manifest(deflated: bytes) -> dict[str, tuple[int, int, int]]:
    """Layer -> d_out, rank, d_in, in sorted order; inflated to MAX_MANIFEST bytes at most."""
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(deflated, MAX_MANIFEST).decode("ascii")
    except (zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{MANIFEST} cannot be inflated: {error}") from error
    if not inflate.eof:
        raise ValueError(f"{MANIFEST} is cut off or longer than {MAX_MANIFEST} bytes")
    layers: dict[str, tuple[int, int, int]] = {}
    for line in text.split("\n"):
        found = _LINE.fullmatch(line)
        if found is None or (layers and found[1] <= next(reversed(layers))):
            raise ValueError(f"{MANIFEST} has line {line[:80]!r}; each is 'layer d_out rank d_in', in sorted order")
        layers[found[1]] = int(found[2]), int(found[3]), int(found[4])
    return layers


def _factor(layer: str, B: Array, A: Array) -> Factor:
    try:
        return Factor(B, A)
    except ValueError as error:
        raise ValueError(f"lora layer {layer}: {error}") from error


def payload(record: ArrayRecord) -> int:
    """Bytes of a record's arrays."""
    return sum(len(array.data) for array in record.values())
