import re

import pytest

from fedsd.values import are_ranks, are_shares, nearest, shares_by_name, strangers


def test_shares_are_read_by_name() -> None:
    assert shares_by_name("c1=0.1, anna = 1") == {"c1": 0.1, "anna": 1.0}
    assert shares_by_name("") == {}


@pytest.mark.parametrize("text", ["c1", "c1=", "=0.5", "c1=0", "c1=1.5", "c1=nan", "c1=a,c2=0.5"])
def test_a_share_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text.partition(",")[0]))):
        shares_by_name(text)
    assert not are_shares(text)


def test_ranks_are_whole_numbers_of_at_least_1() -> None:
    assert are_ranks("4, 8") and not are_ranks("4,0") and not are_ranks("")


def test_names_that_nobody_bears_come_with_the_nearest_that_somebody_does() -> None:
    assert strangers(["c1", "c12", "ana"], {"c0", "c1", "c2", "anna"}) == {"c12": "c2", "ana": "anna"}
    assert strangers(["c1"], ["c1"]) == {}
    assert nearest("zzz", ["c0"]) == "c0"
