import zlib

import numpy as np
import pytest
from flwr.app import Array
from loras import lora

from fedsd.lowrank import Factor
from fedsd.records import MAX_MANIFEST, lora_record, parse_lora, payload


def test_int8_comes_back_within_half_a_step_of_each_column_and_row():
    sent, found = lora(), parse_lora(lora_record(lora(), "int8"))
    assert found.keys() == sent.keys()
    for layer, factor in sent.items():
        step_B, step_A = np.abs(factor.B).max(axis=0) / 127, np.abs(factor.A).max(axis=1, keepdims=True) / 127
        assert (np.abs(found[layer].B - factor.B) <= step_B * 0.5001).all()
        assert (np.abs(found[layer].A - factor.A) <= step_A * 0.5001).all()
        assert found[layer].B.dtype == np.float32


@pytest.mark.parametrize("rank", [4, 16, 64])
@pytest.mark.parametrize("width", [1280, 96])
def test_int8_takes_a_quarter_of_the_bytes(rank, width):
    rng = np.random.default_rng(0)
    big = {
        f"unet.down_blocks.{k}.attentions.0.to_k": Factor(
            rng.standard_normal((width, rank)).astype(np.float32), rng.standard_normal((rank, 96)).astype(np.float32)
        )
        for k in range(64)
    }
    size = {name: payload(lora_record(big, name)) for name in ("float32", "float16", "int8")}
    assert size["int8"] <= 0.26 * size["float32"]
    assert size["float16"] <= 0.55 * size["float32"]


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (np.ones(3), "numbers and scales hold 32 and 3 numbers, but manifest speaks of 32 and 8"),
        (np.full(8, np.nan), "scales holds NaN, Inf or a negative number"),
        (-np.ones(8), "scales holds NaN, Inf or a negative number"),
        (np.ones((2, 4)), r"scales claims shape \(2, 4\) .* it must have 1 axes"),
    ],
)
def test_wrong_scales_are_refused(scales, message):
    record = lora_record(lora(), "int8")
    record["scales"] = Array(scales.astype(np.float32))
    with pytest.raises(ValueError, match=message):
        parse_lora(record)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"q 9 2 9", "but manifest speaks of 36 and 4"),
        (b"q 3 2 5\nq 3 2 5", "manifest has line 'q 3 2 5'; each is 'layer d_out rank d_in', in sorted order"),
        (b"q 3 0 5", "manifest has line 'q 3 0 5'"),
        (b"", "manifest has line ''"),
        (b"../q 3 2 5", "manifest has line '../q 3 2 5'"),
        (b"\xff 3 2 5", "manifest cannot be inflated: 'ascii' codec"),
        (b" " * (MAX_MANIFEST + 1), "manifest is cut off or longer than 1048576 bytes"),
    ],
)
def test_a_manifest_that_lies_is_refused(lines, message):
    record = lora_record(lora(), "int8")
    record["manifest"] = Array(np.frombuffer(zlib.compress(lines), np.int8))
    with pytest.raises(ValueError, match=message):
        parse_lora(record)


def test_a_manifest_that_is_damaged_or_cut_off_is_refused():
    record = lora_record(lora(), "int8")
    data = record["manifest"].numpy()
    record["manifest"] = Array(data[:-1])
    with pytest.raises(ValueError, match="manifest is cut off"):
        parse_lora(record)
    record["manifest"] = Array(data[1:])
    with pytest.raises(ValueError, match="manifest cannot be inflated"):
        parse_lora(record)


def test_floats_beside_int8_are_refused():
    record = lora_record(lora())
    record["manifest"] = Array(np.ones(8, np.int8))
    with pytest.raises(ValueError, match="an adapter in int8 has manifest, numbers, scales; got"):
        parse_lora(record)
