import numpy as np
import pytest

from fedsd.lowrank import Factor
from fedsd.strategies.bandwidth import Uplinks, fitting, ladder, payload
from fedsd.wire import lora_record


def lora(rank: int) -> dict[str, Factor]:
    """100 rows and columns in two layers: 100 numbers for each rank."""
    return {
        name: Factor(np.ones((d_out, rank), np.float32), np.ones((rank, 50 - d_out), np.float32))
        for name, d_out in (("q", 20), ("k", 30))
    }


@pytest.mark.parametrize("encoding", ["float32", "float16", "int8"])
def test_the_payload_is_what_travels_but_for_the_headers(encoding):
    record = lora_record(lora(8), encoding)
    numbers = [len(array.data) - 128 for key, array in record.items() if key != "manifest"]
    assert payload(lora(3), 8, encoding) == sum(numbers)


def test_the_ladder_takes_smaller_numbers_first_and_then_half_the_rank():
    assert ladder("float32", 6) == [("float32", 6), ("float16", 6), ("int8", 6), ("int8", 3), ("int8", 1)]
    assert ladder("float16", 1) == [("float16", 1), ("int8", 1)]


@pytest.mark.parametrize(
    ("bandwidth", "chosen"),
    # rank 8: 3200 bytes, 1600, 800 + 128; rank 4 in int8: 464; rank 2: 232; rank 1: 116
    [
        (320, ("float32", 8)),
        (319, ("float16", 8)),
        (100, ("int8", 8)),
        (92, ("int8", 4)),
        (24, ("int8", 2)),
        (1, ("int8", 1)),
    ],
)
def test_the_best_that_fits_the_time_is_chosen_else_the_cheapest(bandwidth, chosen):
    assert fitting(lora(3), 8, "float32", bandwidth, 10.0) == chosen


def test_clocks_and_latency_do_not_enter_the_bandwidth():
    uplinks = Uplinks("float32", 10.0, 0.2)
    uplinks.met("c0", -299.5)  # a clock that is 300 s ahead, and 0.5 s of latency
    assert uplinks.uploaded("c0", 1000, -295.5) == 250
    assert uplinks.uploaded("c1", 1000, 4.0) is None
    uplinks.met("c1", 0.1)
    assert uplinks.uploaded("c1", 1000, 0.0) == 5000  # no transfer is told to less than 0.2 s
    assert uplinks.uploaded("c1", 1000, float("nan")) is None


def test_a_client_is_asked_for_less_after_a_slow_upload_and_for_all_again_after_a_fast_one():
    uplinks = Uplinks("float32", 10.0, 0.2)
    uplinks.met("c0", 0.0)
    assert uplinks.order("c0", 8, lora(3)) == ("float32", 8)
    uplinks.uploaded("c0", 3200, 32.0)
    assert uplinks.order("c0", 8, lora(3)) == ("int8", 8)
    assert uplinks.encoding_of("c0") == "int8"
    assert uplinks.order("c1", 8, lora(3)) == ("float32", 8)
    uplinks.uploaded("c0", 928, 5.0)
    assert uplinks.order("c0", 8, lora(3)) == ("float16", 8)


def test_without_a_budget_nothing_changes():
    uplinks = Uplinks("float16", 0.0, 0.2)
    uplinks.met("c0", 0.0)
    uplinks.uploaded("c0", 10, 1000.0)
    assert uplinks.order("c0", 8, lora(3)) == ("float16", 8)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"wire\.encoding must be one of float32, float16, int8; got 'int4'"):
        Uplinks("int4", 0.0, 0.2)
    with pytest.raises(ValueError, match=r"wire\.upload-seconds must be >= 0, got -1"):
        Uplinks("int8", -1.0, 0.2)
